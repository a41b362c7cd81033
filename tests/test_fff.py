"""Fast feedforward layers on their own: against the package `fastfeedforward`, trained digits, and plain NumPy; and the
identities that they must keep."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lapinfer.errors import InputError
from lapinfer.layers import FFF, Dense, MoE
from lapinfer.layers.soft import activate, leaf_output, node_logits
from lapinfer.quant.formats import FORMATS as WEIGHT_FORMATS

F32 = np.float32
DATA = Path(os.environ.get("LAPINFER_DATA", Path(__file__).parents[2] / "shared" / "data"))
FORMATS = [name for name, form in WEIGHT_FORMATS.items() if form.row]


def random(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(F32)


def tree(
    seed: int, depth: int, width: int, D: int, out: int, *, gated: bool = False, bias: bool = True, trees: int = 1,
    node_width: int = 1, **options: Any,
) -> FFF:  # fmt: skip
    """A layer of random arrays."""
    rng = np.random.default_rng(seed)
    E, N = trees << depth, trees * ((1 << depth) - 1)
    arrays: dict[str, Any] = {
        "nodes": random(rng, N * node_width, D, scale=D**-0.5) if N else None,
        "node_bias": random(rng, N * node_width, scale=0.3) if N else None,
        "up": random(rng, E, width, D, scale=D**-0.5),
        "down": random(rng, E, out, width, scale=width**-0.5),
        "gate": random(rng, E, width, D, scale=D**-0.5) if gated else None,
    }
    if N and node_width > 1:
        arrays |= {"node_out": random(rng, N, node_width), "node_out_bias": random(rng, N)}
    if bias:
        arrays |= {"up_bias": random(rng, E, width), "down_bias": random(rng, E, out)}
        if gated:
            arrays["gate_bias"] = random(rng, E, width)
    return FFF(**arrays, trees=trees, threads=1, **options)


def hard(layer: FFF, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leaves [T, trees] and output [T, out] by plain loops over the rounded weights."""
    arrays, spec = layer.dequantized(), layer.tree
    logits = node_logits(spec, arrays, x)
    leaves, y = np.zeros((len(x), spec.trees), int), np.zeros((len(x), layer.out), F32)
    for t in range(len(x)):
        for i in range(spec.trees):
            node = 0
            for _ in range(spec.depth):
                node = 2 * node + 1 + int(logits[t, i, node] >= 0)
            leaves[t, i] = i * (1 << spec.depth) + node - spec.nodes
            y[t] += leaf_output(layer.ff, arrays, leaves[t, i], x[t : t + 1])[0]
    return leaves, y


def near(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(float(np.abs(expected).max()), 1e-3))


# ---- kernels ----

SHAPES = [
    # depth, width, D, out, options
    (0, 1, 1, 1, {}),
    (1, 3, 31, 10, {}),
    (3, 8, 70, 33, {"gated": True}),
    (5, 2, 64, 64, {"bias": False}),
    (2, 5, 96, 17, {"trees": 3, "gated": True}),
    (3, 31, 40, 40, {"node_width": 3}),
    (4, 24, 48, 130, {"gated": True, "trees": 2}),
    (2, 32, 70, 20, {}),  # in quantized formats wide from here on, in floats from 64
    (3, 50, 64, 33, {"gated": True}),
    (1, 64, 40, 48, {"trees": 2, "node_width": 2}),
    (0, 96, 33, 70, {"gated": True}),
]


