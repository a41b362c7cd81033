"""What is exported computes in the engine what it computed in PyTorch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import training_runs
from test_parity import distance, run

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.errors import CheckpointError, InputError
from lapinfer.loading import load_model
from lapinfer.options import LoadOptions
from lapinfer.report.perplexity import perplexity as engine_perplexity
from lapinfer.text.language_model import from_model

torch = pytest.importorskip("torch")

from lapinfer.train import Config, Decoder, export, export_module, train  # noqa: E402
from lapinfer.train.config import Architecture, Dense, Mixture, Trees  # noqa: E402
from lapinfer.train.corpus import split  # noqa: E402

BOUND = 1e-4
"""max|Δ logit| / max|logit| in float32: sums in another order give 1e-6; a wrong formula 1e-3 or more."""

PLAIN = Architecture(
    vocab_size=300, max_position_embeddings=64, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
NORMED = replace(PLAIN, qk_norm=True, tie_word_embeddings=False, head_dim=16, num_key_value_heads=1)
SIX = {"num_experts": 6, "moe_intermediate_size": 20}

CASES: dict[str, tuple[str, Config]] = {
    "dense": ("llama", Config(PLAIN, dense=Dense(88))),
    "dense_normed": ("qwen3", Config(NORMED, dense=Dense(33))),
    "moe": ("mixtral", Config(PLAIN, moe=Mixture(**SIX))),
    "moe_noise": ("mixtral", Config(PLAIN, moe=Mixture(**SIX, num_experts_per_tok=3, noise=True, load=0.1))),
    "moe_normed": ("qwen3_moe", Config(NORMED, moe=Mixture(**SIX))),
    "moe_top_1": ("qwen3_moe", Config(NORMED, moe=Mixture(**SIX, num_experts_per_tok=1, norm_topk_prob=False))),
    "moe_bias": ("lfm2_moe", Config(replace(NORMED, head_dim=0), moe=Mixture(**SIX, score="sigmoid", bias_rate=0.01))),
    "moe_sigmoid": ("lfm2_moe", Config(replace(PLAIN, qk_norm=True), moe=Mixture(**SIX, score="sigmoid"))),
    "fff": ("lapinfer", Config(PLAIN, fff=Trees(depth=3, leaf_width=12))),
    "fff_wide": ("lapinfer", Config(replace(PLAIN, tie_word_embeddings=False), fff=Trees(depth=2, leaf_width=40))),
    "fff_normed": ("qwen3", Config(NORMED, fff=Trees(depth=2, leaf_width=7))),
    "fff_all": (
        "lapinfer",
        Config(PLAIN, fff=Trees(depth=2, leaf_width=9, trees=2, bias=True, node_width=3, node_activation="silu",
                                activation="gelu_new", master_width=13, mix=True)),
    ),
    "fff_plain": (
        "lapinfer",
        Config(PLAIN, fff=Trees(depth=3, leaf_width=4, gated=False, activation="relu", node_bias=False,
                                master_width=8)),
    ),
    "fff_depth_0": ("lapinfer", Config(PLAIN, fff=Trees(depth=0, leaf_width=20))),
}  # fmt: skip


def random_decoder(config: Config) -> Decoder:
    """Weights, norms, biases and selection biases that make every part matter."""
    torch.manual_seed(0)
    model = Decoder(config).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "rotary" in name:
                continue
            noise = torch.randn_like(value)
            if name.endswith("norm.weight"):
                value.copy_(1 + 0.2 * noise)
            else:
                value.copy_(noise * (0.3 if value.ndim < 2 else value.shape[-1] ** -0.5))
    return model


@pytest.mark.parametrize("name", CASES)
def test_logits_of_the_engine_are_those_of_pytorch(name: str, tmp_path: Path) -> None:
    family, config = CASES[name]
    model = random_decoder(config)
    folder = export(model, tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    ids = tiny.prompt(300, 40)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].numpy()
    assert distance(run(folder, ids), expected) < BOUND
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "packed"]


@pytest.mark.parametrize(
    "name", [name for name, (family, _) in CASES.items() if family in ("llama", "mixtral", "qwen3_moe")]
)
def test_other_programs_read_what_is_not_our_own(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_decoder(CASES[name][1])
    folder = export(model, tmp_path / "model")
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids = torch.tensor([tiny.prompt(300, 40)])
    with torch.no_grad():
        assert distance(theirs.float().eval()(ids).logits[0].numpy(), model(ids)[0].numpy()) < BOUND


@pytest.mark.parametrize("kind", training_runs.KINDS)
def test_a_trained_model_runs_with_the_perplexity_that_was_measured(kind: str, tmp_path: Path) -> None:
    """Text in, text out, and the held-out perplexity by the engine's own command."""
    config = Config.from_dict(training_runs.values(kind, steps=30, learning_rate=1e-2))
    texts = [training_runs.text()]
    result = train(config, texts, tmp_path / "run")
    packed = pack_calibrated(FolderCheckpoint(result.checkpoint), tmp_path / "packed", "f32")
    with from_model(load_model(packed, LoadOptions(kv="f32", threads=1))) as model:
        assert model.tokenizer is not None
        assert model.tokenizer.eos_ids == {0}
        *_, found = engine_perplexity(model, split(texts, config.training.validation)[1], ctx=32)
        assert found.ppl == pytest.approx(result.validation["ppl"], rel=1e-3)
        assert found.error == pytest.approx(result.validation["error"], rel=1e-2)
        assert model.generate("the dog", max_tokens=8, temperature=0).text


