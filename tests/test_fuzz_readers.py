"""Thousands of damaged files: a reader gives one clear error or numbers, never anything else."""

import json
import random
import struct
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.errors import LapinferError
from lapinfer.packing.entries import PackedEntry
from lapinfer.packing.reader import PackedFile
from lapinfer.packing.writer import PackedWriter
from lapinfer.tensors import Tensor

COUNT = 4000
"""Mutated files of each kind."""

MEMORY_LIMIT = 300 << 20
"""Bytes by which the process may grow over all of them: an allocation that a header asked for shows."""

SECONDS_LIMIT = 2.0
"""For one file: an endless loop shows."""

NUMBERS = [0, 1, 2, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
TEXTS = [
    b"-1",
    b"0",
    b"99999999999999999999",
    b"1e9",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"\\u0000",
    b"F64",
    b"U8",
    b",",
    b"\xff",
]


def mutated(data: bytes, header: int, rng: random.Random) -> bytes:
    """`data` with a few changes, most of them in its first `header` bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        end = min(header, len(changed)) if rng.random() < 0.9 else len(changed)
        at = rng.randrange(max(end, 1))
        match rng.randrange(7):
            case 0 | 1:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[rng.randrange(len(changed) + 1) :]
            case 3:
                size = rng.choice((4, 8))
                changed[at : at + size] = struct.pack("<Q", rng.choice(NUMBERS))[:size]
            case 4:
                text = rng.choice(TEXTS)
                changed[at : at + rng.choice((0, 1, len(text)))] = text
            case 5:
                del changed[at : at + rng.randrange(1, 9)]
            case 6:
                other = rng.randrange(max(end, 1))
                changed[at:at] = changed[other : other + rng.randrange(1, 64)]
    return bytes(changed)


def mutated_json(data: bytes, header: int, rng: random.Random) -> bytes:
    """`data` of the safetensors format with changed bytes, or with well-formed JSON that says something else."""
    if rng.random() < 0.5:
        return mutated(data, header, rng)
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    name = rng.choice(list(entries))
    entry = entries[name]
    key = rng.choice(list(entry))
    if isinstance(entry[key], list):
        entry[key][rng.randrange(len(entry[key]))] = rng.choice([*NUMBERS, -1, 3, 4, 12, 48, 68, None, "1", 1.0])
    else:
        entry[key] = rng.choice(["F32", "F16", "BF16", "U8", "I64", "F8", "", "{}", 1, None, []])
    if rng.random() < 0.2:
        entries[rng.choice(["new", ".pad.7", "__metadata__", "a"])] = entries.pop(name)
    text = json.dumps(entries).encode().ljust(length)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def peak_memory() -> int:
    resource = pytest.importorskip("resource")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fuzz(path, data, header, read, seed, mutate=mutated):
    """Read `COUNT` mutated files."""
    rng = random.Random(seed)
    path.write_bytes(data)
    read(path)
    before, fine = peak_memory(), 0
    for i in range(COUNT):
        path.unlink()  # a new file: the old one may still be mapped
        path.write_bytes(mutate(data, header, rng))
        start = time.perf_counter()
        try:
            read(path)
            fine += 1
        except LapinferError as error:
            message = str(error)
            assert len(message) < 2000, i
            assert "\n" not in message, i
        assert time.perf_counter() - start < SECONDS_LIMIT, i
    assert peak_memory() - before < MEMORY_LIMIT
    assert COUNT // 100 < fine < COUNT * 9 // 10  # both ways are taken


def read_safetensors(path):
    file = SafetensorsFile(path)
    for name, tensor in file.tensors.items():
        file.view(name).tobytes()
        if tensor.dtype in ("F32", "F16", "BF16"):
            file.read(name)


ENTRIES = [
    PackedEntry(Tensor(-1, "embed", (40, 64), "embedding", "matrix", packing="blocks"), "q8"),
    PackedEntry(Tensor(-1, "norm", (32,), "head", "norm", ".weight"), None),
]


def read_packed(path):
    file = PackedFile(path, (entry.tensor for entry in ENTRIES))
    for name in file.names():
        file.tensor(name).tobytes()
        assert file.shape(name) is not None


def read_gguf(path):
    from lapinfer.checkpoint.gguf import GGUFCheckpoint

    checkpoint = GGUFCheckpoint(path)
    for name in checkpoint.names():
        checkpoint.read(name)
        checkpoint.read(name, 1, 3)
        checkpoint.read_grouped(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_safetensors(tmp_path):
    arrays = {"a": np.ones((3, 4), np.float32), "b": np.ones((2, 5), np.float16), "c": np.ones(7, np.int64)}
    data = safetensors.numpy.save(arrays, {"format": "pt"})
    fuzz(
        tmp_path / "model.safetensors", data, int.from_bytes(data[:8], "little") + 8, read_safetensors, 1, mutated_json
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_packed(tmp_path):
    path = tmp_path / "model.safetensors"
    with PackedWriter(path, ENTRIES, {"quant": "q8", "source": "x"}) as writer:
        for entry in ENTRIES:
            dtype, shape = entry.stored
            writer.write(entry.name, np.ones(shape, np.uint8 if dtype == "U8" else np.float32))
        writer.finish()
    data = path.read_bytes()
    fuzz(path, data, len(data[:4096].rstrip()), read_packed, 2, mutated_json)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("architecture", "kind"), [("llama", "F32"), ("gemma3", "Q4_0"), ("gpt2", "Q8_0")])
def test_gguf(tmp_path, architecture, kind, monkeypatch):
    pytest.importorskip("gguf")
    import gguf_files

    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    path = gguf_files.write(tmp_path / "m.gguf", architecture, kind)
    data = path.read_bytes()
    header = data.index(b"blk.0.ffn_up.weight") + 64
    fuzz(path, data, header, read_gguf, 3)
