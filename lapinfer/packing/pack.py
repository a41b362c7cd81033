"""From a checkpoint to the packed form: assemble each of our tensors, quantize it, write it; tensor by tensor.

Memory stays near one slice of rows: a matrix is read, quantized and written SLICE weights at a time. Matrices that
become q4 with a loss are quantized by what is known of their inputs (calibration.py): how large each column is over
random tokens, or, with a calibration text, the whole covariance.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
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
from lapinfer.packing.entries import BankEntry, PackedEntry, packed_entries, parts_of
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
from lapinfer.tensors import Tensor, tensors

SLICE = 1 << 23

FEEDBACK_COLUMNS = 4096
"""Wider matrices are not quantized with error feedback: their Cholesky factor takes minutes and a gigabyte."""
FEEDBACK_BANK = 1 << 29
"""Nor are matrices of experts whose covariances take more bytes in one layer."""

BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
          "chat_template.jinja")  # fmt: skip


def choose_formats(spec: ModelSpec, quant: str, stored_of: Callable[[str], Stored]) -> dict[str, str]:
    """The format of each matrix. stored_of: the formats that a matrix is made of in the checkpoint."""
    QUANT.check("quant", quant)
    matrices = [tensor for tensor in tensors(spec).values() if tensor.is_matrix]
    size = model_size(sum(tensor.size for tensor in matrices))
    formats: dict[str, str] = {}
    leaves: dict[str | None, str] = {}
    for tensor in matrices:
        stored = stored_of(tensor.name)
        if tensor.role == "router":
            formats[tensor.name] = router_format(stored)
            continue
        chosen = matrix_format(quant, stored, size, head=tensor.layer < 0)
        if tensor.packing == "rows":  # one op reads both of a leaf's matrices
            chosen = leaves.setdefault(tensor.bank, narrow_format(chosen))
        formats[tensor.name] = chosen
    return formats


def _packed_slices(
    assembler: Assembler, tensor: Tensor, order: np.ndarray, format: str, known: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Slices of bands of one packed matrix. known: importance [C] of its columns, or factors [C, C] of feedback."""
    name, columns = tensor.name, tensor.columns
    packed = pack_rows if tensor.packing == "rows" else pack
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
    formats: Mapping[str, str]

    def slices(self, entry: PackedEntry | BankEntry, known: Known) -> Iterator[np.ndarray]:
        """An entry's numbers, piece by piece."""
        if isinstance(entry, BankEntry):
            for e in range(entry.experts):
                matrices = (np.concatenate(list(self._matrix(part.tensor, e, known))) for part in entry.parts)
                yield entry.experts_of([matrix[None] for matrix in matrices])
        elif entry.format is None:
            tensor = entry.tensor
            rows = tensor.size // tensor.columns
            yield self.assembler.read(entry.name, 0, rows, tensor.columns).reshape(tensor.shape)
        else:
            for copy in range(prod(entry.shape[:-2])):
                for part in self._matrix(entry.tensor, copy, known):
                    yield part if len(entry.shape) == 2 else part[None]

    def _matrix(self, tensor: Tensor, copy: int, known: Known) -> Iterator[np.ndarray]:
        """Slices of one matrix, of those that a tensor [n, R, C] has."""
        order, rows = tensor.row_order, tensor.shape[-2]
        weigh = known.get(tensor.name)
        if weigh is not None and len(tensor.shape) > 2:
            weigh = weigh[copy]
        rows_of = np.where(order < 0, -1, order + copy * rows)
        return _packed_slices(self.assembler, tensor, rows_of, self.formats[tensor.name], weigh)


def inexact(tensors: Iterable[Tensor], formats: Mapping[str, str], assembler: Assembler) -> list[Tensor]:
    """The matrices that are quantized with a loss, weighed by their inputs, as far as these are known."""
    return [
        tensor
        for tensor in tensors
        if tensor.inputs is not None
        and FORMATS[format := formats[tensor.name]].weighed
        and assembler.formats_of(tensor.name) != {format}
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
    weights = tensors(spec)
    for tensor in weights.values():
        assembler.check(tensor)
    packing = _Packing(assembler, choose_formats(spec, quant, assembler.formats_of))
    lossy = inexact(weights.values(), packing.formats, assembler)
    if calibrate is not None and not lossy:
        raise InputError(
            f"{checkpoint.path}: nothing becomes {' or '.join(FED_BACK)} with a loss, so a calibration text has no use"
        )
    calibration = text_tokens(spec, checkpoint.folder, calibrate) if calibrate is not None else random_tokens(spec)
    entries = {entry.name: entry for entry in packed_entries(weights.values(), packing.formats)}
    # In the header, so that a packing goes on only with weights that were made in the same way.
    metadata = {"quant": quant, "source": checkpoint.fingerprint, "calibration": calibration.label if lossy else "none"}
    sizes = {name: sum(part.tensor.size for part in parts_of(entry)) for name, entry in entries.items()}
    total = sum(sizes.values())
    with PackedWriter(folder / FILE_NAME, list(entries.values()), metadata) as writer:
        _copy_beside(checkpoint, folder)
        remaining = writer.remaining()
        done = total - sum(sizes[name] for name in remaining)
        unknown = [tensor for tensor in lossy if (tensor.bank or tensor.name) in remaining]
        later = {tensor.bank or tensor.name for tensor in unknown}
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
    formats: Mapping[str, str], unknown: Sequence[Tensor], progress: Progress,
) -> Generator[tuple[str, Known], None, None]:  # fmt: skip
    """The file's tensors with what is known of the inputs of their matrices."""
    if not unknown:
        return
    shapes = {tensor.name: tensor.shape for tensor in unknown}
    banks = {tensor.name: tensor.bank or tensor.name for tensor in unknown}
    # The experts' first matrices have the same inputs, as far as a few thousand tokens can tell.
    inputs = {t.name: (t.shape[0], t.shape[-1]) if t.inputs == "expert" else t.shape[-1:] for t in unknown}
    sizes = {name: 4 * prod(shape) * shape[-1] for name, shape in inputs.items()}

    def feedback(tensor: Tensor) -> bool:
        name = tensor.name
        if calibration.random or formats[name] not in FED_BACK:
            return False
        return tensor.shape[-1] <= FEEDBACK_COLUMNS and (len(inputs[name]) == 1 or sizes[name] <= FEEDBACK_BANK)

    found: dict[str, dict[str, np.ndarray]] = {}

    def note(name: str, known: np.ndarray) -> None:
        if len(inputs[name]) < len(shapes[name]) - 1:
            known = np.broadcast_to(known, (*shapes[name][:-2], *known.shape))
        found.setdefault(banks[name], {})[name] = known

    with _calibration_model(checkpoint, spec, folder, calibration, progress) as model:
        fed: dict[str, list[str]] = {}
        for tensor in filter(feedback, unknown):
            fed.setdefault(banks[tensor.name], []).append(tensor.name)
        plain = {tensor.name: inputs[tensor.name] for tensor in unknown if not feedback(tensor)}
        vary = {tensor.name for tensor in unknown if tensor.inputs_vary}
        for name, moment in (second_moments(model, calibration.chunks, plain, progress) if plain else {}).items():
            note(name, np.sqrt(moment) if calibration.random and name in vary else moment)
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
        model = Model(spec, PackedFile(temporary, tensors(spec).values()), limits, name=str(checkpoint.path))
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
