"""NVIDIA's ModelOpt: NVFP4 (`weight` U8 [R, C / 2], `weight_scale` E4M3 [R, C / 16], `weight_scale_2`) and FP8.

Source: ModelOpt's unified export for Hugging Face (modelopt/torch/export/quant_utils.py).
"""

from __future__ import annotations

from functools import partial

from lapinfer.checkpoint.quantized import fp4, fp8
from lapinfer.checkpoint.quantized.matrix import Matrix, Stored, check_known, expect, modules, one_of, two_sizes
from lapinfer.families.config import Config

HARMLESS = ("quant_method", "producer", "kv_cache_quant_algo", "exclude_modules", "ignore", "kv_cache_scheme")


def matrices(section: Config, stored: Stored) -> dict[str, Matrix]:
    algorithm = one_of(section, "quant_algo", ("NVFP4", "FP8"), None)
    if algorithm == "NVFP4":
        one_of(section, "group_size", (fp4.NV_GROUP,), fp4.NV_GROUP)
    section.know("config_groups")  # says in compressed-tensors' words what quant_algo says
    check_known(section, HARMLESS)
    found: dict[str, Matrix] = {}
    for module in modules(stored, "weight"):
        name, scale, whole = (f"{module}{each}" for each in ("weight", "weight_scale", "weight_scale_2"))
        if stored.dtype(name) == "F8_E4M3":
            found[name] = fp8.matrix(stored, module, None)
        elif stored.dtype(name) == "U8" and whole in stored:
            R, pairs = two_sizes(stored, name)
            expect(stored, scale, ("F8_E4M3",), (R, 2 * pairs // fp4.NV_GROUP))
            expect(stored, whole, ("F32",), (), (1,))
            parts = (name, scale, whole, f"{module}input_scale")
            read = partial(fp4.nv_part, stored, name, scale, whole, False)
            found[name] = Matrix((R, 2 * pairs), fp4.NVFP4, tuple(p for p in parts if p in stored), read)
    return found
