"""GGUF files as checkpoints: llama.cpp's names, row order and norms turned back into what was published.

What the converter of llama.cpp changed, the families say (families/gguf.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint.gguf_file import GGUFTensor
from lapinfer.checkpoint.gguf_parts import GGUFParts
from lapinfer.checkpoint.gguf_special import SpecialTokens
from lapinfer.checkpoint.gguf_tokenizer import read_special, write_folder
from lapinfer.checkpoint.identity import Contents
from lapinfer.checkpoint.stored import as_stored
from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.families import Family, families, family, family_of_gguf
from lapinfer.families.gguf import published_name
from lapinfer.families.gguf_keys import check_keys
from lapinfer.families.gguf_metadata import VECTORS, Metadata
from lapinfer.quant.floats import FloatFormat
from lapinfer.quant.formats import KEPT, STORED
from lapinfer.quant.groups import Grouped, GroupFormat


@dataclass(frozen=True, slots=True)
class Mapped:
    """A GGUF tensor and what is to be undone: rows of so many heads in another order, a 1 added, a transposition."""

    name: str
    tensor: GGUFTensor
    heads: int = 0
    order: Callable[[np.ndarray, int], np.ndarray] | None = None
    plus_one: bool = False
    transposed: bool = False


class GGUFCheckpoint:
    """`Checkpoint` of a GGUF file, or of its parts. `folder` has the tokenizer rebuilt from it, in lapinfer's cache."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = GGUFParts(self.path)
        self.path, self.name = self._file.path, self._file.path.stem
        kind = _family(self._file)
        special = read_special(self._file)
        self._said, notices = _config(self._file, kind, special)
        self._config: dict[str, Any] | None = None
        self.notices = (*notices, *(special.notices if special is not None else ()))
        self._mapped = self._map(kind)
        self.contents = Contents(self._said, self._file.files)
        self.folder = write_folder(self._file, self._said, special)

    @property
    def config(self) -> dict[str, Any]:
        """The config.json of the file, with what only the tensors say; an error where one of both cannot be right."""
        if self._config is None:
            self._config = as_stored(self, self._said)
        return self._config

    def _map(self, kind: Family) -> dict[str, Mapped]:
        assert kind.gguf is not None
        mapped: dict[str, Mapped] = {}
        for name, tensor in self._file.tensors.items():
            if name in VECTORS:
                continue
            match = re.fullmatch(r"(?:blk\.(\d{1,4})\.)?(\w+)\.(weight|bias)", name, re.ASCII)
            published = match and published_name(kind.gguf, kind.names, match[2], match[1])
            if match is None or published is None:
                raise UnsupportedError(
                    f"{self.path}: tensor {name[:80]!r} is not known in the architecture {kind.gguf.architecture}"
                )
            layer, module, suffix = match.groups()
            if layer is not None and int(layer) >= (layers := self._said[kind.gguf.layers]):
                raise CheckpointError(f"{self.path}: tensor {name!r} is beyond the {layers} layers of block_count")
            heads, order, parts = 0, None, 1
            if kind.gguf.permuted and module in ("attn_q", "attn_k"):
                heads = self._said["num_attention_heads" if module == "attn_q" else "num_key_value_heads"]
                order, parts = _published_pairs, 2
            elif kind.gguf.regrouped and module == "attn_qkv":
                heads, order, parts = self._said["num_attention_heads"], _published_heads, 3
            if order is not None and (heads < 1 or tensor.shape[0] % (parts * heads)):
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} has {tensor.shape[0]} rows, expected a multiple of {parts * heads}"
                )
            mapped[f"{published}.{suffix}"] = Mapped(
                name,
                tensor,
                heads,
                order,
                plus_one=kind.gguf.norms_plus_one and module.endswith("norm"),
                transposed=kind.names.transposed and layer is not None and len(tensor.shape) == 2,
            )
        return mapped

    def _of(self, name: str) -> Mapped:
        try:
            return self._mapped[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

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
            values = (values if mapped.order is None else mapped.order(values, mapped.heads))[start:stop]
            with np.errstate(all="ignore"):
                return values - np.float32(1) if mapped.plus_one else values
        each = prod(mapped.tensor.shape[1:-1])  # rows of what an index of the first dimension means
        values = self._dequantize(mapped, self._rows(mapped, start * each, None if stop is None else stop * each))
        return values.reshape(-1, *mapped.tensor.shape[1:])

    def read_grouped(self, name: str, start: int = 0, stop: int | None = None) -> Grouped | None:
        """As they are stored, or as near as a format's scales are; None for types of other codes."""
        mapped = self._of(name)
        form = KEPT.get(mapped.tensor.type)
        if not isinstance(form, GroupFormat) or mapped.transposed or len(mapped.tensor.shape) != 2:
            return None
        rows = self._rows(mapped, start, stop)
        blocks = rows.reshape(len(rows), -1, mapped.tensor.block_bytes)
        return form.from_gguf(mapped.tensor.type, blocks)

    def _rows(self, mapped: Mapped, start: int, stop: int | None) -> np.ndarray:
        """Stored bytes of published rows start:stop."""
        if mapped.order is None:
            return self._file.rows(mapped.name, start, stop)
        wanted = mapped.order(np.arange(mapped.tensor.shape[0]), mapped.heads)[start:stop]
        if not len(wanted):
            return self._file.rows(mapped.name, 0, 0)
        first = int(wanted.min())
        return self._file.rows(mapped.name, first, int(wanted.max()) + 1)[wanted - first]

    def _dequantize(self, mapped: Mapped, rows: np.ndarray) -> np.ndarray:
        """float32 of stored bytes [rows, bytes per row]."""
        kind = mapped.tensor.type
        form = STORED.get(kind)
        # Numbers of a damaged file may be NaN or infinite: what comes of them is not a warning's business.
        with np.errstate(all="ignore"):
            if isinstance(form, FloatFormat):
                return form.widened(rows.view(np.dtype(form.dtype).newbyteorder("<")))
            if kind == "F64":
                return rows.view("<f8").astype(np.float32)
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


OTHERS = {
    "adapter": "a LoRA adapter without its model; merge it into the model with llama-export-lora, and name the result",
    "imatrix": "an importance matrix, which is made for quantizing; name the model itself",
    "mmproj": "the part of a model that sees or hears (mmproj); name the file of the model itself",
    "clip": "the part of a model that sees or hears (mmproj); name the file of the model itself",
    "vocab": "a vocabulary without weights; name the model itself",
}
"""general.type, or an architecture, of files that are no model -> what they are, and what to do."""

QUANTIZATION = 2
"""general.quantization_version: how the blocks of quantized types are laid out."""


def _family(file: GGUFParts) -> Family:
    kind, architecture = (file.metadata.get(f"general.{key}") for key in ("type", "architecture"))
    other = next((OTHERS[w] for w in (kind, architecture) if isinstance(w, str) and w in OTHERS), None)
    if other is None and not file.tensors:
        other = OTHERS["vocab"]
    if other is not None:
        raise UnsupportedError(f"{file.path}: is {other}")
    if kind is not None and not (isinstance(kind, str) and kind == "model"):  # an array is not equal to anything
        raise UnsupportedError(f"{file.path}: general.type is {str(kind)[:40]!r}, expected 'model'")
    name = family_of_gguf(architecture) if isinstance(architecture, str) else None
    if name is None:
        supported = ", ".join(f.gguf.architecture for f in families().values() if f.gguf is not None)
        raise UnsupportedError(f"{file.path}: has architecture {str(architecture)[:40]!r}, supported are {supported}")
    version = file.metadata.get("general.quantization_version", QUANTIZATION)
    known = isinstance(version, int) and version == QUANTIZATION
    if not known and any(tensor.block > 1 for tensor in file.tensors.values()):
        raise UnsupportedError(
            f"{file.path}: general.quantization_version is {str(version)[:40]}, expected {QUANTIZATION}; convert again"
        )
    return family(name)


def _config(file: GGUFParts, kind: Family, special: SpecialTokens | None) -> tuple[dict[str, Any], list[str]]:
    """The config.json of a GGUF file, and lines to be told; UnsupportedError for what it could only say wrongly."""
    assert kind.gguf is not None
    vectors = {
        name: file.rows(name).reshape(-1).view(np.float32)
        for name in VECTORS
        if (tensor := file.tensors.get(name)) is not None and tensor.type == "F32" and len(tensor.shape) == 1
    }
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    metadata = Metadata(str(file.path), kind.gguf.architecture, file.metadata, shapes, vectors)
    if metadata.get("expert_count"):
        raise metadata.unsupported("is a mixture of experts, which is not supported from GGUF")
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise CheckpointError(f"{file.path}: tensor 'token_embd.weight' is missing or no matrix")
    rows = shapes["token_embd.weight"][0]
    config = {
        "model_type": kind.model_types[0],
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in shapes,
        **_token_ids(special),
        **kind.gguf.config(metadata),
    }
    _check_layout(metadata, kind)
    notices = check_keys(metadata, config)
    tokens = len(file.metadata["tokenizer.ggml.tokens"]) if special is not None else rows
    if tokens > rows:
        raise CheckpointError(f"{file.path}: has {tokens} tokens, but token_embd.weight has {rows} rows")
    if tokens < rows:
        notices.append(f"note: {file.path}: has names for {tokens} of {rows} tokens; the others are written as nothing")
    return config, notices


def _check_layout(metadata: Metadata, kind: Family) -> None:
    """Refuse rows in an order that isn't the one of llama.cpp's converter."""
    assert kind.gguf is not None
    layout = metadata.raw("tensor_data_layout")
    if layout is not None and not (layout == "Meta AI original pth" and kind.gguf.permuted):
        raise metadata.unsupported(f"tensor_data_layout is {str(layout)[:40]!r}, which is not known")


def _token_ids(special: SpecialTokens | None) -> dict[str, Any]:
    if special is None:
        return {"bos_token_id": None, "eos_token_id": None}
    ends = list(special.ends)
    return {"bos_token_id": special.ids.get("bos"), "eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def _published_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Of a head's rows, llama.cpp's 2i + h is the published h · dim/2 + i."""
    return rows.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _published_heads(rows: np.ndarray, heads: int) -> np.ndarray:
    """Query, key and value rows of each head together; llama.cpp has those of all queries first."""
    return rows.reshape(3, heads, -1).swapaxes(0, 1).reshape(-1)
