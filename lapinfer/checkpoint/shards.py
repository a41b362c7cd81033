"""The tensors of a folder: of one safetensors file, or of shards and their index."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from lapinfer.checkpoint.foreign import WEIGHTS
from lapinfer.checkpoint.json_files import read_json
from lapinfer.checkpoint.safetensors import SafetensorsFile, same_tensor
from lapinfer.errors import CheckpointError, quoted

SINGLE, INDEX = WEIGHTS


class Shards:
    """Stored tensors by name, whichever file they are in. `promised`: the file of each, as an index has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, SafetensorsFile] = {}
        self._of: dict[str, list[SafetensorsFile]] = {}
        self.promised: dict[str, str] = {}
        if (self.path / SINGLE).is_file():
            self._open(SINGLE)
        else:
            self._open_shards(self.path / INDEX)

    @property
    def files(self) -> list[SafetensorsFile]:
        return list(self._files.values())

    def names(self) -> Collection[str]:
        return self._of.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def where(self, name: str) -> str:
        return str(self.file(name).path if name in self._of else self.path)

    def dtype(self, name: str) -> str:
        return self.file(name)[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file(name)[name].shape

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.file(name).rows(name, start, stop)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.file(name).read(name, start, stop)

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
        self.promised = shards

    @property
    def is_complete(self) -> bool:
        """Whether all shards are there that the index names."""
        return all(shard in self._files for shard in set(self.promised.values()))

    def file(self, name: str) -> SafetensorsFile:
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
                first, last = others[-1], self.promised.get(name)
                if first.path.name != last:
                    raise CheckpointError(
                        f"{first.path}: tensor {quoted(name)} is in {len(others) + 1} shards with other numbers, "
                        f"and {INDEX} says {last or 'nothing of it'}; remove the shard that is not part of the model"
                    )
            self._of[name] = [first]
        return first

    def _missing(self, name: str) -> CheckpointError:
        if (shard := self.promised.get(name)) is None:
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
