"""Safetensors files, read by mmap and trusted in nothing (https://github.com/huggingface/safetensors#format).

8 bytes: header length N, little-endian; N bytes of JSON {name: {dtype, shape, data_offsets}}; data without holes
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint.mapping import let_go, map_file
from lapinfer.errors import CheckpointError
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
}


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
        self._bytes = map_file(self.path)
        data_start, header = _header(self.path, self._bytes)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise CheckpointError(f"{self.path}: __metadata__ has other values, expected strings")
        self.metadata: dict[str, str] = metadata
        found = {name: _tensor(self.path, name, entry, data_start) for name, entry in header.items()}
        self.tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
        end = data_start
        for name, tensor in self.tensors.items():
            if tensor.start != end:
                what = "overlapping the tensor before" if tensor.start < end else "after a hole"
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} has bytes from {tensor.start - data_start} on, {what}, "
                    f"expected {end - data_start}"
                )
            end = tensor.stop
        if end != len(self._bytes):
            raise CheckpointError(
                f"{self.path}: the file has {len(self._bytes)} bytes, its header describes {end}; download it again"
            )

    @property
    def nbytes(self) -> int:
        return len(self._bytes)

    @property
    def mapped(self) -> memoryview:
        """The whole file, header and all."""
        return self._bytes

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    def view(self, name: str) -> np.ndarray:
        """The stored numbers, read-only, not copied; BF16 as uint16 bits, BOOL as uint8."""
        tensor = self[name]
        count = math.prod(tensor.shape)
        if not count:
            return np.empty(tensor.shape, DTYPES[tensor.dtype])
        return np.frombuffer(self._bytes, DTYPES[tensor.dtype], count, tensor.start).reshape(tensor.shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop as a new float32 array, of an F32, F16 or BF16 tensor; the file's pages are let go."""
        dtype = self[name].dtype
        if dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(f"{self.path}: tensor {name!r} has dtype {dtype}, expected F32, F16 or BF16")
        view = self.view(name)
        rows = view[start:stop] if view.ndim else view
        with np.errstate(all="ignore"):  # NumPy warns of some NaNs
            values = from_bf16(rows) if dtype == "BF16" else rows.astype(np.float32)
        let_go(rows)
        return values


def read_metadata(path: Path) -> dict[str, str]:
    """`__metadata__` alone, without looking at the tensors; CheckpointError when there is no readable header."""
    metadata = _header(path, map_file(path))[1].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _header(path: Path, data: memoryview) -> tuple[int, dict[str, Any]]:
    """Offset of the data and the header's JSON object."""
    if len(data) < 8:
        raise CheckpointError(f"{path}: the file has {len(data)} bytes, expected a safetensors header")
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER:
        raise CheckpointError(f"{path}: header has {length} bytes, expected at most {MAX_HEADER}: not safetensors")
    if 8 + length > len(data):
        raise CheckpointError(f"{path}: header has {length} bytes, the file only {len(data)}; download it again")
    try:
        header = json.loads(bytes(data[8 : 8 + length]).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not valid JSON ({str(error)[:200]})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: header is a JSON {type(header).__name__}, expected an object")
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} appears twice")
    return found


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    def wrong(what: str, got: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r} has {what} {str(got)[:100]}, expected {expected}")

    if not isinstance(entry, dict):
        raise wrong("entry", entry, "an object with dtype, shape and data_offsets")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong("dtype", dtype, f"one of {', '.join(DTYPES)}")
    # 2**40 a dimension and 8 dimensions: so that a product stays an integer of bounded size.
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_size(n, 1 << 40) for n in shape):
        raise wrong("shape", shape, "a list of at most 8 sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n, 1 << 62) for n in offsets):
        raise wrong("data_offsets", offsets, "two byte positions")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        raise wrong("data_offsets", offsets, f"{size} bytes for {dtype} {shape}")
    return StoredTensor(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


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
