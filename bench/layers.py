"""Speed of feed-forward layers on their own: fast feedforward trees against dense layers of the same total and of the
same active width, with our kernels, NumPy, torch and the package fastfeedforward.

    python bench/layers.py TEXT… [--quick] [--only batch1,formats,narrow,batches,table3] [-o FILE]

Inputs are windows of a text (sums of fixed random vectors, one for each character and distance), all different. Trees
are random and calibrated: a node's bias is the median of the logits that reach it, so that leaves are visited evenly;
how evenly is printed. Weights are cold (copies that together exceed the caches, taken in random order) or warm (one
copy). Times are those of a plan that holds the layer many times over: what a layer takes inside a model. Those of the
other libraries have a call from Python each, as their users have. The bound is bytes of the dense layer by those of the
fast feedforward layer; beside it stands what reading the layer's bytes takes alone, node after node and then the leaf.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import dependent_reads
import numpy as np
from harness import argument_parser, write_result

from bench.repeated import Repeated
from lapinfer.layers import keeps_neurons
from lapinfer.layers.layer import P, layer_tensors
from lapinfer.layers.sizes import table_3
from lapinfer.machine import beyond_caches
from lapinfer.packing.memory import MemoryWeights
from lapinfer.report.random_weights import random_weights
from lapinfer.spec import FeedForwardSpec, RouterSpec, TreeSpec

F32 = np.float32
COLD_BYTES = max(400_000_000, beyond_caches())
"""What copies of a layer take together."""
MOST_COPIES = 1536
EVICTING = np.full(COLD_BYTES // 4, F32(0))  # written, or all of it would be one page
ROUNDS = 5
MEASURED: dict[tuple, dict[str, Any]] = {}


def text_inputs(text: str, count: int, D: int, seed: int = 0) -> np.ndarray:
    """float32 [count, D], rms 1: windows of 12 characters, spread evenly over the text."""
    rng = np.random.default_rng(seed)
    codes = np.frombuffer(text.encode("latin-1", "replace"), np.uint8).astype(int)
    vectors = rng.standard_normal((12, 256, D)).astype(F32)
    starts = np.linspace(0, len(codes) - 13, count).astype(int)
    x = sum((F32(0.8**j) * vectors[j, codes[starts + 12 - j]] for j in range(12)), np.zeros(1, F32))
    return (x / np.sqrt((x**2).mean(axis=1, keepdims=True))).astype(F32)


def calibrated_nodes(x: np.ndarray, depth: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random nodes [2^d − 1, D], and biases that halve the inputs which reach each."""
    rng, D = np.random.default_rng(seed), x.shape[1]
    nodes, bias = rng.standard_normal(((1 << depth) - 1, D)).astype(F32), np.zeros((1 << depth) - 1, F32)
    groups = [np.arange(len(x))]
    for level in range(depth):
        halves = []
        for i, group in enumerate(groups):
            node = (1 << level) - 1 + i
            logit = x[group] @ nodes[node]
            bias[node] = -np.median(logit) if len(group) else 0
            right = logit + bias[node] >= 0
            halves += [group[~right], group[right]]
        groups = halves
    return nodes / F32(D**0.5), bias / F32(D**0.5)


def leaf_usage(x: np.ndarray, nodes: np.ndarray, bias: np.ndarray, depth: int) -> str:
    """How many leaves inputs end at, and how evenly."""
    node = np.zeros(len(x), np.int64)
    for _ in range(depth):
        logit = (x * nodes[node]).sum(axis=1) + bias[node]
        node = 2 * node + 1 + (logit >= 0)
    counts = np.bincount(node - ((1 << depth) - 1), minlength=1 << depth)
    return f"{np.count_nonzero(counts)} of {len(counts)}, max/mean {counts.max() / counts.mean():.1f}"


