"""A mixture of experts beside dense models of equal total and of equal active size: bytes touched a token, and speed.

    python bench/moe_against_dense.py [--quant q4] [-t 2] [-r 5] [-o FILE]

The shape is Granite 3's 1B-A400M (24 layers, width 1024, 32 experts of 512, 8 a token); the dense models have the same
attention and a feed-forward of 16,384 (equal total) or 4,096 (equal active). Weights are random, made in memory:
quality is not measured. The three take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lapinfer.model import Model
from lapinfer.packing.memory import MemoryWeights
from lapinfer.report.bandwidth import read_bandwidth
from lapinfer.report.random_weights import random_weights
from lapinfer.report.timing import Watch
from lapinfer.runtime.ops import Limits
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec, RouterSpec
from lapinfer.tensors import active_parameters, parameters, tensors

D, LAYERS, PROMPT, ANSWER = 1024, 24, 512, 64


def packed(spec: ModelSpec, quant: str) -> MemoryWeights:
    """Random weights of a model, the head with one bit more or two."""
    formats = {
        name: "f32" if tensor.role == "router" else "q6" if name == "embed" else quant
        for name, tensor in tensors(spec).items()
        if tensor.is_matrix
    }
    return random_weights(tensors(spec).values(), formats)


def specs() -> dict[str, ModelSpec]:
    norm = NormSpec("rms", 1e-6)
    rope = RopeSpec(64, tuple(float(10_000 ** (-i / 32)) for i in range(32)))
    attention = AttentionSpec(16, 8, 64, 64, 0.125, rope)
    experts = FeedForwardSpec(512, "silu", router=RouterSpec(32, 8, "logits"))
    layer = LayerSpec(attention, experts, norm, norm, residual_scale=0.2)

    def model(feed_forward: FeedForwardSpec) -> ModelSpec:
        layers = (replace(layer, feed_forward=feed_forward),) * LAYERS
        return ModelSpec("granitemoe", 49152, D, layers, norm, 4096)

    return {
        "mixture: 8 of 32 experts of 512": model(experts),
        "dense of equal total size: 16384": model(FeedForwardSpec(32 * 512, "silu")),
        "dense of equal active size: 4096": model(FeedForwardSpec(8 * 512, "silu")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", default="q4")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    limits = Limits(PROMPT + ANSWER, step=PROMPT, threads=args.threads)
    models = {name: Model(spec, packed(spec, args.quant), limits, name=name) for name, spec in specs().items()}
    ids = np.random.default_rng(0).integers(0, 49152, PROMPT + ANSWER)
    rows: dict[str, dict[str, Any]] = {name: {"prefill": [], "decode": []} for name in models}
    bandwidths = []
    for repetition in range(args.repetitions + 1):
        bandwidths.append(read_bandwidth(args.threads) / 1e9)
        for name, model in models.items():
            prefill, watch = Watch(model).prefill(ids[:PROMPT]), Watch(model)
            decode = watch.decode(ids, PROMPT, ANSWER)
            rows[name]["touched_mb"] = watch.meter.totals()["bytes"] / ANSWER / 1e6
            if repetition:  # the first one warmed up
                rows[name]["prefill"].append(PROMPT / prefill)
                rows[name]["decode"].append(ANSWER / decode)
    for name, model in models.items():
        row = rows[name]
        row["total_m"] = parameters(model.spec) / 1e6
        row["active_m"] = active_parameters(model.spec) / 1e6
        prefill, decode = (statistics.median(row[test]) for test in ("prefill", "decode"))
        print(
            f"{name:34} {row['total_m']:6.0f} M, {row['active_m']:6.0f} M active, {row['touched_mb']:6.1f} MB a token, "
            f"prefill {prefill:6.1f} tok/s, decode {decode:6.1f} tok/s"
        )
    print(f"reads {statistics.median(bandwidths):.1f} GB/s")
    if args.output:
        told = {"quant": args.quant, "threads": args.threads, "read_gb_s": bandwidths, "rows": rows}
        args.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