@pytest.mark.parametrize("quant", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s[:4])))
def test_hard_is_one_leaf(shape: Any, quant: str) -> None:
    """Leaves and outputs of a lone token, a few, and many; the same bits whatever the number."""
    depth, width, D, out, options = shape
    layer = tree(1, depth, width, D, out, quant=quant, activation="silu" if options.get("gated") else "gelu_tanh",
                 activations="q16", batch=40, **options)  # fmt: skip
    x = random(np.random.default_rng(2), 93, D)
    leaves, expected = hard(layer, x)
    got = layer(x)
    # 16-bit activations of wide quantized leaves are exact to 2^-15, and so is nothing behind them.
    near(got, expected, 2e-3 if width >= 32 and WEIGHT_FORMATS[quant].grouped else 2e-5)
    np.testing.assert_array_equal(layer.leaves(x), leaves)
    np.testing.assert_array_equal(np.concatenate([layer(x[i : i + 1]) for i in range(20)]), got[:20])
    np.testing.assert_array_equal(np.concatenate([layer(x[:3]), layer(x[3:20])]), got[:20])
    usage = layer.usage()
    assert usage["tokens"] == 93 + 93 + 20 + 20
    assert usage["leaves"].sum() == usage["tokens"] * layer.tree.trees
    if depth:
        np.testing.assert_array_equal(usage["nodes"].reshape(layer.tree.trees, -1)[:, 0], usage["tokens"])
    layer.close()


@pytest.mark.parametrize("quant", FORMATS)
@pytest.mark.parametrize(("depth", "trees", "bias"), [(0, 1, True), (3, 1, False), (4, 3, True)])
def test_neurons_as_nodes(quant: str, depth: int, trees: int, bias: bool) -> None:
    """UltraFastBERT's trees: the sum over the neurons on the way; right above zero."""
    rng = np.random.default_rng(depth)
    D, out, N = 50, 45, trees * ((2 << depth) - 1)
    state = {"linear_in.weight": random(rng, N, D), "linear_out.weight": random(rng, out, N)}
    if bias:
        state["linear_in.bias"] = random(rng, N)
    layer = FFF.from_state_dict(state, trees=trees, quant=quant, threads=1, batch=30)
    assert (layer.tree.depth, layer.tree.trees, layer.tree.neurons) == (depth, trees, True)
    x = random(rng, 70, D)
    arrays = layer.dequantized()
    w1, w2 = arrays["layers.0.leaves.inward"][:, 0], arrays["layers.0.leaves.outward"][:, 0]
    expected = np.zeros((len(x), out), F32)
    for t in range(len(x)):
        for i in range(trees):
            node, first = 0, i * ((2 << depth) - 1)
            for _ in range(depth + 1):
                logit = w1[first + node] @ x[t] + (state["linear_in.bias"][first + node] if bias else 0)
                expected[t] += activate("gelu", np.array(logit)) * w2[first + node]
                node = 2 * node + 1 + int(logit > 0)
    got = layer(x)
    near(got, expected, 2e-5)
    np.testing.assert_array_equal(np.concatenate([layer(x[i : i + 1]) for i in range(9)]), got[:9])
    assert layer.usage()["nodes"].sum() == (len(x) + 9) * trees * (depth + 1)
    layer.close()


