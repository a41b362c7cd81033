"""A checkpoint folder as Hugging Face publishes them: config.json, safetensors shards, tokenizer files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint import mxfp4
from lapinfer.checkpoint.foreign import WEIGHTS, beside, of_folder
from lapinfer.checkpoint.identity import Contents
from lapinfer.checkpoint.json_files import read_json
from lapinfer.checkpoint.quantized import Matrix, matrices
from lapinfer.checkpoint.quantized.parts import Part
from lapinfer.checkpoint.shards import Shards
from lapinfer.checkpoint.stored import as_stored
from lapinfer.errors import CheckpointError
from lapinfer.quant.groups import Grouped


class FolderCheckpoint:
    """`Checkpoint` of a folder with config.json and model.safetensors, or shards and their index.

    Matrices that another tool has quantized have their logical names and shapes (quantized/).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = self.folder = Path(path)
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: no such folder")
        if not (self.path / "config.json").exists() or not any((self.path / name).is_file() for name in WEIGHTS):
            raise of_folder(self.path)
        self._said = read_json(self.path / "config.json")
        self._config: dict[str, Any] | None = None
        self.name, self.notices = self.path.name, beside(self.path)
        self._shards = Shards(self.path)
        self.contents = Contents([self._said, self._shards.promised], [file.file for file in self._shards.files])

    @property
    def config(self) -> dict[str, Any]:
        """config.json, with what only the tensors say; an error where one of both cannot be right."""
        if self._config is None:
            self._config = as_stored(self, self._said)
        return self._config

    @cached_property
    def _matrices(self) -> dict[str, Matrix]:
        """What another tool has quantized, by its logical name."""
        return matrices(self._said, str(self.path / "config.json"), self._shards)

    @property
    def is_complete(self) -> bool:
        """Whether all shards are there that the index names."""
        return self._shards.is_complete

    def _fp4(self, name: str) -> bool:
        """Whether a tensor is blocks of MXFP4: it then has its logical shape, and its scales no name of their own."""
        file = self._shards.file(name)
        if not name.endswith(mxfp4.BLOCKS) or file[name].dtype != "U8":
            return False
        scales = mxfp4.scales_of(name)
        there = self._shards.file(scales)[scales] if scales in self._shards else None
        mxfp4.check_shapes(str(file.path), name, file[name].shape, there and there.shape)
        if there and there.dtype != "U8":
            raise CheckpointError(f"{file.path}: tensor {scales!r} has dtype {there.dtype}, expected U8")
        return True

    def names(self) -> list[str]:
        parts = {part for matrix in self._matrices.values() for part in matrix.parts}
        plain = [name for name in self._shards.names() if name not in parts and not self._is_scales(name)]
        return plain + list(self._matrices)

    def _is_scales(self, name: str) -> bool:
        return name.endswith(mxfp4.SCALES) and name.removesuffix(mxfp4.SCALES) + mxfp4.BLOCKS in self._shards

    def shape(self, name: str) -> tuple[int, ...]:
        if (matrix := self._matrices.get(name)) is not None:
            return matrix.shape
        stored = self._shards.shape(name)
        return mxfp4.logical_shape(stored) if self._fp4(name) else stored

    def stored_as(self, name: str) -> str:
        if (matrix := self._matrices.get(name)) is not None:
            return matrix.kind
        return "MXFP4" if self._fp4(name) else self._shards.dtype(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if (matrix := self._matrices.get(name)) is not None:
            with np.errstate(all="ignore"):  # numbers of a damaged file may be NaN or infinite
                return self._part(matrix, start, stop).weights()
        grouped = self.read_grouped(name, start, stop)
        if grouped is None:
            return self._shards.read(name, start, stop)
        return grouped.weights().reshape(-1, *self.shape(name)[1:])

    def read_grouped(self, name: str, start: int = 0, stop: int | None = None) -> Grouped | None:
        """Of several matrices, all rows of start:stop. None for what is not stored in groups."""
        if (matrix := self._matrices.get(name)) is not None:
            with np.errstate(all="ignore"):
                return self._part(matrix, start, stop).grouped()
        if not self._fp4(name):
            return None
        file, scales = self._shards.file(name), mxfp4.scales_of(name)
        blocks, exponents = file.rows(name, start, stop), self._shards.rows(scales, start, stop)
        return mxfp4.groups(str(file.path), name, blocks, exponents)

    @staticmethod
    def _part(matrix: Matrix, start: int, stop: int | None) -> Part:
        rows = range(matrix.shape[0])[start:stop]
        return matrix.part(rows.start, rows.stop)
