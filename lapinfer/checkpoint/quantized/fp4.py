"""4-bit floats (E2M1), two in a byte, the first in its low nibble: with a scale for 16 (NVFP4) or 32 columns (MXFP4).

NVFP4: value · scale (E4M3) · one float32 for the matrix, by which compressed-tensors divides and ModelOpt multiplies.
MXFP4: value · 2^(exponent − 127) (OCP Microscaling Formats, v1.0).
"""

from __future__ import annotations

import numpy as np

from lapinfer.checkpoint.quantized.matrix import Stored
from lapinfer.checkpoint.quantized.parts import E2M1, E4M3, Floats, PowersOfTwo, unpacked
from lapinfer.errors import CheckpointError, quoted

NVFP4, NV_GROUP = "NVFP4", 16
MXFP4, MX_GROUP = "MXFP4", 32


def nv_part(stored: Stored, codes: str, scale: str, whole: str, divides: bool, start: int, stop: int) -> Floats:
    """Rows of NVFP4."""
    factor = stored.read(whole).reshape(-1)[0]
    if not np.isfinite(factor) or factor <= 0:
        raise CheckpointError(f"{stored.where(whole)}: tensor {quoted(whole)} is {factor}, expected a number above 0")
    scales = E4M3[stored.rows(scale, start, stop)]
    scales = scales / factor if divides else scales * factor
    return Floats(E2M1[unpacked(stored.rows(codes, start, stop), 4)], np.repeat(scales, NV_GROUP, axis=1))


def mx_part(stored: Stored, codes: str, scale: str, start: int, stop: int) -> PowersOfTwo:
    """Rows of MXFP4."""
    exponents = stored.rows(scale, start, stop)
    if (exponents == 255).any():
        raise CheckpointError(f"{stored.where(scale)}: tensor {quoted(scale)} has values that are not numbers (255)")
    return PowersOfTwo(unpacked(stored.rows(codes, start, stop), 4), exponents)
