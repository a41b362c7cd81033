"""From a checkpoint to the packed form: assemble each of our tensors, quantize it, write it; tensor by tensor.

Memory stays near one slice of rows: a matrix is read, quantized and written SLICE weights at a time. Matrices that
become q4 with a loss are quantized by what is known of their inputs (calibration.py): how large each column is over
random tokens, or, with a calibration text, the whole covariance.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from lapinfer.calibration import (
    Calibration,
    Progress,
    covariances,
    groups_within,
    random_tokens,
    second_moments,
    text_tokens,
)
from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.home import home
from lapinfer.checkpoint.packed import FILE_NAME, PackedEntry, PackedFile, PackedWriter, is_packed
from lapinfer.errors import CheckpointError, InputError
from lapinfer.families import Source, sources_for, spec_from_config
from lapinfer.model import Model, default_threads
from lapinfer.quant import BAND, FORMATS, ROWS, FormatName, Grouped
from lapinfer.quant.blocks import interleaved_rows, pack, take_rows
from lapinfer.quant.calibrate import quantize_with_feedback
from lapinfer.quant.search import joined, quantize
from lapinfer.runtime.build import Limits
from lapinfer.spec import ModelSpec, is_matrix, tensors

QUANTS = ("auto", *FORMATS)
SLICE = 1 << 23
SMALL = 400_000_000
"""Models of fewer weights than this are packed as q8 by default: they are fast anyway, and 4 bits cost them more."""

STORED_FORMATS: dict[str, FormatName] = {
    "F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8", "Q4_0": "q4_1", "Q4_1": "q4_1",
}  # fmt: skip
"""What a stored type becomes without a loss."""

FOUR_BITS = ("q4", "q4_1")

Q4_HEAD: FormatName = "q8"
"""What embed and head of a q4 (or q4_1) model are: a tenth of the bytes, and every logit depends on them."""

FEEDBACK_COLUMNS = 4096
"""Wider matrices are not quantized with error feedback: their Cholesky factor takes minutes and a gigabyte."""

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

    def formats_of(self, name: str) -> set[FormatName | None]:
        """The formats that hold its sources without a loss; None: there is no such format."""
        return {STORED_FORMATS.get(self.checkpoint.stored_as(source.name)) for source in self.sources[name]}

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
        parts = [self._values(*span) for span in self._spans(name, start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _values(self, source: Source, low: int, high: int) -> np.ndarray:
        if source.transposed:
            values = self.checkpoint.read(source.name)[:, low:high].T
        else:
            values = self.checkpoint.read(source.name, low, high)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {source.name!r} has values that are not numbers (NaN or infinite)"
            )
        return values

    def read_grouped(
        self, name: str, start: int, stop: int, format: FormatName, importance: np.ndarray | None
    ) -> Grouped:
        """The same rows in groups: as they are stored where they have this format already, else quantized."""
        parts = []
        for source, low, high in self._spans(name, start, stop):
            part = None if source.transposed else self.checkpoint.read_grouped(source.name, low, high)
            if part is None or part.format != format:
                values = self._values(source, low, high)
                with self.naming(f"tensor {source.name!r} from row {low}"):
                    part = quantize(format, values, importance)
            parts.append(part)
        return joined(parts)

    @contextmanager
    def naming(self, what: str) -> Iterator[None]:
        """Errors of quantization say which row, not of what."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{self.checkpoint.path}: {what}: {error}") from error


def choose_formats(spec: ModelSpec, quant: str, assembler: Assembler) -> dict[str, FormatName]:
    """The format of each matrix. auto keeps what is stored in 8 or 4 bits, and else is q8 for small models or q4.

    q4 is q4_1 where a source is stored so: its groups are then kept to the bit.
    """
    if quant not in QUANTS:
        raise InputError(f"quant {quant!r} is not known, expected one of {', '.join(QUANTS)}")
    shapes = {name: shape for name, shape in tensors(spec).items() if is_matrix(name)}
    weights = sum(rows * columns for rows, columns in shapes.values())
    formats: dict[str, FormatName] = {}
    for name in shapes:
        asked = quant if quant != "auto" else "q8" if weights < SMALL else "q4"
        stored = assembler.formats_of(name)
        if quant == "auto" and stored <= {"q8", "q4_1"}:
            asked = "q8" if "q8" in stored else "q4_1"
        if asked in FOUR_BITS and name in ("embed", "head"):
            asked = Q4_HEAD
        elif asked == "q4" and "q4_1" in stored:
            asked = "q4_1"
        formats[name] = asked  # type: ignore[assignment]
    return formats


