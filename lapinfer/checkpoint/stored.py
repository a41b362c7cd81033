"""A checkpoint's config.json beside its tensors: each of these is used, known to change nothing, or told of.

What the tensors alone say (biases, a head of its own) goes into a section of the config (families/stored.py); what
stands in the way of a right answer is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.safetensors import BITS, FLOATS
from lapinfer.errors import CheckpointError, UnsupportedError, quoted
from lapinfer.families import head_name, layers_prefix, sources_for, spec_from_config
from lapinfer.families.names import Sources
from lapinfer.families.stored import BIASES, SECTION, section, with_biases
from lapinfer.families.unread import foreign, verdict
from lapinfer.spec import ModelSpec, RouterSpec

MOST_EXPERTS = 256
"""For each stored tensor: a layer with all experts in one tensor has about ten tensors."""
PIECE = 1 << 22
"""Numbers of a head that are compared at a time."""


def as_stored(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what only the tensors say.

    UnsupportedError for tensors that the model could not do without and that nobody here reads, and for types of
    numbers that weights cannot have. Looks at names, types and shapes; reads a tied model's head where one is stored.
    """
    config = {key: value for key, value in config.items() if key != SECTION}
    spec, names = spec_from_config(config, str(checkpoint.path)), checkpoint.names()
    stored = frozenset(names)
    _check_count(checkpoint, spec, len(names))
    sources = sources_for(spec, stored)
    head = head_name(spec, stored)
    untied = spec.tied and head in stored and not _same(checkpoint, sources["embed"][0].name, head)
    if untied:
        spec = replace(spec, tied=False)
    used, known = _names(sources), {head} & stored
    biases = _undeclared_biases(checkpoint, spec, sources, stored - used)
    if biases:
        spec = with_biases(spec, biases)
        used |= _names(sources_for(spec, stored))
    unread = [name for name in names if name not in used and name not in known]
    if (found := foreign(unread)) is not None:
        raise UnsupportedError(f"{checkpoint.path}: tensor {quoted(found[0])} is stored: {found[1]}")
    _check_types(checkpoint, used & stored)
    notes = []
    if biases:
        notes.append(f"biases are stored that config.json doesn't declare, and used: {', '.join(biases)}")
    if untied:
        notes.append(f"{quoted(head)} is stored and isn't the embedding; it is used, though config.json says tied")
    if used <= stored:  # else what is missing is told when it is asked for, and says more
        notes += _left_aside(checkpoint, unread, spec)
    return config | section(biases=biases, untied=untied, notes=notes)


def _check_count(checkpoint: Checkpoint, spec: ModelSpec, stored: int) -> None:
    """Refuses a promise of experts that no such file can keep, before a list of all of them is made."""
    routers = (layer.feed_forward.router for layer in spec.layers)
    experts = sum(router.n_experts for router in routers if isinstance(router, RouterSpec))
    if experts > MOST_EXPERTS * stored:
        raise CheckpointError(
            f"{checkpoint.path}: config.json says that the layers have {experts:,} experts, the files have only "
            f"{stored:,} tensors; is it the config.json of this model?"
        )


def _undeclared_biases(checkpoint: Checkpoint, spec: ModelSpec, promised: Sources, unread: frozenset[str]) -> list[str]:
    """The biases that are stored though config.json promises none; UnsupportedError where only some of a kind are."""
    found: list[str] = []
    if not any(name.endswith(".bias") for name in unread):
        return found
    stored = frozenset(checkpoint.names())
    for part in BIASES:
        more = sources_for(with_biases(spec, (part,)), stored)
        new = _names({name: rows for name, rows in more.items() if name not in promised and name.endswith("bias")})
        if (there := new & unread) and there != new:
            raise UnsupportedError(
                f"{checkpoint.path}: tensor {quoted(min(there))} is stored, which config.json doesn't declare, but "
                f"{quoted(min(new - there))} is not; biases are read of all layers or none"
            )
        if there:
            found.append(part)
    return found


def _names(sources: Sources) -> frozenset[str]:
    return frozenset(source.name for rows in sources.values() for source in rows if source.name)


def _same(checkpoint: Checkpoint, embed: str, head: str) -> bool:
    """Whether two stored matrices have the same numbers."""
    if embed == head:
        return True
    shape = checkpoint.shape(embed)
    if shape != checkpoint.shape(head) or len(shape) != 2:
        return False
    step = max(PIECE // max(shape[1], 1), 1)
    spans = ((low, low + step) for low in range(0, shape[0], step))
    return all(np.array_equal(checkpoint.read(embed, *span), checkpoint.read(head, *span)) for span in spans)


def _check_types(checkpoint: Checkpoint, used: Iterable[str]) -> None:
    """Whether what is needed is of types that weights are read from."""
    for name in used:
        kind = checkpoint.stored_as(name)
        if kind in BITS and kind not in FLOATS:
            raise UnsupportedError(
                f"{checkpoint.path}: tensor {quoted(name)} has dtype {kind}, expected {', '.join(FLOATS)}; "
                "quantized weights must be turned back into floats first"
            )


def _left_aside(checkpoint: Checkpoint, unread: Iterable[str], spec: ModelSpec) -> list[str]:
    """Lines about tensors that are not read; UnsupportedError for one that the model would need."""
    prefix = layers_prefix(spec, frozenset(checkpoint.names()))
    aside: dict[str, list[str]] = {}
    for name in unread:
        is_float = checkpoint.stored_as(name) in FLOATS or checkpoint.stored_as(name) not in BITS
        kind, why = verdict(name, checkpoint.shape(name), is_float, prefix, len(spec.layers))
        if kind == "needed":
            raise UnsupportedError(
                f"{checkpoint.path}: tensor {quoted(name)} is stored, but a model of this config.json has no place for "
                f"it, and would compute something else without it; check model_type ({spec.family}) and sizes there"
            )
        if kind == "aside":
            aside.setdefault(why, []).append(name)
    return [
        f"stored, and not read ({why}): {', '.join(map(quoted, found[:3]))}"
        f"{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for why, found in aside.items()
    ]
