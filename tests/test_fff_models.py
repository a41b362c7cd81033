"""Language models whose feed-forwards are trees, from checkpoints as docs/checkpoint-format.md has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import family_cases
import numpy as np
import pytest
import reference
import tiny
from safetensors.numpy import load_file, save_file
from test_parity import distance, run, write_folder

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.errors import CheckpointError, InputError, UnsupportedError
from lapinfer.families import spec_from_config
from lapinfer.families.fff import KEYS
from lapinfer.loading import load_model
from lapinfer.options import LoadOptions
from lapinfer.report.explain import explain
from lapinfer.report.info import info
from lapinfer.runtime.routing import Routing

DOC = Path(__file__).parents[1] / "docs" / "checkpoint-format.md"
D, V, BASE = 48, 101, {**family_cases.BASE, "model_type": "lapinfer", "tie_word_embeddings": True, "rope_theta": 1000.0}
BASE = {key: value for key, value in BASE.items() if key not in ("rope_parameters", "pad_token_id")}


def stored_shapes(fff: dict[str, Any], layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Names and shapes by the tables of the document, written apart from the package."""
    heads, kv = 4 * 12, 2 * 12
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    P, d, F, n, M = (fff.get(k, v) for k, v in (("trees", 1), ("depth", 0), ("leaf_width", 1), ("node_width", 1),
                                                ("master_width", 0)))  # fmt: skip
    neurons = fff.get("neurons", False)
    L, N = P * ((2 << d) - 1 if neurons else 1 << d), 0 if neurons else P * ((1 << d) - 1)
    gated, bias = fff.get("gated", not neurons), fff.get("bias", False)
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= {
            p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,),
            p + "self_attn.q_proj.weight": (heads, D), p + "self_attn.k_proj.weight": (kv, D),
            p + "self_attn.v_proj.weight": (kv, D), p + "self_attn.o_proj.weight": (D, heads),
        }  # fmt: skip
        m = p + "mlp."
        if i not in fff.get("layers", range(layers)):
            shapes |= {m + "gate_proj.weight": (88, D), m + "up_proj.weight": (88, D), m + "down_proj.weight": (D, 88)}
            continue
        shapes |= {m + "up": (L, F, D), m + "down": (L, D, F)}
        if N:
            shapes[m + "nodes.weight"] = (N * n, D)
        if N and fff.get("node_bias", True):
            shapes[m + "nodes.bias"] = (N * n,)
        if N and n > 1:
            shapes |= {m + "node_out": (N, n), m + "node_out_bias": (N,)}
        if gated:
            shapes[m + "gate"] = (L, F, D)
        if bias:
            shapes[m + "up_bias"] = (L, F)
            if gated:
                shapes[m + "gate_bias"] = (L, F)
            if not neurons:
                shapes[m + "down_bias"] = (L, D)
        if M:
            shapes |= {m + "master_up": (M, D), m + "master_down": (D, M)}
            if gated:
                shapes[m + "master_gate"] = (M, D)
            if bias:
                shapes |= {m + "master_up_bias": (M,), m + "master_down_bias": (D,)}
                if gated:
                    shapes[m + "master_gate_bias"] = (M,)
        if fff.get("mix"):
            shapes[m + "mix"] = (1,)
    return shapes


def write(folder: Path, fff: dict[str, Any], seed: int = 0, **other: Any) -> Path:
    rng = np.random.default_rng(seed)
    stored = {}
    for name, shape in stored_shapes(fff).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("norm.weight"):
            values = 1 + 0.1 * values
        elif len(shape) > 1 and "embed" not in name:
            values *= shape[-1] ** -0.5
        stored[name] = values
    return write_folder(folder, {**BASE, **other, "fff": fff}, stored)


CASES: dict[str, dict[str, Any]] = {
    "plain": {"depth": 3, "leaf_width": 8},
    "wide": {"depth": 2, "leaf_width": 40, "gated": False, "activation": "gelu_new", "node_bias": False},
    "biases": {"depth": 2, "leaf_width": 6, "bias": True, "trees": 2, "activation": "relu"},
    "wide_biases": {"depth": 1, "leaf_width": 33, "bias": True, "trees": 3},
    "nodes": {"depth": 3, "leaf_width": 4, "node_width": 3, "node_activation": "silu", "gated": False},
    "master": {"depth": 2, "leaf_width": 5, "master_width": 12, "mix": True, "bias": True},
    "wide_master": {"depth": 1, "leaf_width": 32, "master_width": 40, "mix": True},
    "master_alone": {"depth": 2, "leaf_width": 3, "master_width": 3, "gated": False},
    "depth_0": {"depth": 0, "leaf_width": 20},
    "neurons": {"depth": 3, "neurons": True, "trees": 2, "bias": True},
    "one_layer": {"depth": 3, "leaf_width": 8, "layers": [1]},
}


