"""GGUF files as checkpoints: llama.cpp's names, row order and norms turned back into what was published.

The changes undone here are those of llama.cpp's converter (conversion/llama.py, gemma.py, gpt2.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint.folder import fingerprint
from lapinfer.checkpoint.gguf_config import config_of
from lapinfer.checkpoint.gguf_file import GGUFFile, GGUFTensor
from lapinfer.checkpoint.gguf_tokenizer import write_folder
from lapinfer.checkpoint.mapping import let_go
from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.quant.floats import FloatFormat
from lapinfer.quant.formats import STORED
from lapinfer.quant.groups import Grouped, GroupFormat

LLAMA = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
SANDWICH = LLAMA | {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
GPT2 = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
    "output": "lm_head", "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
MODULES = {
    "phi3": LLAMA | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    "gemma2": SANDWICH, "gemma3": SANDWICH, "olmo2": SANDWICH, "gpt2": GPT2,
}  # fmt: skip
"""Architecture -> GGUF module -> published module; LLAMA for the others."""

PERMUTED = {"llama", "granite", "smollm3"}
"""Whose query and key rows llama.cpp interleaves, for its rotation of neighbouring pairs."""

READ_ELSEWHERE = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


@dataclass(frozen=True, slots=True)
class Mapped:
    """A GGUF tensor and what is to be undone: interleaved rows of so many heads, a 1 added, a transposition."""

    name: str
    tensor: GGUFTensor
    heads: int = 0
    plus_one: bool = False
    transposed: bool = False


class GGUFCheckpoint:
    """`Checkpoint` of one GGUF file. `folder` has the tokenizer rebuilt from it, in lapinfer's cache."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = GGUFFile(self.path)
        self.config: dict[str, Any] = config_of(self._file)
        self._mapped = self._map()
        self._fingerprint = fingerprint([self.path])
        self.folder = write_folder(self._file, self.config, self._fingerprint)

    def _map(self) -> dict[str, Mapped]:
        architecture = self._file.metadata["general.architecture"]
        modules = MODULES.get(architecture, LLAMA)
        layers = "transformer.h" if architecture == "gpt2" else "model.layers"
        mapped: dict[str, Mapped] = {}
        for name, tensor in self._file.tensors.items():
            if name in READ_ELSEWHERE:
                continue
            match = re.fullmatch(r"(?:blk\.(\d{1,4})\.)?(\w+)\.(weight|bias)", name, re.ASCII)
            if match is None or match[2] not in modules:
                raise UnsupportedError(
                    f"{self.path}: tensor {name[:80]!r} is not known in the architecture {architecture}"
                )
            layer, module, suffix = match.groups()
            prefix = "" if layer is None else f"{layers}.{int(layer)}."
            heads = 0
            if architecture in PERMUTED and module in ("attn_q", "attn_k"):
                heads = self.config["num_attention_heads" if module == "attn_q" else "num_key_value_heads"]
                if heads < 1 or tensor.shape[0] % (2 * heads):
                    raise CheckpointError(
                        f"{self.path}: tensor {name!r} has {tensor.shape[0]} rows, expected a multiple of {2 * heads}"
                    )
            mapped[f"{prefix}{modules[module]}.{suffix}"] = Mapped(
                name,
                tensor,
                heads,
                plus_one=architecture.startswith("gemma") and module.endswith("norm"),
                transposed=architecture == "gpt2" and layer is not None and len(tensor.shape) == 2,
            )
        return mapped

    def _of(self, name: str) -> Mapped:
        try:
            return self._mapped[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def names(self) -> list[str]:
        return list(self._mapped)

    def shape(self, name: str) -> tuple[int, ...]:
        mapped = self._of(name)
        return mapped.tensor.shape[::-1] if mapped.transposed else mapped.tensor.shape

    def stored_as(self, name: str) -> str:
        return self._of(name).tensor.type

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        mapped = self._of(name)
        if mapped.transposed:
            return np.ascontiguousarray(self._dequantize(mapped, self._file.rows(mapped.name)).T[start:stop])
        if len(mapped.tensor.shape) == 1:
            values = self._dequantize(mapped, self._file.rows(mapped.name)).reshape(-1)
            values = _published_order(values, mapped.heads)[start:stop]
            with np.errstate(all="ignore"):
                return values - np.float32(1) if mapped.plus_one else values
        values = self._dequantize(mapped, self._rows(mapped, start, stop))
        return values.reshape(-1, *mapped.tensor.shape[1:])

    def read_grouped(self, name: str, start: int = 0, stop: int | None = None) -> Grouped | None:
        """As they are stored; None for types that no quantized format holds to the bit."""
        mapped = self._of(name)
        form = STORED.get(mapped.tensor.type)
        if not isinstance(form, GroupFormat) or mapped.transposed or len(mapped.tensor.shape) != 2:
            return None
        rows = self._rows(mapped, start, stop)
        blocks = rows.reshape(len(rows), -1, mapped.tensor.block_bytes)
        groups = form.from_gguf(mapped.tensor.type, blocks)
        let_go(rows)
        return groups

    def _rows(self, mapped: Mapped, start: int, stop: int | None) -> np.ndarray:
        """Stored bytes of published rows start:stop."""
        rows = self._file.rows(mapped.name)
        if not mapped.heads:
            return rows[start:stop]
        taken = rows[_published_order(np.arange(len(rows)), mapped.heads)[start:stop]]
        let_go(rows)
        return taken

    def _dequantize(self, mapped: Mapped, rows: np.ndarray) -> np.ndarray:
        """float32 of stored bytes [rows, bytes a row], whose pages are let go."""
        values = self._floats(mapped, rows)
        let_go(rows)
        return values

    def _floats(self, mapped: Mapped, rows: np.ndarray) -> np.ndarray:
        kind = mapped.tensor.type
        form = STORED.get(kind)
        # Numbers of a damaged file may be NaN or infinite: what comes of them is not a warning's business.
        with np.errstate(all="ignore"):
            if isinstance(form, FloatFormat):
                return form.widened(rows.view(np.dtype(form.dtype).newbyteorder("<")))
            try:
                import gguf
                import gguf.quants
            except ImportError:
                raise UnsupportedError(
                    f'{self.path}: reading {kind} weights needs the gguf package: pip install "lapinfer[gguf]"'
                ) from None
            try:
                return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
            except (NotImplementedError, KeyError):
                raise UnsupportedError(f"{self.path}: tensor {mapped.name!r} has type {kind}") from None


def _published_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Of a head's rows, llama.cpp's 2i + h is the published h · dim/2 + i."""
    if not heads:
        return rows
    return rows.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
