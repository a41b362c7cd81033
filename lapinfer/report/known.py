"""What is known of a model before any weight is read: of packed folders, checkpoints, and a config.json alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.bare import BareConfig, bare_config, local_name
from lapinfer.checkpoint.hub import resolve
from lapinfer.errors import CheckpointError
from lapinfer.families import sources_for, spec_from_config
from lapinfer.families.quantized import READ, section_of, usual_kind
from lapinfer.packing.assemble import Assembler
from lapinfer.packing.become import kept_lines
from lapinfer.packing.pack import choose_formats
from lapinfer.packing.reader import read_packed
from lapinfer.quant.choice import AUTO, Stored
from lapinfer.quant.formats import KEPT
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors

OF_DTYPES = {"float16": "f16", "float32": "f32"}
"""What config.json calls the type of its weights; bfloat16 and whatever else is taken for bf16."""


@dataclass(frozen=True, slots=True)
class Known:
    """A model without its weights.

    path: where it is, in words. stored: formats that a matrix is made of, by its name. shares: of all weights, in each
    stored format. packed: the format of each matrix, where it is packed; quant: what it was packed as. folder: where
    its texts are, None where there are none. notes: what a user should see.
    """

    spec: ModelSpec
    path: str
    stored: Callable[[str], Stored]
    folder: Path | None = None
    shares: dict[str, str] = field(default_factory=dict)
    packed: dict[str, str] = field(default_factory=dict)
    quant: str | None = None
    notes: tuple[str, ...] = ()


def known(name: str) -> Known:
    """The model of this name, by its headers and configs. A model that is here wins over what is known of its name.

    CheckpointError and UnsupportedError for files that cannot be right, or that would be computed wrongly.
    """
    here = local_name(name)
    if here == name and (bare := bare_config(name)) is not None:
        return _of_config(bare)
    found = resolve(here)
    notes = () if here == name else (f"{name}: {here} is on this computer, and this is about its files",)
    return _of_packed(found, notes) if isinstance(found, Path) else _of_checkpoint(found, notes)


def _of_config(bare: BareConfig) -> Known:
    notes = [*bare.notes]
    spec = spec_from_config(bare.config, bare.where, notes.append)
    dtype = bare.config.get("dtype") or bare.config.get("torch_dtype")
    floats = OF_DTYPES.get(dtype, "bf16") if isinstance(dtype, str) else "bf16"
    quantized, kept = set[str](), floats
    if (section := section_of(bare.config)) is not None:
        experts = section.method not in READ  # what of the others isn't refused has only experts quantized
        kept = "mxfp4" if experts else _kept_as(usual_kind(section)) or floats
        quantized = {t.name for t in tensors(spec).values() if t.reads == "expert" or (not experts and t.layer >= 0)}
    return Known(spec, bare.told, lambda name: {kept if name in quantized else floats}, notes=tuple(notes))


def _kept_as(kind: str) -> str | None:
    return KEPT[kind].name if kind in KEPT else None


def _of_packed(folder: Path, before: tuple[str, ...]) -> Known:
    notes = [*before]
    spec, file = read_packed(folder, notes.append)
    shares = _shares((file.format(n) or "f32", prod(file.shape(n))) for n in file.names())
    quant = file.metadata.get("quant", "auto")
    formats = dict(file.formats)
    return Known(spec, str(folder), lambda name: {formats[name]}, folder, shares, formats, quant, tuple(notes))


def _of_checkpoint(checkpoint: Checkpoint, before: tuple[str, ...]) -> Known:
    notes = [*before, *checkpoint.notices]
    spec = spec_from_config(checkpoint.config, str(checkpoint.path), notes.append)
    shares = _shares((checkpoint.stored_as(n), prod(checkpoint.shape(n))) for n in checkpoint.names())
    assembler = Assembler(checkpoint, sources_for(spec, checkpoint.names()))
    stored = _formats_in(assembler)
    notes += _kept(spec, assembler, stored)
    return Known(spec, str(checkpoint.path), stored, checkpoint.folder, shares, notes=tuple(notes))


def _kept(spec: ModelSpec, assembler: Assembler, stored: Callable[[str], Stored]) -> list[str]:
    """A line about what quantized weights become unless another format is asked for."""
    try:
        return kept_lines(assembler, tensors(spec).values(), choose_formats(spec, AUTO, stored))
    except CheckpointError:  # tensors are missing, which loading will tell
        return []


def _formats_in(assembler: Assembler) -> Callable[[str], Stored]:
    """Formats that matrices are stored in; none where tensors are missing, which loading will tell."""

    def formats(name: str) -> Stored:
        try:
            return assembler.formats_of(name)
        except CheckpointError:
            return set()

    return formats


def _shares(weights: Iterable[tuple[str, int]]) -> dict[str, str]:
    counts: Counter[str] = Counter()
    for kind, n in weights:
        counts[kind] += n
    total = max(counts.total(), 1)
    return {kind: f"{100 * n / total:.1f} %" for kind, n in counts.most_common()}
