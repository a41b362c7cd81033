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
from lapinfer.packing.assembly import Assembler
from lapinfer.packing.entries import BankEntry, PackedEntry, packed_entries, packed_rows
from lapinfer.packing.packed import PackedFile
from lapinfer.packing.writer import PackedWriter
from lapinfer.quant import BAND, FORMATS, ROWS, FormatName
from lapinfer.quant.blocks import pack, take_rows
from lapinfer.quant.calibrate import feedback_factors, quantize_with_feedback
from lapinfer.quant.rows import NEAREST, pack_rows
from lapinfer.quant.search import joined
from lapinfer.runtime.ops import Limits
from lapinfer.spec import ModelSpec
from lapinfer.tensors import bank_of, has_rows, is_matrix, is_router, is_row_by_row, tensors

QUANTS = ("auto", *FORMATS)
SLICE = 1 << 23
SMALL = 400_000_000
"""Models of fewer weights than this are packed as q8 by default: they are fast anyway, and 4 bits cost them more."""

FOUR_BITS = ("q4", "q4_1")
WEIGHED: tuple[FormatName, ...] = (*FOUR_BITS, "q6")
"""Formats whose errors are weighed by what is known of a matrix's inputs."""

SMALL_HEAD, LARGE_HEAD = "q8", "q6"
"""What embed and head of a small and of a large q4 (or q4_1) model are: a tenth of the bytes, or in small models a
third, and every logit depends on them. q6 costs SmolLM2 1.2 % of perplexity."""

UNKNOWN_INPUTS = (".k_up", ".v_up", ".inward", ".outward")

FEEDBACK_COLUMNS = 4096
"""Wider matrices are not quantized with error feedback: their Cholesky factor takes minutes and a gigabyte."""
FEEDBACK_BANK = 1 << 29
"""Nor are matrices of experts whose covariances take more bytes in one layer."""

BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
          "chat_template.jinja")  # fmt: skip


def choose_formats(
    spec: ModelSpec, quant: str, stored_of: Callable[[str], set[FormatName | None]]
) -> dict[str, FormatName]:
    """The format of each matrix. auto keeps what is stored in 8 or 4 bits, and else is q8 for small models or q4.

    q4 is q4_1 where a source is stored so: its groups are then kept to the bit. stored_of: the formats that a matrix is
    made of in the checkpoint.
    """
    if quant not in QUANTS:
        raise InputError(f"quant {quant!r} is not known, expected one of {', '.join(QUANTS)}")
    names = [name for name in tensors(spec) if is_matrix(name)]
    weights = sum(prod(tensors(spec)[name]) for name in names)
    formats: dict[str, FormatName] = {}
    for name in names:
        asked = quant if quant != "auto" else "q8" if weights < SMALL else "q4"
        stored = stored_of(name)
        if is_router(name):  # a wrong choice costs more than its few bytes
            formats[name] = stored.pop() if len(stored) == 1 and stored <= {"f16", "bf16"} else "f32"  # type: ignore[assignment]
            continue
        if quant == "auto" and stored <= {"q8", "q4_1"}:
            asked = "q8" if "q8" in stored else "q4_1"
        if quant == "auto" and stored == {"mxfp4"}:
            asked = "mxfp4"
        if asked in FOUR_BITS and name in ("embed", "head"):
            asked = SMALL_HEAD if weights < SMALL or stored == {"q8"} else LARGE_HEAD
        elif asked == "q4" and "q4_1" in stored:
            asked = "q4_1"
        if name.endswith(".outward"):  # one op reads both of a leaf's matrices
            asked = formats[name.removesuffix("outward") + "inward"]
        formats[name] = NEAREST.get(asked, asked) if is_row_by_row(name) else asked  # type: ignore[assignment]
    return formats


def _packed_slices(
    assembler: Assembler, name: str, order: np.ndarray, columns: int, format: FormatName, known: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Slices of bands of one packed matrix. known: importance [C] of its columns, or factors [C, C] of feedback."""
    packed = pack_rows if is_row_by_row(name) else pack
    whole, first = None, int(order[order >= 0].min())
    if known is not None and known.ndim == 2:
        with assembler.naming(f"{name}, all rows"):
            whole = quantize_with_feedback(assembler.read(name, first, int(order.max()) + 1, columns), known)
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
        if FORMATS[format].activation == "f32":
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
    formats: Mapping[str, FormatName]

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


def inexact(formats: Mapping[str, FormatName], assembler: Assembler) -> list[str]:
    """The matrices that become 4 or 6 bits with a loss, not being stored in such groups, and whose inputs are known.

    A head's own matrices of latent attention and the rows that leaves give back are not weighed: they are packed along
    the other axis.
    """
    return [
        name
        for name, format in formats.items()
        if format in WEIGHED and assembler.formats_of(name) != {format} and not name.endswith(UNKNOWN_INPUTS)
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
        raise InputError(f"{checkpoint.path}: nothing becomes q4 with a loss, so a calibration text has no use")
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
        weighed = _known_inputs(checkpoint, assembler, spec, folder, calibration, unknown, progress)
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
    shapes: Mapping[str, tuple[int, ...]], progress: Progress,
) -> Generator[tuple[str, Known], None, None]:  # fmt: skip
    """The file's tensors with what is known of the inputs of their matrices."""
    if not shapes:
        return
    # The experts' first matrices have the same inputs, as far as a few thousand tokens can tell.
    inputs = {name: shape[:-2] * name.endswith(".down") + shape[-1:] for name, shape in shapes.items()}
    sizes = {name: 4 * prod(shape) * shape[-1] for name, shape in inputs.items()}

    def feedback(name: str) -> bool:
        if calibration.random or name in ("embed", "head") or "q4_1" in assembler.formats_of(name):
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
