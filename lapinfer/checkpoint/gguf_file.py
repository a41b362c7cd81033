"""The container of GGUF files, walked by ourselves: every count, length and offset is checked against the file
before anything is allocated or handed on (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lapinfer.checkpoint.magic import LOOKED_AT, told_by
from lapinfer.checkpoint.reading import OpenFile
from lapinfer.errors import CheckpointError, UnsupportedError

MAX_ENTRIES: Final = 1 << 16
"""Of metadata, and of tensors in a file: real ones have under a hundred, and a few thousand."""

MAX_STRINGS: Final = 2_000_000
"""In all metadata together: several times the largest vocabulary with its merges."""

MAX_TEXT: Final = 128 << 20
"""Bytes of all strings together, for the same reason."""

SCALARS: Final = {  # value type -> struct format
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9
FIRST_READ: Final = 1 << 20
"""Bytes; a header has up to ten times as many, most have fewer."""
COUNT: Final = struct.Struct("<Q")

TYPES: Final = {  # number -> name, elements and bytes of a block
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    15: ("Q8_K", 256, 292), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
REMOVED: Final = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}  # fmt: skip
"""Types that llama.cpp no longer has."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A stored tensor: `shape` rows first, blocks of `block` elements in `block_bytes` bytes from `start` on."""

    type: str
    shape: tuple[int, ...]
    block: int
    block_bytes: int
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) // self.block * self.block_bytes


