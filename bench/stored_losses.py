"""What stored quantizations lose in the formats that they become: weights of a normal distribution, quantized plainly.

    python bench/stored_losses.py

For each kind: how much the quantization itself loses of the weights, and how much more is lost by its packed form (the
norm of the difference, by that of the weights). Groups have 32 columns unless told otherwise.
"""

from __future__ import annotations

import numpy as np

from lapinfer.checkpoint.quantized.parts import E2M1, E4M3, Blocks, Codes, Floats, Part, groups_of
from lapinfer.quant.formats import KEPT
from lapinfer.quant.quantize import quantize

ROWS, COLUMNS = 256, 1024
NORMAL = np.array([
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
    0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
], np.float32)  # fmt: skip


def nearest(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Codes of the numbers of a table that are nearest."""
    order = np.argsort(table, kind="stable")
    order = order[np.isfinite(table[order])]
    middles = (table[order][:-1] + table[order][1:]) / 2
    return order[np.searchsorted(middles, x)].astype(np.uint8)


def integers(x: np.ndarray, bits: int, size: int, *, symmetric: bool, ordered: bool = True) -> Codes:
    rng = np.random.default_rng(1)
    group = groups_of(COLUMNS, size) if ordered else rng.permutation(groups_of(COLUMNS, size))
    top, zero = (1 << bits) - 1, 1 << bits - 1
    by_group = np.stack([x[:, group == g] for g in range(COLUMNS // size)], axis=1)
    low, high = np.minimum(by_group.min(axis=2), 0), np.maximum(by_group.max(axis=2), 0)
    if symmetric:
        scale = np.maximum(high, -low) * np.float32(2 / top)
        zeros = np.full(scale.shape, zero, np.int16)
    else:
        scale = (high - low) / np.float32(top)
        zeros = np.rint(-low / scale).astype(np.int16)
    scale = scale.astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(x / scale[:, group]) + zeros[:, group], 0, top).astype(np.uint8)
    return Codes(bits, codes, group, scale, zeros)


def fp8(x: np.ndarray) -> Floats:
    scale = np.abs(x).max().reshape(1, 1) / np.float32(448)
    return Floats(E4M3[nearest(E4M3, x / scale)], scale)


def nvfp4(x: np.ndarray) -> Floats:
    whole = np.float32(448 * 6) / np.abs(x).max()
    short = E4M3[nearest(E4M3, np.abs(x.reshape(ROWS, -1, 16)).max(axis=2) / 6 * whole)]
    scale = np.repeat(short / whole, 16, axis=1)
    return Floats(E2M1[nearest(E2M1, x / scale)], scale)


def nf4(x: np.ndarray) -> Blocks:
    factor = np.repeat(np.abs(x.reshape(ROWS, -1, 64)).max(axis=2), 64, axis=1)
    return Blocks(nearest(NORMAL, x / factor), NORMAL, factor, normal=True)


def lost(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def main() -> None:
    x = np.random.default_rng(0).normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32)
    kinds: list[tuple[str, str, Part]] = [
        ("4 bits, symmetric, groups of 128", "INT4", integers(x, 4, 128, symmetric=True)),
        ("4 bits with zeros, groups of 128", "INT4", integers(x, 4, 128, symmetric=False)),
        ("4 bits, columns in another order", "INT4 mixed", integers(x, 4, 128, symmetric=True, ordered=False)),
        ("8 bits, symmetric, rows", "INT8", integers(x, 8, COLUMNS, symmetric=True)),
        ("8 bits with zeros, groups of 64", "UINT8", integers(x, 8, 64, symmetric=False)),
        ("FP8, one scale", "FP8", fp8(x)),
        ("NVFP4", "NVFP4", nvfp4(x)),
        ("nf4, blocks of 64", "NF4", nf4(x)),
    ]
    print("| stored as | becomes | it loses of the weights | its packed form loses of it |\n|---|---|---|---|")
    for name, kind, part in kinds:
        stored, format = part.weights(), KEPT[kind].name
        grouped = part.grouped()
        kept = quantize(format, stored) if grouped is None else grouped
        print(f"| {name} | `{format}` | {100 * lost(stored, x):.2g} % | {100 * lost(kept.weights(), stored):.2g} % |")


if __name__ == "__main__":
    main()
