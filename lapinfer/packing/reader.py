"""Reading packed files: one safetensors file in the memory image that the kernels read, so that loading is mmap.

    matrices               U8 [ceil(R/16), bytes of a row block], in the bands of lapinfer.quant
    read row by row        U8 [R, bytes of a row] (lapinfer.quant.rows)
    several of one shape   U8 [n, …] in the same way
    a bank of experts      U8 [E, bytes of an expert]: an expert's matrices follow each other, so that a cold expert
                           is one read, and every large one begins at a page of its own
    everything else        F32
    head.coarse            a coarse copy of large heads (of embed, where that is the head), for a first pass over it;
                           head.coarse.norms F32 [V]: by how much, at most, each of its rows differs from the head's
    .digests               U8 [1 + n, 32]: SHA-256 of the header and of each of the n tensors before, in file order

Every tensor starts at a multiple of 16 KiB (the largest page in use, Apple's). `__metadata__` has "format",
"version", "quant", "source" (identity), "calibration" and "tensors": JSON {name: {"format": "q4", "shape": [R, C]}}
of all matrices, where those of a bank layers.N.experts have names below it and shape [E, R, C]. What each tensor is,
the config.json beside the file says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lapinfer.checkpoint.home import packed_path
from lapinfer.checkpoint.json_files import read_json
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.errors import CheckpointError
from lapinfer.families import spec_from_config
from lapinfer.packing.copies import Use
from lapinfer.packing.entries import ALIGN, DIGESTS, VERSION, BankEntry, PackedEntry, packed_entries, parts_of
from lapinfer.progress import Notice, silent
from lapinfer.quant.formats import FORMATS
from lapinfer.spec import ModelSpec
from lapinfer.tensors import COARSE, Tensor, tensors


class PackedFile:
    """An opened, checked packed file (or folder with one). Views stay valid as long as they are held."""

    def __init__(self, path: str | Path, tensors: Iterable[Tensor], use: Use | None = None) -> None:
        """tensors: of the config.json beside the file, which must hold these and no others, but that a coarse copy of
        the head may be missing. use: of a packed copy, kept as long as this is.

        CheckpointError names the first tensor that is not what config.json or the file's own header says.
        """
        self.path, self._use = packed_path(path), use
        self._file = SafetensorsFile(self.path)
        self.metadata = self._file.metadata
        for key, expected in (("format", "lapinfer"), ("version", VERSION)):
            if self.metadata.get(key) != expected:
                got = self.metadata.get(key, "nothing")[:40]
                raise CheckpointError(
                    f"{self.path}: metadata has {key} {got!r}, expected {expected!r}; convert the model again"
                )
        promised = {tensor.name: tensor for tensor in tensors}
        self.formats: Mapping[str, str] = self._formats(promised)
        """Of all matrices."""
        if COARSE not in self.formats:
            promised = {name: tensor for name, tensor in promised.items() if tensor.reads != "best"}
        entries = packed_entries(promised.values(), self.formats)
        self._entries = {part.name: part for entry in entries for part in parts_of(entry)}
        self.banks = {entry.name: entry for entry in entries if isinstance(entry, BankEntry)}
        self._check_stored(entries)

    def _formats(self, promised: Mapping[str, Tensor]) -> dict[str, str]:
        """The format of every matrix, as the header says; it must have the shapes that config.json promises."""

        def wrong(problem: str) -> CheckpointError:
            return CheckpointError(f"{self.path}: metadata 'tensors' {problem}; convert the model again")

        try:
            header = json.loads(self.metadata.get("tensors", ""))
        except (ValueError, RecursionError):
            raise wrong("is not valid JSON") from None
        if not isinstance(header, dict):
            raise wrong("is not an object")
        formats: dict[str, str] = {}
        for name, value in header.items():
            if (tensor := promised.get(name)) is None:
                raise wrong(f"has {name[:80]!r}, which config.json does not promise")
            match value:
                case {"format": str(format), "shape": [*sizes]} if (
                    format in FORMATS
                    and (FORMATS[format].row is not None or tensor.packing != "rows")
                    and len(sizes) in (2, 3)
                    and all(type(size) is int and 0 < size < 1 << 40 for size in sizes)
                ):
                    formats[name] = format
                case _:
                    raise wrong(f"has {str(value)[:80]} for {name!r}, expected a format and a shape [R, C]")
            if not tensor.is_matrix or tuple(sizes) != tensor.packed_shape:
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} has {format} {tuple(sizes)}, config.json says {tensor.packed_shape}"
                )
            if tensor.role == "router" and not FORMATS[format].for_routers:
                raise CheckpointError(f"{self.path}: tensor {name!r} is {format}, expected f32, f16 or bf16")
        matrices = [tensor.name for tensor in promised.values() if tensor.is_matrix]
        if COARSE not in formats:
            matrices = [name for name in matrices if name != COARSE]
        for name in matrices:
            if name not in formats:
                raise CheckpointError(f"{self.path}: tensor {name!r} is missing from metadata 'tensors'")
        for name, expected in zip(formats, matrices, strict=True):  # the matrices of a bank lie in this order
            if name != expected:
                raise wrong(f"has {name!r} before {expected!r}, expected them in the order in which they are read")
        return formats

    def _check_stored(self, entries: Iterable[PackedEntry | BankEntry]) -> None:
        """What is stored has the types, shapes and alignment that the header's formats need."""
        missing = {entry.name: entry for entry in entries}
        for name, stored in self._file.tensors.items():
            if name.startswith(".pad.") or name == DIGESTS:
                continue
            entry = missing.pop(name, None)
            if entry is None:
                raise CheckpointError(
                    f"{self.path}: tensor {name[:80]!r} is stored, which config.json does not promise; "
                    "convert the model again"
                )
            if (stored.dtype, stored.shape) != entry.stored:
                what = f"{entry.format or 'f32'} {entry.shape}" if isinstance(entry, PackedEntry) else "its matrices"
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} has {stored.dtype} {stored.shape}, expected "
                    f"{' '.join(map(str, entry.stored))} for {what}"
                )
            if stored.start % ALIGN:
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} has offset {stored.start}, expected a multiple of {ALIGN}"
                )
        if missing:
            raise CheckpointError(f"{self.path}: tensor {next(iter(missing))!r} is missing")
        for first, *others in (bank.parts for bank in self.banks.values()):
            for part in others:
                if part.tensor.packing == "rows" and part.format != first.format:  # one op reads both
                    raise CheckpointError(
                        f"{self.path}: tensor {part.name!r} is {part.format}, expected {first.format} as {first.name!r}"
                    )

    @property
    def stored(self) -> SafetensorsFile:
        """The file as it is stored: banks, padding and digests."""
        return self._file

    def __getitem__(self, name: str) -> PackedEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    def names(self) -> list[str]:
        """Logical names: the matrices of a bank, not the bank."""
        return list(self._entries)

    @property
    def nbytes(self) -> int:
        """Of the whole file, header and padding included."""
        return self._file.nbytes

    @property
    def content(self) -> str | None:
        """`content_of` the file."""
        return content_of(self._file)

    def format(self, name: str) -> str | None:
        """The weight format of a matrix; None: float32 as it is."""
        return self[name].format

    def shape(self, name: str) -> tuple[int, ...]:
        """The logical shape."""
        return self[name].shape

    def tensor(self, name: str) -> np.ndarray:
        """U8 [row blocks, bytes of a row block] (maybe several) or F32; of a bank U8 [E, bytes of an expert].

        Read-only, not copied.
        """
        return self._file.view(name)

    def row_blocks(self, name: str) -> int:
        """Blocks of 16 rows that each matrix of a bank has."""
        return self[name].row_blocks

    def file_offset(self, bank: str) -> int:
        """Where a bank begins in the file."""
        return self._file[bank].start

    def offset(self, name: str) -> int:
        """Where a matrix of a bank begins in each expert."""
        return self.banks[str(self[name].tensor.bank)].offset(name)


def content_of(file: SafetensorsFile) -> str | None:
    """32 hexadecimal digits: the same for the same bytes, as a packed file's digests tell; None if it has none."""
    if DIGESTS not in file.tensors:
        return None
    return hashlib.sha256(file.view(DIGESTS).tobytes()).hexdigest()[:32]


def read_packed(path: str | Path, notice: Notice = silent) -> tuple[ModelSpec, PackedFile]:
    """The model of a packed folder (or of the file in one), by the config.json that lies there, and its weights.

    `notice` gets a line about keys of the config.json that are left aside.
    """
    file = packed_path(path)
    config = file.parent / "config.json"
    spec = spec_from_config(read_json(config), str(config), notice)
    return spec, PackedFile(file, tensors(spec, coarse=True).values())
