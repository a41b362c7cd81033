"""Model families: one file each, which reads a config.json into a ModelSpec and names the tensors.

A family module has

    spec(config) -> ModelSpec                        refuses what it would run wrongly (UnsupportedError)
    sources(spec, names) -> dict[str, tuple[Source, ...]]      our tensor name -> where its rows come from

`names` are the tensors that the checkpoint has: published files carry a prefix ("model.", "transformer.") or don't,
and a family picks the one that is there. Without names, the usual one is meant. The rows of all sources of a tensor,
one after the other, are its rows. A tied head is not a tensor of ours, whether or not it is stored as well.

`Source` is the whole language between a checkpoint's names and ours: rows of a stored tensor, maybe transposed.
To add a family: write its file, and name it in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from lapinfer.errors import CheckpointError
from lapinfer.families.config import Config
from lapinfer.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Source:
    """Rows start:stop:step (all, when stop is None) and columns first:last of a stored matrix.

    `transposed` when it is stored [in, out]. Of a stored tensor with three dimensions, `index` says which matrix, or
    (None) that all of them are meant, one after the other. The name "" is `stop` rows of zeros.
    """

    name: str
    start: int = 0
    stop: int | None = None
    transposed: bool = False
    step: int = 1
    index: int | None = None
    columns: tuple[int, int] | None = None


FAMILIES: Final = {
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_oss": "gpt_oss",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoeshared": "granitemoeshared",
    "lfm2": "lfm2",
    "lfm2_moe": "lfm2_moe",
    "lapinfer": "llama",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "phi3": "phi3",
    "phimoe": "phimoe",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "smollm3": "smollm3",
}
"""`model_type` of a config.json -> module in this folder (lapinfer is what a trainer calls a Llama whose feed-forwards
no other program would run, see fff.py). A module's name is the `family` of its specs."""

REFUSED: Final = ("add_cross_attention", "is_encoder_decoder", "use_bidirectional_attention")
"""Options that no family here computes."""

QUANTIZED: Final = {"gpt_oss": "mxfp4"}
"""Families whose files come quantized, and the `quant_method` that can be read for them."""


def _module(family: str) -> ModuleType:
    return import_module(f"{__name__}.{family}")


def spec_from_config(config: Any, where: str) -> ModelSpec:
    """The model that a parsed config.json describes; `where` names the file in errors.

    Raises CheckpointError for what cannot be true, UnsupportedError for what would be computed wrongly here.
    """
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: expected a JSON object with a model_type, got {type(config).__name__}")
    values = Config(config, where)
    family = FAMILIES.get(values.text("model_type"))
    if family is None:
        raise values.unsupported("model_type", ", ".join(FAMILIES))
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    if method is None or method != QUANTIZED.get(family):
        values.refuse("quantization_config")
    values.refuse(*REFUSED)
    spec = _module(family).spec(values)
    return _module("fff").with_trees(spec, values.section("fff")) if "fff" in values else spec


def sources_for(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    """Where each tensor of `tensors(spec)` comes from, in a checkpoint that has these `names`."""
    return _module(spec.family).sources(spec, names) | _module("fff").tree_sources(spec, names)
