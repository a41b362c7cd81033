"""What studies learn from: texts, MNIST (idx files), and CIFAR-10 (its batches, pickled or binary)."""

from __future__ import annotations

import gzip
import hashlib
import math
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.errors import InputError
from lapinfer.train import corpus

CIFAR_IMAGE = 3 * 32 * 32
"""Bytes of an image of CIFAR-10: red, green and blue. In binary files the label stands before them."""
CIFAR_BATCHES = (
    "data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch",
)  # fmt: skip
Identity = list[list[str]]
"""[name, digest] of each text or set of images: by which a trial knows its data again, wherever they lie."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts, and the names of their files."""

    names: list[str]
    contents: list[str]

    def expect(self, characters: int) -> None:
        """InputError when the texts have fewer characters together."""
        if (size := sum(map(len, self.contents))) < characters:
            raise InputError(f"the texts have {size:,} characters; the study needs at least {characters:,}")

    @property
    def identity(self) -> Identity:
        return [[name, corpus.digest([text])] for name, text in zip(self.names, self.contents, strict=True)]


@dataclass(frozen=True, slots=True)
class Images:
    """uint8 [N, channels, size, size], and labels from 0 to 9, int64 [N]: to train on, and to test."""

    name: str
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @property
    def identity(self) -> Identity:
        digest = hashlib.sha256()
        for values in (self.train, self.train_labels, self.test, self.test_labels):
            digest.update(np.ascontiguousarray(values).data)
        return [[self.name, digest.hexdigest()]]


def read_texts(paths: Sequence[Path]) -> Texts:
    """One text or more; InputError for a missing, empty or undecodable one."""
    if not paths:
        raise InputError("expected one text or more, got none")
    return Texts([path.name for path in paths], corpus.read_texts(paths))


def read_mnist(paths: Sequence[Path]) -> Images:
    """MNIST from the one folder of `paths`; InputError for anything else, and for bad files."""
    return _mnist(_folder(paths, "MNIST's four idx files"))


def read_images(paths: Sequence[Path]) -> Images:
    """CIFAR-10 where the one folder of `paths` has its batches, itself or in the folder of its archive; else MNIST."""
    folder = _folder(paths, "MNIST's four idx files, or CIFAR-10's batches")
    for inner in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        for suffix, read in (("", _pickled), (".bin", _binary)):
            if (inner / f"{CIFAR_BATCHES[0]}{suffix}").is_file():
                return _cifar([inner / f"{name}{suffix}" for name in CIFAR_BATCHES], read)
    return _mnist(folder)


def _folder(paths: Sequence[Path], content: str) -> Path:
    if len(paths) != 1:
        raise InputError(f"expected one folder with {content}, got {len(paths)} paths")
    if not paths[0].is_dir():
        raise InputError(f"{paths[0]}: no such folder; expected one with {content}")
    return paths[0]


# ---- MNIST: big-endian magic and sizes, then bytes; plain or gzipped ----


def _mnist(folder: Path) -> Images:
    images, labels = _idx(folder, "train-images-idx3-ubyte", 3), _idx(folder, "train-labels-idx1-ubyte", 1)
    tests, answers = _idx(folder, "t10k-images-idx3-ubyte", 3), _idx(folder, "t10k-labels-idx1-ubyte", 1)
    for kind, x, y in (("train", images, labels), ("t10k", tests, answers)):
        if x.shape != (len(y), 28, 28) or not len(y):
            raise InputError(
                f"{folder}: expected as many images of 28 × 28 as labels, got {kind} images of shape {x.shape} and "
                f"{len(y)} labels"
            )
        if y.max() > 9:
            raise InputError(f"{folder}: expected {kind} labels from 0 to 9, got {y.max()}")
    return Images("MNIST", images[:, None], labels.astype(np.int64), tests[:, None], answers.astype(np.int64))


def _idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise InputError(f"{folder / name}: no such file, nor with .gz; expected a folder with MNIST's four idx files")
    zipped = path.suffix == ".gz"
    try:
        content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected {'a gzipped' if zipped else 'an'} idx file ({error})") from error
    magic, begin = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if len(content) < begin or content[:4] != magic:
        got = content[:4].hex(" ") or "nothing"
        raise InputError(
            f"{path}: expected an idx file of bytes in {dimensions} dimensions, which begins with {magic.hex(' ')}, "
            f"got {got} ({len(content)} bytes)"
        )
    sizes = [int(size) for size in np.frombuffer(content[4:begin], ">u4")]
    if len(content) != begin + math.prod(sizes):
        shape = " × ".join(map(str, sizes))
        raise InputError(f"{path}: expected {begin} + {shape} bytes, got {len(content)}: cut off?")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(sizes)


# ---- CIFAR-10 ----


def _cifar(paths: list[Path], read: Any) -> Images:
    parts = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; CIFAR-10 has five batches to train on, and one to test")
        images, labels = read(path)
        if not len(labels) or images.shape != (len(labels), CIFAR_IMAGE) or labels.min() < 0 or labels.max() > 9:
            raise InputError(f"{path}: expected images of 3 × 32 × 32 bytes with labels from 0 to 9")
        parts.append((images.reshape(-1, 3, 32, 32), labels.astype(np.int64)))
    train, labels = (np.concatenate(values) for values in zip(*parts[:-1], strict=True))
    return Images("CIFAR-10", train, labels, *parts[-1])


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content, record = np.frombuffer(path.read_bytes(), np.uint8), 1 + CIFAR_IMAGE
    if len(content) % record:
        raise InputError(f"{path}: {len(content)} bytes are not whole images of {record} bytes: cut off?")
    rows = content.reshape(-1, record)
    return rows[:, 1:], rows[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Makes arrays alone: a pickle may otherwise run what it likes."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "_frombuffer"}
        if (module.split(".")[0] == "numpy" and name in allowed) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        return np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"], np.int64)
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{path}: not a batch of CIFAR-10 ({type(error).__name__}: {error})") from error
