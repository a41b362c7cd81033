"""LoRA adapters as PEFT saves them: adapter_config.json, and small matrices in adapter_model.safetensors.

A matrix W of the model becomes W + s · B · A (arXiv 2106.09685, equation 3), where s is alpha / r, or alpha / √r with
rsLoRA (arXiv 2312.03732); with DoRA (arXiv 2402.09353, equation 5) each row is then scaled to a length of its own.
Tensors that were trained whole take the place of the model's. Source: peft/tuners/lora (0.21).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from lapinfer.checkpoint.json_files import read_json
from lapinfer.checkpoint.reading import OpenFile
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.errors import CheckpointError, InputError, UnsupportedError, quoted
from lapinfer.home import expanded

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
READ: Final = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
    "init_lora_weights",
)  # fmt: skip
"""Keys of the config that decide what is computed."""
HARMLESS: Final = (
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "target_modules", "exclude_modules",
    "lora_dropout", "bias", "modules_to_save", "layers_to_transform", "layers_pattern", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "megatron_config", "megatron_core", "auto_mapping", "peft_version",
    "runtime_config", "ensure_weight_tying", "qalora_group_size", "velora_config", "monteclora_config",
)  # fmt: skip
"""Keys that say how it was trained, or what the tensors say, too."""
BEGINNINGS: Final = (True, False, "gaussian", "eva", "orthogonal")
"""Of init_lora_weights: those that leave the model's own weights as they were."""
PLAIN = re.compile(r"[\w.]+", re.ASCII)
PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?:default|weight|default\.weight))?",
    re.ASCII,
)
"""Names of an adapter's matrices; `default` is the adapter's name, where somebody has saved a whole state."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter makes of a stored matrix [R, C]: its rows plus left [R, r] · right [r, C], both float32.

    lengths: of each row afterwards, float32 [R]; None: as they come out.
    """

    left: np.ndarray
    right: np.ndarray
    lengths: np.ndarray | None = None

    def of_rows(self, rows: np.ndarray, start: int) -> np.ndarray:
        """The changed rows, of which the first is `start`."""
        stop = start + len(rows)
        rows = rows + self.left[start:stop] @ self.right
        if self.lengths is None:
            return rows
        norms = np.linalg.norm(rows, axis=1)
        return rows * (self.lengths[start:stop] / np.where(norms > 0, norms, 1))[:, None]


