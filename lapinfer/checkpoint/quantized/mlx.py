"""MLX's affine weights: `weight` U32 [R, C · bits / 32], `scales` and `biases` [R, C / group_size].

weight = scale · code + bias, the first code in the lowest bits. config.json has the options of all modules under
`quantization`, and there those of single ones by their names (false: not quantized). Modes mxfp4 and mxfp8 have scales
that are exponents. Source: mlx/ops (quantize), mlx_lm/utils.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from lapinfer.checkpoint.quantized.fp4 import MX_GROUP, MXFP4, mx_part
from lapinfer.checkpoint.quantized.gptq import kind_of
from lapinfer.checkpoint.quantized.matrix import Matrix, Stored, check_known, expect, modules, one_of, two_sizes
from lapinfer.checkpoint.quantized.parts import Codes, groups_of, unpacked
from lapinfer.families.config import Config

HARMLESS = ("quant_method",)
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)


def matrices(section: Config, stored: Stored) -> dict[str, Matrix]:
    found: dict[str, Matrix] = {}
    single = {key for key, value in section.values.items() if isinstance(value, dict)}
    section.know(*single)
    options = _options(section, section)
    own = {key: _options(section.section(key), section) for key in single}
    check_known(section, (*HARMLESS, *(key for key, value in section.values.items() if value is True)))
    for module in modules(stored, "scales"):
        name, scales, biases = (f"{module}{each}" for each in ("weight", "scales", "biases"))
        bits, size, mode = own.get(module.removesuffix("."), options)
        expect(stored, name, ("U32",))
        R, words = two_sizes(stored, name)
        C = words * 32 // bits
        if mode != "affine":
            expect(stored, scales, ("U8",), (R, C // MX_GROUP))
            found[name] = Matrix((R, C), MXFP4, (name, scales), partial(mx_part, stored, name, scales))
            continue
        for each in (scales, biases):
            expect(stored, each, ("F16", "BF16", "F32"), (R, C // size))
        read = partial(_part, stored, (name, scales, biases), bits, groups_of(C, size))
        found[name] = Matrix((R, C), kind_of(bits, False, fits=True), (name, scales, biases), read)
    return found


def _options(section: Config, usual: Config) -> tuple[int, int, str]:
    """Bits, columns of a group, and mode."""
    section = section if section is usual else section.with_defaults(
        **{key: usual.get(key) for key in ("bits", "group_size", "mode") if key in usual}
    )  # fmt: skip
    mode = one_of(section, "mode", ("affine", "mxfp4"), "affine")
    bits = one_of(section, "bits", BITS if mode == "affine" else (4,), 4)
    size = one_of(section, "group_size", GROUPS if mode == "affine" else (MX_GROUP,), 64)
    if section is not usual:
        check_known(Config(section.values, section.where, {"mode", "bits", "group_size"}))
    assert isinstance(bits, int)
    assert isinstance(size, int)
    return bits, size, str(mode)


def _part(
    stored: Stored, names: tuple[str, str, str], bits: int, group: np.ndarray, start: int, stop: int
) -> Codes:  # fmt: skip
    weight, scales, biases = names
    codes = unpacked(stored.rows(weight, start, stop), bits)
    return Codes(bits, codes, group, stored.read(scales, start, stop), minimum=stored.read(biases, start, stop))
