"""Which ops a model is made of."""

from __future__ import annotations

from dataclasses import dataclass

from lapinfer.runtime.build.attention import attention
from lapinfer.runtime.build.convolution import convolution
from lapinfer.runtime.build.feed_forward import feed_forward_of_layer
from lapinfer.runtime.build.head import BestRows, head
from lapinfer.runtime.build.model_ops import ModelOps, StepBuffers
from lapinfer.runtime.build.recurrence import recurrence
from lapinfer.runtime.exchange import Exchange
from lapinfer.runtime.expert_nodes import ExpertNodes
from lapinfer.runtime.ops import Limits, Weights
from lapinfer.runtime.plan import Op
from lapinfer.runtime.pool import ExpertPool
from lapinfer.runtime.routing_buffers import RoutingBuffers
from lapinfer.spec import AttentionSpec, ConvolutionSpec, ModelSpec, RecurrenceSpec


@dataclass(frozen=True, slots=True)
class Built:
    """Ops, and the buffers that they and the step share. best: where only the best logits may be computed."""

    ops: list[Op]
    step: StepBuffers
    routing: RoutingBuffers
    pool: ExpertPool | None
    exchange: Exchange | None
    best: BestRows | None


def build_model(spec: ModelSpec, weights: Weights, limits: Limits, nodes: ExpertNodes | None = None) -> Built:
    """The ops of a model's step: embedding, layers, head. nodes: those that have the experts, if not this process."""
    build = ModelOps(spec, weights, limits, nodes)
    build.embed()
    for i, layer in enumerate(spec.layers):
        match layer.mixer:
            case AttentionSpec() as mixer:
                attention(build, i, mixer, layer.attn_norm, layer.attn_post_norm)
            case ConvolutionSpec() as mixer:
                convolution(build, i, mixer, layer.attn_norm, layer.attn_post_norm)
            case RecurrenceSpec() as mixer:
                recurrence(build, i, mixer, layer.attn_norm, layer.attn_post_norm)
        feed_forward_of_layer(build, i, layer)
    best = head(build)
    return Built(build.ops, build.step, build.routing, build.pool, build.exchange, best)