def _packed_slices(
    assembler: Assembler, name: str, order: np.ndarray, columns: int, format: FormatName, known: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Slices of bands of one packed matrix. known: importance [C] of its columns, or covariance [C, C]."""
    whole = None
    if known is not None and known.ndim == 2:
        with assembler.naming(f"{name}, all rows"):
            whole = quantize_with_feedback(assembler.read(name, 0, int(order.max()) + 1), known)
    step = max(SLICE // max(columns, 1) // (BAND * ROWS), 1) * BAND * ROWS
    for at in range(0, len(order), step):
        rows = order[at : at + step]
        if whole is not None:
            yield pack(format, take_rows(whole, rows))
            continue
        wanted = np.unique(rows[rows >= 0])
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        spans = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        place = np.where(rows < 0, -1, np.searchsorted(wanted, rows))
        if FORMATS[format].activation == "f32":
            values = take_rows(np.concatenate([assembler.read(name, *span) for span in spans]), place)
            with assembler.naming(f"{name} from row {spans[0][0]}"):
                yield pack(format, values)
        else:
            grouped = joined([assembler.read_grouped(name, *span, format, known) for span in spans])
            yield pack(format, take_rows(grouped, place))


def inexact(formats: Mapping[str, FormatName], assembler: Assembler) -> list[str]:
    """The matrices that become 4 bits with a loss: those not stored in such groups already."""
    return [name for name, format in formats.items() if format in FOUR_BITS and assembler.formats_of(name) != {format}]


def pack_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    quant: str = "auto",
    *,
    calibrate: Path | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> Path:
    """Write the packed form of a checkpoint into `folder`, with config and tokenizer files beside it.

    The weights are renamed to their final name last, so a folder that is_packed is whole. An interrupted packing
    goes on where it was. What becomes q4 with a loss is weighed by the inputs that random tokens give, or, with the
    text `calibrate`, quantized with error feedback (matrices of at most FEEDBACK_COLUMNS columns, none of whose
    sources is q4_1 already; the others are weighed by the text).
    """
    spec = spec_from_config(checkpoint.config, str(checkpoint.path))
    assembler = Assembler(checkpoint, sources_for(spec, set(checkpoint.names())))
    shapes = tensors(spec)
    for name, shape in shapes.items():
        assembler.check(name, shape)
    formats = choose_formats(spec, quant, assembler)
    lossy = inexact(formats, assembler)
    if calibrate is not None and not lossy:
        raise InputError(f"{checkpoint.path}: nothing becomes q4 with a loss, so a calibration text has no use")
    calibration = text_tokens(spec, checkpoint.folder, calibrate) if calibrate is not None else random_tokens(spec)
    orders = {name: packed_rows(name, shapes[name][0]) for name in formats}
    entries = [
        PackedEntry(name, formats.get(name), (len(orders[name]), shape[1]) if name in formats else shape)
        for name, shape in shapes.items()
    ]
    # In the header, so that a packing goes on only with weights that were made in the same way.
    metadata = {"quant": quant, "source": checkpoint.fingerprint, "calibration": calibration.label if lossy else "none"}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    total = sum(sizes.values())
    with PackedWriter(folder / FILE_NAME, entries, metadata) as writer:
        _copy_beside(checkpoint, folder)
        remaining = writer.remaining()
        done = total - sum(sizes[name] for name in remaining)
        widths = {name: shapes[name][1] for name in remaining if name in lossy}
        weighed = _known_inputs(checkpoint, assembler, spec, folder, calibration, widths, progress)
        with closing(weighed):
            for name, known in chain(weighed, ((name, None) for name in remaining if name not in widths)):
                progress("packing", done, total)
                if name in formats:
                    slices = _packed_slices(assembler, name, orders[name], shapes[name][1], formats[name], known)
                else:
                    slices = iter([assembler.read(name, 0, shapes[name][0])])
                for at, data in enumerate(slices):
                    writer.write(name, data)
                    progress("packing", min(done + (at + 1) * SLICE, done + sizes[name]), total)
                done += sizes[name]
        progress("packing", total, total)
        writer.finish()
    return folder


def _known_inputs(
    checkpoint: Checkpoint, assembler: Assembler, spec: ModelSpec, folder: Path, calibration: Calibration,
    widths: Mapping[str, int], progress: Progress,
) -> Generator[tuple[str, np.ndarray], None, None]:  # fmt: skip
    """The matrices with what is known of their inputs: importance [C] or covariance [C, C]."""
    if not widths:
        return

    def feedback(name: str) -> bool:
        fits = widths[name] <= FEEDBACK_COLUMNS and name not in ("embed", "head")
        return fits and not calibration.random and "q4_1" not in assembler.formats_of(name)

    with _calibration_model(checkpoint, spec, folder, calibration, progress) as model:
        if plain := {name: width for name, width in widths.items() if not feedback(name)}:
            for name, moments in second_moments(model, calibration.chunks, plain, progress).items():
                # Found by experiment: inputs of these two differ most between random tokens and text.
                differs = calibration.random and name.endswith((".o", ".down"))
                yield name, np.sqrt(moments) if differs else moments
        for group in groups_within({name: width for name, width in widths.items() if feedback(name)}):
            found = covariances(model, calibration.chunks, group, progress)
            for name in group:
                yield name, found.pop(name)


@contextmanager
def _calibration_model(
    checkpoint: Checkpoint, spec: ModelSpec, folder: Path, calibration: Calibration, progress: Progress
) -> Iterator[Model]:
    """The checkpoint as q8 in a folder that is removed afterwards; a killed packing into `folder` finds it again."""
    digest = hashlib.sha256(f"{folder.resolve()} {checkpoint.fingerprint}".encode()).hexdigest()[:12]
    temporary = home() / "calibration" / digest
    length = calibration.chunks.shape[1]
    limits = Limits(length, step=length, threads=default_threads(), activations="q16")
    try:
        pack_checkpoint(checkpoint, temporary, "q8", progress=lambda _, done, all: progress("preparing", done, all))
        model = Model(spec, PackedFile(temporary), limits, name=str(checkpoint.path))
        try:
            yield model
        finally:
            model.close()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    digest = hashlib.sha256(f"{checkpoint.fingerprint} {quant} 3".encode()).hexdigest()[:12]
    stem = checkpoint.path.stem if checkpoint.path.is_file() else checkpoint.path.name
    return home / f"{stem}-{quant}-{digest}"


def packed_copy(checkpoint: Checkpoint, quant: str, home: Path, progress: Progress) -> Path:
    """The packed copy in the cache, made now if it is not there."""
    folder = cached_folder(checkpoint, quant, home)
    return folder if is_packed(folder) else pack_checkpoint(checkpoint, folder, quant, progress=progress)
