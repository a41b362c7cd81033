"""Weights that another tool has quantized, as config.json tells: which tool, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lapinfer.errors import UnsupportedError, quoted
from lapinfer.families.config import Config

INSTEAD: Final = "load the model that this was made from; lapinfer quantizes it itself (--quant)"

KEYS: Final = ("quantization_config", "quantization", "compression_config")

TOOLS: Final = {
    "aqlm": "AQLM", "auto-round": "AutoRound", "awq": "AWQ", "bitnet": "BitNet", "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors", "eetq": "EETQ", "exl2": "ExLlama (EXL2)", "exl3": "ExLlama (EXL3)",
    "fbgemm_fp8": "FBGEMM (FP8)", "fp8": "an FP8 cast", "gptq": "GPTQ", "higgs": "HIGGS", "hqq": "HQQ",
    "modelopt": "ModelOpt", "mxfp4": "an MXFP4 cast", "quanto": "Quanto", "quark": "Quark", "spqr": "SpQR",
    "torchao": "torchao", "vptq": "VPTQ",
}  # fmt: skip
"""What the tools are called whose `quant_method` stands in config.json."""


READ: Final = frozenset(
    ("awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "mlx", "modelopt")
)  # fmt: skip
"""Methods whose tensors are read (checkpoint/quantized): config.json alone stands in the way of none of them."""

OF_COMPRESSED: Final = {
    "pack-quantized": "INT4", "int-quantized": "INT8", "float-quantized": "FP8", "nvfp4-pack-quantized": "NVFP4",
    "mxfp4-pack-quantized": "MXFP4",
}  # fmt: skip
"""Formats of compressed-tensors, and what matrices of them usually are."""


@dataclass(frozen=True, slots=True)
class Section:
    """What config.json says of quantized weights, and under which key; method "": it names none that is known."""

    key: str
    method: str
    values: Mapping[str, Any]


def section_of(config: Mapping[str, Any]) -> Section | None:
    """The section of a config.json, or of its text part, that says how weights are quantized; None: they are not."""
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        for key in KEYS:
            if (value := values.get(key)) not in (None, False, 0, {}, []):
                return Section(key, _method(value), value if isinstance(value, dict) else {})
    return None


def _method(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    method = value.get("quant_method")
    if method is None:
        return "mlx" if {"group_size", "bits"} <= value.keys() else ""
    return method if isinstance(method, str) else str(method)


def usual_kind(section: Section) -> str:
    """What most matrices of layers are stored as, by config.json alone; "" where it does not say."""
    values, method = section.values, section.method
    if method in ("gptq", "awq", "mlx"):
        return f"INT{values.get('bits', 4)}"
    if method == "bitsandbytes":
        return "INT8" if values.get("load_in_8bit") else str(values.get("bnb_4bit_quant_type", "nf4")).upper()
    if method == "modelopt":
        return str(values.get("quant_algo"))
    return "FP8" if method.endswith("fp8") else OF_COMPRESSED.get(str(values.get("format")), "")


def refuse_quantized(config: Config, own: str | None) -> None:
    """UnsupportedError where config.json says that the weights are quantized in a way that is not read.

    own: the family's one method, whose tensors it names itself.
    """
    config.know(*KEYS)
    found = section_of(config.values)
    if found is None or found.method in READ or (found.method == own and found.key == KEYS[0]):
        return
    by = f" by {TOOLS.get(found.method, quoted(found.method))}" if found.method else ""
    raise UnsupportedError(f"{config.where}: {found.key!r} says that the weights are quantized{by}; {INSTEAD}")
