"""From a checkpoint to a packed file: assemble each tensor, quantize it, write it; tensor by tensor.

Memory stays near one slice of rows. Matrices that are quantized with a loss are weighed by what a calibration has
measured of their inputs (lapinfer.calibration): how large each column is, or the whole covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.checkpoint.reading import ChangedError
from lapinfer.errors import InputError
from lapinfer.families import sources_for, spec_from_config
from lapinfer.options import QUANT
from lapinfer.packing.assemble import Assembler
from lapinfer.packing.become import kept_lines
from lapinfer.packing.coarse import with_coarse_head, write_coarse_head
from lapinfer.packing.entries import BankEntry, PackedEntry, packed_entries, parts_of
from lapinfer.packing.quantize import SLICE, Inputs, packed_slices, wider_formats
from lapinfer.packing.target import beside, check_target, config_digest, write_beside
from lapinfer.packing.writer import PackedWriter
from lapinfer.progress import Phase, Progress, silent
from lapinfer.quant.choice import FED_BACK, Stored, matrix_format, model_size, narrow_format, router_format
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.range import RangeError
from lapinfer.spec import ModelSpec
from lapinfer.tensors import COARSE, head_name, tensors

PACKING = Phase("packing", "weights")
MUCH_FINER = 1
"""More bits, with which what was stored with fewer loses little."""
MEASURED = 3
"""Phases of a packing that is calibrated: a copy to run, what its matrices multiply, and the packed file."""


class Calibration(Protocol):
    """What can be measured of the inputs of a checkpoint's matrices, on random tokens or on those of a text."""

    @property
    def of_text(self) -> bool: ...

    @property
    def label(self) -> str:
        """Says which tokens: random, or text:<digest>."""
        ...

    def measured(
        self, matrices: Sequence[PackedEntry], progress: Progress
    ) -> Generator[tuple[str, Inputs], None, None]:
        """Names of the file's tensors, each with what is known of the inputs of its matrices, one after the other."""
        ...


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


def pack_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    quant: str = "auto",
    *,
    calibration: Calibration | None = None,
    progress: Progress = silent,
    force: bool = False,
    notice: Callable[[str], None] = lambda line: None,
    coarse: bool = True,
) -> Path:
    """Write the packed form of a checkpoint into `folder`, with config and tokenizer files beside it.

    The weights are renamed to their final name last, so a folder that is_packed is complete. An interrupted packing
    goes on where it was. What is quantized with a loss is weighed by what `calibration` measures. InputError where
    something is in the way (packing/target.py), unless `force`. Matrices beyond the range of their format become a
    wider one, which `notice` is told, as it is of another process that packs here. coarse: with a coarse copy of the
    head, where that is worth it.
    """
    texts = beside(checkpoint)
    check_target(checkpoint, folder, texts, force=force)
    spec = spec_from_config(checkpoint.config, str(checkpoint.path))
    assembler = Assembler(checkpoint, sources_for(spec, set(checkpoint.names())))
    weights = tensors(spec).values()
    assembler.check_all(weights)
    formats = choose_formats(spec, quant, assembler.formats_of)
    for line in kept_lines(assembler, weights, formats):
        notice(line)

    def write() -> Path:
        entries, copy = packed_entries(weights, formats), []
        if coarse and COARSE in (more := with_coarse_head(spec, formats)):
            copy = packed_entries((t for t in tensors(spec, coarse=True).values() if t.reads == "best"), more)
        return _write(
            checkpoint, folder, quant, assembler, entries, copy, head_name(spec), texts, calibration=calibration,
            progress=progress, force=force, notice=notice,
        )  # fmt: skip

    try:
        return write()
    except RangeError as error:
        wider = wider_formats(assembler, packed_entries(weights, formats))
        formats |= wider
        named = f"{', '.join(sorted(wider)[:3])}{' …' * (len(wider) > 3)}"
        notice(f"note: {error}; kept in {' or '.join(sorted(set(wider.values())))}: {named}")
        return write()


