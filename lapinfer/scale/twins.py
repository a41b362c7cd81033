"""What a mixture is compared with: the same model with dense feed-forwards, or trees, of random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import log2

from lapinfer.spec import FeedForwardSpec, ModelSpec, RouterSpec, TreeSpec
from lapinfer.tensors import COARSE, tensors


def twins(spec: ModelSpec) -> dict[str, ModelSpec]:
    """By kind. dense: as many parameters in each layer; dense-active: as many as a token uses; fff: of a mixture, a
    tree whose leaves have as many as a token uses, to the next power of 2. None of a dense model."""
    if all(layer.feed_forward.router is None for layer in spec.layers):
        return {}
    found = {"dense": _with(spec, lambda ff: _dense(ff, ff.experts)),
             "dense-active": _with(spec, lambda ff: _dense(ff, ff.active))}  # fmt: skip
    if all(isinstance(layer.feed_forward.router, RouterSpec | None) for layer in spec.layers):
        found["fff"] = _with(spec, _tree)
    return found


def twin_formats(twin: ModelSpec, formats: Mapping[str, str]) -> dict[str, str]:
    """Of the twin's matrices: those of the model's, and for what that has not, the format of its experts. The head is
    not read in two passes."""
    experts = next(format for name, format in formats.items() if ".experts." in name or ".leaves." in name)
    return {
        tensor.name: formats.get(tensor.name, "f32" if tensor.role == "router" else experts)
        for tensor in tensors(twin).values()
        if tensor.is_matrix and tensor.name != COARSE
    }


def _with(spec: ModelSpec, change: Callable[[FeedForwardSpec], FeedForwardSpec]) -> ModelSpec:
    return replace(
        spec,
        layers=tuple(
            layer if layer.feed_forward.router is None else replace(layer, feed_forward=change(layer.feed_forward))
            for layer in spec.layers
        ),
    )


def _dense(ff: FeedForwardSpec, experts: int) -> FeedForwardSpec:
    return replace(
        ff, width=ff.width * experts, router=None, shared=0, shared_gate=False, shared_width=0, by_neuron=False
    )


def _tree(ff: FeedForwardSpec) -> FeedForwardSpec:
    assert isinstance(ff.router, RouterSpec)
    depth = max(int(log2(ff.experts / ff.active)), 1)
    return replace(_dense(ff, ff.experts), width=max(ff.width * ff.experts >> depth, 1), router=TreeSpec(depth))
