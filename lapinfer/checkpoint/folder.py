"""A checkpoint folder as Hugging Face publishes them: config.json, safetensors shards, tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint import mxfp4
from lapinfer.checkpoint.foreign import WEIGHTS, beside, of_folder
from lapinfer.checkpoint.identity import Contents
from lapinfer.checkpoint.json_files import read_json
from lapinfer.checkpoint.safetensors import SafetensorsFile, same_tensor
from lapinfer.checkpoint.stored import as_stored
from lapinfer.errors import CheckpointError, quoted
from lapinfer.quant.groups import Grouped

SINGLE, INDEX = WEIGHTS


class FolderCheckpoint:
    """`Checkpoint` of a folder with config.json and model.safetensors, or shards and their index."""

    def __init__(self, path: str | Path) -> None:
        self.path = self.folder = Path(path)
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: no such folder")
        if not (self.path / "config.json").exists() or not any((self.path / name).is_file() for name in WEIGHTS):
            raise of_folder(self.path)
        self._said = read_json(self.path / "config.json")
        self._config: dict[str, Any] | None = None
        self.name, self.notices = self.path.name, beside(self.path)
        self._files: dict[str, SafetensorsFile] = {}
        self._of: dict[str, list[SafetensorsFile]] = {}
        self._promised: dict[str, str] = {}
        if (self.path / SINGLE).is_file():
            self._open(SINGLE)
        else:
            self._open_shards(self.path / INDEX)
        self.contents = Contents([self._said, self._promised], [file.file for file in self._files.values()])

    @property
    def config(self) -> dict[str, Any]:
        """config.json, with what only the tensors say; an error where one of both cannot be right."""
        if self._config is None:
            self._config = as_stored(self, self._said)
        return self._config

    def _open(self, shard: str) -> None:
        file = self._files[shard] = SafetensorsFile(self.path / shard)
        for name in file.tensors:
            self._of.setdefault(name, []).append(file)

    def _open_shards(self, index: Path) -> None:
        """Opens the shards that are there: which of their tensors are needed is not known yet."""
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
            raise CheckpointError(f"{index}: has no weight_map from tensor names to file names")
        for shard in sorted(set(shards.values())):
            # A name with a folder in it could point anywhere on the disk.
            if Path(shard).name != shard or "\\" in shard or "\0" in shard:
                raise CheckpointError(f"{index}: names the shard {shard[:100]!r}, expected a file beside it")
            if (self.path / shard).exists():
                self._open(shard)
        if not self._files:
            raise CheckpointError(f"{self.path / min(shards.values())}: no such file, which {index.name} names")
        self._promised = shards

    @property
    def is_complete(self) -> bool:
        """Whether all shards are there that the index names."""
        return all(shard in self._files for shard in set(self._promised.values()))

    def _file(self, name: str) -> SafetensorsFile:
        """The shard that has the tensor.

        Of several, any where it is the same in all, else the last in the order of names, where the index says so, too:
        which is how parts of a model are replaced by a further shard.
        """
        try:
            first, *others = self._of[name]
        except KeyError:
            raise self._missing(name) from None
        if others:
            if not all(same_tensor(first, other, name) for other in others):
                first, last = others[-1], self._promised.get(name)
                if first.path.name != last:
                    raise CheckpointError(
                        f"{first.path}: tensor {quoted(name)} is in {len(others) + 1} shards with other numbers, "
                        f"and {INDEX} says {last or 'nothing of it'}; remove the shard that is not part of the model"
                    )
            self._of[name] = [first]
        return first

    def _missing(self, name: str) -> CheckpointError:
        if (shard := self._promised.get(name)) is None:
            return CheckpointError(f"{self.path}: tensor {quoted(name)} is missing{self._hint(name)}")
        if shard in self._files:
            return CheckpointError(f"{self.path / shard}: tensor {quoted(name)} is missing, which {INDEX} names")
        return CheckpointError(
            f"{self.path / shard}: no such file; it has tensor {quoted(name)}, says {INDEX}; download it again"
        )

    def _hint(self, missing: str) -> str:
        """What may be wrong where a tensor is missing, or ""."""
        if missing.endswith("lm_head.weight"):
            return "; if the head is the embedding, set tie_word_embeddings to true in config.json"
        tail = "." + ".".join(missing.split(".")[-3:])
        alike = next((name for name in self._of if name.endswith(tail) or missing.endswith(f".{name}")), None)
        return f"; there is {quoted(alike)}: name tensors as transformers does" if alike else ""

    def _fp4(self, name: str) -> bool:
        """Whether a tensor is blocks of MXFP4: it then has its logical shape, and its scales no name of their own."""
        file = self._file(name)
        if not name.endswith(mxfp4.BLOCKS) or file[name].dtype != "U8":
            return False
        scales = mxfp4.scales_of(name)
        there = self._file(scales)[scales] if scales in self._of else None
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
        blocks, exponents = file.rows(name, start, stop), self._file(scales).rows(scales, start, stop)
        return mxfp4.groups(str(file.path), name, blocks, exponents)