@pytest.mark.parametrize("name", CASES)
def test_models_compute_what_the_oracle_does(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", CASES[name])
    ids = tiny.prompt(V, 30)
    spec = spec_from_config(json.loads((folder / "config.json").read_text()), name)
    weights = reference.load_weights(folder, spec)
    routed: dict[int, np.ndarray] = {}
    expected = reference.forward(spec, weights, ids, routed=routed)
    assert distance(run(folder, ids), expected) < 1e-4
    model = load_model(tmp_path / "packed", LoadOptions(kv="f32", ctx=30, threads=1))
    model.prefill(ids)
    for layer, chosen in model.chosen_experts.items():
        k = routed[layer].shape[1]
        np.testing.assert_array_equal(chosen[:, :k], routed[layer])
    assert "tree" in explain(model) or "neurons" in explain(model) or "descend" in explain(model)
    model.close()


@pytest.mark.parametrize("quant", ["q8", "q4", "f16"])
def test_every_format_is_packed_and_runs(quant: str, tmp_path: Path) -> None:
    """Quantized leaves stay near; nodes are as stored."""
    folder = write(tmp_path / "model", CASES["master"])
    ids = tiny.prompt(V, 30)
    spec = spec_from_config(json.loads((folder / "config.json").read_text()), quant)
    expected = reference.forward(spec, reference.load_weights(folder, spec), ids)
    packed = pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", quant)
    model = load_model(packed, LoadOptions(kv="f32", threads=2, activations="q16"))
    assert model.weights.format("layers.0.nodes") == "f32"
    assert model.weights.format("layers.0.leaves.inward") == quant
    got = model.forward(ids)
    error = np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean())
    assert error < {"q8": 0.1, "q4": 0.6, "f16": 0.02}[quant]  # one turned decision is worth a tenth
    model.close()
    shown, *_ = info(str(packed))
    assert "a tree of depth 2 with leaves of 5 silu gated" in json.dumps(shown, default=str)


def test_telemetry_knows_leaves_and_decisions(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", CASES["plain"])
    model = load_model(pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", "f32"), LoadOptions(threads=1))
    model.routing = Routing(model.spec)
    ids = tiny.prompt(V, 40)
    model.prefill(ids)
    arrays = model.routing.arrays()
    assert arrays["tokens_routed"].shape == (2, 8)
    assert (arrays["tokens_routed"].sum(axis=1) == 40).all()
    assert ((arrays["node_entropy"] > 0) & (arrays["node_entropy"] < np.log(2))).all()
    assert ((arrays["leaf_mass"] > 0.125) & (arrays["leaf_mass"] < 1)).all()
    assert not arrays["together"].any()
    model.close()


def test_the_document_names_every_key() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text.split("## Tensors")[0], re.M)) == KEYS


