"""8-bit floats (E4M3) `weight` [R, C], and what they are multiplied with: of blocks, rows, or the whole matrix.

Blocks: `weight_scale_inv` [R / 128, C / 128], as DeepSeek and Qwen publish them (transformers' FineGrainedFP8Config).
Rows: `weight_scale` [R, 1] (fbgemm, compressed-tensors); the whole: one number under either name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from lapinfer.checkpoint.quantized.matrix import Matrix, Stored, block_sizes, check_known, expect, modules, two_sizes
from lapinfer.checkpoint.quantized.parts import E4M3, Floats
from lapinfer.errors import CheckpointError, UnsupportedError, quoted
from lapinfer.families.config import Config

HARMLESS = (
    "quant_method", "activation_scheme", "activation_scale_ub", "modules_to_not_convert", "ignored_layers", "scale_fmt",
    "dequantize", "modules_to_convert",
)  # fmt: skip
"""What activations become elsewhere: here they are 8-bit integers of their own scales."""
SCALES = ("weight_scale_inv", "weight_scale")
FP8 = "FP8"


def matrices(section: Config, stored: Stored) -> dict[str, Matrix]:
    block = block_sizes(section, "weight_block_size", (128, 128))
    section.expect(fmt="e4m3", expert_dtype="fp8")
    check_known(section, HARMLESS)
    found: dict[str, Matrix] = {}
    for module in modules(stored, "weight"):
        if stored.dtype(f"{module}weight") == "F8_E5M2":
            raise UnsupportedError(f"{stored.where(f'{module}weight')}: {quoted(f'{module}weight')} is of type F8_E5M2")
        if stored.dtype(f"{module}weight") == "F8_E4M3":
            found[f"{module}weight"] = matrix(stored, module, block)
    return found


def matrix(stored: Stored, module: str, block: Sequence[int] | None) -> Matrix:
    """The matrix of a module whose `weight` is E4M3; block: rows and columns of a block that has a scale."""
    name = f"{module}weight"
    R, C = two_sizes(stored, name)
    scale = next((module + each for each in SCALES if module + each in stored), f"{module}{SCALES[0]}")
    blocks = (-(-R // block[0]), -(-C // block[1])) if block else (R, 1)
    expect(stored, scale, ("F32", "BF16", "F16", "F8_E8M0"), blocks, (R, 1), (R,), (1, 1), (1,), ())
    by_block = block if block and stored.shape(scale) == blocks else None
    parts = (name, scale, *(f"{module}{each}" for each in ("input_scale", "activation_scale")))
    read = partial(_part, stored, name, scale, by_block)
    return Matrix((R, C), FP8, tuple(part for part in parts if part in stored), read)


def _part(stored: Stored, name: str, scale: str, block: Sequence[int] | None, start: int, stop: int) -> Floats:
    values = E4M3[stored.rows(name, start, stop)]
    if block is not None:
        each = _scales(stored, scale, start // block[0], -(-stop // block[0]))
        rows = np.arange(start, stop) // block[0] - start // block[0]
        return Floats(values, np.repeat(each[rows], block[1], axis=1)[:, : values.shape[1]])
    if (shape := stored.shape(scale)) and shape[0] > 1:
        return Floats(values, _scales(stored, scale, start, stop).reshape(-1, 1))
    return Floats(values, _scales(stored, scale, 0, None).reshape(1, 1))


def _scales(stored: Stored, name: str, start: int, stop: int | None) -> np.ndarray:
    """float32; exponents of two are biased by 127 (E8M0)."""
    if stored.dtype(name) != "F8_E8M0":
        return stored.read(name, start, stop)
    exponents = stored.rows(name, start, stop)
    if (exponents == 255).any():
        raise CheckpointError(f"{stored.where(name)}: tensor {quoted(name)} has values that are not numbers (255)")
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
