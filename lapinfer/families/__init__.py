"""Model families: one file each, which reads a config.json into a ModelSpec and names the tensors.

A family is a module of this folder with a `FAMILY` (family.py); the registry here finds it by its file. The other
modules are what families share:

    config.py   typed reading of config.json          names.py    tables of stored tensors, and our tensors' sources
    decoder.py  the usual keys of a decoder           gguf.py     llama.cpp's names, keys and changes
    experts.py  the usual keys of experts             latent.py   DeepSeek's latent attention
    rope.py     rotary positions                      fff.py      trees in a checkpoint of any family
    gguf_metadata.py, gguf_rope.py, gguf_keys.py: reading GGUF's keys, their rotary positions, and keys not asked for
    keys.py     keys of config.json that nobody asked for     stored.py   what only the stored tensors say
    unread.py   stored tensors that nobody reads          quantized.py  weights that another tool has quantized

To add a family: write its file; nothing else needs to know it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any, Final

from lapinfer.errors import CheckpointError
from lapinfer.families.config import Config
from lapinfer.families.family import Family as Family
from lapinfer.families.fff import tree_sources, with_trees
from lapinfer.families.keys import check_unknown_keys
from lapinfer.families.names import Source as Source
from lapinfer.families.names import Sources, decoder_prefix, head_of, named_sources
from lapinfer.families.quantized import refuse_quantized
from lapinfer.families.stored import SECTION, with_stored
from lapinfer.progress import Notice, silent
from lapinfer.spec import ModelSpec

REFUSED: Final = ("add_cross_attention", "is_encoder_decoder", "use_bidirectional_attention")
"""Options that no family here computes."""


def family(name: str) -> Family:
    """The family in the module of this name, which is the `family` of its specs."""
    module = _family(name)
    assert module is not None, name
    return module


def families() -> dict[str, Family]:
    """All families by their modules' names; imports all of them."""
    return {name: module for name in _modules() if (module := _family(name)) is not None}


def model_types() -> list[str]:
    """Every `model_type` that can be read."""
    return sorted(model_type for module in families().values() for model_type in module.model_types)


def family_of_model_type(model_type: str) -> str | None:
    """The name of the family of a `model_type`."""
    return _find(model_type, lambda module: model_type in module.model_types)


def family_of_gguf(architecture: str) -> str | None:
    """The name of the family that llama.cpp gives this name, if one is read from GGUF."""
    return _find(architecture, lambda module: module.gguf is not None and module.gguf.architecture == architecture)


def spec_from_config(config: Any, where: str, notice: Notice = silent) -> ModelSpec:
    """The model that a parsed config.json describes; `where` names the file in errors.

    Raises CheckpointError for what cannot be true, UnsupportedError for what would be computed wrongly here.
    `notice` gets a line about keys that are left aside (keys.py).
    """
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: expected a JSON object with a model_type, got {type(config).__name__}")
    values = Config(config, where)
    model_type = values.text("model_type")
    name = family_of_model_type(model_type)
    if name is None:
        raise values.unsupported("model_type", ", ".join(model_types()))
    refuse_quantized(values, family(name).quant_method)
    values.refuse(*REFUSED)
    spec = replace(family(name).spec(values), family=name)
    if "fff" in values:
        spec = with_trees(spec, values.section("fff"))
    if SECTION in values:
        spec, notes = with_stored(spec, values.section(SECTION))
        for note in notes:
            notice(f"note: {where}: {note}")
    if line := check_unknown_keys(values, family(name).ignored_keys):
        notice(line)
    return spec


def sources_for(spec: ModelSpec, names: Collection[str] = ()) -> Sources:
    """Where each tensor of `tensors(spec)` comes from, in a checkpoint that has these `names`.

    Published files carry a prefix ("model.", "transformer.") or don't: the one that is there is taken, and without
    names the usual one. A tied head is not a tensor of ours, whether or not it is stored as well; the embedding is
    read from it where it is the only one.
    """
    module = family(spec.family)
    more = module.more_sources(spec, names) if module.more_sources is not None else {}
    return named_sources(module.names, spec, names) | more | tree_sources(spec, names)


def layers_prefix(spec: ModelSpec, names: Collection[str]) -> str:
    """What the names of the decoder's tensors begin with, in a checkpoint that has these `names`."""
    return decoder_prefix(family(spec.family).names, names)


def head_name(spec: ModelSpec, names: Collection[str]) -> str:
    """What the head is called in a checkpoint that has these `names`, or would be."""
    return f"{head_of(family(spec.family).names, names)}.weight"


@cache
def _family(name: str) -> Family | None:
    """None: the module is one that families share."""
    return getattr(import_module(f"{__name__}.{name}"), "FAMILY", None)


@cache
def _modules() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def _find(name: str, is_it: Callable[[Family], bool]) -> str | None:
    """The first family for which `is_it`; modules whose own names begin `name`, the longest first, are asked first.

    So one module is imported where a file is called like its model_type, as most are.
    """
    for module_name in sorted(_modules(), key=lambda module: -len(module) if name.startswith(module) else 0):
        module = _family(module_name)
        if module is not None and is_it(module):
            return module_name
    return None
