"""Stored tensors beside a config.json: each is used, known to change nothing, told of, or the model is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file
from typer.testing import CliRunner

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.cli import app
from lapinfer.errors import CheckpointError, LapinferError, UnsupportedError
from lapinfer.families.unread import foreign, verdict
from lapinfer.packing.reader import PackedFile, read_packed
from lapinfer.report import roofline
from lapinfer.report.info import info
from lapinfer.spec import ModelSpec

LAYER = "model.layers.1."
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, np.ndarray]


def golden(name: str = "llama-plain") -> tuple[dict[str, Any], Tensors]:
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{name}.npz")
    return config, stored


def noise(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) / 4


def write(folder: Path, config: dict[str, Any], stored: Tensors) -> FolderCheckpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stored, folder / "model.safetensors")
    return FolderCheckpoint(folder)


def packed(tmp_path: Path, config: dict[str, Any], stored: Tensors) -> tuple[ModelSpec, PackedFile, list[str]]:
    """The model of a packed copy, and what is told when it is read."""
    notices: list[str] = []
    folder = pack_calibrated(write(tmp_path / "source", config, stored), tmp_path / "packed", "f32")
    return *read_packed(folder, notices.append), notices


def refused(tmp_path: Path, config: dict[str, Any], stored: Tensors) -> str:
    with pytest.raises(LapinferError) as caught:
        packed(tmp_path, config, stored)
    assert not list((tmp_path / "packed").glob("*.safetensors"))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# Biases


def projections(config: dict[str, Any]) -> dict[str, int]:
    heads, kv, D = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    dim = config.get("head_dim") or D // heads
    return {"q": heads * dim, "k": kv * dim, "v": kv * dim, "o": D}


@pytest.mark.parametrize("name", ["llama-plain", "mistral-full", "qwen3-plain"])
def test_biases_that_config_does_not_declare_are_used(name: str, tmp_path: Path) -> None:
    config, stored = golden(name)
    rows = {p: n for p, n in projections(config).items() if p != "o"}
    for layer in range(config["num_hidden_layers"]):
        for p, n in rows.items():
            stored[f"model.layers.{layer}.self_attn.{p}_proj.bias"] = noise(n, seed=layer + n)
    spec, file, notices = packed(tmp_path, config, stored)
    assert all(a.qkv_bias and not a.o_bias for a in spec.attentions)
    expected = np.concatenate([stored[f"{LAYER}self_attn.{p}_proj.bias"] for p in rows])
    np.testing.assert_array_equal(file.tensor("layers.1.qkv.bias"), expected)
    assert len(notices) == 1
    assert "biases are stored" in notices[0]


def test_biases_of_feed_forward_output_and_head(tmp_path: Path) -> None:
    config, stored = golden()
    D, F = config["hidden_size"], config["intermediate_size"]
    sizes = {"self_attn.o": D, "mlp.gate": F, "mlp.up": F, "mlp.down": D}
    for layer in range(config["num_hidden_layers"]):
        stored |= {f"model.layers.{layer}.{p}_proj.bias": noise(n) for p, n in sizes.items()}
    stored["lm_head.bias"] = noise(config["vocab_size"])
    spec, file, _ = packed(tmp_path, config, stored)
    assert spec.head_bias
    np.testing.assert_array_equal(file.tensor("head.bias"), stored["lm_head.bias"])
    np.testing.assert_array_equal(file.tensor("layers.1.down.bias"), stored[f"{LAYER}mlp.down_proj.bias"])


def test_biases_of_some_layers_alone_are_refused(tmp_path: Path) -> None:
    config, stored = golden()
    stored[f"{LAYER}self_attn.q_proj.bias"] = noise(projections(config)["q"])
    assert "layers.1.self_attn.q_proj.bias' is stored" in refused(tmp_path, config, stored)


# The head


def test_a_stored_head_is_used_whatever_the_config_says(tmp_path: Path) -> None:
    config, stored = golden()
    stored[HEAD] = noise(config["vocab_size"], config["hidden_size"])
    spec, file, notices = packed(tmp_path, config | {"tie_word_embeddings": True}, stored)
    assert not spec.tied
    assert file.format("head") == "f32"
    assert "'lm_head.weight' is stored and isn't the embedding" in notices[0]


def test_a_stored_head_that_is_the_embedding(tmp_path: Path) -> None:
    config, stored = golden()
    stored[HEAD] = stored[EMBED].copy()
    spec, file, notices = packed(tmp_path, config | {"tie_word_embeddings": True}, stored)
    assert spec.tied
    assert "head" not in file.names()
    assert not notices


def test_a_tied_model_that_is_stored_by_its_head(tmp_path: Path) -> None:
    config, stored = golden()
    stored[HEAD] = stored.pop(EMBED)
    config["tie_word_embeddings"] = True
    spec, file, notices = packed(tmp_path, config, stored)
    assert spec.tied
    rows = np.asarray(file.tensor("embed")).size  # bytes of padded rows: as many as those of the embedding
    assert rows >= 4 * stored[HEAD].size
    assert not notices


def test_a_head_that_is_not_stored(tmp_path: Path) -> None:
    config, stored = golden()
    stored.pop(HEAD, None)
    message = refused(tmp_path, config | {"tie_word_embeddings": False}, stored)
    assert "lm_head.weight' is missing; if the head is the embedding, set tie_word_embeddings" in message


# Names


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["llama-plain", "gpt2-plain", "deepseek_v3-plain"])
def test_names_inside_wrappers(prefix: str, name: str, tmp_path: Path) -> None:
    config, stored = golden(name)
    _, file, notices = packed(tmp_path, config, {prefix + key: value for key, value in stored.items()})
    assert "layers.0.qkv" in file.names()
    assert not notices


def test_other_prefixes_are_named(tmp_path: Path) -> None:
    config, stored = golden()
    message = refused(tmp_path, config, {f"backbone.{key}": value for key, value in stored.items()})
    assert f"{EMBED}' is missing; there is 'backbone.{EMBED}'" in message


# What nobody reads

HARMLESS = {
    f"{LAYER}self_attn.rotary_emb.inv_freq": noise(6),
    "model.rotary_emb.inv_freq": noise(6),
    f"{LAYER}self_attn.bias": np.ones((1, 1, 8, 8), bool),
    f"{LAYER}self_attn.masked_bias": np.array(-1e9, np.float32),
    "model.position_ids": np.arange(8)[None],
    f"{LAYER}self_attn.new_proj.weight": np.zeros((0, 4), np.float32),
}
ASIDE = {
    "model.layers.2.mlp.up_proj.weight": "beyond the 2 of config.json",
    "model.vision_tower.encoder.layers.0.norm.weight": "images or sound",
    "visual.patch_embed.proj.weight": "images or sound",
    "v_head.summary.weight": "other tasks",
    "score.weight": "other tasks",
    "mtp.layers.0.norm.weight": "further tokens",
    "something.else": "no known use",
    f"{LAYER}self_attn.k_scale": "KV cache",
}
NEEDED = {
    f"{LAYER}self_attn.q_norm.weight": (12,),
    f"{LAYER}post_feedforward_layernorm.weight": (48,),
    f"{LAYER}mlp.experts.0.up_proj.weight": (8, 48),
    f"{LAYER}self_attn.sinks": (4,),
    "model.embed_layernorm.weight": (48,),
    "model.embed_positions.weight": (64, 48),
    "lm_head.scale": (1,),
}


def test_buffers_that_change_nothing_are_passed_by(tmp_path: Path) -> None:
    config, stored = golden()
    assert packed(tmp_path, config, stored | HARMLESS)[2] == []


def test_what_is_left_aside_is_named_at_every_load(tmp_path: Path) -> None:
    config, stored = golden()
    assert config["num_hidden_layers"] == 2
    counter = {f"{LAYER}mlp.tokens_seen": np.array(3)}
    _, _, notices = packed(tmp_path, config, stored | {name: noise(3) for name in ASIDE} | counter)
    for name, why in {**ASIDE, **dict.fromkeys(counter, "no floats")}.items():
        assert any(name in line and why in line for line in notices), name
    assert read_packed(tmp_path / "packed")[0].layers  # a copy that is read again, in silence


def test_info_says_what_a_run_would_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From headers and configs alone, of a folder and of its packed form."""
    config, stored = golden()
    _, _, told = packed(tmp_path, config | {"some_new_thing": 7}, stored | {name: noise(3) for name in ASIDE})
    assert len(told) == len(set(ASIDE.values())) + 1
    monkeypatch.setattr(SafetensorsFile, "read", lambda *arguments: pytest.fail("reads weights"))
    for name in ("source", "packed"):
        notes = info(str(tmp_path / name))[0]["notes"]
        assert [line.partition(": ")[2] for line in notes] == [line.split(": ", 2)[2] for line in told]
        monkeypatch.setattr(roofline, "weights_bandwidth", lambda *arguments: 1e10)
        shown = CliRunner().invoke(app, ["info", str(tmp_path / name)]).stdout
        assert [line for line in shown.splitlines() if line.startswith("note: ")] == [f"note: {line}" for line in notes]


