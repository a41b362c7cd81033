"""A mixture of experts beside dense models of equal total and of equal active size: bytes touched per token, and speed.

    python bench/moe_against_dense.py [--quant q4] [-t 2] [-r 5] [-o FILE]

The shape is Granite 3's 1B-A400M (24 layers, width 1024, 32 experts of 512, 8 per token); the dense models have the
same attention and a feed-forward of 16,384 (equal total) or 4,096 (equal active). Weights are random, made in memory:
quality is not measured. The three take turns.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from harness import ANSWER, PROMPT, argument_parser, prefill_and_decode, take_turns, write_result

from lapinfer.model import Model
from lapinfer.packing.memory import MemoryWeights
from lapinfer.report.random_weights import random_weights
from lapinfer.runtime.ops import Limits
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec, RouterSpec
from lapinfer.tensors import active_parameters, parameters, tensors

D, LAYERS = 1024, 24


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
    parser = argument_parser(__doc__, repetitions=5)
    parser.add_argument("--quant", default="q4")
    options = parser.parse_args()
    limits = Limits(PROMPT + ANSWER, step=PROMPT, threads=options.threads)
    models = {name: Model(spec, packed(spec, options.quant), limits, name=name) for name, spec in specs().items()}
    ids = np.random.default_rng(0).integers(0, 49152, PROMPT + ANSWER)
    sides = {name: lambda model=model: prefill_and_decode(model, ids) for name, model in models.items()}
    turns = take_turns(sides, options.repetitions, options.threads)
    rows: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        row = rows[name] = {test: [turn[name][test] for turn in turns] for test in ("prefill", "decode")}
        row["touched_mb"] = turns[-1][name]["touched_mb"]
        row["total_m"] = parameters(model.spec) / 1e6
        row["active_m"] = active_parameters(model.spec) / 1e6
        prefill, decode = median(row["prefill"]), median(row["decode"])
        print(
            f"{name:34} {row['total_m']:6.0f} M, {row['active_m']:6.0f} M active, {row['touched_mb']:6.1f} MB per "
            f"token, prefill {prefill:6.1f} tok/s, decode {decode:6.1f} tok/s"
        )
    bandwidths = [turn["bandwidth"] / 1e9 for turn in turns]
    print(f"reads {median(bandwidths):.1f} GB/s")
    result = {"quant": options.quant, "threads": options.threads, "read_gb_s": bandwidths, "rows": rows}
    write_result(result | {"scaling": [turn["scaling"] for turn in turns]}, options.output)


if __name__ == "__main__":
    main()
