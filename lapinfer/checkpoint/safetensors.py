"""Safetensors files, trusted in nothing (https://github.com/huggingface/safetensors#format).

8 bytes: header length N, little-endian; N bytes of JSON {name: {dtype, shape, data_offsets}}; data without holes
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lapinfer.checkpoint.json_files import parse_json
from lapinfer.checkpoint.magic import of_start
from lapinfer.checkpoint.reading import OpenFile
from lapinfer.errors import CheckpointError, quoted
from lapinfer.quant.formats.bf16 import from_bf16

MAX_HEADER = 100_000_000
"""Bytes; the official library's own limit."""

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the upper half of a float32: NumPy has no such type
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),  # its bits
    "F8_E8M0": np.dtype("u1"),
}
"""What can be looked at; a file may have tensors of other types, as long as nobody reads them."""

BITS: Final[Mapping[str, int]] = {
    **{name: 8 * dtype.itemsize for name, dtype in DTYPES.items()},
    "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Of a number, in every type that the official library has; of an unknown type, the size is not checked."""

FLOATS: Final = ("F32", "F16", "BF16", "F64")
"""What weights are read from."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: bytes start:stop of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A checked safetensors file. `tensors` in file order, `metadata` the strings of `__metadata__`.

    CheckpointError: a header that cannot be true, named by file and tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = OpenFile(self.path)
        data_start, header = _header(self.file)
        self.metadata = _metadata(header)
        header.pop("__metadata__", None)
        found = {name: _tensor(self.path, name, entry, data_start) for name, entry in header.items()}
        self.tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
        end = data_start
        for name, tensor in self.tensors.items():
            if tensor.start != end:
                what = "overlapping the tensor before" if tensor.start < end else "after a hole"
                raise CheckpointError(
                    f"{self.path}: tensor {quoted(name)} has bytes from {tensor.start - data_start} on, {what}, "
                    f"expected {end - data_start}"
                )
            end = tensor.stop
        if end != self.nbytes:
            raise CheckpointError(
                f"{self.path}: the file has {self.nbytes} bytes, its header describes {end}; download it again"
            )

    @property
    def nbytes(self) -> int:
        return self.file.nbytes

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {quoted(name)} is missing") from None

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The stored bytes, each piece in the memory of the one before."""
        tensor = self[name]
        return self.file.pieces(tensor.start, tensor.stop)

    def view(self, name: str) -> np.ndarray:
        """The stored numbers in mapped memory, read-only, for kernels; BF16 as uint16 bits, BOOL as uint8."""
        tensor, dtype = self[name], self._dtype(name)
        count = math.prod(tensor.shape)
        if not count:
            return np.empty(tensor.shape, dtype)
        return np.frombuffer(self.file.mapped, dtype, count, tensor.start).reshape(tensor.shape)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop of the stored numbers as a new array, types as in `view`; of a tensor [] its number."""
        tensor, dtype = self[name], self._dtype(name)
        if not tensor.shape:
            return self.file.read(tensor.start, tensor.stop).view(dtype).reshape(())
        count, *others = tensor.shape
        taken, size = range(count)[start:stop], math.prod(others) * dtype.itemsize
        at = tensor.start + taken.start * size
        return self.file.read(at, at + len(taken) * size).view(dtype).reshape(len(taken), *others)

    def _dtype(self, name: str) -> np.dtype:
        """How the numbers of a tensor are looked at; CheckpointError where there is no such way."""
        tensor = self[name]
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {quoted(name)} has dtype {tensor.dtype}, expected {', '.join(FLOATS)}; "
                "quantized weights must be turned back into floats first"
            )
        return DTYPES[tensor.dtype]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop as a new float32 array, of a tensor of floats.

        CheckpointError for another type, and for numbers of an F64 tensor that are too large for float32.
        """
        if (dtype := self[name].dtype) in DTYPES and dtype not in FLOATS:
            raise CheckpointError(f"{self.path}: tensor {quoted(name)} has dtype {dtype}, expected {', '.join(FLOATS)}")
        rows = self.rows(name, start, stop)
        with np.errstate(all="ignore"):  # NumPy warns of some NaNs
            values = from_bf16(rows) if dtype == "BF16" else rows.astype(np.float32, copy=False)
            if dtype == "F64" and (np.isinf(values) & np.isfinite(rows)).any():
                raise CheckpointError(f"{self.path}: tensor {quoted(name)} has numbers that are too large for float32")
        return values


def read_metadata(path: Path) -> dict[str, str]:
    """`__metadata__` alone, without looking at the tensors; CheckpointError when there is no readable header."""
    return _metadata(_header(OpenFile(path))[1])


def same_tensor(first: SafetensorsFile, second: SafetensorsFile, name: str) -> bool:
    """Whether a tensor is the same in two files, byte for byte."""
    one, other = first[name], second[name]
    if (one.dtype, one.shape, one.stop - one.start) != (other.dtype, other.shape, other.stop - other.start):
        return False
    return all(map(np.array_equal, first.pieces(name), second.pieces(name)))


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    """Its strings: nothing else in it is ours, whatever it says."""
    metadata = header.get("__metadata__")
    items = metadata.items() if isinstance(metadata, dict) else ()
    return {key: value for key, value in items if isinstance(value, str)}


def _header(file: OpenFile) -> tuple[int, dict[str, Any]]:
    """Offset of the data and the header's JSON object."""
    path, size = file.path, file.nbytes
    if size < 8:
        raise CheckpointError(f"{path}: the file has {size} bytes, expected a safetensors header")
    beginning = file.read(0, min(64, size)).tobytes()
    (length,) = struct.unpack_from("<Q", beginning)
    if length > MAX_HEADER:
        known = of_start(beginning)
        raise CheckpointError(
            f"{path}: not safetensors: {known or f'a header of {length} bytes, expected at most {MAX_HEADER}'}"
        )
    if 8 + length > size:
        raise CheckpointError(f"{path}: header has {length} bytes, the file only {size}; download it again")
    try:
        return 8 + length, parse_json(file.read(8, 8 + length).tobytes(), _unique)
    except ValueError as error:
        raise CheckpointError(f"{path}: header {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"key {quoted(twice)} appears twice")
    return found


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    def wrong(what: str, got: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {quoted(name)} has {what} {str(got)[:100]}, expected {expected}")

    if not isinstance(entry, dict):
        raise wrong("entry", entry, "an object with dtype, shape and data_offsets")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not dtype.isidentifier() or len(dtype) > 40:
        raise wrong("dtype", dtype, f"one of {', '.join(BITS)}")
    # 2**40 a dimension and 8 dimensions: so that a product stays an integer of bounded size.
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_size(n, 1 << 40) for n in shape):
        raise wrong("shape", shape, "a list of at most 8 sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n, 1 << 62) for n in offsets):
        raise wrong("data_offsets", offsets, "two byte positions")
    start, stop = offsets
    size = -(-math.prod(shape) * BITS[dtype] // 8) if dtype in BITS else max(stop - start, 0)
    if stop - start != size:
        raise wrong("data_offsets", offsets, f"{size} bytes for {dtype} {shape}")
    return StoredTensor(dtype, tuple(shape), data_start + start, data_start + stop)


def _is_size(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def layout(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], align: int = 8
) -> tuple[bytes, dict[str, StoredTensor]]:
    """Header bytes and places of tensors (name, dtype, shape), each starting at a multiple of `align` in the file.

    The header is padded with spaces, gaps are filled by U8 tensors named .pad.N: the format allows no holes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    places: dict[str, StoredTensor] = {}
    end = pads = 0
    for name, dtype, shape in tensors:
        if gap := -end % align:
            header[f".pad.{pads}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            end, pads = end + gap, pads + 1
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        places[name] = StoredTensor(dtype, tuple(shape), start, end)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % align)
    first = 8 + len(text)
    moved = {n: StoredTensor(t.dtype, t.shape, first + t.start, first + t.stop) for n, t in places.items()}
    return struct.pack("<Q", len(text)) + text, moved
