"""Weights that other tools have quantized, in folders of safetensors: a module for each of their layouts.

A module has `matrices(section, stored)`, which gives the logical matrices that stored tensors are parts of, by their
published names (`….weight`), from names, types and shapes alone. METHODS says which module reads what config.json
calls a method; families/quantized.py has the same methods, as what is not refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from lapinfer.checkpoint.quantized.matrix import Matrix, Stored
from lapinfer.families.config import Config
from lapinfer.families.quantized import READ, section_of

METHODS: Final[Mapping[str, str]] = {
    "gptq": "gptq", "awq": "awq", "fp8": "fp8", "fbgemm_fp8": "fp8", "compressed-tensors": "compressed",
    "bitsandbytes": "bitsandbytes", "modelopt": "modelopt", "mlx": "mlx",
}  # fmt: skip
"""What config.json calls a method -> the module here that reads its tensors."""

assert METHODS.keys() == READ


def matrices(config: Mapping[str, Any], where: str, stored: Stored) -> dict[str, Matrix]:
    """The quantized matrices of a folder by their logical names; none where config.json says nothing of them.

    UnsupportedError for options that would be computed wrongly, CheckpointError for tensors that don't fit each other.
    """
    found = section_of(config)
    if found is None or found.method not in METHODS:
        return {}  # what is not read is refused with the config (families/quantized.py)
    module = import_module(f"{__name__}.{METHODS[found.method]}")
    return module.matrices(Config(found.values, f"{where}: {found.key}"), stored)
