"""Weights that another tool has quantized, as config.json tells: which tool, and what to do instead."""

from __future__ import annotations

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


def refuse_quantized(config: Config, own: str | None) -> None:
    """UnsupportedError where config.json says that the weights are quantized; `own`: the family's one method."""
    for key in KEYS:
        value = config.get(key)
        if value in (None, False, 0, {}, []):
            continue
        method = value.get("quant_method") if isinstance(value, dict) else None
        if method is not None and method == own and key == KEYS[0]:
            continue
        raise UnsupportedError(f"{config.where}: {key!r} says that the weights are quantized{_by(value)}; {INSTEAD}")


def _by(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    method = value.get("quant_method")
    if isinstance(method, str):
        return f" by {TOOLS.get(method, quoted(method))}"
    return " by MLX" if {"group_size", "bits"} <= value.keys() else ""
