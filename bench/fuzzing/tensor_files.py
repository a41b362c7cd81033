"""Mutants of safetensors files, published or packed, by their structure: header, metadata, places, numbers."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from typing import Any

from bench.fuzzing.mutate import COUNTS, change_bytes, change_json, change_numbers, extreme, to_text

DTYPES = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "U8",
    "I8",
    "I32",
    "I64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "C64",
    "",
    "f32",
    "U16",
]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, what follows it) of a sound file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, numbers: bytes, rng: random.Random) -> bytes:
    text = to_text(header, rng)
    length = len(text) if rng.random() < 0.95 else rng.choice(COUNTS)
    return struct.pack("<Q", length & ((1 << 64) - 1)) + text + numbers


def mutant(data: bytes, rng: random.Random, *, keep_length: bool = False) -> bytes:
    """A changed file. keep_length: the header is padded to its length, so that pages stay where they were."""
    if rng.random() < 0.1:
        return change_bytes(data, int.from_bytes(data[:8], "little") + 8, rng)
    header, numbers = split(data)
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.5:
        changed = bytearray(numbers)
        change_numbers(changed, spans(header), rng)
        numbers = bytes(changed)
        if rng.random() < 0.7:
            return data[: 8 + length] + numbers
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_header(header, len(numbers), rng)
    if keep_length and rng.random() < 0.8:
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", max(length, len(text))) + text.ljust(length) + numbers
    return joined(header, numbers, rng)


def spans(header: dict[str, Any]) -> list[tuple[int, int]]:
    """Places of tensors, in a sound header; padding and digests are none."""
    named = [(name, entry) for name, entry in header.items() if name[:1] not in ("_", ".")]
    return [(entry["data_offsets"][0], entry["data_offsets"][1]) for _, entry in named]


def signed(data: bytes) -> bytes:
    """The file with its digests right again, where it has a place for them: so mutants get past them."""
    from lapinfer.packing.entries import DIGESTS

    try:
        header, numbers = split(data)
        begin = len(data) - len(numbers)
        named = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        start, stop = map(int, named.pop(DIGESTS))
        places = [
            place for name, place in sorted(named.items(), key=lambda item: item[1]) if not name.startswith(".pad.")
        ]
        pieces = [data[:begin], *(numbers[a:b] for a, b in places)]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return data
    digests = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    if stop - start != len(digests) or stop > len(numbers):
        return data
    return data[:begin] + numbers[:start] + digests + numbers[stop:]


def _change_header(header: dict[str, Any], size: int, rng: random.Random) -> None:
    names = [name for name in header if name != "__metadata__"]
    if not names or rng.random() < 0.08:
        header["__metadata__"] = extreme(rng)
        return
    if isinstance(header.get("__metadata__"), dict) and rng.random() < 0.35:
        _change_metadata(header["__metadata__"], rng)
        return
    name = rng.choice(names)
    entry = header[name]
    if not isinstance(entry, dict):
        return
    match rng.randrange(9):
        case 0:
            entry["dtype"] = rng.choice(DTYPES)
        case 1:
            shape = entry.get("shape")
            if isinstance(shape, list) and shape:
                i = rng.randrange(len(shape))
                shape[i] = rng.choice([*COUNTS, -1, 1.0, "2", None, shape[i] + 1 if isinstance(shape[i], int) else 0])
        case 2:
            shape = entry.get("shape")
            if isinstance(shape, list):
                entry["shape"] = rng.choice([shape[::-1], [*shape, 1], shape[:-1], [0, *shape], []])
        case 3:
            places = entry.get("data_offsets")
            if isinstance(places, list) and len(places) == 2:
                i = rng.randrange(2)
                places[i] = rng.choice([*COUNTS, size, size + 1, -1, places[i - 1], None, 1.5])
        case 4:
            header[rng.choice(["new", "a" * 3000, "\x1b[2J", name + ".weight", "lm_head.weight", ".pad.9"])] = (
                header.pop(name)
            )
        case 5:
            del header[name]
        case 6:
            header[f"{name}.copy"] = json.loads(json.dumps(entry))
        case 7:
            other = header[rng.choice(names)]
            if isinstance(other, dict) and other.keys() == entry.keys():
                key = rng.choice(["data_offsets", "shape", "dtype"])
                entry[key], other[key] = other.get(key), entry.get(key)
        case _:
            change_json(entry, rng)


def _change_metadata(metadata: dict[str, Any], rng: random.Random) -> None:
    """Of packed files, whose metadata are JSON in JSON."""
    key = rng.choice(list(metadata) or ["format"])
    value = metadata.get(key)
    try:
        inner = json.loads(value) if isinstance(value, str) else None
    except ValueError:
        inner = None
    if isinstance(inner, dict | list) and rng.random() < 0.9:
        metadata[key] = json.dumps(change_json(inner, rng), default=str)
    else:
        metadata[key] = rng.choice(["", "lapinfer", "1", "2", "3", "{}", "q4", "q8", "\x00", 1, None, extreme(rng)])
