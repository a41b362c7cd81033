"""MNIST in its own format: idx files (big-endian magic and sizes, then bytes), plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from lapinfer.errors import InputError


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels [N] to train on, images and labels to test; InputError for bad files."""
    images, labels = _read(folder, "train-images-idx3-ubyte", 3), _read(folder, "train-labels-idx1-ubyte", 1)
    tests, answers = _read(folder, "t10k-images-idx3-ubyte", 3), _read(folder, "t10k-labels-idx1-ubyte", 1)
    for x, y in ((images, labels), (tests, answers)):
        if x.shape != (len(y), 28, 28) or not len(y) or y.max() > 9:
            raise InputError(f"{folder}: expected as many images of 28 × 28 as labels from 0 to 9, got {x.shape}")
    return images, labels, tests, answers


def _read(folder: Path, name: str, dimensions: int) -> np.ndarray:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise InputError(f"{folder / name}: no such file, nor with .gz; expected a folder with MNIST's four idx files")
    try:
        content = gzip.decompress(found[0].read_bytes()) if found[0].suffix == ".gz" else found[0].read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{found[0]}: cannot be read ({error})") from error
    begin = 4 + 4 * dimensions
    sizes = np.frombuffer(content[4:begin], ">u4") if len(content) >= begin else ()
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != begin + math.prod(map(int, sizes)):
        raise InputError(f"{found[0]}: not an idx file of {dimensions} dimensions, or cut off")
    return np.frombuffer(content, np.uint8, offset=begin).reshape([int(size) for size in sizes])
