"""The images of a study: CIFAR-10 from its batches (pickled or binary), or MNIST as a proxy of it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.studies.mnist import read_mnist
from lapinfer.errors import InputError

RECORD = 1 + 3 * 32 * 32
"""Bytes of an image in CIFAR-10's binary files: the label, then red, green and blue."""
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


@dataclass(frozen=True, slots=True)
class Images:
    """uint8 [N, channels, size, size], and labels from 0 to 9, int64 [N]: to train on, and to test."""

    name: str
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def read_images(folder: Path) -> Images:
    """CIFAR-10 where the folder has its batches, itself or in the folder of its archive; MNIST otherwise."""
    for where in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        for suffix, read in (("", _pickled), (".bin", _binary)):
            if (where / f"{BATCHES[0]}{suffix}").is_file():
                return _cifar([where / f"{name}{suffix}" for name in BATCHES], read)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one with MNIST's idx files, or CIFAR-10's batches")
    train, labels, test, answers = read_mnist(folder)
    return Images("MNIST", train[:, None], labels.astype(np.int64), test[:, None], answers.astype(np.int64))


def _cifar(paths: list[Path], read: Any) -> Images:
    parts = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; CIFAR-10 has five batches to train on, and one to test")
        images, labels = read(path)
        if not len(labels) or images.shape != (len(labels), RECORD - 1) or labels.min() < 0 or labels.max() > 9:
            raise InputError(f"{path}: expected images of 3 × 32 × 32 bytes with labels from 0 to 9")
        parts.append((images.reshape(-1, 3, 32, 32), labels.astype(np.int64)))
    train, labels = (np.concatenate(values) for values in zip(*parts[:-1], strict=True))
    return Images("CIFAR-10", train, labels, *parts[-1])


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) % RECORD:
        raise InputError(f"{path}: {len(content)} bytes are not whole images of {RECORD} bytes: cut off?")
    rows = content.reshape(-1, RECORD)
    return rows[:, 1:], rows[:, 0]


class _Plain(pickle.Unpickler):
    """Makes arrays alone: a pickle may otherwise run what it likes."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "_frombuffer"}
        if (module.split(".")[0] == "numpy" and name in allowed) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            found = _Plain(file, encoding="bytes").load()
        return np.asarray(found[b"data"], np.uint8), np.asarray(found[b"labels"], np.int64)
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{path}: not a batch of CIFAR-10 ({type(error).__name__}: {error})") from error