@pytest.mark.parametrize("name", NEEDED)
def test_what_would_make_another_model_is_refused(name: str, tmp_path: Path) -> None:
    config, stored = golden()
    assert f"tensor {name!r} is stored" in refused(tmp_path, config, stored | {name: noise(*NEEDED[name])})


def test_a_promise_of_experts_that_no_file_keeps(tmp_path: Path) -> None:
    config, stored = golden("mixtral-plain")
    said = config | {"num_local_experts": 4096, "num_hidden_layers": 32, "layer_types": None}
    assert "131,072 experts, the files have only" in refused(tmp_path, said, stored)


def test_a_selection_bias_that_config_switches_off(tmp_path: Path) -> None:
    config, stored = golden("lfm2_moe-plain")
    assert any(name.endswith("expert_bias") for name in stored)
    assert "expert_bias' is stored" in refused(tmp_path, config | {"use_expert_bias": False}, stored)


def test_more_numbers_than_the_config_uses(tmp_path: Path) -> None:
    config, stored = golden("gpt_oss-yarn")
    for name in [name for name in stored if ".experts." in name]:
        stored[name] = np.concatenate([stored[name], stored[name][:1]])
    assert "uses only" in refused(tmp_path, config, stored)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("self_attn.q_proj.weight.absmax", "bitsandbytes"),
        ("self_attn.q_proj.SCB", "bitsandbytes"),
        ("self_attn.q_proj.weight_scale_inv", "FP8"),
        ("self_attn.q_proj.weight_packed", "compressed-tensors"),
        ("self_attn.q_proj.q_invperm", "EXL2"),
        ("self_attn.q_proj.codebooks", "AQLM"),
        ("self_attn.q_proj.W_q", "HQQ"),
        ("self_attn.q_proj.scales", "MLX"),
        ("self_attn.q_proj.lora_A.default.weight", "merge_and_unload"),
        ("self_attn.q_proj.parametrizations.weight.original0", "parametrization"),
    ],
)
def test_what_other_tools_make_of_weights_is_told(name: str, what: str, tmp_path: Path) -> None:
    config, stored = golden()
    weight = stored.pop(f"{LAYER}self_attn.q_proj.weight")
    message = refused(tmp_path, config, stored | {LAYER + name: weight})
    assert name in message
    assert what in message