class GGUFFile:
    """`metadata` values as Python scalars, strings, lists of strings or NumPy arrays; `tensors` by their GGUF names.

    header: the bytes before the tensors' data.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = OpenFile(self.path)
        self._size = self.file.nbytes
        self._head = self.file.read(0, min(FIRST_READ, self._size)).tobytes()
        self._at = 0
        self._strings = self._text = 0
        found = told_by(self._head[:LOOKED_AT])
        if found.kind != "gguf":
            raise CheckpointError(f"{self.path}: is {found.words}")
        self._at = 4
        version = self._scalar("I")
        if version and version & 0xFFFF == 0:
            raise UnsupportedError(
                f"{self.path}: is a big-endian GGUF file; run: gguf-convert-endian {self.path} little"
            )
        if version not in (2, 3):
            raise UnsupportedError(
                f"{self.path}: has GGUF version {version}, expected 2 or 3; convert the model with a newer llama.cpp"
            )
        tensor_count, key_count = self._count(24), self._count(13)
        if max(tensor_count, key_count) > MAX_ENTRIES:
            raise CheckpointError(
                f"{self.path}: has {tensor_count} tensors and {key_count} keys, expected at most {MAX_ENTRIES} of each"
            )
        self.metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            if key in self.metadata:
                raise CheckpointError(f"{self.path}: metadata {key[:80]!r} appears twice")
            self.metadata[key] = self._value(self._scalar("I"))
        self.tensors = self._tensors(tensor_count)
        self.header = self._head[: self._at]
        del self._head  # as large again

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The stored bytes of rows start:stop, [rows, bytes per row], as a new array."""
        tensor = self.tensors[name]
        if not tensor.block_bytes:
            hint = "; quantize the model again" if tensor.type in REMOVED.values() else ""
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has type {tensor.type}, which is not known here{hint}"
            )
        size = tensor.shape[-1] // tensor.block * tensor.block_bytes
        taken = range(tensor.bytes // size)[start:stop]
        at = tensor.start + taken.start * size
        return self.file.read(at, at + len(taken) * size).reshape(-1, size)

    def _take(self, size: int) -> int:
        """Step over `size` bytes of the header, which are then in `_head`; their position."""
        at, there = self._at, len(self._head)
        if size > self._size - at:
            raise CheckpointError(f"{self.path}: the file ends at {self._size}, inside its header; download again")
        self._at = at + size
        if self._at > there:
            self._head += self.file.read(there, min(max(self._at, 2 * there), self._size)).tobytes()
        return at

    def _scalar(self, format: str) -> Any:
        format = "<" + format.replace("?", "B")
        at = self._take(struct.calcsize(format))
        return struct.unpack_from(format, self._head, at)[0]

    def _count(self, least_bytes: int) -> int:
        """A number of things of which each takes at least so many bytes."""
        count = self._scalar("Q")
        if count > (self._size - self._at) // least_bytes:
            raise CheckpointError(f"{self.path}: header counts {count} entries, more than the file has room for")
        return count

    def _string(self) -> str:
        at = self._take(8)
        size = COUNT.unpack_from(self._head, at)[0]
        at = self._take(size)
        self._text += size
        if self._text > MAX_TEXT:
            raise self._too_much_text()
        # Old vocabularies hold pieces of characters: kept apart as surrogates, so that no two become equal.
        return str(self._head[at : at + size], "utf-8", "surrogateescape")

    def _too_much_text(self) -> CheckpointError:
        return CheckpointError(f"{self.path}: metadata has over {MAX_TEXT >> 20} MiB of text")

    def _list_of_strings(self, count: int) -> list[str]:
        """What `_string` gives so often, sooner: vocabularies and merges, a hundred thousand at every start."""
        found: list[str] = []
        head, there, at, size_at = self._head, len(self._head), self._at, COUNT.unpack_from
        for _ in range(count):
            end = at + 8 + size_at(head, at)[0] if at + 8 <= there else there + 1
            if end <= there:
                found.append(str(head[at + 8 : end], "utf-8", "surrogateescape"))
                self._text += end - at - 8
                at = end
            else:  # not read yet
                self._at = at
                found.append(self._string())
                head, there, at = self._head, len(self._head), self._at
        self._at = at
        if self._text > MAX_TEXT:
            raise self._too_much_text()
        return found

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            value = self._scalar(SCALARS[kind])
            return bool(value) if kind == 7 else value
        if kind == STRING:
            return self._string()
        if kind != ARRAY or depth > 2:
            raise CheckpointError(f"{self.path}: metadata has value type {kind}, expected 0 to 12")
        kind = self._scalar("I")
        if kind in SCALARS:
            dtype = np.dtype("<" + SCALARS[kind])
            count = self._count(dtype.itemsize)
            dtype = np.dtype("u1") if kind == 7 else dtype
            at = self._take(count * dtype.itemsize)
            return np.frombuffer(self._head[at : self._at], dtype)
        count = self._count(8)
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise CheckpointError(f"{self.path}: metadata has over {MAX_STRINGS} strings")
        if kind == STRING:
            return self._list_of_strings(count)
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _tensors(self, count: int) -> dict[str, GGUFTensor]:
        found: dict[str, tuple[GGUFTensor, int]] = {}
        for _ in range(count):
            name = self._string()
            dimensions = self._scalar("I")
            if not 1 <= dimensions <= 4:
                raise self._wrong(name, f"{dimensions} dimensions", "1 to 4")
            shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
            number, offset = self._scalar("I"), self._scalar("Q")
            # Of a type that is not known, neither are the bytes: they are refused when they are needed.
            kind, block, block_bytes = TYPES.get(number, (REMOVED.get(number, f"number {number}"), 1, 0))
            if not all(0 < n < 1 << 40 for n in shape) or shape[-1] % block:
                raise self._wrong(name, f"shape {shape}", f"positive sizes, rows a multiple of {block} for {kind}")
            if name in found:
                raise self._wrong(name, "two entries", "one")
            found[name] = GGUFTensor(kind, shape, block, block_bytes, 0), offset
        align = self.metadata.get("general.alignment", 32)
        if type(align) is not int or not 0 < align <= 1 << 20 or align & (align - 1):
            raise CheckpointError(f"{self.path}: general.alignment is {str(align)[:40]}, expected a power of two")
        first = -(-self._at // align) * align
        end = 0
        tensors = {}
        for name, (t, offset) in sorted(found.items(), key=lambda item: item[1][1]):
            if offset % align or offset < end:
                raise self._wrong(name, f"offset {offset}", f"a multiple of {align} from {end} on")
            end = offset + t.bytes
            if first + end > self._size:
                expected = f"at most the file's {self._size} (download again; if it was cut into pieces, join them)"
                raise self._wrong(name, f"bytes up to {first + end}", expected)
            tensors[name] = GGUFTensor(t.type, t.shape, t.block, t.block_bytes, first + offset)
        return tensors

    def _wrong(self, name: str, got: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: tensor {name[:80]!r} has {got}, expected {expected}")
