"""Times of a model that was never run, from its sizes and what this machine reads and multiplies in a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lapinfer.kernels.operands import ACT_F32, ACT_Q8, ACT_Q16, ROW_GROUP_BYTES
from lapinfer.quant import GROUP, ROWS
from lapinfer.report.costs import Costs
from lapinfer.report.fit import OP_SECONDS, OPS_OF_A_LAYER, OPS_OF_ROUTING
from lapinfer.report.measure import kind_of
from lapinfer.runtime.kv import bytes_per_position, cache_bytes, of_layer
from lapinfer.runtime.predict import expected_best_blocks
from lapinfer.runtime.sizes import padded
from lapinfer.scale.simulate import Load
from lapinfer.scale.subject import Subject
from lapinfer.scale.tape import Tape, routed_layers
from lapinfer.scale.times import Rates, Step, Times
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Sequences that are decoded together."""
PROMPT = 256
"""Tokens of a prompt's step."""
ACTIVATIONS = {"f32": ACT_F32, "q8": ACT_Q8, "q16": ACT_Q16}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of this machine: bytes of weights and multiply-adds per second."""

    bandwidth: float
    peak: float

    def step(self, tokens: int, nbytes: float, macs: float, begin: float = 0.0) -> Step:
        seconds = begin + nbytes / self.bandwidth + macs / self.peak
        return Step(tokens, seconds, nbytes / self.bandwidth / seconds if seconds else 0.0)


def foreseen_times(costs: Costs, speeds: Speeds) -> Times:
    spec = costs.spec
    rest, head = _macs(spec)
    begin = OP_SECONDS * OPS_OF_A_LAYER * len(spec.layers)
    steps, heads = [], []
    for tokens in (*SIZES, PROMPT):
        touched = _touched(costs, tokens)
        nbytes = sum(touched.values()) - touched["head"] - touched["kv"] - touched.get("experts", 0)
        steps.append(speeds.step(tokens, nbytes, tokens * rest, begin))
        heads.append(speeds.step(tokens, touched["head"], tokens * head))
    expert_bytes, expert_macs = expert(costs)
    rates = Rates(OP_SECONDS * OPS_OF_ROUTING, 1 / speeds.bandwidth, 1 / speeds.peak)
    return Times(tuple(steps), tuple(heads), position_bytes(costs) / speeds.bandwidth, rates, expert_bytes, expert_macs)


def subject(
    name: str, costs: Costs, times: Times, tape: Tape, load: Load, source: str, activations: str = "q8"
) -> Subject:  # fmt: skip
    spec = costs.spec
    sent = padded(spec.hidden) // GROUP * ROW_GROUP_BYTES[ACTIVATIONS[activations]]
    return Subject(
        name, kind_of(spec), costs.parameters, costs.active_parameters, costs.weight_bytes,
        cache_bytes(spec, costs.kv, 1, load.context, 1), sent, 4 * padded(spec.hidden, ROWS), times, tape, source,
        separable=not any(layer.feed_forward.narrow for layer in spec.layers),
    )  # fmt: skip


def expert(costs: Costs) -> tuple[int, int]:
    """Bytes and multiply-adds of an expert, the mean over the routed layers."""
    each = [costs.expert(layer) for layer in routed_layers(costs.spec)]
    return (sum(n for n, _ in each) // len(each), sum(n for _, n in each) // len(each)) if each else (0, 0)


def position_bytes(costs: Costs) -> int:
    """What all layers keep of a position."""
    spec = costs.spec
    return sum(
        bytes_per_position(layer, spec.hidden, of_layer(costs.kv, i))
        for i, layer in enumerate(spec.layers)
        if layer.attention is not None
    )


def _touched(costs: Costs, tokens: int) -> Mapping[str, int]:
    """Bytes by part of a step of so many sequences, all of whose logits are wanted."""
    slots = np.arange(tokens)
    most = -(-costs.spec.vocab // 16)
    one = expected_best_blocks(costs.spec, costs.formats)
    blocks = None if one is None else round(most * (1 - (1 - one / most) ** tokens))
    return costs.touched(np.zeros(tokens, np.int64), tokens, slots, best_blocks=blocks)


def _macs(spec: ModelSpec) -> tuple[int, int]:
    """Multiply-adds of a token with weights: of all but head and experts, and of the head."""
    matrices = [tensor for tensor in tensors(spec).values() if tensor.is_matrix]
    rest = sum(tensor.size for tensor in matrices if tensor.reads == "step")
    return rest, spec.vocab * spec.hidden