def test_a_weight_of_a_type_that_weights_cannot_have(tmp_path: Path) -> None:
    config, stored = golden()
    stored[f"{LAYER}self_attn.q_proj.weight"] = stored[f"{LAYER}self_attn.q_proj.weight"].astype(np.int8)
    message = refused(tmp_path, config, stored)
    assert f"{LAYER}self_attn.q_proj.weight' has dtype I8, expected F32, F16, BF16, F64" in message


def test_float64_weights_are_rounded(tmp_path: Path) -> None:
    config, stored = golden()
    exact = stored["model.norm.weight"].astype(np.float64) + 1e-12
    _, file, _ = packed(tmp_path, config, stored | {"model.norm.weight": exact})
    np.testing.assert_array_equal(file.tensor("norm.weight"), exact.astype(np.float32))


def test_a_section_that_lies(tmp_path: Path) -> None:
    """The section is ours: what a published config.json has under its name is not believed."""
    config, stored = golden()
    said = config | {"lapinfer": {"untied": True, "biases": ["qkv"], "notes": ["hello"]}}
    spec, _, notices = packed(tmp_path, said, stored)
    assert not any(a.qkv_bias for a in spec.attentions)
    assert not notices
    path = tmp_path / "packed" / "config.json"
    for value in ([], {"biases": ["experts"]}, {"biases": 3}, {"untied": 1}, {"notes": [1]}, {"notes": ["x" * 1000]}):
        path.write_text(json.dumps(config | {"lapinfer": value}))
        if value:
            with pytest.raises((CheckpointError, UnsupportedError)):
                read_packed(tmp_path / "packed")


def test_no_name_of_a_tensor_of_ours_is_taken_for_something_else() -> None:
    """Names of all families' tiny models, which are in the table of nothing foreign."""
    for case in tiny.CASES:
        names = list(golden(str(case))[1])
        assert foreign(names) is None, case
        for name in names:
            if not name.startswith("lm_head"):
                assert verdict(name, (3, 3), True, "", 99)[0] in ("needed", "aside"), name