def _write(
    checkpoint: Checkpoint, folder: Path, quant: str, assembler: Assembler,
    tensors: Sequence[PackedEntry | BankEntry], copy: Sequence[PackedEntry | BankEntry], head: str,
    texts: Mapping[Path, bytes], *, calibration: Calibration | None, progress: Progress, force: bool,
    notice: Callable[[str], None],
) -> Path:  # fmt: skip
    """Write these tensors, a coarse copy of the head, and the texts beside them."""
    entries = {entry.name: entry for entry in tensors}
    lossy = [part for entry in entries.values() for part in parts_of(entry) if _is_weighed(part, assembler)]
    if calibration is not None and calibration.of_text and not lossy:
        raise InputError(
            f"{checkpoint.path}: nothing becomes {' or '.join(FED_BACK)} with a loss, so a calibration text has no use"
        )
    label = calibration.label if calibration is not None and lossy else "none"
    # In the header, so that a packing goes on only with weights that were made in the same way.
    metadata = {"quant": quant, "source": checkpoint.contents.identity(), "calibration": label,
                "config": config_digest(checkpoint.config)}  # fmt: skip
    all_entries = [*entries.values(), *copy]
    sizes = {entry.name: sum(part.tensor.size for part in parts_of(entry)) for entry in all_entries}
    total = sum(sizes.values())
    with (
        PackedWriter(folder / FILE_NAME, all_entries, metadata, force=force, notice=notice) as writer,
        _nothing_kept_of_a_changed_source(writer),
    ):
        remaining = writer.remaining()
        done = total - sum(sizes[name] for name in remaining)
        if 0 < done < total:
            notice(f"going on with a packing that was stopped after {100 * done / total:.0f} %")
        left = [entries[name] for name in remaining if name in entries]
        weighed = _weighed(left, lossy) if calibration is not None else {}
        packing = Phase(PACKING, PACKING.unit, part=(MEASURED, MEASURED)) if weighed else PACKING
        with closing(_with_inputs(left, weighed, calibration, progress)) as todo:
            for name, inputs in todo:
                progress(packing, done, total)
                for i, data in enumerate(packed_slices(assembler, entries[name], inputs)):
                    checkpoint.contents.check_unchanged()
                    writer.write(name, data)
                    progress(packing, min(done + (i + 1) * SLICE, done + sizes[name]), total)
                done += sizes[name]
                del inputs  # large, and what comes next is so, too
        for numbers in write_coarse_head(writer, entries[head], copy):
            done += numbers
            progress(packing, min(done, total), total)
        progress(packing, total, total)
        if not writer.finished:
            checkpoint.contents.check_unchanged(thoroughly=True)
        write_beside(texts, folder)
        writer.finish()
    return folder


@contextmanager
def _nothing_kept_of_a_changed_source(writer: PackedWriter) -> Iterator[None]:
    """Drop what was written where the source is found to be another than that whose identity was taken."""
    try:
        yield
    except ChangedError:
        writer.discard()
        raise


def _is_weighed(part: PackedEntry, assembler: Assembler) -> bool:
    """Whether a matrix is quantized with a loss, weighed by its inputs, as far as these are measured.

    What is stored with fewer bits loses little in a much finer format, whatever weighs it.
    """
    if part.format is None or part.tensor.inputs is None:
        return False
    stored = assembler.formats_of(part.name)
    form = FORMATS[part.format]
    return form.weighed and any(
        name is None or (name != form.name and FORMATS[name].bits + MUCH_FINER > form.bits) for name in stored
    )


def _weighed(entries: Sequence[PackedEntry | BankEntry], lossy: Sequence[PackedEntry]) -> dict[str, list[PackedEntry]]:
    """Of those of these entries that have lossy matrices: these, by the entry's name."""
    names = {part.name for part in lossy}
    parts = {entry.name: [part for part in parts_of(entry) if part.name in names] for entry in entries}
    return {name: weighed for name, weighed in parts.items() if weighed}


def _with_inputs(
    entries: Sequence[PackedEntry | BankEntry], weighed: Mapping[str, Sequence[PackedEntry]],
    calibration: Calibration | None, progress: Progress,
) -> Generator[tuple[str, Inputs], None, None]:  # fmt: skip
    """The names of all entries, those whose inputs are measured first."""
    if calibration is not None and weighed:
        matrices = [part for parts in weighed.values() for part in parts]
        with closing(calibration.measured(matrices, progress)) as measured:
            yield from measured
    for entry in entries:
        if entry.name not in weighed:
            yield entry.name, {}
