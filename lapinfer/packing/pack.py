"""From a checkpoint to the packed form: assemble each of our tensors, quantize it, write it; tensor by tensor.

Memory stays near one slice of rows: a matrix is read, quantized and written SLICE weights at a time. Matrices that
become q4 with a loss are quantized by what is known of their inputs (calibration.py): how large each column is over
random tokens, or, with a calibration text, the whole covariance.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
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
from lapinfer.checkpoint.home import FILE_NAME, home, is_packed
from lapinfer.errors import CheckpointError, InputError
from lapinfer.families import sources_for, spec_from_config
from lapinfer.machine import default_threads
from lapinfer.model import Model
from lapinfer.options import QUANT
from lapinfer.packing.assembly import Assembler
from lapinfer.packing.entries import BankEntry, PackedEntry, packed_entries, packed_rows
from lapinfer.packing.packed import PackedFile
from lapinfer.packing.writer import PackedWriter
from lapinfer.quant import BAND, ROWS
from lapinfer.quant.blocks import pack, take_rows
from lapinfer.quant.calibrate import feedback_factors, quantize_with_feedback
from lapinfer.quant.choice import FED_BACK, Stored, matrix_format, model_size, narrow_format, router_format
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.groups import joined
from lapinfer.quant.rows import pack_rows
from lapinfer.runtime.ops import Limits
from lapinfer.spec import ModelSpec
from lapinfer.tensors import bank_of, has_rows, is_matrix, is_router, is_row_by_row, tensors

SLICE = 1 << 23

UNKNOWN_INPUTS = (".k_up", ".v_up", ".inward", ".outward")

FEEDBACK_COLUMNS = 4096
"""Wider matrices are not quantized with error feedback: their Cholesky factor takes minutes and a gigabyte."""
FEEDBACK_BANK = 1 << 29
"""Nor are matrices of experts whose covariances take more bytes in one layer."""

BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
          "chat_template.jinja")  # fmt: skip


def choose_formats(spec: ModelSpec, quant: str, stored_of: Callable[[str], Stored]) -> dict[str, str]:
    """The format of each matrix. stored_of: the formats that a matrix is made of in the checkpoint."""
    QUANT.check("quant", quant)
    matrices = {name: shape for name, shape in tensors(spec).items() if is_matrix(name)}
    size = model_size(sum(prod(shape) for shape in matrices.values()))
    formats: dict[str, str] = {}
    for name in matrices:
        if is_router(name):
            formats[name] = router_format(stored_of(name))
            continue
        chosen = matrix_format(quant, stored_of(name), size, head=name in ("embed", "head"))
        if name.endswith(".outward"):  # one op reads both of a leaf's matrices
            chosen = formats[name.removesuffix("outward") + "inward"]
        formats[name] = narrow_format(chosen) if is_row_by_row(name) else chosen
    return formats


def _packed_slices(
    assembler: Assembler, name: str, order: np.ndarray, columns: int, format: str, known: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Slices of bands of one packed matrix. known: importance [C] of its columns, or factors [C, C] of feedback."""
    packed = pack_rows if is_row_by_row(name) else pack
    whole, first = None, int(order[order >= 0].min())
    if known is not None and known.ndim == 2:
        with assembler.naming(f"{name}, all rows"):
            whole = quantize_with_feedback(format, assembler.read(name, first, int(order.max()) + 1, columns), known)
    step = max(SLICE // max(columns, 1) // (BAND * ROWS), 1) * BAND * ROWS
    for at in range(0, len(order), step):
        rows = order[at : at + step]
        if whole is not None:
            yield packed(format, take_rows(whole, np.where(rows < 0, -1, rows - first)))
            continue
        wanted = np.unique(rows[rows >= 0])
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        spans = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        place = np.where(rows < 0, -1, np.searchsorted(wanted, rows))
        if not FORMATS[format].grouped:
            values = take_rows(np.concatenate([assembler.read(name, *span, columns) for span in spans]), place)
            with assembler.naming(f"{name} from row {spans[0][0]}"):
                yield packed(format, values)
        else:
            grouped = joined([assembler.read_grouped(name, *span, columns, format, known) for span in spans])
            yield packed(format, take_rows(grouped, place))


Known = Mapping[str, np.ndarray]
"""What is known of the inputs of matrices: importance [C], or factors [C, C] of error feedback; of each expert's in a
bank [E, …]."""


@dataclass(frozen=True, slots=True)
class _Packing:
    """One checkpoint's tensors as the packed file will hold them."""

    assembler: Assembler
    shapes: Mapping[str, tuple[int, ...]]
    formats: Mapping[str, str]

    def matrices(self, entry: PackedEntry | BankEntry) -> list[str]:
        """Our names of what an entry holds."""
        return [part.name for part in entry.parts] if isinstance(entry, BankEntry) else [entry.name]

    def slices(self, entry: PackedEntry | BankEntry, known: Known) -> Iterator[np.ndarray]:
        """An entry's numbers, piece by piece."""
        if isinstance(entry, BankEntry):
            for e in range(entry.experts):
                matrices = (np.concatenate(list(self._matrix(part.name, e, known))) for part in entry.parts)
                yield entry.experts_of([matrix[None] for matrix in matrices])
        elif entry.format is None:
            shape = self.shapes[entry.name]
            columns = shape[-1] if has_rows(entry.name) else 1
            yield self.assembler.read(entry.name, 0, prod(shape) // columns, columns).reshape(shape)
        else:
            copies = prod(self.shapes[entry.name][:-2])
            for copy in range(copies):
                for part in self._matrix(entry.name, copy, known):
                    yield part if len(entry.shape) == 2 else part[None]

    def _matrix(self, name: str, copy: int, known: Known) -> Iterator[np.ndarray]:
        """Slices of one matrix, of those that a bank [E, R, C] has."""
        rows, columns = self.shapes[name][-2:]
        order = packed_rows(name, rows)
        weigh = known.get(name)
        if weigh is not None and len(self.shapes[name]) > 2:
            weigh = weigh[copy]
        rows_of = np.where(order < 0, -1, order + copy * rows)
        return _packed_slices(self.assembler, name, rows_of, columns, self.formats[name], weigh)


def inexact(formats: Mapping[str, str], assembler: Assembler) -> list[str]:
    """The matrices that are quantized with a loss, weighed by their inputs, as far as these are known.

    A head's own matrices of latent attention and the rows that leaves give back are not weighed: they are packed along
    the other axis.
    """
    return [
        name
        for name, format in formats.items()
        if FORMATS[format].weighed and assembler.formats_of(name) != {format} and not name.endswith(UNKNOWN_INPUTS)
    ]


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
    text `calibrate`, quantized with error feedback (matrices of at most FEEDBACK_COLUMNS columns, experts of at most
    FEEDBACK_BANK, none of whose sources is q4_1 already; the others are weighed by the text).
    """
    spec = spec_from_config(checkpoint.config, str(checkpoint.path))
    assembler = Assembler(checkpoint, sources_for(spec, set(checkpoint.names())))
    shapes = tensors(spec)
    for name, shape in shapes.items():
        assembler.check(name, shape)
    packing = _Packing(assembler, shapes, choose_formats(spec, quant, assembler.formats_of))
    lossy = inexact(packing.formats, assembler)
    if calibrate is not None and not lossy:
        raise InputError(
            f"{checkpoint.path}: nothing becomes {' or '.join(FED_BACK)} with a loss, so a calibration text has no use"
        )
    calibration = text_tokens(spec, checkpoint.folder, calibrate) if calibrate is not None else random_tokens(spec)
    entries = {entry.name: entry for entry in packed_entries(shapes, packing.formats)}
    # In the header, so that a packing goes on only with weights that were made in the same way.
    metadata = {"quant": quant, "source": checkpoint.fingerprint, "calibration": calibration.label if lossy else "none"}
    sizes = {name: sum(prod(shapes[n]) for n in packing.matrices(entry)) for name, entry in entries.items()}
    total = sum(sizes.values())
    with PackedWriter(folder / FILE_NAME, list(entries.values()), metadata) as writer:
        _copy_beside(checkpoint, folder)
        remaining = writer.remaining()
        done = total - sum(sizes[name] for name in remaining)
        unknown = {n: shapes[n] for name in remaining for n in packing.matrices(entries[name]) if n in lossy}
        later = {bank_of(name) or name for name in unknown}
        weighed = _known_inputs(checkpoint, assembler, spec, folder, calibration, packing.formats, unknown, progress)
        with closing(weighed):
            for name, known in chain(weighed, ((name, {}) for name in remaining if name not in later)):
                progress("packing", done, total)
                for at, data in enumerate(packing.slices(entries[name], known)):
                    writer.write(name, data)
                    progress("packing", min(done + (at + 1) * SLICE, done + sizes[name]), total)
                done += sizes[name]
                del known  # large, and what comes next is so, too
        progress("packing", total, total)
        writer.finish()
    return folder


def _known_inputs(
    checkpoint: Checkpoint, assembler: Assembler, spec: ModelSpec, folder: Path, calibration: Calibration,
    formats: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], progress: Progress,
) -> Generator[tuple[str, Known], None, None]:  # fmt: skip
    """The file's tensors with what is known of the inputs of their matrices."""
    if not shapes:
        return
    # The experts' first matrices have the same inputs, as far as a few thousand tokens can tell.
    inputs = {name: shape[:-2] * name.endswith(".down") + shape[-1:] for name, shape in shapes.items()}
    sizes = {name: 4 * prod(shape) * shape[-1] for name, shape in inputs.items()}

    def feedback(name: str) -> bool:
        if calibration.random or formats[name] not in FED_BACK:
            return False
        return inputs[name][-1] <= FEEDBACK_COLUMNS and (len(inputs[name]) == 1 or sizes[name] <= FEEDBACK_BANK)

    found: dict[str, dict[str, np.ndarray]] = {}

    def note(name: str, known: np.ndarray) -> None:
        if len(inputs[name]) < len(shapes[name]) - 1:
            known = np.broadcast_to(known, (*shapes[name][:-2], *known.shape))
        found.setdefault(bank_of(name) or name, {})[name] = known

    with _calibration_model(checkpoint, spec, folder, calibration, progress) as model:
        fed: dict[str, list[str]] = {}
        for name in filter(feedback, shapes):
            fed.setdefault(bank_of(name) or name, []).append(name)
        plain = {name: shape for name, shape in inputs.items() if not feedback(name)}
        for name, moment in (second_moments(model, calibration.chunks, plain, progress) if plain else {}).items():
            # Found by experiment: inputs of these two differ most between random tokens and text.
            differs = calibration.random and name.endswith((".o", ".down"))
            note(name, np.sqrt(moment) if differs else moment)
        for name in [name for name in found if name not in fed]:
            yield name, found.pop(name)
        for group in groups_within({name: sum(sizes[part] for part in parts) for name, parts in fed.items()}):
            wanted = {part: inputs[part] for name in group for part in fed[name]}
            products = covariances(model, calibration.chunks, wanted, progress)
            for name in group:
                for part in fed[name]:
                    with assembler.naming(part):
                        note(part, _factors(products.pop(part)))
                yield name, found.pop(name)


def _factors(covariance: np.ndarray) -> np.ndarray:
    """Factors of error feedback in place of the covariances [C, C] or [E, C, C]."""
    for one in covariance if covariance.ndim > 2 else covariance[None]:
        one[:] = feedback_factors(one)
    return covariance


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
    digest = hashlib.sha256(f"{checkpoint.fingerprint} {quant} 4".encode()).hexdigest()[:12]
    stem = checkpoint.path.stem if checkpoint.path.is_file() else checkpoint.path.name
    return home / f"{stem}-{quant}-{digest}"


def packed_copy(checkpoint: Checkpoint, quant: str, home: Path, progress: Progress) -> Path:
    """The packed copy in the cache, made now if it is not there."""
    folder = cached_folder(checkpoint, quant, home)
    return folder if is_packed(folder) else pack_checkpoint(checkpoint, folder, quant, progress=progress)