@pytest.mark.parametrize("width", [3, 80])
def test_only_what_is_on_the_path_counts(width: int) -> None:
    """Bytes by formula: d nodes and one leaf a token; of several tokens, each node and leaf once."""
    depth, D, out = 4, 64, 32
    layer = tree(3, depth, width, D, out, batch=64)
    x = random(np.random.default_rng(4), 30, D)
    stored = width if width < 64 else -(-width // 32) * 32  # wide leaves are padded to groups of 32 neurons
    leaf = 4 * stored * (D + out) + 4 * width + 4 * out
    node = 4 * D + 4
    layer(x[:1])
    assert int(layer.runner.meter.bytes.sum()) == depth * node + leaf
    layer.runner.meter.reset()
    layer(x)
    leaves = np.unique(layer.leaves(x))
    nodes = {(leaf_ + 15 + 1) >> up for leaf_ in leaves.tolist() for up in range(1, depth + 1)}
    layer.runner.meter.reset()
    layer(x)
    assert int(layer.runner.meter.bytes.sum()) == len(nodes) * node + len(leaves) * leaf
    layer.close()


def test_threads_change_no_bit() -> None:
    x = random(np.random.default_rng(5), 200, 48)
    results = []
    for threads in (1, 2, 4):
        layer = tree(6, 3, 7, 48, 48, gated=True, trees=2)
        layer = layer.quantized("q8", threads=threads)
        results.append(layer(x))
        layer.close()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def own(D: int, F: int, out: int) -> int:
    """Bytes of a dense layer's numbers in float32."""
    return 4 * (F * D + F + out * F + out)


@pytest.mark.parametrize("quant", ["f32", "q8", "q4"])
def test_layers_of_whole_blocks_tell_of_no_padding(quant: str) -> None:
    for made in (
        Dense(np.ones((64, 64)), np.ones((64, 64)), quant=quant),
        FFF(np.ones((3, 64)), np.ones((4, 64, 64)), np.ones((4, 64, 64)), quant=quant),
        FFF(np.ones((3, 64)), np.ones((4, 16, 64)), np.ones((4, 64, 16)), quant="f32"),
    ):
        assert made._padding() == ""


def test_all_layers_have_the_same_usual_activation() -> None:
    up, down, narrow, gates = np.ones((4, 32, 8)), np.ones((4, 8, 32)), np.ones((3, 8)), np.ones((4, 32, 8))
    for gate, usual in ((None, "relu"), (gates, "silu")):
        one = None if gate is None else gate[0]
        layers = Dense(up[0], down[0], one), MoE(up[:, 0], up, down, gate), FFF(narrow, up, down, gate)
        assert {layer.ff.activation for layer in layers} == {usual}


def test_dense_and_mixture() -> None:
    rng = np.random.default_rng(7)
    D, F, out, E = 40, 70, 24, 5
    up, gate, down = random(rng, F, D), random(rng, F, D), random(rng, out, F)
    x = random(rng, 20, D)
    layer = Dense(up, down, gate, threads=1)
    near(layer(x), (activate("silu", x @ gate.T) * (x @ up.T)) @ down.T, 1e-5)
    layer.close()
    biases = {"up_bias": random(rng, F), "down_bias": random(rng, out)}
    layer = Dense(up, down, activation="relu", threads=1, **biases)
    near(layer(x), np.maximum(x @ up.T + biases["up_bias"], 0) @ down.T + biases["down_bias"], 1e-5)
    assert "multiply-adds" in layer.explain()
    padding = 1 - own(D, F, out) / layer.weights.nbytes
    assert f"bytes, {padding:.0%} of them padding: blocks have 16 rows × 32 columns" in layer.explain()
    layer.close()
    router, ups, downs = random(rng, E, D), random(rng, E, F, D), random(rng, E, out, F)
    for k in (1, 2, E):
        layer = MoE(router, ups, downs, top_k=k, activation="relu", threads=1)
        logits = x @ router.T
        expected = np.zeros((len(x), out), F32)
        for t in range(len(x)):
            best = np.argsort(-logits[t])[:k]
            weights = np.exp(logits[t, best] - logits[t, best].max())
            for e, weight in zip(best, weights / weights.sum(), strict=True):
                expected[t] += weight * (np.maximum(ups[e] @ x[t], 0) @ downs[e].T)
        near(layer(x), expected, 1e-5)
        assert layer.usage()["experts"].sum() == len(x) * k
        layer.close()


# ---- identities ----


@settings(max_examples=25, deadline=None)
@given(depth=st.integers(0, 4), width=st.integers(1, 40), D=st.integers(1, 70), out=st.integers(1, 40),
       seed=st.integers(0, 99))  # fmt: skip
def test_zero_nodes_are_a_dense_layer(depth: int, width: int, D: int, out: int, seed: int) -> None:
    """With all decisions at one half, the mixture is a dense layer of all leaves, w2 and b2 times 2^-depth."""
    layer = tree(seed, depth, width, D, out, activation="relu")
    arrays = dict(layer.arrays)
    E = layer.ff.experts
    layer.arrays = {n: np.zeros_like(v) if n.startswith("layers.0.nodes") else v for n, v in arrays.items()}
    x = random(np.random.default_rng(seed), 5, D)
    narrow = layer.ff.narrow
    up = arrays["layers.0.leaves.inward" if narrow else "layers.0.experts.up"].reshape(E * width, D)
    up_bias = arrays[f"layers.0.{'leaves.inward' if narrow else 'experts.up'}.bias"].reshape(-1)
    down = arrays["layers.0.leaves.outward" if narrow else "layers.0.experts.down"]
    down = down if narrow else down.transpose(0, 2, 1)
    down_bias = arrays[f"layers.0.{'leaves.outward' if narrow else 'experts.down'}.bias"].sum(axis=0)
    dense = Dense(up, down.reshape(E * width, out).T / E, up_bias=up_bias, down_bias=down_bias / E, activation="relu",
                  threads=1)  # fmt: skip
    near(layer(x, mode="soft"), dense(x), 2e-5)
    dense.close()
    layer.close()


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 70), D=st.integers(1, 70), gated=st.booleans(), seed=st.integers(0, 99))
def test_depth_0_is_a_dense_layer(width: int, D: int, gated: bool, seed: int) -> None:
    layer = tree(seed, 0, width, D, 30, gated=gated, activation="silu", bias=False)
    first = layer.arrays[
        "layers.0." + ("leaves.inward" if layer.ff.narrow else "experts.gate_up" if gated else "experts.up")
    ][0]
    last = layer.arrays["layers.0." + ("leaves.outward" if layer.ff.narrow else "experts.down")][0]
    last = last.T if layer.ff.narrow else last
    dense = Dense(first[-width:], last, first[:width] if gated else None, activation="silu", threads=1)
    x = random(np.random.default_rng(seed), 9, D)
    near(layer(x), dense(x), 2e-5)
    near(layer(x, mode="soft"), dense(x), 2e-5)
    dense.close()
    layer.close()


