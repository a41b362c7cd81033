"""compressed-tensors: integers in 32-bit words or bytes, 8-bit floats, 4-bit floats.

pack-quantized: `weight_packed` I32 [R, C · bits / 32] of codes + 2^(bits − 1), `weight_scale` [R, G],
`weight_zero_point` I32 [R · bits / 32, G], `weight_g_idx` [C]; int-quantized: `weight` I8;
float-quantized: `weight` E4M3; nvfp4-pack-quantized, mxfp4-pack-quantized: `weight_packed` U8 [R, C / 2].
weight = scale · (code − zero). Activations that a config would have quantized, too, are 8-bit integers of their own
scales here.
Source: compressed_tensors/compressors (0.20).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from lapinfer.checkpoint.quantized import fp4, fp8
from lapinfer.checkpoint.quantized.gptq import kind_of
from lapinfer.checkpoint.quantized.matrix import (
    Matrix,
    Stored,
    block_sizes,
    check_known,
    expect,
    modules,
    one_of,
    stored_groups,
    two_sizes,
)
from lapinfer.checkpoint.quantized.parts import Codes, groups_of, unpacked
from lapinfer.errors import CheckpointError, UnsupportedError, quoted
from lapinfer.families.config import Config

FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mixed-precision", "dense",
)  # fmt: skip
HARMLESS = (
    "quant_method", "ignore", "quantization_status", "global_compression_ratio", "version", "kv_cache_scheme",
    "run_compressed", "dequantize", "use_optimized_inference",
)  # fmt: skip
OF_GROUPS = ("targets", "input_activations", "output_activations")
OF_WEIGHTS = ("observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype")
FLOATS = ("F32", "F16", "BF16")
BITS = (2, 4, 8)
ASIDE = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "weight_shape")


def matrices(section: Config, stored: Stored) -> dict[str, Matrix]:
    one_of(section, "format", FORMATS, "dense")
    weights = list(_weights(section))
    sparsity = section.section("sparsity_config")
    one_of(sparsity, "format", ("dense",), "dense")
    sparsity.know(*sparsity.values)
    check_known(section, HARMLESS)
    found: dict[str, Matrix] = {}
    for module in modules(stored, "weight_packed"):
        packed = f"{module}weight_packed"
        found[f"{module}weight"] = (
            _fp4(stored, module) if stored.dtype(packed) == "U8" else _integers(stored, module, packed, weights)
        )
    for module in modules(stored, "weight_scale"):
        if (name := f"{module}weight") not in stored:
            continue
        if stored.dtype(name) == "F8_E4M3":
            blocks = [each["block"] for each in weights if each["block"]]
            found[name] = fp8.matrix(stored, module, blocks[0] if blocks else None)
        elif stored.dtype(name) == "I8":
            found[name] = _integers(stored, module, name, weights)
        else:
            raise UnsupportedError(
                f"{stored.where(name)}: tensor {quoted(name)} has a scale and dtype {stored.dtype(name)}, expected "
                "I8 or F8_E4M3"
            )
    return found


def _weights(section: Config) -> Iterator[dict[str, Any]]:
    """What is said of weights, of each group of modules."""
    groups = section.section("config_groups")
    for key in groups.values:
        group = groups.section(key)
        one_of(group, "format", FORMATS, "dense")
        group.know(*OF_GROUPS)
        weights = group.section("weights")
        one_of(weights, "type", ("int", "float"), "int")
        one_of(weights, "num_bits", BITS, 8)
        one_of(weights, "dynamic", (False,), False)
        strategies = ("tensor", "channel", "group", "tensor_group", "block")
        one_of(weights, "strategy", strategies, "tensor")
        weights.know(*OF_WEIGHTS)
        block = block_sizes(weights, "block_structure")
        yield {
            "bits": weights.integer("num_bits", 8), "integer": weights.text("type", "int") == "int",
            "symmetric": weights.flag("symmetric", True), "size": weights.integer("group_size", -1, least=-1),
            "block": block,
        }  # fmt: skip


def _integers(stored: Stored, module: str, codes: str, weights: list[dict[str, Any]]) -> Matrix:
    """Codes in words, or bytes; how many bits they have is told by the shape."""
    scale, zero, index = (f"{module}weight_{each}" for each in ("scale", "zero_point", "g_idx"))
    R, width = two_sizes(stored, codes)
    bits, C = 8, width
    if packed := codes.endswith("weight_packed"):
        expect(stored, codes, ("I32",))
        expect(stored, f"{module}weight_shape", ("I64", "I32"), (2,))
        C = int(stored.rows(f"{module}weight_shape")[1])
        bits = next((bits for bits in BITS if -(-C * bits // 32) == width), 0)
    if not any(each["integer"] and each["bits"] == bits for each in weights):
        raise CheckpointError(
            f"{stored.where(codes)}: tensor {quoted(codes)} has shape {(R, width)}, which is none of the bits "
            "that config.json's config_groups say"
        )
    G = (stored.shape(scale) or (1,))[-1] if scale in stored else 1
    expect(stored, scale, FLOATS, (R, G), *(((R,), (1,), (1, 1), ()) if G in (1, R) else ()))
    if len(stored.shape(scale)) < 2:
        G = 1
    size = -(-C // G)
    parts = [codes, scale]
    if zero in stored:
        zeros = (-(-R * bits // 32), G) if packed else stored.shape(scale)
        expect(stored, zero, ("I32",) if packed else ("I8",), zeros)
        parts.append(zero)
    ordered = index not in stored
    if not ordered:
        expect(stored, index, ("I32", "I64"), (C,))
        parts.append(index)
    if ordered and size * (G - 1) >= C:
        raise CheckpointError(f"{stored.where(scale)}: tensor {quoted(scale)} has {G} groups of {C} columns")
    aside = [f"{module}{each}" for each in ASIDE if f"{module}{each}" in stored]
    kind = kind_of(bits, zero not in stored, fits=ordered and (G == 1 or size % 32 == 0))
    read = partial(_part, stored, parts, zero in stored, ordered, bits, size, C)
    return Matrix((R, C), kind, (*parts, *aside), read)


def _part(
    stored: Stored, names: list[str], zeros: bool, ordered: bool, bits: int, size: int, C: int, start: int, stop: int
) -> Codes:
    offset = np.uint8(1 << (bits - 1))
    if names[0].endswith("weight_packed"):
        codes = unpacked(stored.rows(names[0], start, stop), bits)[:, :C]
    else:
        codes = stored.rows(names[0], start, stop).view(np.uint8) ^ offset
    shape = stored.shape(names[1])
    by_row = bool(shape) and shape[0] > 1
    scale = stored.read(names[1], start, stop) if by_row else stored.read(names[1])
    scale = scale.reshape(len(codes), -1) if by_row else np.repeat(scale.reshape(1, -1), len(codes), axis=0)
    zero = np.full(scale.shape, offset, np.int16)
    if zeros and names[0].endswith("weight_packed"):
        zero = unpacked(np.ascontiguousarray(stored.rows(names[2]).T), bits)[:, start:stop].T.astype(np.int16)
    elif zeros:
        said = stored.rows(names[2], start, stop) if by_row else stored.rows(names[2])
        zero = zero + said.reshape(-1, scale.shape[1]).astype(np.int16)
    group = groups_of(C, size) if ordered else stored_groups(stored, names[-1], scale.shape[1])
    return Codes(bits, codes, group, scale, zero)


def _fp4(stored: Stored, module: str) -> Matrix:
    codes, scale, whole = (f"{module}weight_{each}" for each in ("packed", "scale", "global_scale"))
    R, pairs = two_sizes(stored, codes)
    C = 2 * pairs
    aside = [f"{module}{each}" for each in ASIDE if f"{module}{each}" in stored]
    if whole in stored:
        expect(stored, scale, ("F8_E4M3",), (R, C // fp4.NV_GROUP))
        expect(stored, whole, ("F32",), (), (1,))
        read = partial(fp4.nv_part, stored, codes, scale, whole, True)
        return Matrix((R, C), fp4.NVFP4, (codes, scale, whole, *aside), read)
    if scale in stored and stored.dtype(scale) not in ("U8", "F8_E8M0"):
        raise UnsupportedError(
            f"{stored.where(scale)}: tensor {quoted(scale)} has dtype {stored.dtype(scale)}, expected U8 (MXFP4)"
        )
    expect(stored, scale, ("U8", "F8_E8M0"), (R, C // fp4.MX_GROUP))
    return Matrix((R, C), fp4.MXFP4, (codes, scale, *aside), partial(fp4.mx_part, stored, codes, scale))
