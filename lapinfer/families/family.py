"""What a family module declares, as one object called FAMILY."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from lapinfer.families.config import Config
from lapinfer.families.gguf import GGUF
from lapinfer.families.names import AS_LLAMA, Sources, TensorNames
from lapinfer.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model: how its config.json is read, and how its files name tensors.

    model_types: as config.json spells them, the usual one first. spec: reads a config.json, and refuses what would be
    computed wrongly here; the registry sets the spec's name of the family. names: the table of stored tensors.
    more_sources: sources that no table says, which win. gguf: None where llama.cpp's files cannot be read.
    quant_method: the one quantization that published files of this family may come in. ignored_keys: keys of
    config.json that files of this family have, and that change nothing (keys.py).
    """

    model_types: tuple[str, ...]
    spec: Callable[[Config], ModelSpec]
    names: TensorNames = AS_LLAMA
    more_sources: Callable[[ModelSpec, Collection[str]], Sources] | None = None
    gguf: GGUF | None = None
    quant_method: str | None = None
    ignored_keys: tuple[str, ...] = ()
