"""The packed form: one safetensors file in the memory image that the kernels read, so that loading is mmap.

Matrices are U8 [ceil(R/16), bytes of a row block] in the bands of `lapinfer.quant`, those that are read row by row U8
[R, bytes of a row] (lapinfer.quant.rows), several of one shape U8 [n, …] the same way, everything else is F32. A bank
of experts is one tensor U8 [E, bytes of an expert]: an expert's matrices lie one behind the other, so that reading a
cold expert is one read, and every large one begins at a page of its own.
Every tensor starts at a multiple of 16 KiB (the largest page in use, Apple's). `__metadata__` has "format",
"version", "quant", "source" (fingerprint) and "tensors": JSON {name: {"format": "q4", "shape": [R, C]}}, where the
matrices of a bank layers.N.experts have names below it and shape [E, R, C].
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lapinfer.checkpoint.home import packed_path
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.errors import CheckpointError
from lapinfer.packing.entries import ALIGN, BankEntry, PackedEntry, with_banks
from lapinfer.quant.formats import FORMATS
from lapinfer.tensors import bank_of, is_row_by_row

VERSION = "2"


class PackedFile:
    """An opened, checked packed file (or folder with one). Views stay valid as long as they are held."""

    def __init__(self, path: str | Path) -> None:
        self.path = packed_path(path)
        self._file = SafetensorsFile(self.path)
        self.metadata = self._file.metadata
        for key, expected in (("format", "lapinfer"), ("version", VERSION)):
            if self.metadata.get(key) != expected:
                got = self.metadata.get(key, "nothing")[:40]
                raise CheckpointError(
                    f"{self.path}: metadata has {key} {got!r}, expected {expected!r}; convert the model again"
                )
        self._entries = self._formats()
        wanted = {entry.name: entry for entry in with_banks(self._entries.values())}
        self._banks = {name: self._whole(entry) for name, entry in wanted.items() if isinstance(entry, BankEntry)}
        for name, tensor in self._file.tensors.items():
            if name.startswith(".pad."):
                continue
            entry = wanted.pop(name, None)
            if entry is None:
                entry = self._entries[name] = PackedEntry(name, None, tensor.shape)
            if (tensor.dtype, tensor.shape) != entry.stored:
                what = f"{entry.format or 'f32'} {entry.shape}" if isinstance(entry, PackedEntry) else "its matrices"
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} has {tensor.dtype} {tensor.shape}, expected "
                    f"{' '.join(map(str, entry.stored))} for {what}"
                )
            if tensor.start % ALIGN:
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} has offset {tensor.start}, expected a multiple of {ALIGN}"
                )
        if wanted:
            raise CheckpointError(f"{self.path}: tensor {next(iter(wanted))!r} is missing")

    def _whole(self, bank: BankEntry) -> BankEntry:
        """A bank, checked: its matrices are in the order in which they are read, and all have as many experts."""
        parts = {part.name.rsplit(".", 1)[-1]: part.shape for part in bank.parts}
        ordered = [*parts][1:] in (["down"], ["outward"])
        if not ordered or any(len(s) != 3 or s[0] != bank.parts[0].shape[0] for s in parts.values()):
            raise CheckpointError(
                f"{self.path}: metadata 'tensors' has {str(parts)[:200]} for the matrices of {bank.name!r}, expected "
                "gate_up or up, then down (inward, then outward), with as many experts in each; convert the model again"
            )
        return bank

    def _formats(self) -> dict[str, PackedEntry]:
        def wrong(what: str) -> CheckpointError:
            return CheckpointError(f"{self.path}: metadata 'tensors' {what}; convert the model again")

        try:
            formats = json.loads(self.metadata.get("tensors", ""))
        except (ValueError, RecursionError):
            raise wrong("is not valid JSON") from None
        if not isinstance(formats, dict):
            raise wrong("is not an object")
        entries = {}
        for name, value in formats.items():
            match value:
                case {"format": str(format), "shape": [*sizes]} if (
                    format in FORMATS
                    and (FORMATS[format].row is not None or not is_row_by_row(name))
                    and len(sizes) in (2, 3)
                    and all(type(size) is int and 0 < size < 1 << 40 for size in sizes)
                ):
                    entries[name] = PackedEntry(name, format, tuple(sizes))
                case _:
                    raise wrong(f"has {str(value)[:80]} for {name!r}, expected a format and a shape [R, C]")
        return entries

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
        return self._file.view(name if name in self._banks else self[name].name)

    def file_offset(self, bank: str) -> int:
        """Where a bank begins in the file."""
        return self._file[bank].start

    def offset(self, name: str) -> int:
        """Where a matrix of a bank begins in each expert."""
        return self._banks[str(bank_of(name))].offset(name)
