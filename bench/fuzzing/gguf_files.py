"""Mutants of GGUF files by their structure: keys, values, types, counts, lists of tokens, tensors.

A reader and a writer of our own: the published ones refuse to write what no reader should meet.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Any

from bench.fuzzing.mutate import COUNTS, NUMBERS, SIZES, TEXTS, change_bytes, change_numbers

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass
class Array:
    kind: int
    values: list[Any]


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    kind: int
    offset: int


@dataclass
class File:
    version: int
    pairs: list[tuple[bytes, int, Any]]
    tensors: list[Tensor]
    data: bytes


def read(data: bytes) -> File:
    """Of a sound file."""
    at = 0

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return value

    def text() -> bytes:
        nonlocal at
        length = take("<Q")
        at += length
        return data[at - length : at]

    def value(kind: int) -> Any:
        if kind == STRING:
            return text()
        if kind == ARRAY:
            inner, count = take("<I"), take("<Q")
            return Array(inner, [value(inner) for _ in range(count)])
        return take(SCALARS[kind])

    at = 4
    version, tensors, pairs = take("<I"), take("<Q"), take("<Q")
    read_pairs = []
    for _ in range(pairs):
        key, kind = text(), take("<I")
        read_pairs.append((key, kind, value(kind)))
    read_tensors = []
    for _ in range(tensors):
        name, rank = text(), take("<I")
        dims = [take("<Q") for _ in range(rank)]
        read_tensors.append(Tensor(name, dims, take("<I"), take("<Q")))
    return File(version, read_pairs, read_tensors, data[-(-at // 32) * 32 :])


def write(file: File, rng: random.Random) -> bytes:
    """Now and then with counts that lie."""

    lies = rng.random() < 0.03

    def count(n: int) -> bytes:
        return struct.pack("<Q", rng.choice([*COUNTS, n + 1]) if lies and rng.random() < 0.005 else n)

    def text(value: bytes) -> bytes:
        return count(len(value)) + value

    def value(kind: int, found: Any) -> bytes:
        if isinstance(found, Array):
            return (
                struct.pack("<I", found.kind)
                + count(len(found.values))
                + b"".join(value(found.kind, each) for each in found.values)
            )
        if isinstance(found, bytes):
            return text(found)
        form = SCALARS.get(kind, "<Q")
        try:
            return struct.pack(form, found)
        except (struct.error, OverflowError, ValueError, TypeError):
            return rng.randbytes(struct.calcsize(form))

    out = b"GGUF" + struct.pack("<I", file.version) + count(len(file.tensors)) + count(len(file.pairs))
    out += b"".join(text(key) + struct.pack("<I", kind) + value(kind, found) for key, kind, found in file.pairs)
    for tensor in file.tensors:
        dims = b"".join(struct.pack("<Q", dim & ((1 << 64) - 1)) for dim in tensor.dims)
        out += text(tensor.name) + struct.pack("<I", len(tensor.dims)) + dims
        out += struct.pack("<IQ", tensor.kind & 0xFFFFFFFF, tensor.offset & ((1 << 64) - 1))
    return out.ljust(-(-len(out) // 32) * 32, b"\0") + file.data


def mutant(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.12:
        return change_bytes(data, data.index(b"token_embd.weight") + 2000, rng)
    file = read(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        match rng.randrange(10):
            case 0 if rng.random() < 0.2:
                file.version = rng.choice([0, 1, 2, 3, 4, 1 << 24, 3 << 24])
            case 1 | 2 | 3 | 4 | 5 if file.pairs:
                _change_pair(file, rng)
            case 6 | 7 | 8 if file.tensors:
                _change_tensor(file, rng)
            case _:
                numbers = bytearray(file.data)
                change_numbers(numbers, [(0, len(numbers))], rng)
                file.data = bytes(numbers) if rng.random() < 0.8 else bytes(numbers[: rng.randrange(len(numbers) + 1)])
    return write(file, rng)


def _change_pair(file: File, rng: random.Random) -> None:
    i = rng.randrange(len(file.pairs))
    key, kind, value = file.pairs[i]
    match rng.randrange(12):
        case 0:
            del file.pairs[i]
        case 1 if rng.random() < 0.5:
            file.pairs.append(file.pairs[i] if rng.random() < 0.5 else (key, STRING, b"again"))
        case 2:
            architecture = key.split(b".")[0]
            suffix = rng.choice([
                b"rope.scaling.type", b"rope.scaling.factor", b"rope.scale_linear", b"attention.key_length",
                b"expert_count",
                b"expert_used_count", b"attention.causal", b"logit_scale", b"vocab_size", b"rope.dimension_count",
                b"attention.sliding_window", b"attention.temperature_scale", b"split.count", b"alignment",
            ])  # fmt: skip
            prefix = rng.choice([architecture, b"general", b"tokenizer.ggml", b"llama", b"split"])
            kind = rng.choice([*SCALARS, STRING])
            file.pairs.append((prefix + b"." + suffix, kind, _scalar(kind, rng)))
        case 3:
            file.pairs[i] = key, rng.choice([*SCALARS, STRING, ARRAY, 13, 99]), value
        case 4 if rng.random() < 0.5:
            file.pairs[i] = (
                rng.choice([key + b"s", key.upper(), b"", b"\xff\x1b", b"a" * 70_000, b"general.type"]),
                kind,
                value,
            )
        case _:
            if isinstance(value, Array):
                _change_array(value, rng)
            elif isinstance(value, int | float) and rng.random() < 0.7:
                near = [value + 1, value * 2, value // 2, rng.choice(SIZES), value * 0, -value]
                file.pairs[i] = key, kind, rng.choice(near)
            else:
                file.pairs[i] = key, kind, _scalar(kind, rng)


def _scalar(kind: int, rng: random.Random) -> Any:
    if kind == STRING:
        return rng.choice(
            [text.encode("utf-8", "surrogatepass") for text in TEXTS] + [b"\xff\xfe", b"{{ 1 / 0 }}", b"{%"]
        )
    return rng.choice(NUMBERS)


def _change_array(array: Array, rng: random.Random) -> None:
    values = array.values
    match rng.randrange(7):
        case 0 | 1 | 2 if values:
            for _ in range(rng.choice((1, 2, 20))):
                values[rng.randrange(len(values))] = _scalar(array.kind, rng)
        case 3 if len(values) > 1:
            a, b = rng.randrange(len(values)), rng.randrange(len(values))
            values[a] = values[b]
        case 4:
            array.values = values[: rng.randrange(len(values) + 1)]
        case 5:
            array.values = values + values[: rng.choice((1, 7, len(values)))]
        case _:
            array.kind = rng.choice([*SCALARS, STRING, ARRAY, 77])


def _change_tensor(file: File, rng: random.Random) -> None:
    tensor = rng.choice(file.tensors)
    match rng.randrange(8):
        case 0:
            tensor.kind = rng.choice([*range(42), 99, 1 << 31])
        case 1 if tensor.dims:
            i = rng.randrange(len(tensor.dims))
            tensor.dims[i] = rng.choice([*COUNTS, tensor.dims[i] + 32, tensor.dims[i] // 2])
        case 2:
            tensor.dims = rng.choice([tensor.dims[::-1], [*tensor.dims, 1], tensor.dims[:-1], [], [1] * 9])
        case 3:
            tensor.offset = rng.choice([*COUNTS, tensor.offset + 1, len(file.data), rng.choice(file.tensors).offset])
        case 4:
            tensor.name = rng.choice([b"", b"blk.9.attn_q.weight", b"output.weight", tensor.name + b"s",
                                      b"rope_freqs.weight",
                                      b"\xff\x1b[2J", rng.choice(file.tensors).name, b"blk.0.attn_q.bias"])  # fmt: skip
        case 5:
            file.tensors.remove(tensor)
        case 6:
            file.tensors.append(Tensor(tensor.name, list(tensor.dims), tensor.kind, tensor.offset))
        case _:
            rng.shuffle(file.tensors)