@settings(max_examples=15, deadline=None)
@given(depth=st.integers(1, 5), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_sure_decisions_make_soft_hard(depth: int, width: int, seed: int) -> None:
    """Nodes times a large number: the mixture is the leaf, and its entropy nothing."""
    layer = tree(seed, depth, width, 20, 12)
    big = {n: v * 1e5 if n.startswith("layers.0.nodes") else v for n, v in layer.arrays.items()}
    layer.arrays = big
    sure = layer.quantized("f32")
    x = random(np.random.default_rng(seed + 1), 8, 20)
    margins = np.abs(node_logits(layer.tree, big, x)).min(axis=(1, 2))
    x = x[margins > 100]  # off ties
    if len(x):
        near(sure(x), sure(x, mode="soft"), 2e-5)
        assert sure.usage()["node_entropy"] < 1e-6
        assert sure.usage()["leaf_mass"] > 1 - 1e-6
    layer.close()
    sure.close()


@settings(max_examples=15, deadline=None)
@given(depth=st.integers(1, 4), seed=st.integers(0, 99), which=st.integers(0, 14))
def test_a_negated_node_swaps_its_subtrees(depth: int, seed: int, which: int) -> None:
    layer = tree(seed, depth, 4, 16, 8)
    arrays, node = layer.arrays, which % layer.tree.nodes
    level = (node + 1).bit_length() - 1
    order, leaves = np.arange(layer.tree.nodes), np.arange(1 << depth)
    for below in range(level + 1, depth):  # nodes of the two subtrees change places
        first, n = (node + 1 << below - level) - 1, 1 << below - level
        order[first : first + n] = np.roll(np.arange(first, first + n), n // 2)
    first, n = (node + 1 << depth - level) - 1 - layer.tree.nodes, 1 << depth - level
    leaves[first : first + n] = np.roll(np.arange(first, first + n), n // 2)
    sign = np.where(np.arange(layer.tree.nodes) == node, -1, 1).astype(F32)
    swapped = {n: v[leaves] if "leaves" in n else v for n, v in arrays.items()}
    swapped["layers.0.nodes"] = arrays["layers.0.nodes"][order] * sign[:, None]
    swapped["layers.0.nodes.bias"] = arrays["layers.0.nodes.bias"][order] * sign
    x = random(np.random.default_rng(seed), 6, 16)
    before = layer(x, mode="soft")
    layer.arrays = swapped
    near(layer(x, mode="soft"), before, 2e-5)
    layer.close()


@pytest.mark.parametrize(
    ("depth", "leaf", "training", "inference"),
    [(2, 32, 131, 34), (3, 16, 135, 19), (4, 8, 143, 12), (5, 4, 159, 9), (6, 2, 191, 8), (7, 1, 255, 8)],
)
def test_sizes_of_the_paper(depth: int, leaf: int, training: int, inference: int) -> None:
    """Table 3 of arXiv 2308.14711: neurons of a vision transformer's layers, all and those that are computed."""
    from lapinfer.layers.sizes import fff_sizes

    sizes = fff_sizes(depth, leaf)
    assert (sizes.training_width, sizes.training_size) == (128, training)
    assert (sizes.inference_width, sizes.inference_size) == (leaf, inference)


# ---- the package, and trained layers ----


@pytest.mark.parametrize(
    ("depth", "leaf", "D", "out"),
    [(0, 5, 9, 4), (1, 1, 3, 2), (1, 8, 784, 10), (2, 33, 17, 31), (3, 2, 64, 64), (4, 16, 50, 7), (6, 3, 31, 33),
     (8, 1, 40, 5)],
)  # fmt: skip
def test_the_package_computes_the_same(depth: int, leaf: int, D: int, out: int) -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("fastfeedforward", reason="pip install fastfeedforward for parity with it")
    torch.manual_seed(depth)
    theirs = package.FFF(D, leaf, out, depth).eval()
    layer = FFF.from_state_dict(theirs.state_dict(), threads=1)
    x = torch.randn(64, D) * 3
    with torch.no_grad():
        soft = theirs.training_forward(x).numpy()
        hardened = theirs.training_forward(x, use_hard_decisions=True).numpy()
    near(layer(x.numpy(), mode="soft"), soft, 1e-5)
    near(layer(x.numpy()), hardened, 1e-5)
    if depth:  # depth 0 is an error in the package when it evaluates
        with torch.no_grad():
            evaluated = theirs(x).numpy()
        forgetful = FFF.from_state_dict(theirs.state_dict(), threads=1, without_output_bias=True)
        near(forgetful(x.numpy()), evaluated, 1e-5)
        forgetful.close()
    layer.close()


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    folder = DATA / "mnist"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (LAPINFER_DATA names the folder that has mnist/ and efff/)")
    images = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return ((images.reshape(-1, 784) / 255 - 0.5) / 0.5).astype(F32), labels


@pytest.mark.parametrize("name", ["leaf2_depth3_acc0.9100", "leaf8_depth1_acc0.9346", "master_leaf8_depth4_acc0.9510"])
def test_trained_digits(name: str, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """The accuracy that the file's name states, on 10,000 images, and how far quantizing takes it (0.3 points)."""
    x, labels = digits
    layer = FFF.from_state_dict(load_file(DATA / "efff" / f"mnist_{name}.safetensors"))
    right = np.count_nonzero(layer(x).argmax(axis=1) == labels)
    assert right == round(1e4 * float(name.rsplit("acc")[-1]))
    soft = np.count_nonzero(layer(x, mode="soft").argmax(axis=1) == labels)
    assert soft >= right
    eight = layer.quantized("q8")
    assert abs(np.count_nonzero(eight(x).argmax(axis=1) == labels) - right) <= 30
    assert np.array_equal(eight.leaves(x), layer.leaves(x))  # nodes are never quantized
    rounded = layer.quantized("f32", nodes="f16")
    assert np.count_nonzero(rounded.leaves(x) != layer.leaves(x)) <= 1  # of 10,000: a logit next to 0
    for one in (layer, eight, rounded):
        one.close()


# ---- names and errors ----


def test_our_own_names() -> None:
    """As docs/checkpoint-format.md has them, with a master leaf that is wider than a leaf."""
    rng = np.random.default_rng(8)
    D, F, out = 24, 6, 20
    state = {
        "mlp.nodes.weight": random(rng, 7, D), "mlp.nodes.bias": random(rng, 7), "mlp.up": random(rng, 8, F, D),
        "mlp.gate": random(rng, 8, F, D), "mlp.down": random(rng, 8, out, F), "mlp.master_up": random(rng, 15, D),
        "mlp.master_gate": random(rng, 15, D), "mlp.master_down": random(rng, out, 15), "mlp.mix": np.array(0.7, F32),
    }  # fmt: skip
    layer = FFF.from_state_dict(state, prefix="mlp.", threads=1)
    x = random(rng, 12, D)
    leaves, expected = hard(layer, x)
    share = 1 / (1 + np.exp(-0.7))
    master = activate("silu", x @ state["mlp.master_gate"].T) * (x @ state["mlp.master_up"].T)
    near(layer(x), share * expected + (1 - share) * master @ state["mlp.master_down"].T, 1e-5)
    near(np.concatenate([layer(x[i : i + 1]) for i in range(12)]), layer(x), 0)
    np.testing.assert_array_equal(layer.leaves(x), leaves)
    layer.close()


def mixture(style: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state of four experts under a trainer's names, and the arguments that it means."""
    rng = np.random.default_rng(3)
    D, F, E = 24, 12, 4
    given = {"router": random(rng, E, D), "gate": random(rng, E, F, D), "up": random(rng, E, F, D),
             "down": random(rng, E, D, F)}  # fmt: skip
    state = {"mlp.gate.weight": given["router"], "mlp_other": np.ones(3)}
    if style == "fused":
        state |= {"mlp.experts.gate_up_proj": np.concatenate([given["gate"], given["up"]], axis=1)}
        return state | {"mlp.experts.down_proj": given["down"]}, given
    names = {"qwen": ("gate_proj", "up_proj", "down_proj"), "mixtral": ("w1", "w3", "w2")}[style]
    for e in range(E):
        for ours, theirs in zip(("gate", "up", "down"), names, strict=True):
            state[f"mlp.experts.{e}.{theirs}.weight"] = given[ours][e]
    return state, given


@pytest.mark.parametrize("style", ["qwen", "mixtral", "fused"])
def test_mixtures_of_other_trainers(style: str) -> None:
    state, given = mixture(style)
    x = random(np.random.default_rng(4), 6, 24)
    expected = MoE(**given, top_k=2, threads=1)(x)
    np.testing.assert_array_equal(MoE.from_state_dict(state, prefix="mlp.", top_k=2, threads=1)(x), expected)


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("", "fc1", "fc2")])
def test_feed_forwards_of_other_trainers(names: tuple[str, str, str]) -> None:
    rng = np.random.default_rng(5)
    gate, up, down = random(rng, 40, 24), random(rng, 40, 24), random(rng, 24, 40)
    state = {f"{names[1]}.weight": up, f"{names[2]}.weight": down, f"{names[2]}.bias": down[:, 0]}
    if names[0]:
        state[f"{names[0]}.weight"] = gate
    x = random(rng, 6, 24)
    expected = Dense(up, down, gate if names[0] else None, down_bias=down[:, 0], threads=1)(x)
    np.testing.assert_array_equal(Dense.from_state_dict(state, threads=1)(x), expected)


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: without(s, "mlp.gate.weight"), "no router under 'mlp.': found experts.0.down_proj.weight"),
        (lambda s: without(s, "mlp.experts.2.up_proj.weight"), "mlp.experts.2: expected the tensors of 4 experts"),
        (lambda s: s | {"mlp.experts.1.up_proj.weight": np.ones((3, 24))}, "mlp.experts.1: .* all of one shape"),
        (lambda s: s | {"mlp.shared_expert.up_proj.weight": np.ones(3)}, "not known here: shared_expert.up_proj"),
        (lambda s: {"mlp.gate.weight": s["mlp.gate.weight"], "mlp.experts.gate_up_proj": np.ones((4, 3, 24))},
         "experts.down_proj is missing"),
        (lambda s: 3, "state: expected tensors by their names"),
    ],
)  # fmt: skip
def test_mixtures_that_are_none(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MoE.from_state_dict(make(mixture("qwen")[0]), prefix="mlp.", top_k=2)


def arrays(**other: Any) -> dict[str, Any]:
    return {"nodes": np.ones((3, 8)), "up": np.ones((4, 2, 8)), "down": np.ones((4, 5, 2)), "threads": 1, **other}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FFF(**arrays(up=np.ones((5, 2, 8)))), "1 trees have 5 leaves, expected 2\\^d leaves in each"),
        (lambda: FFF(**arrays(nodes=np.ones((4, 8)))), "nodes has 4 rows, 1 trees of depth 2 .* expected 3"),
        (lambda: FFF(**arrays(nodes=None)), "nodes has 0 rows, 1 trees of depth 2"),
        (lambda: FFF(**arrays(nodes=np.ones((3, 9)))), r"nodes has shape \(3, 9\), the other arrays say \(3, 8\)"),
        (lambda: FFF(**arrays(down=np.ones((3, 5, 2)))), "leaves.outward has shape"),
        (lambda: FFF(**arrays(up=np.ones((4, 2)))), r"up has shape \(4, 2\), expected 3 dimensions"),
        (lambda: FFF(**arrays(trees=3)), "3 trees have 4 leaves"),
        (lambda: FFF(**arrays(trees=0)), "trees: expected a whole number from 1, got 0"),
        (lambda: FFF(**arrays(up=np.full((4, 2, 8), np.nan))), "leaves.inward has numbers that are not finite"),
        (lambda: FFF(**arrays(quant="q7")), "quant 'q7' is not known"),
        (lambda: FFF(**arrays(node_format="q8")), "nodes 'q8' is not known"),
        (lambda: FFF(**arrays(batch=0)), "batch"),
        (lambda: FFF(**arrays(threads=0)), "threads: expected a whole number from 1 to 256, got 0"),
        (lambda: FFF(**arrays(activations="q4")), "activations 'q4' is not known"),
        (lambda: FFF(**arrays(activation="mish")), "activation 'mish' is not known without a gate"),
        (lambda: FFF(**arrays(activation="swiglu_oai")), "activation 'swiglu_oai' is not known without a gate"),
        (lambda: FFF(**arrays(node_activation="mish")), "node_activation 'mish' is not known"),
        (lambda: FFF(**arrays(up=np.ones((3, 1, 8)), down=np.ones((3, 5, 1)), neurons=True)), "nodes has 3 rows"),
        (lambda: FFF.from_state_dict({"a": np.ones(3)}), "found a; expected w1s"),
        (lambda: FFF.from_state_dict({"w1s": np.ones((2, 3, 1))}), "b1s is missing"),
        (lambda: MoE(np.ones((3, 8)), np.ones((4, 2, 8)), np.ones((4, 5, 2))), "router has shape"),
        (lambda: MoE(np.ones((4, 8)), np.ones((4, 2, 8)), np.ones((4, 5, 2)), top_k=5), "top_k"),
        (lambda: MoE(np.ones((4, 8)), np.ones((4, 2, 8)), np.ones((4, 5, 2)), score="best"), "score 'best' is not"),
        (lambda: Dense(np.ones((2, 8)), np.ones((5, 3))), "down has shape"),
    ],
)
def test_what_contradicts_itself(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_stored_depth_that_contradicts_the_leaves() -> None:
    rng = np.random.default_rng(0)
    state = {
        "depth": np.array(3), "w1s": random(rng, 4, 8, 2), "b1s": random(rng, 4, 2), "w2s": random(rng, 4, 2, 5),
        "b2s": random(rng, 4, 5), "node_weights": random(rng, 3, 8), "node_biases": random(rng, 3, 1),
    }  # fmt: skip
    with pytest.raises(InputError, match="depth is 3, but w1s has 4 leaves"):
        FFF.from_state_dict(state)
    FFF.from_state_dict(state | {"depth": np.array([2])}).close()


def test_bad_inputs() -> None:
    layer = FFF(**arrays())
    for x, message in (
        (np.ones((3, 7)), r"the input has shape \(3, 7\), expected \[T, 8\]"),
        (np.ones(8), "expected"),
        (np.array([[1.0] * 8, [np.nan] * 8]), "not finite .* the first in row 1"),
        (np.full((2, 8), np.inf), "not finite"),
        (np.full((2, 8), 3e38), "a decision of this layer was not a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            layer(x)
    with pytest.raises(InputError, match="mode 'both' is not known"):
        layer(np.ones((1, 8)), mode="both")  # type: ignore[arg-type]
    assert layer(np.zeros((0, 8))).shape == (0, 5)
    assert layer(np.ones((2, 8))).shape == (2, 5)
    layer.close()
