"""AWQ (version "gemm"): 4-bit codes along the outputs, `qweight` [C, R / 8], `qzeros` [G, R / 8], `scales` [G, R].

weight = scale · (code − zero). The eight codes of a 32-bit word are those of rows 0, 2, 4, 6, 1, 3, 5, 7, from the
lowest bits on. Source: AutoAWQ, awq/modules/linear/gemm.py, and transformers' AwqConfig.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from lapinfer.checkpoint.quantized.gptq import kind_of
from lapinfer.checkpoint.quantized.matrix import (
    LastRead,
    Matrix,
    Stored,
    check_known,
    expect,
    modules,
    one_of,
    two_sizes,
)
from lapinfer.checkpoint.quantized.parts import Codes, groups_of, unpacked
from lapinfer.families.config import Config

BITS, EACH = 4, 8
PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])
"""Where in a word the code of each of its rows is."""

HARMLESS = (
    "quant_method", "backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse",
    "modules_to_not_convert", "desc_act", "lm_head", "meta", "sym", "dynamic", "checkpoint_format", "method",
    "pack_dtype",
)  # fmt: skip


def matrices(section: Config, stored: Stored) -> dict[str, Matrix]:
    one_of(section, "bits" if "bits" in section else "w_bit", (BITS,), None)
    size = section.integer("group_size" if "group_size" in section else "q_group_size", 128, least=-1)
    version = str(section.get("version") or section.get("format") or "gemm")
    if version.lower() != "gemm":
        raise section.unsupported("version" if "version" in section else "format", "gemm")
    one_of(section, "zero_point", (True,), True)
    check_known(section, HARMLESS)
    last, found = LastRead(stored), {}
    for module in modules(stored, "qweight"):
        C, words = two_sizes(stored, f"{module}qweight")
        G = 1 if size < 1 else -(-C // size)
        parts = [f"{module}{each}" for each in ("qweight", "qzeros", "scales")]
        expect(stored, parts[0], ("I32",))
        expect(stored, parts[1], ("I32",), (G, words))
        expect(stored, parts[2], ("F16", "BF16", "F32"), (G, words * EACH))
        found[f"{module}weight"] = Matrix(
            (words * EACH, C),
            kind_of(BITS, False, fits=size < 1 or size % 32 == 0),
            tuple(parts),
            partial(_part, stored, last, parts, groups_of(C, size if size > 0 else C)),
        )
    return found


def _part(stored: Stored, last: LastRead, names: list[str], group: np.ndarray, start: int, stop: int) -> Codes:
    """Rows start:stop, which are columns of what is stored."""
    qweight, qzeros, scales = last.whole(names[0]), last.whole(names[1]), last.whole(names[2], stored.read)
    first, end = start // EACH, -(-stop // EACH)

    def codes(words: np.ndarray) -> np.ndarray:
        each = unpacked(words[:, first:end], BITS).reshape(len(words), -1, EACH)[:, :, PLACES]
        return np.ascontiguousarray(each.reshape(len(words), -1)[:, start - first * EACH : stop - first * EACH].T)

    part = Codes(
        BITS, codes(qweight), group, np.ascontiguousarray(scales[:, start:stop].T), codes(qzeros).astype(np.int16)
    )
    if stop >= scales.shape[1]:
        last.drop(*names)
    return part