def test_the_example_of_the_document(tmp_path: Path) -> None:
    """A PyTorch model by the names of the document, written by its twenty lines, gives the same logits here."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional
    torch.manual_seed(0)
    example = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.S)[0]
    scope: dict[str, Any] = {}
    exec(example, scope)

    class FastFeedForward(nn.Module):
        def __init__(self, depth: int, leaf: int) -> None:
            super().__init__()
            self.depth, leaves = depth, 1 << depth
            self.nodes = nn.Linear(D, leaves - 1)
            self.gate, self.up = (nn.Parameter(torch.randn(leaves, leaf, D) * D**-0.5) for _ in range(2))
            self.down = nn.Parameter(torch.randn(leaves, D, leaf) * leaf**-0.5)

        def forward(self, x: Any) -> Any:
            logits = self.nodes(x)
            node = torch.zeros(len(x), dtype=torch.long)
            for _ in range(self.depth):
                node = 2 * node + 1 + (logits.gather(1, node[:, None])[:, 0] >= 0).long()
            leaf = node - (1 << self.depth) + 1
            gate = torch.einsum("tfd,td->tf", self.gate[leaf], x)
            up = torch.einsum("tfd,td->tf", self.up[leaf], x)
            return torch.einsum("tdf,tf->td", self.down[leaf], functional.silu(gate) * up)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in range(4))

        def forward(self, x: Any) -> Any:
            q, k, v = (m(x).view(len(x), 4, 12).transpose(0, 1) for m in (self.q_proj, self.k_proj, self.v_proj))
            angles = torch.arange(len(x))[:, None] * 10_000.0 ** (-torch.arange(6) / 6)
            cos, sin = angles.cos(), angles.sin()

            def turned(a: Any) -> Any:
                low, high = a[..., :6], a[..., 6:]
                return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

            y = functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
            return self.o_proj(y.transpose(0, 1).reshape(len(x), D))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (nn.RMSNorm(D, eps=1e-5) for _ in range(2))
            self.attn, self.ff = Attention(), FastFeedForward(3, 6)

        def forward(self, x: Any) -> Any:
            x = x + self.attn(self.norm1(x))
            return x + self.ff(self.norm2(x))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.final_norm = nn.Embedding(V, D), nn.RMSNorm(D, eps=1e-5)
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(self, ids: Any) -> Any:
            x = self.embed(ids)
            for block in self.blocks:
                x = block(x)
            return self.final_norm(x) @ self.embed.weight.T

    model = Decoder()
    scope["export"](
        model, tmp_path / "model", {"depth": 3, "leaf_width": 6}, hidden_size=D, intermediate_size=D, vocab_size=V,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        rms_norm_eps=1e-5, rope_theta=10_000.0,
    )  # fmt: skip
    ids = tiny.prompt(V, 25)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).numpy()
    assert distance(run(tmp_path / "model", ids), expected) < 1e-4


@pytest.mark.parametrize(
    ("fff", "error", "message"),
    [
        ({"depth": -1, "leaf_width": 4}, CheckpointError, "'depth' is -1"),
        ({"depth": 17, "leaf_width": 4}, CheckpointError, "'depth' is 17, expected an integer from 0 to 16"),
        ({"depth": 3}, CheckpointError, "'leaf_width' is missing"),
        ({"depth": 3, "leaf_width": 0}, CheckpointError, "'leaf_width' is 0"),
        ({"depth": 2, "leaf_width": 4, "mix": True}, CheckpointError, "'mix' is True"),
        ({"depth": 2, "leaf_width": 4, "neurons": True}, CheckpointError, "'neurons' is True"),
        ({"depth": 2, "leaf_width": 4, "layers": [2]}, CheckpointError, "'layers' is \\[2\\], expected a list"),
        ({"depth": 2, "leaf_width": 4, "leafs": 3}, UnsupportedError, "'leafs' is 3; supported here: activation"),
        ({"depth": 2, "leaf_width": 4, "activation": "softplus"}, UnsupportedError, "softplus"),
        (7, CheckpointError, "'fff' is 7, expected an object"),
    ],
)
def test_sections_that_cannot_be(fff: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec_from_config({**BASE, "fff": fff}, "config.json")


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        ("1.mlp.nodes.weight", lambda v: v[:6], r" has shape \(6, 48\), config.json says \(7, 48\)"),
        ("1.mlp.up", lambda v: v[:4], r" has shape \(4, 8, 48\), config.json says that it has an expert 4"),
        ("0.mlp.gate", lambda v: v[:, :5], ".* config.json says"),
        ("0.mlp.down", lambda v: v[:, :, :5], ".* config.json says"),
        ("1.mlp.nodes.bias", None, " is missing"),
        ("1.mlp.nodes.weight", lambda v: v * np.nan, " has values that are not numbers"),
        ("1.mlp.up", lambda v: v * np.inf, " has values that are not numbers"),
    ],
)  # fmt: skip
def test_tensors_that_contradict_the_config(tensor: str, change: Any, message: str, tmp_path: Path) -> None:
    """Node counts, leaves that contradict the depth, layers of different depths, what is no number."""
    tensor = f"model.layers.{tensor}"
    folder = write(tmp_path / "model", CASES["plain"])
    stored = load_file(folder / "model.safetensors")
    if change is None:
        del stored[tensor]
    else:
        stored[tensor] = np.ascontiguousarray(change(stored[tensor]))
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", "f32")


def test_options_that_trees_have_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", CASES["plain"])
    packed = pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", "q8")
    with pytest.raises(InputError, match="a leaf of a tree is one, and always one"):
        load_model(packed, LoadOptions(experts=2))
    with pytest.raises(InputError, match="leaves of a few neurons"):
        load_model(packed, LoadOptions(memory=1.0))
