"""A checkpoint folder as Hugging Face publishes them: config.json, safetensors shards, tokenizer files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint import mxfp4
from lapinfer.checkpoint.identity import Contents
from lapinfer.checkpoint.mapping import let_go
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.quant.groups import Grouped

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; CheckpointError when it is missing or something else."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path}: not a file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({str(error)[:200]})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: has a JSON {type(value).__name__}, expected an object")
    return value


class FolderCheckpoint:
    """`Checkpoint` of a folder with config.json and model.safetensors, or shards and their index."""

    def __init__(self, path: str | Path) -> None:
        self.path = self.folder = Path(path)
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: no such folder")
        self.config = read_json(self.path / "config.json")
        self._files: dict[str, SafetensorsFile] = {}
        self._of: dict[str, SafetensorsFile] = {}
        placed: dict[str, str] = {}
        index = self.path / INDEX
        if (self.path / SINGLE).is_file():
            self._open(SINGLE)
        elif index.is_file():
            placed = self._open_shards(index)
        elif any(self.path.glob("pytorch_model*.bin")):
            raise UnsupportedError(
                f"{self.path}: has only pytorch_model.bin, a pickle, which is never loaded; "
                f"save it again with save_pretrained(…, safe_serialization=True)"
            )
        else:
            raise CheckpointError(f"{self.path}: has no {SINGLE} and no {INDEX}")
        self.contents = Contents([self.config, placed], {file.path: file.mapped for file in self._files.values()})

    def _open(self, shard: str) -> SafetensorsFile:
        file = self._files[shard] = SafetensorsFile(self.path / shard)
        for name in file.tensors:
            if name in self._of:
                raise CheckpointError(f"{file.path}: tensor {name!r} is also in {self._of[name].path.name}")
            self._of[name] = file
        return file

    def _open_shards(self, index: Path) -> dict[str, str]:
        """Open all shards; which one each tensor is in, as the index says."""
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
            raise CheckpointError(f"{index}: has no weight_map from tensor names to file names")
        for shard in sorted(set(shards.values())):
            # A name with a folder in it could point anywhere on the disk.
            if Path(shard).name != shard or "\\" in shard or "\0" in shard:
                raise CheckpointError(f"{index}: names the shard {shard!r}, expected a file beside it")
            self._open(shard)
        for name, shard in shards.items():
            if name not in self._files[shard].tensors:
                raise CheckpointError(f"{self.path / shard}: tensor {name!r} is missing, which {index.name} names")
        return shards

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._of[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    def _fp4(self, name: str) -> bool:
        """Whether a tensor is blocks of MXFP4: it then has its logical shape, and its scales no name of their own."""
        file = self._file(name)
        if not name.endswith(mxfp4.BLOCKS) or file[name].dtype != "U8":
            return False
        scales = mxfp4.scales_of(name)
        there = self._of[scales][scales] if scales in self._of else None
        mxfp4.check_shapes(str(file.path), name, file[name].shape, there and there.shape)
        if there and there.dtype != "U8":
            raise CheckpointError(f"{file.path}: tensor {scales!r} has dtype {there.dtype}, expected U8")
        return True

    def names(self) -> list[str]:
        return [name for name in self._of if not (name.endswith(mxfp4.SCALES) and self._blocks_of(name))]

    def _blocks_of(self, scales: str) -> bool:
        return scales.removesuffix(mxfp4.SCALES) + mxfp4.BLOCKS in self._of

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self._file(name)[name].shape
        return mxfp4.logical_shape(stored) if self._fp4(name) else stored

    def stored_as(self, name: str) -> str:
        return "MXFP4" if self._fp4(name) else self._file(name)[name].dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        grouped = self.read_grouped(name, start, stop)
        if grouped is None:
            return self._file(name).read(name, start, stop)
        return grouped.weights().reshape(-1, *self.shape(name)[1:])

    def read_grouped(self, name: str, start: int = 0, stop: int | None = None) -> Grouped | None:
        """Of several matrices, all rows of start:stop. None for what is not stored in groups."""
        if not self._fp4(name):
            return None
        file, scales = self._file(name), mxfp4.scales_of(name)
        blocks, exponents = file.view(name)[start:stop], self._file(scales).view(scales)[start:stop]
        found = mxfp4.groups(str(file.path), name, blocks, exponents)
        let_go(blocks)
        return found
