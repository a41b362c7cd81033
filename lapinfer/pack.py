"""From a checkpoint to the packed form: assemble each of our tensors, quantize it, write it; tensor by tensor.

Memory stays near one slice of rows: a matrix is read, quantized and written SLICE weights at a time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.packed import FILE_NAME, PackedEntry, PackedWriter, is_packed
from lapinfer.errors import CheckpointError, InputError
from lapinfer.families import Source, sources_for, spec_from_config
from lapinfer.quant import FORMATS, GROUP, ROWS, FormatName, Grouped
from lapinfer.quant.blocks import interleaved_rows, pack
from lapinfer.quant.search import quantize
from lapinfer.spec import ModelSpec, is_matrix, tensors

Progress = Callable[[int, int, str], None]
"""Called with weights done, weights in all, and the tensor's name."""

QUANTS = ("auto", *FORMATS)
SLICE = 1 << 23
SMALL = 400_000_000
"""Models of fewer weights than this are packed as q8 by default: they are fast anyway, and 4 bits cost them more."""

STORED_FORMATS: dict[str, FormatName] = {
    "F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8", "Q4_0": "q4", "Q4_1": "q4",
}  # fmt: skip
"""What a stored type becomes without a loss."""

BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
          "chat_template.jinja")  # fmt: skip