class Adapter:
    """A checked adapter: `changes` by the name of the module, tensors that `replaces` others by theirs.

    scale: what its changes are multiplied with, besides its own scale. CheckpointError for files that contradict each
    other, UnsupportedError for kinds of adapters that change something else.
    """

    def __init__(self, path: Path, scale: float = 1.0) -> None:
        self.path, self.scale = path, scale
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder; an adapter is one, with {CONFIG} and {WEIGHTS}")
        self.config = read_json(path / CONFIG)
        if not (path / WEIGHTS).is_file():
            raise CheckpointError(f"{path / WEIGHTS}: no such file; save the adapter with PEFT as safetensors")
        self._check_config()
        self._weights = SafetensorsFile(path / WEIGHTS)
        self._parts: dict[str, dict[str, str]] = {}
        self.replaces: dict[str, str] = {}
        for name in self._weights.tensors:
            self._sort(name)
        for module, parts in self._parts.items():
            self._check_parts(module, parts)
        if not self._parts and not self.replaces:
            raise CheckpointError(f"{path / WEIGHTS}: has no tensors of an adapter")

    @property
    def name(self) -> str:
        """What a copy's name has of it."""
        return self.path.resolve().name + ("" if self.scale == 1 else f"@{self.scale:g}")

    @property
    def file(self) -> OpenFile:
        return self._weights.file

    @property
    def modules(self) -> Collection[str]:
        """Whose matrices are changed, by the names that they have in the model's code."""
        return self._parts.keys()

    @property
    def trained_on(self) -> str | None:
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def change(self, module: str, shape: tuple[int, ...]) -> Change:
        """What becomes of a module's matrix of that stored shape."""
        parts = self._parts[module]
        if "lora_A" in parts:
            right, left = self._read(parts["lora_A"]), self._read(parts["lora_B"])
        else:  # an embedding's, whose weights lie the other way round
            right, left = self._read(parts["lora_embedding_B"]).T, self._read(parts["lora_embedding_A"]).T
        rank = left.shape[1]
        if self._flag("fan_in_fan_out") and "lora_A" in parts:
            left, right = right.T, left.T
        if (left.shape[0], right.shape[1]) != shape:
            raise CheckpointError(
                f"{self.path / WEIGHTS}: changes a matrix {(left.shape[0], right.shape[1])} of {quoted(module)}, "
                f"which has shape {shape} in this model; is it an adapter of this model?"
            )
        change = Change(left * np.float32(self._scaling(module, rank)), np.ascontiguousarray(right))
        if "lora_magnitude_vector" not in parts:
            return change
        lengths = self._read(parts["lora_magnitude_vector"]).reshape(-1)
        if len(lengths) != shape[0]:
            raise self._wrong(parts["lora_magnitude_vector"], f"{len(lengths)} numbers, expected {shape[0]}")
        return replace(change, lengths=lengths)

    def replaced(self, name: str) -> np.ndarray:
        """The tensor that takes the place of another one, float32."""
        return self._read(self.replaces[name])

    def _sort(self, name: str) -> None:
        """Enter a tensor as a part of a change, or as one that replaces another."""
        if not name.startswith(PREFIX):
            raise self._wrong(name, f"a name that PEFT does not give; expected {PREFIX}…")
        inner = name.removeprefix(PREFIX)
        if match := PART.fullmatch(inner):
            self._parts.setdefault(match["module"], {})[match["part"]] = name
        elif "lora_" in inner or "_adapter" in inner or "token_adapter" in inner:
            raise UnsupportedError(f"{self.path / WEIGHTS}: tensor {quoted(name)} is of a kind that is not merged here")
        else:
            plain = inner.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
            self.replaces[plain.replace(".modules_to_save.", ".")] = name

    def _check_parts(self, module: str, parts: Mapping[str, str]) -> None:
        pair = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in parts else ("lora_A", "lora_B")
        for part in pair:
            if part not in parts:
                raise CheckpointError(f"{self.path / WEIGHTS}: {quoted(f'{module}.{part}')} is missing")
        shapes = [self._weights[parts[part]].shape for part in pair]
        if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][0] != shapes[1][1] or not shapes[0][0]:
            raise self._wrong(parts[pair[0]], f"shape {shapes[0]}, which does not fit the other matrix's {shapes[1]}")
        dora = "lora_magnitude_vector" in parts
        if dora and (pair[0] != "lora_A" or self._flag("fan_in_fan_out")):
            raise UnsupportedError(f"{self.path}: DoRA of {quoted(module)} is not merged here; merge it with PEFT")
        if dora != self._flag("use_dora"):
            raise CheckpointError(
                f"{self.path}: {CONFIG} says use_dora = {str(not dora).lower()}, and {quoted(module)} has "
                f"{'' if dora else 'no '}lengths of rows"
            )
        rank, stored = self._of_module("rank_pattern", module, self._number("r", 8)), shapes[0][0]
        if rank != stored:
            raise self._wrong(parts[pair[0]], f"rank {stored}, {CONFIG} says {rank}")

    def _check_config(self) -> None:
        where = self.path / CONFIG
        if self.config.get("peft_type") != "LORA":
            raise UnsupportedError(f"{where}: peft_type is {quoted(str(self.config.get('peft_type')))}, expected LORA")
        begun = self.config.get("init_lora_weights", True)
        if begun not in BEGINNINGS:
            raise UnsupportedError(
                f"{where}: init_lora_weights is {quoted(str(begun))}, which changes the model's own weights; merge it "
                "with PEFT (merge_and_unload)"
            )
        for key, value in self.config.items():
            if key not in READ and key not in HARMLESS and value not in (None, False, [], {}, ""):
                raise UnsupportedError(
                    f"{where}: {quoted(key)} is set, which is not known here; merge it with PEFT (merge_and_unload)"
                )

    def _scaling(self, module: str, rank: int) -> float:
        alpha = self._of_module("alpha_pattern", module, self._number("lora_alpha", 8))
        return self.scale * alpha / (math.sqrt(rank) if self._flag("use_rslora") else rank)

    def _of_module(self, key: str, module: str, usual: float) -> float:
        """A number of a module: of the first pattern that names it, or its last parts."""
        patterns = self.config.get(key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self.path / CONFIG}: {key}: expected an object of numbers by module")
        for pattern, value in patterns.items():
            plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if not PLAIN.fullmatch(plain):
                raise UnsupportedError(f"{self.path / CONFIG}: {key}: {quoted(pattern)} is no plain name of a module")
            if module == plain or (not pattern.startswith("^") and module.endswith(f".{plain}")):
                return self._checked(key, value)
        return usual

    def _number(self, key: str, usual: float) -> float:
        return self._checked(key, self.config.get(key, usual))

    def _checked(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise CheckpointError(f"{self.path / CONFIG}: {key} is {quoted(str(value))}, expected a number above 0")
        return value

    def _flag(self, key: str) -> bool:
        value = self.config.get(key) or False
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path / CONFIG}: {key} is {quoted(str(value))}, expected true or false")
        return value

    def _read(self, name: str) -> np.ndarray:
        values = self._weights.read(name)
        if not np.isfinite(values).all():
            raise self._wrong(name, "values that are not numbers (NaN or infinite)")
        return values

    def _wrong(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path / WEIGHTS}: tensor {quoted(name)} has {what}")


def adapter_of(said: str) -> Adapter:
    """The adapter that `PATH` or `PATH:SCALE` means."""
    path, colon, scale = said.rpartition(":")
    if colon and path and not expanded(said).exists():
        try:
            factor = float(scale)
        except ValueError:
            return Adapter(expanded(said))
        if not math.isfinite(factor) or not factor:
            raise InputError(f"lora: {said}: the scale is {scale}, expected a number that is not 0")
        return Adapter(expanded(path), factor)
    return Adapter(expanded(said))
