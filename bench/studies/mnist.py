"""MNIST in its own format: idx files (big-endian magic and sizes, then bytes), plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lapinfer.errors import InputError


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels [N] to train on, images and labels to test; InputError for bad files."""
    images, labels = _read(folder, "train-images-idx3-ubyte", 3), _read(folder, "train-labels-idx1-ubyte", 1)
    tests, answers = _read(folder, "t10k-images-idx3-ubyte", 3), _read(folder, "t10k-labels-idx1-ubyte", 1)
    for kind, x, y in (("train", images, labels), ("t10k", tests, answers)):
        if x.shape != (len(y), 28, 28) or not len(y):
            raise InputError(
                f"{folder}: expected as many images of 28 × 28 as labels, got {kind} images of shape {x.shape} and "
                f"{len(y)} labels"
            )
        if y.max() > 9:
            raise InputError(f"{folder}: expected {kind} labels from 0 to 9, got {y.max()}")
    return images, labels, tests, answers


def mnist_folder(data: Sequence[Path]) -> Path:
    """The one folder that a study of MNIST is given, from the root on."""
    if len(data) != 1:
        raise InputError(f"expected one folder with MNIST's four idx files, got {len(data)}")
    if not data[0].is_dir():
        raise InputError(f"{data[0]}: no such folder; expected one with MNIST's four idx files")
    return data[0].resolve()


def pixels(images: np.ndarray) -> np.ndarray:
    """float32 [N, 784] from 0 to 1."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def _read(folder: Path, name: str, dimensions: int) -> np.ndarray:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise InputError(f"{folder / name}: no such file, nor with .gz; expected a folder with MNIST's four idx files")
    (path, *_) = found
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: expected {'a gzipped' if path.suffix == '.gz' else 'an'} idx file ({error})"
        ) from error
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
