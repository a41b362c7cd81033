"""Adapters merged while a checkpoint is packed: PEFT's own logits, and files that are not what they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from lapinfer.checkpoint.adapted import adapted
from lapinfer.checkpoint.hub import resolve
from lapinfer.checkpoint.lora import adapter_of
from lapinfer.errors import CheckpointError, InputError, LapinferError, UnsupportedError
from lapinfer.loading import convert, load_model
from lapinfer.options import LoadOptions
from lapinfer.storage.prune import prunable

BOUND = 1e-4
"""max|Δ logit| / max|logit| in float32: what other orders of sums make is 1e-6."""
SPREAD = 0.3


def _checkpoint(folder: Path, tied: bool = False) -> Path:
    """A tiny Llama, made without PyTorch."""
    rng, D, H, F, V = np.random.default_rng(0), 32, 32, 64, 96
    config = {
        "model_type": "llama", "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": F, "vocab_size": V, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
    }  # fmt: skip
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens": (V, D), "model.norm": (D,), layer + "input_layernorm": (D,),
        layer + "post_attention_layernorm": (D,), **{f"{layer}self_attn.{n}_proj": (H, D) for n in "qkvo"},
        layer + "mlp.gate_proj": (F, D), layer + "mlp.up_proj": (F, D), layer + "mlp.down_proj": (D, F),
    }  # fmt: skip
    if not tied:
        shapes["lm_head"] = (V, D)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({f"{n}.weight": tiny.random_tensor(n, s, rng) for n, s in shapes.items()}, folder / "model.safetensors")
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj."


def _adapter(folder: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """An adapter of q_proj, changed by what is given."""
    rng = np.random.default_rng(1)
    usual = {
        Q + "lora_A.weight": rng.standard_normal((4, 32), dtype=np.float32),
        Q + "lora_B.weight": rng.standard_normal((32, 4), dtype=np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(usual if tensors is None else tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "maker/model"}
    (folder / "adapter_config.json").write_text(json.dumps(said | config))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("lora") / "base")


def test_rows_are_those_of_the_formula(base: Path, tmp_path: Path):
    folder = _adapter(tmp_path / "mine")
    merged = adapted(resolve(base), [f"{folder}:0.5"])
    assert not isinstance(merged, Path)
    name = "model.layers.0.self_attn.q_proj.weight"
    stored, parts = load_file(base / "model.safetensors"), load_file(folder / "adapter_model.safetensors")
    expected = stored[name] + 0.5 * 8 / 4 * parts[Q + "lora_B.weight"] @ parts[Q + "lora_A.weight"]
    np.testing.assert_allclose(merged.read(name), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(merged.read(name, 5, 9), expected[5:9], rtol=1e-5, atol=1e-6)
    other = "model.layers.0.self_attn.k_proj.weight"
    assert np.array_equal(merged.read(other), stored[other])
    assert merged.name == "base+mine@0.5"
    assert any("mine@0.5" in line and "maker/model" in line for line in merged.notices)


def test_a_copy_is_of_these_adapters_and_scales(base: Path, tmp_path: Path):
    one, other = _adapter(tmp_path / "one"), _adapter(tmp_path / "other", lora_alpha=16)
    said = [[], [one], [f"{one}:0.5"], [one, other], [other, one], [f"{one}:2", other], [one, f"{other}:2"]]
    found = {adapted(resolve(base), [str(each) for each in names]).contents.identity() for names in said}  # type: ignore[union-attr]
    assert len(found) == len(said)


def test_a_copy_outlives_pruning_while_its_source_is_there(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    source = tmp_path / "source"
    shutil.copytree(base, source)
    load_model(source, LoadOptions(ctx=8, lora=(str(_adapter(tmp_path / "mine")),))).close()
    copies = list((tmp_path / "home").glob("*/source+mine-*"))
    assert len(copies) == 1
    assert not [owned for owned in prunable() if "mine" in owned.what]
    (source / "model.safetensors").unlink()
    save_file({"x": np.zeros(1, np.float32)}, source / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "config", "error", "said"),
    [
        (None, {"peft_type": "LOHA"}, UnsupportedError, "peft_type is 'LOHA', expected LORA"),
        (None, {"peft_type": None}, UnsupportedError, "peft_type is 'None'"),
        (None, {"layer_replication": [[0, 1]]}, UnsupportedError, "'layer_replication' is set"),
        (None, {"trainable_token_indices": [3]}, UnsupportedError, "'trainable_token_indices' is set"),
        (None, {"target_parameters": ["experts"]}, UnsupportedError, "'target_parameters' is set"),
        (None, {"init_lora_weights": "pissa"}, UnsupportedError, "changes the model's own weights"),
        (None, {"init_lora_weights": ["gaussian"]}, UnsupportedError, "changes the model's own weights"),
        (None, {"r": 3}, CheckpointError, "rank 4, adapter_config.json says 3"),
        (None, {"lora_alpha": "8"}, CheckpointError, "lora_alpha is '8', expected a number above 0"),
        (None, {"use_rslora": 1}, CheckpointError, "use_rslora is '1', expected true or false"),
        (None, {"use_dora": True}, CheckpointError, "says use_dora = true, and"),
        (None, {"rank_pattern": {"(a+)+$": 2}}, UnsupportedError, "is no plain name of a module"),
        (None, {"alpha_pattern": [1]}, CheckpointError, "alpha_pattern: expected an object"),
        ({}, {}, CheckpointError, "has no tensors of an adapter"),
        ({"x.lora_A.weight": np.zeros((4, 32), np.float32)}, {}, CheckpointError, "a name that PEFT does not give"),
        ({Q + "lora_A.weight": np.zeros((4, 32), np.float32)}, {}, CheckpointError, "lora_B' is missing"),
        (
            {Q + "lora_A.weight": np.zeros((4, 32), np.float32), Q + "lora_B.weight": np.zeros((32, 5), np.float32)},
            {}, CheckpointError, "which does not fit the other matrix's (32, 5)",
        ),
        (
            {Q + "lora_A.weight": np.zeros((4, 30), np.float32), Q + "lora_B.weight": np.zeros((32, 4), np.float32)},
            {}, CheckpointError, "changes a matrix (32, 30) of 'model.layers.0.self_attn.q_proj', which has shape",
        ),
        (
            {Q + "lora_A.weight": np.full((4, 32), np.nan, np.float32), Q + "lora_B.weight": np.zeros((32, 4), "f4")},
            {}, CheckpointError, "values that are not numbers",
        ),
        ({Q + "lora_C.weight": np.zeros((4, 32), np.float32)}, {}, UnsupportedError, "is of a kind that is not merged"),
        ({"base_model.model.other.weight": np.zeros(3, "f4")}, {}, CheckpointError, "changes 'other.weight', which"),
        ({"base_model.model.model.norm.weight": np.zeros(3, "f4")}, {}, UnsupportedError, "the model's has (32,)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_a_line(base, tmp_path, tensors, config, error, said):
    folder = _adapter(tmp_path / "mine", tensors, **config)
    with pytest.raises(error) as told:
        adapted(resolve(base), [str(folder)])
    assert said in str(told.value)
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)


def test_paths_and_scales(tmp_path: Path, base: Path):
    folder = _adapter(tmp_path / "a:2")
    assert adapter_of(str(folder)).scale == 1  # a folder of that name is there
    assert adapter_of(f"{folder}:-1.5").scale == -1.5
    for said, error in ((f"{folder}:0", "the scale is 0"), (f"{folder}:nan", "the scale is nan")):
        with pytest.raises(InputError, match=error):
            adapter_of(said)
    with pytest.raises(CheckpointError, match="no such folder; an adapter is one"):
        adapter_of(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"adapter_config.json: no such file"):
        adapter_of(str(tmp_path / "empty"))
    packed = convert(base, tmp_path / "packed", "q8")
    with pytest.raises(UnsupportedError, match="is packed already, so no adapter can be merged"):
        load_model(packed, LoadOptions(lora=(str(folder),)))
    with pytest.raises(InputError, match="lora: expected names of folders"):
        LoadOptions(lora=("",))


EMBED, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"


def test_an_embedding_that_is_the_head_is_not_changed_alone(tmp_path: Path):
    base = _checkpoint(tmp_path / "tied", tied=True)
    values = np.random.default_rng(3).standard_normal((96, 32), dtype=np.float32)
    for tensors in ({EMBED: values}, {HEAD: values}, {EMBED: values, HEAD: values + 1}):
        folder = _adapter(tmp_path / "mine", tensors, modules_to_save=["embed_tokens"])
        with pytest.raises(UnsupportedError, match="head is its embedding"):
            adapted(resolve(base), [str(folder)])
    folder = _adapter(tmp_path / "mine", {EMBED: values, HEAD: values})
    merged = adapted(resolve(base), [str(folder)])
    assert np.array_equal(merged.read("model.embed_tokens.weight", 3, 7), values[3:7])  # type: ignore[union-attr]
    parts = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((4, 96), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.zeros((32, 4), np.float32),
    }
    with pytest.raises(LapinferError, match="cannot be changed alone"):
        adapted(resolve(base), [str(_adapter(tmp_path / "mine", parts))])


PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama-plain", {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "rank-stabilised": ("llama-plain", {"target_modules": ["k_proj", "up_proj"], "use_rslora": True}),
    "dora": ("llama-plain", {"target_modules": ["o_proj", "gate_proj"], "use_dora": True}),
    "patterns": (
        "llama-plain",
        {
            "target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {"^model.layers.0.self_attn.o_proj": 5},
        },
    ),
    "all": ("qwen2-plain", {"target_modules": "all-linear", "bias": "lora_only", "modules_to_save": ["lm_head"]}),
    "embedding": ("llama-plain", {"target_modules": ["embed_tokens", "lm_head"]}),
    "transposed": ("gpt2-plain", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
}  # fmt: skip


def _peft(name: str, folder: Path, seed: int = 1) -> tuple[Path, Path, list[int], np.ndarray]:
    """A checkpoint, an adapter of random numbers, token ids, and the logits of both in PEFT."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    wanted, options = PEFT[name]
    case = next(case for case in tiny.CASES if str(case) == wanted)
    base, ids, _ = tiny.make(case, folder)
    model = peft.get_peft_model(tiny.build(case.family, case.config), peft.LoraConfig(r=4, lora_alpha=6, **options))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            if values.requires_grad:
                noise = rng.standard_normal(values.shape, dtype=np.float32) * SPREAD + ("magnitude" in parameter)
                values.copy_(torch.from_numpy(noise.astype(np.float32)))
    model.save_pretrained(folder / "adapter")
    return base, folder / "adapter", ids, tiny.logits_of(model, ids)


@pytest.mark.parametrize("name", PEFT)
def test_logits_are_those_of_peft(name: str, tmp_path: Path):
    base, adapter, ids, expected = _peft(name, tmp_path)
    model = load_model(base, LoadOptions(quant="f32", kv="f32", ctx=len(ids), threads=2, lora=(str(adapter),)))
    got = model.forward(ids)
    model.close()
    assert np.abs(got - expected).max() <= BOUND * np.abs(expected).max()
