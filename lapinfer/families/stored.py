"""What only a checkpoint's tensors say, beside its config.json: a section that reading the checkpoint adds to that.

A file may have biases that no key of its config.json declares, or a head of its own though it is said to be tied. The
numbers that are stored are believed. The section keeps what was found, so that a packed copy means the same model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from lapinfer.families.config import Config
from lapinfer.spec import AttentionSpec, ConvolutionSpec, LayerSpec, ModelSpec

SECTION: Final = "lapinfer"
"""The section's name in config.json."""

BIASES: Final = ("qkv", "o", "convolution", "feed-forward", "head")
"""Parts of a model that may have biases, each of which a section may name. Not those of experts and routers: a family
that has none would not know where to add them."""

MOST_NOTES, LONGEST_NOTE = 8, 600


def section(*, biases: Collection[str] = (), untied: bool = False, notes: Collection[str] = ()) -> dict[str, Any]:
    """The section that says this; empty when there is nothing to say.

    biases: those of BIASES that are stored and undeclared. untied: the head is not the embedding, whatever config.json
    says. notes: lines for whoever loads the model.
    """
    said = {"biases": list(biases), "untied": untied, "notes": [note[:LONGEST_NOTE] for note in notes][:MOST_NOTES]}
    return {SECTION: {key: value for key, value in said.items() if value}} if any(said.values()) else {}


def with_stored(spec: ModelSpec, config: Config) -> tuple[ModelSpec, list[str]]:
    """The model as a section says that it is stored, and the section's notes."""
    biases, notes = (config.get(key) or [] for key in ("biases", "notes"))
    if not isinstance(biases, list) or any(bias not in BIASES for bias in biases):
        raise config.wrong("biases", f"a list of {', '.join(BIASES)}")
    if not isinstance(notes, list) or any(not isinstance(note, str) or len(note) > LONGEST_NOTE for note in notes):
        raise config.wrong("notes", "a list of lines")
    untied = config.flag("untied", False)
    return replace(with_biases(spec, biases), tied=spec.tied and not untied), notes[:MOST_NOTES]


def with_biases(spec: ModelSpec, biases: Collection[str]) -> ModelSpec:
    """The same model with these biases in all layers that can have them."""

    def layer_with(layer: LayerSpec) -> LayerSpec:
        mixer, ff = layer.mixer, layer.feed_forward
        if isinstance(mixer, AttentionSpec):
            mixer = replace(mixer, qkv_bias=mixer.qkv_bias or "qkv" in biases, o_bias=mixer.o_bias or "o" in biases)
        elif isinstance(mixer, ConvolutionSpec):
            mixer = replace(mixer, bias=mixer.bias or "convolution" in biases)
        if ff.router is None and "feed-forward" in biases:
            ff = replace(ff, bias=True)
        return replace(layer, mixer=mixer, feed_forward=ff)

    if not biases:
        return spec
    layers = tuple(map(layer_with, spec.layers))
    return replace(spec, layers=layers, head_bias=spec.head_bias or "head" in biases)