def test_a_trainer_of_somebody_else(tmp_path: Path) -> None:
    """Other names, a fused matrix, a transposed one, a buffer that is not written."""
    ours = random_decoder(CASES["fff"][1])
    theirs: Any = torch.nn.Module()
    theirs.embed = ours.embed_tokens
    theirs.head = torch.nn.Linear(48, 300, bias=False)
    theirs.head.weight = ours.embed_tokens.weight
    theirs.final = ours.norm
    theirs.register_buffer("mask", torch.zeros(3))
    theirs.blocks = torch.nn.ModuleList()
    for layer in ours.layers:
        block: Any = torch.nn.Module()
        attention, ff = layer.self_attn, layer.mlp
        block.qkv = torch.nn.Parameter(
            torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        )
        block.out, block.norm1, block.norm2 = attention.o_proj, layer.input_layernorm, layer.post_attention_layernorm
        block.nodes, block.gate, block.up = ff.nodes, ff.gate, ff.up
        block.w2s = torch.nn.Parameter(ff.down.transpose(1, 2).contiguous())
        theirs.blocks.append(block)
    p = "model.layers.*."
    fused = [f"{p}self_attn.{which}_proj.weight" for which in "qkv"]
    names = {
        "embed.weight": "model.embed_tokens.weight", "head.weight": None, "final.weight": "model.norm.weight",
        "mask": None, "blocks.*.qkv": lambda w: dict(zip(fused, w.split([48, 24, 24]), strict=True)),
        "blocks.*.out.weight": p + "self_attn.o_proj.weight", "blocks.*.norm1.weight": p + "input_layernorm.weight",
        "blocks.*.norm2.weight": p + "post_attention_layernorm.weight", "blocks.*.nodes.weight": p + "mlp.nodes.weight",
        "blocks.*.nodes.bias": p + "mlp.nodes.bias", "blocks.*.gate": p + "mlp.gate", "blocks.*.up": p + "mlp.up",
        "blocks.*.w2s": lambda w: {p + "mlp.down": w.transpose(1, 2)},
    }  # fmt: skip
    config = ours.config.checkpoint_config()
    folder = export_module(theirs, tmp_path / "model", config, names)
    ids = tiny.prompt(300, 40)
    with torch.no_grad():
        expected = ours(torch.tensor([ids]))[0].numpy()
    assert distance(run(folder, ids), expected) < BOUND

    before = {path: path.read_bytes() for path in folder.iterdir()}
    without = {name: target for name, target in names.items() if name != "mask"}
    with pytest.raises(InputError, match="mask: not in the table of names"):
        export_module(theirs, folder, config, without)
    with pytest.raises(InputError, match="is written twice"):
        export_module(theirs, folder, config, names | {"blocks.*.up": p + "mlp.gate"})
    with pytest.raises(CheckpointError, match=r"'model.layers.0.mlp.up' is missing"):
        export_module(theirs, folder, config, names | {"blocks.*.up": None})
    with pytest.raises(CheckpointError, match=r"config\.json says"):
        export_module(theirs, folder, config, names | {"blocks.*.w2s": p + "mlp.down"})
    with torch.no_grad():
        theirs.blocks[1].gate[0, 0, 0] = np.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        export_module(theirs, folder, config, names)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "packed"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_an_export_replaces_an_export_and_nothing_else(name: str, kind: str, tmp_path: Path) -> None:
    model, folder = random_decoder(CASES["dense"][1]), tmp_path / "model"
    folder.mkdir()
    (tmp_path / "precious").write_text("somebody's")
    if kind == "file":
        (folder / name).write_text("somebody's")
    else:
        (folder / name).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=rf"{name} is there already: .*; name another, or replace it by --force"):
        export(model, folder)
    assert (folder / name).read_text() == "somebody's"
    export(model, folder, force=True)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    export(model, folder)
    FolderCheckpoint(folder)
    assert (tmp_path / "precious").read_text() == "somebody's"
    (folder / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(InputError, match="weights of another checkpoint"):
        export(model, folder, force=True)
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "notes").touch()
    export(model, tmp_path / "model2")
    assert (tmp_path / "model.partial" / "notes").is_file()