def feed_forward_spec(kind: str, width: int, leaf: int, quant: str) -> FeedForwardSpec:
    """dense of `width`; experts or leaves of width `leaf`, `width` together."""
    if kind == "dense":
        return FeedForwardSpec(width, "relu", gated=False)
    if kind == "moe":
        return FeedForwardSpec(leaf, "relu", gated=False, router=RouterSpec(width // leaf, 1))
    tree = TreeSpec((width // leaf).bit_length() - 1, node_bias=True)
    return FeedForwardSpec(leaf, "relu", gated=False, router=tree, by_neuron=keeps_neurons(quant, leaf))


def copies_for(nbytes: int, cold: bool) -> int:
    return min(max(-(-COLD_BYTES // nbytes), 1), MOST_COPIES) if cold else 1


def timed(kind: str, D: int, width: int, leaf: int, quant: str, threads: int, x: np.ndarray, batch: int, cold: bool,
          repeat: int, node_format: str = "f32") -> dict[str, Any]:  # fmt: skip
    """A layer of random weights: they cost no less than trained ones."""
    ff = feed_forward_spec(kind, width, leaf, quant)
    tensors = layer_tensors(ff, D, D)
    depth = ff.router.depth if isinstance(ff.router, TreeSpec) else 0
    nodes, bias = calibrated_nodes(x, depth)
    given = {P + "nodes": nodes, P + "nodes.bias": bias} if depth else {}
    formats = {name: quant for name, tensor in tensors.items() if tensor.is_matrix}
    formats |= {P + "nodes": node_format} if P + "nodes" in formats else {}
    formats |= {P + "router": "f32"} if P + "router" in formats else {}

    def weights() -> MemoryWeights:
        return random_weights(tensors.values(), formats, given=given, fill=lambda name: 0.1)

    first = weights()
    copies = [first, *(weights() for _ in range(copies_for(first.nbytes, cold) - 1))]
    plan = Repeated(ff, D, D, copies, x, batch, repeat, threads=threads)
    plan.seconds()
    spent = []
    for _ in range(ROUNDS):
        if cold:
            EVICTING.sum()  # a pass over the layers may have touched no more than a cache holds
        spent.append(plan.seconds())
    touched, used = plan.touched(), leaf_usage(x[:4096], nodes, bias, depth) if depth else None
    plan.close()
    return {"us": 1e6 * median(spent), "bytes": touched, "copies": len(copies), "leaves": used}


def calls(function: Callable[[int], Any], copies: int, times: int) -> float:
    """Median microseconds of a call from Python, copies in random order."""
    order = np.random.default_rng(2).integers(0, copies, times)
    function(0)
    spent = []
    for which in order:
        began = time.perf_counter()
        function(int(which))
        spent.append(time.perf_counter() - began)
    return 1e6 * median(spent)


def others(D: int, width: int, leaf: int, threads: int, x: np.ndarray, batch: int, cold: bool) -> dict[str, float]:
    """Dense layers by NumPy and torch, and the package's tree: float32."""
    rng = np.random.default_rng(3)
    copies = copies_for(8 * D * width, cold)
    ups = [rng.standard_normal((width, D), dtype=F32) for _ in range(copies)]
    downs = [rng.standard_normal((width, D), dtype=F32) for _ in range(copies)]
    pieces = [np.ascontiguousarray(x[i * batch : (i + 1) * batch]) for i in range(len(x) // batch)]
    times = 60 if 8 * D * width * batch < 1e9 else 8
    state = iter(range(10**9))
    found: dict[str, float] = {}
    try:
        from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingImports]
    except ImportError:
        threadpool_limits = None

    def numpy_dense(i: int) -> np.ndarray:
        return np.maximum(pieces[next(state) % len(pieces)] @ ups[i].T, 0) @ downs[i]

    if threadpool_limits is not None:
        with threadpool_limits(threads):
            found["numpy"] = calls(numpy_dense, copies, times)
    try:
        import torch
    except ImportError:
        return found
    torch.set_num_threads(threads)
    t_ups, t_downs = [torch.from_numpy(u) for u in ups], [torch.from_numpy(d.T.copy()) for d in downs]
    t_pieces = [torch.from_numpy(p) for p in pieces]
    linear = torch.nn.functional.linear
    with torch.inference_mode():
        found["torch"] = calls(
            lambda i: linear(torch.relu(linear(t_pieces[next(state) % len(pieces)], t_ups[i])), t_downs[i]), copies,
            times,
        )  # fmt: skip
    try:
        import fastfeedforward
    except ImportError:
        return found
    depth = (width // leaf).bit_length() - 1
    if depth:
        package = fastfeedforward.FFF(D, leaf, D, depth).eval()
        with torch.inference_mode():
            found["package"] = calls(lambda i: package(t_pieces[next(state) % len(pieces)]), 1, 5 if batch > 1 else 40)
    return found


def row(text: str, D: int, width: int, leaf: int, quant: str, threads: int, batch: int, cold: bool,
        peers: bool, nodes: str) -> dict[str, Any]:  # fmt: skip
    x = text_inputs(text, 20_000, D)
    repeat = max(min(4096 // batch, 512), 4)
    few = max(min(int(2e9 // (8 * D * width * batch)), repeat), 3)

    def known(kind: str, width: int, leaf: int, repeat: int) -> dict[str, Any]:
        """Measured once where several rows need it: what a dense layer takes does not depend on leaves."""
        key = (kind, D, width, leaf, quant, threads, batch, cold, nodes if kind == "fff" else "")
        if key not in MEASURED:
            MEASURED[key] = timed(kind, D, width, leaf, quant, threads, x, batch, cold, repeat, nodes)
        return MEASURED[key]

    fff = known("fff", width, leaf, repeat)
    dense, active = known("dense", width, 0, few), known("dense", leaf, 0, repeat)
    moe = known("moe", width, leaf, repeat) if 1 < width // leaf <= 2048 else None
    found = {
        "D": D, "width": width, "leaf": leaf, "quant": quant, "nodes": nodes, "threads": threads, "batch": batch,
        "cold": cold, "fff_us": fff["us"], "dense_us": dense["us"], "active_us": active["us"],
        "moe_us": moe and moe["us"], "fff_bytes": fff["bytes"], "dense_bytes": dense["bytes"],
        "speed_up": dense["us"] / fff["us"],
        "bound": dense["bytes"] / fff["bytes"], "leaves": fff["leaves"],
        "dense_gb_s": dense["bytes"] / dense["us"] / 1e3, "fff_gb_s": fff["bytes"] / fff["us"] / 1e3,
    }  # fmt: skip
    if batch == 1 and cold and threads == 1:
        depth = (width // leaf).bit_length() - 1
        path = depth * [D * (4 if nodes == "f32" else 2)]
        found["reads_us"] = dependent_reads.microseconds(EVICTING, [*path, fff["bytes"] - sum(path)])
    if peers:
        found |= {f"{name}_us": us for name, us in others(D, width, leaf, threads, x, batch, cold).items()}
    return found


def show(r: dict[str, Any]) -> str:
    bound = f" of {r['bound']:.1f}x: {r['speed_up'] / r['bound']:.0%}" if r["batch"] == 1 else ""
    peers = " ".join(f"{name[:-3]} {r[name]:.1f}" for name in ("numpy_us", "torch_us", "package_us") if name in r)
    reads = f", reads in turn alone {r['reads_us']:.2f}" if "reads_us" in r else ""
    moe = "" if r["moe_us"] is None else f" moe {r['moe_us']:.1f}"
    return (
        f"D {r['D']} width {r['width']} leaf {r['leaf']} {r['quant']} nodes {r['nodes']} batch {r['batch']} "
        f"{'cold' if r['cold'] else 'warm'} {r['threads']}t: fff {r['fff_us']:.2f} us ({r['fff_gb_s']:.1f} GB/s){reads}"
        f", dense {r['dense_us']:.1f} ({r['dense_gb_s']:.1f} GB/s), active {r['active_us']:.2f}{moe} {peers} | "
        f"{r['speed_up']:.1f}x{bound} | leaves {r['leaves']}"
    )


def grid(only: set[str], quick: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(D: int, width: int, leaf: int, quant: str = "f32", threads: int = 1, batch: int = 1, cold: bool = True,
            peers: bool = False, nodes: str = "f32") -> None:  # fmt: skip
        rows.append({"D": D, "width": width, "leaf": leaf, "quant": quant, "threads": threads, "batch": batch,
                     "cold": cold, "peers": peers, "nodes": nodes})  # fmt: skip

    if "batch1" in only:
        for width in (128, 4096) if quick else (128, 1024, 4096, 16384, 65536):
            for leaf in (1, 8, 32, 128, 512):
                if leaf < width:
                    add(768, width, leaf, peers=leaf in (1, 128))
        for leaf in (1, 8, 32, 128, 512):
            add(768, 4096, leaf, cold=False)
    if "formats" in only:
        for quant in ("q8", "q4", "f32"):
            for D, width in ((768, 4096), (2048, 8192), (4096, 8192)):
                for leaf in (8, 32, 512):
                    for threads in (1, 2) if D == 2048 else (1,):
                        add(D, width, leaf, quant, threads)
                    if quant != "f32" and leaf < 512:
                        add(D, width, leaf, quant, nodes="f16")
    if "narrow" in only:  # of the formats, what descents and narrow leaves reach on one thread
        for quant in ("q8", "q4", "f32"):
            for D, width in ((768, 4096), (2048, 8192)):
                for leaf in (8, 32):
                    add(D, width, leaf, quant)
    if "batches" in only:
        for quant in ("f32", "q4"):
            for batch in (32, 512):
                for leaf in (1, 8, 32, 128, 512):
                    add(768, 4096, leaf, quant, 2, batch, peers=quant == "f32" and leaf in (8, 128))
    if "table3" in only:
        for sizes in table_3():
            add(128, 128, sizes.leaf, threads=1, batch=2048, cold=False, peers=True)
    return rows


def main() -> None:
    parser = argument_parser(__doc__, threads=False)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--only", default="batch1,formats,batches,table3")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    text = "".join(path.read_text(encoding="utf-8") for path in options.text)
    results = []
    for case in grid(set(options.only.split(",")), options.quick):
        results.append(row(text, **case))
        print(show(results[-1]), flush=True)
        write_result({"rows": results}, options.output)


if __name__ == "__main__":
    main()
