"""bitsandbytes: 4 bits (nf4, fp4) of rows one after the other in blocks of 64, or int8 with a scale a row.

4 bits: `weight` U8 [R · C / 2, 1], the first code of a byte in its high nibble; `weight.quant_map` [16] what codes
mean, `weight.absmax` a block's factor. With double quantization absmax is itself codes: `nested_quant_map` [256] of
these, times `nested_absmax` of 256, plus an offset. `weight.quant_state.bitsandbytes__nf4` is JSON with shape and block
size.
int8: `weight` I8 [R, C], weight = code · SCB / 127. Source: bitsandbytes/functional.py (QuantState), arXiv 2305.14314.
"""

from __future__ import annotations

from functools import partial
from math import prod

import numpy as np

from lapinfer.checkpoint.json_files import parse_json
from lapinfer.checkpoint.quantized.matrix import Matrix, Stored, check_known, expect, modules, two_sizes
from lapinfer.checkpoint.quantized.parts import MIDDLE, Blocks, Codes
from lapinfer.errors import CheckpointError, UnsupportedError, quoted
from lapinfer.families.config import Config
from lapinfer.quant.formats import nf4

HARMLESS = (
    "quant_method", "_load_in_4bit", "_load_in_8bit", "load_in_4bit", "load_in_8bit", "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage", "bnb_4bit_use_double_quant", "bnb_4bit_quant_type", "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight", "llm_int8_skip_modules", "llm_int8_threshold",
)  # fmt: skip
"""Each matrix says itself how it is stored; thresholds are those of activations."""
STATE = "weight.quant_state.bitsandbytes__"
LARGEST = 127


def matrices(section: Config, stored: Stored) -> dict[str, Matrix]:
    section.expect(bnb_4bit_quant_storage="uint8")
    check_known(section, HARMLESS)
    found: dict[str, Matrix] = {}
    for kind in ("nf4", "fp4"):
        for module in modules(stored, f"{STATE}{kind}"):
            found[f"{module}weight"] = _four_bits(stored, module, kind)
    for module in modules(stored, "SCB"):
        name, scale = f"{module}weight", f"{module}SCB"
        expect(stored, name, ("I8",))
        R, C = two_sizes(stored, name)
        expect(stored, scale, ("F32",), (R,))
        parts = [name, scale]
        if (form := f"{module}weight_format") in stored:
            if stored.rows(form).reshape(-1).any():
                raise UnsupportedError(f"{stored.where(form)}: {quoted(form)} isn't 0, rows in order; save it again")
            parts.append(form)
        found[name] = Matrix((R, C), "INT8", tuple(parts), partial(_eight_bits, stored, name, scale))
    return found


def _eight_bits(stored: Stored, name: str, scale: str, start: int, stop: int) -> Codes:
    codes = stored.rows(name, start, stop).view(np.uint8) ^ np.uint8(MIDDLE)
    scales = stored.read(scale, start, stop)[:, None] / np.float32(LARGEST)
    return Codes(8, codes, np.zeros(codes.shape[1], int), scales, np.full(scales.shape, MIDDLE, np.int16))


def _four_bits(stored: Stored, module: str, kind: str) -> Matrix:
    name, state = f"{module}weight", f"{module}{STATE}{kind}"
    expect(stored, state, ("U8",))
    try:
        said = Config(parse_json(stored.rows(state).tobytes()), f"{stored.where(state)}: {quoted(state)}")
    except ValueError as error:
        raise CheckpointError(f"{stored.where(state)}: tensor {quoted(state)} {error}") from None
    shape, block = said.get("shape"), said.integer("blocksize", most=1 << 16)
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in shape):
        raise said.wrong("shape", "rows and columns")
    numbers = prod(shape)
    if block % 2 or numbers % 2 or (shape[0] > 1 and shape[1] % 2):
        raise said.unsupported("shape" if not block % 2 else "blocksize", "even numbers of columns")
    blocks = -(-numbers // block)
    parts = [name, state, f"{name}.absmax", f"{name}.quant_map"]
    expect(stored, name, ("U8",), (numbers // 2, 1), (1, numbers // 2))
    expect(stored, parts[3], ("F32",), (16,))
    nested = f"{name}.nested_absmax" in stored
    expect(stored, parts[2], ("U8",) if nested else ("F32",), (blocks,))
    each = 0
    if nested:
        each = said.integer("nested_blocksize", most=1 << 16)
        parts += [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
        expect(stored, parts[4], ("F32",), (-(-blocks // each),))
        expect(stored, parts[5], ("F32",), (256,))
    offset = said.number("nested_offset", 0.0, least=-1e9) if nested else 0.0
    read = partial(_blocks, stored, parts, (shape[0], shape[1]), block, each, np.float32(offset))
    return Matrix((shape[0], shape[1]), kind.upper(), tuple(parts), read)


def _blocks(
    stored: Stored, names: list[str], shape: tuple[int, int], block: int, each: int, offset: np.float32,
    start: int, stop: int,
) -> Blocks:  # fmt: skip
    """Rows start:stop. Blocks go over the ends of rows."""
    C = shape[1]
    first, last = start * C, stop * C
    if stored.shape(names[0])[0] > 1:
        pairs = stored.rows(names[0], first // 2, last // 2).reshape(-1)
    else:
        pairs = stored.rows(names[0]).reshape(-1)[first // 2 : last // 2]
    codes = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(stop - start, C)
    low, high = first // block, -(-last // block)
    if each:
        factors = stored.rows(names[4]).view(np.float32)[np.arange(low, high) // each]
        factors = stored.rows(names[5]).view(np.float32)[stored.rows(names[2], low, high)] * factors + offset
    else:
        factors = stored.read(names[2], low, high)
    scale = factors[np.arange(first, last) // block - low].reshape(codes.shape)
    table = stored.read(names[3])
    return Blocks(codes, table, scale, normal=bool((np.abs(table * nf4.LARGEST - nf4.TABLE) < 1).all()))