def packed_rows(name: str, rows: int) -> np.ndarray:
    """Which logical row each packed row of a matrix holds; −1: none, zeros."""
    if name.endswith(".gate_up"):
        return interleaved_rows(rows // 2)
    multiple = 2 * ROWS if name.endswith(".up") else ROWS  # rows of `up` become groups of 32 activations
    order = np.arange(-(-rows // multiple) * multiple)
    return np.where(order < rows, order, -1)


@dataclass(frozen=True, slots=True)
class Assembler:
    """Rows of our tensors from a checkpoint's."""

    checkpoint: Checkpoint
    sources: Mapping[str, tuple[Source, ...]]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Whether the stored tensors have the shape that the config promises."""
        rows = 0
        for source in self.sources[name]:
            if source.name not in self.checkpoint.names():
                raise CheckpointError(f"{self.checkpoint.path}: tensor {source.name!r} is missing")
            stored = self.checkpoint.shape(source.name)
            turned = stored[::-1] if source.transposed else stored
            stop = turned[0] if source.stop is None else source.stop
            if len(turned) != len(shape) or stop > turned[0] or turned[1:] != shape[1:]:
                wanted = (stop, *shape[1:])[::-1] if source.transposed else (stop, *shape[1:])
                raise CheckpointError(
                    f"{self.checkpoint.path}: tensor {source.name!r} has shape {stored}, config.json says {wanted}"
                )
            rows += stop - source.start
        if rows != shape[0]:
            names = ", ".join(source.name for source in self.sources[name])
            raise CheckpointError(
                f"{self.checkpoint.path}: {names} together have {rows} rows, config.json says {shape[0]}"
            )

    def stored_as(self, name: str) -> set[str]:
        return {self.checkpoint.stored_as(source.name) for source in self.sources[name]}

    def _spans(self, name: str, start: int, stop: int) -> Iterator[tuple[Source, int, int]]:
        """The parts of the sources that rows start:stop are made of."""
        at = 0
        for source in self.sources[name]:
            stored = self.checkpoint.shape(source.name)
            last = source.stop if source.stop is not None else stored[-1 if source.transposed else 0]
            rows = last - source.start
            low, high = max(start - at, 0), min(stop - at, rows)
            if low < high:
                yield source, source.start + low, source.start + high
            at += rows

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start:stop as float32, checked to be numbers."""
        parts = []
        for source, low, high in self._spans(name, start, stop):
            if source.transposed:
                values = self.checkpoint.read(source.name)[:, low:high].T
            else:
                values = self.checkpoint.read(source.name, low, high)
            if not np.isfinite(values).all():
                raise CheckpointError(
                    f"{self.checkpoint.path}: tensor {source.name!r} has values that are not numbers (NaN or infinite)"
                )
            parts.append(values)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read_grouped(self, name: str, start: int, stop: int, format: FormatName) -> Grouped | None:
        """The same rows in stored groups, where all of them are already in `format`."""
        parts = []
        for source, low, high in self._spans(name, start, stop):
            part = None if source.transposed else self.checkpoint.read_grouped(source.name, low, high)
            if part is None or part.format != format:
                return None
            parts.append(part)
        minimum = np.concatenate([p.minimum for p in parts]) if format == "q4" else None
        return Grouped(
            format, np.concatenate([p.codes for p in parts]), np.concatenate([p.scale for p in parts]), minimum
        )


def choose_formats(spec: ModelSpec, quant: str, assembler: Assembler) -> dict[str, FormatName]:
    """The format of each matrix. auto keeps what is stored in 8 or 4 bits, and else is q8 for small models or q4."""
    if quant not in QUANTS:
        raise InputError(f"quant {quant!r} is not known, expected one of {', '.join(QUANTS)}")
    shapes = {name: shape for name, shape in tensors(spec).items() if is_matrix(name)}
    weights = sum(rows * columns for rows, columns in shapes.values())
    formats: dict[str, FormatName] = {}
    for name in shapes:
        asked = quant if quant != "auto" else "q8" if weights < SMALL else "q4"
        stored = {STORED_FORMATS.get(kind) for kind in assembler.stored_as(name)}
        if quant == "auto" and stored <= {"q8", "q4"}:
            asked = "q8" if "q8" in stored else "q4"
        if asked == "q4" and name in ("embed", "head"):
            asked = "q8"  # a tenth of the bytes, and every logit depends on it
        formats[name] = asked  # type: ignore[assignment]
    return formats


def _quantized(
    assembler: Assembler, name: str, order: np.ndarray, columns: int, format: FormatName, importance: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Slices of row blocks of one packed matrix."""
    step = max(SLICE // max(columns, 1) // (2 * ROWS), 1) * 2 * ROWS
    for at in range(0, len(order), step):
        rows = order[at : at + step]
        wanted = np.unique(rows[rows >= 0])
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        slices = [_slice(assembler, name, int(run[0]), int(run[-1]) + 1, format, importance) for run in runs]
        whole = _concatenate(slices)
        place = np.searchsorted(wanted, np.maximum(rows, 0))
        yield pack(format, _take(whole, np.minimum(place, len(wanted) - 1), rows >= 0))


def _slice(assembler, name, start, stop, format: FormatName, importance) -> np.ndarray | Grouped:
    if FORMATS[format].activation == "f32":
        return assembler.read(name, start, stop)
    grouped = assembler.read_grouped(name, start, stop, format)
    if grouped is not None:
        return grouped
    values = assembler.read(name, start, stop)
    spare = -values.shape[1] % GROUP
    return quantize(format, np.pad(values, ((0, 0), (0, spare))) if spare else values, importance)


def _concatenate(parts: list) -> np.ndarray | Grouped:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    minimum = None if first.minimum is None else np.concatenate([p.minimum for p in parts])
    return Grouped(
        first.format, np.concatenate([p.codes for p in parts]), np.concatenate([p.scale for p in parts]), minimum
    )


def _take(whole: np.ndarray | Grouped, rows: np.ndarray, present: np.ndarray) -> np.ndarray | Grouped:
    """Rows in packed order; absent ones are zeros."""

    def gather(values: np.ndarray) -> np.ndarray:
        taken = values[rows]
        taken[~present] = 0
        return taken

    if isinstance(whole, np.ndarray):
        return gather(whole)
    minimum = None if whole.minimum is None else gather(whole.minimum)
    return Grouped(whole.format, gather(whole.codes), gather(whole.scale), minimum)


def pack_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    quant: str = "auto",
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    progress: Progress = lambda done, total, name: None,
) -> Path:
    """Write the packed form of a checkpoint into `folder`, with config and tokenizer files beside it.

    The weights are renamed to their final name last, so a folder that is_packed is whole. An interrupted packing
    goes on where it was. `importance`: second moments of each matrix's input columns, by our tensor names.
    """
    spec = spec_from_config(checkpoint.config, str(checkpoint.path))
    assembler = Assembler(checkpoint, sources_for(spec, set(checkpoint.names())))
    shapes = tensors(spec)
    for name, shape in shapes.items():
        assembler.check(name, shape)
    formats = choose_formats(spec, quant, assembler)
    orders = {name: packed_rows(name, shapes[name][0]) for name in formats}
    entries = [
        PackedEntry(name, formats.get(name), (len(orders[name]), shape[1]) if name in formats else shape)
        for name, shape in shapes.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"quant": quant, "source": checkpoint.fingerprint}
    total, done = sum(int(np.prod(shape)) for shape in shapes.values()), 0
    with PackedWriter(folder / FILE_NAME, entries, metadata) as writer:
        _copy_beside(checkpoint, folder)
        remaining = set(writer.remaining())
        for name, shape in shapes.items():
            progress(done, total, name)
            if name in remaining:
                if name in formats:
                    weight = None if importance is None else importance.get(name)
                    for blocks in _quantized(assembler, name, orders[name], shape[1], formats[name], weight):
                        writer.write(name, blocks)
                        progress(min(done + blocks.shape[0] * ROWS * shape[1], total), total, name)
                else:
                    writer.write(name, assembler.read(name, 0, shape[0]))
            done += int(np.prod(shape))
        progress(total, total, "")
        writer.finish()
    return folder


def _copy_beside(checkpoint: Checkpoint, folder: Path) -> None:
    try:
        (folder / "config.json").write_text(json.dumps(checkpoint.config, indent=2), encoding="utf-8")
        for name in BESIDE:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, folder / name)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from error


def cached_folder(checkpoint: Checkpoint, quant: str, home: Path) -> Path:
    """Where the packed copy of a checkpoint belongs: it changes with the source files and the quant asked for."""
    digest = hashlib.sha256(f"{checkpoint.fingerprint} {quant} 1".encode()).hexdigest()[:12]
    stem = checkpoint.path.stem if checkpoint.path.is_file() else checkpoint.path.name
    return home / f"{stem}-{quant}-{digest}"


def packed_copy(checkpoint: Checkpoint, quant: str, home: Path, progress: Progress) -> Path:
    """The packed copy in the cache, made now if it is not there."""
    folder = cached_folder(checkpoint, quant, home)
    return folder if is_packed(folder) else pack_checkpoint(checkpoint, folder, quant, progress=progress)
