"""GPTQ: 32-bit words of codes along the inputs, `qweight` [C · bits / 32, R], `qzeros` [G, R · bits / 32].

weight = scale · (code − zero), with `scales` [G, R]. The first version of the layout stores zeros less one ("gptq"),
the second as they are ("gptq_v2"). `g_idx` [C] has the group of each column, which is not in order where columns were
sorted by activations (desc_act). Sources: AutoGPTQ's QuantLinear, gptqmodel's README (checkpoint_format).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from lapinfer.checkpoint.quantized.matrix import (
    LastRead,
    Matrix,
    Stored,
    check_known,
    expect,
    modules,
    one_of,
    stored_groups,
    two_sizes,
)
from lapinfer.checkpoint.quantized.parts import Codes, groups_of, unpacked
from lapinfer.families.config import Config

HARMLESS = (
    "quant_method", "damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "model_name_or_path",
    "model_file_base_name", "batch_size", "block_name_to_quantize", "cache_block_outputs", "dataset", "disable_exllama",
    "exllama_config", "max_input_length", "meta", "model_seqlen", "module_name_preceding_first_block",
    "modules_in_block_to_quantize", "pad_token_id", "tokenizer", "use_cuda_fp16", "use_exllama", "version", "backend",
    "mse", "desc_act", "lm_head", "offload_to_disk", "hyb_act", "act_group_aware", "fallback", "gptaq", "use_marlin",
)  # fmt: skip
"""How the weights were found, and how others run them; desc_act and lm_head are told by the tensors, too."""


def matrices(section: Config, stored: Stored) -> dict[str, Matrix]:
    bits = one_of(section, "bits", (2, 4, 8), None)
    size = section.integer("group_size", 128, least=-1)
    symmetric = section.flag("sym", True)
    version = one_of(section, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    section.expect(pack_dtype="int32", format=version, quant_type="int")
    ordered = section.get("desc_act") in (None, False) or section.get("static_groups") is True
    check_dynamic(section)
    check_known(section, HARMLESS)
    assert isinstance(bits, int)
    last, found = LastRead(stored), {}
    for module in modules(stored, "qweight"):
        words, R = two_sizes(stored, f"{module}qweight")
        C = words * 32 // bits
        G = 1 if size < 1 else -(-C // size)
        parts = [f"{module}{each}" for each in ("qweight", "qzeros", "scales")]
        expect(stored, parts[0], ("I32",))
        expect(stored, parts[1], ("I32",), (G, R * bits // 32))
        expect(stored, parts[2], ("F16", "BF16", "F32"), (G, R))
        if f"{module}g_idx" in stored:
            parts.append(f"{module}g_idx")
            expect(stored, parts[3], ("I32", "I64"), (C,))
        kind = kind_of(bits, symmetric, fits=ordered and (size < 1 or size % 32 == 0))
        plus = 1 if version == "gptq" else 0
        found[f"{module}weight"] = Matrix(
            (R, C), kind, tuple(parts), partial(_part, stored, last, parts, bits=bits, size=size, columns=C, plus=plus)
        )
    return found


def kind_of(bits: int, symmetric: bool, *, fits: bool) -> str:
    """What codes of so many bits are called; fits: whether 32 columns have one scale."""
    if bits <= 5:
        return f"INT{bits}" if fits else f"INT{bits} mixed"
    return f"INT{bits}" if symmetric and fits else f"UINT{bits}"


def check_dynamic(section: Config) -> None:
    """Modules that are left as they were ("-:…") are told by their tensors; others' options are not read."""
    dynamic = section.get("dynamic") or {}
    if not isinstance(dynamic, Mapping) or not all(str(key).startswith("-:") for key in dynamic):
        raise section.unsupported("dynamic", 'modules that are left out ("-:…")')


def _part(
    stored: Stored, last: LastRead, names: list[str], start: int, stop: int, *, bits: int, size: int, columns: int,
    plus: int,
) -> Codes:  # fmt: skip
    """Rows start:stop, which are columns of what is stored."""
    qweight, qzeros = last.whole(names[0]), last.whole(names[1])
    scales = last.whole(names[2], stored.read)
    codes = unpacked(qweight[:, start:stop].T, bits)
    zeros = unpacked(qzeros, bits)[:, start:stop].T.astype(np.int16) + np.int16(plus)
    if len(names) > 3:
        group = stored_groups(stored, names[3], len(scales))
    else:
        group = groups_of(columns, size if size > 0 else columns)
    scale = np.ascontiguousarray(scales[:, start:stop].T)
    if stop >= qweight.shape[1]:
        last.drop(*names)
    return Codes(bits, codes, group, scale, zeros)
