"""Models in one GGUF file, or in several that llama-gguf-split made of one: any part stands for all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from lapinfer.checkpoint.gguf_file import GGUFFile, GGUFTensor
from lapinfer.errors import CheckpointError

NAME: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)
MOST_PARTS: Final = 10_000
JOIN: Final = "or join the parts with: llama-gguf-split --merge"


class GGUFParts:
    """The files of one model as one: `metadata` is that of the first, `tensors` are those of all by their names.

    files: each, opened; header: the first one's bytes before its tensors; path: that of the first.
    CheckpointError for parts that are missing, mixed up, or of another model.
    """

    def __init__(self, path: Path) -> None:
        named = GGUFFile(path)
        count = _whole(named, "split.count", 1)
        self._parts = [named] if count <= 1 else _all_parts(named, count)
        first = self._parts[0]
        self.path, self.metadata, self.header = first.path, first.metadata, first.header
        self.files = [part.file for part in self._parts]
        self.tensors: dict[str, GGUFTensor] = {}
        self._of: dict[str, GGUFFile] = {}
        for part in self._parts:
            for name, tensor in part.tensors.items():
                if name in self._of:
                    raise CheckpointError(f"{part.path}: tensor {name!r} is also in {self._of[name].path.name}")
                self.tensors[name], self._of[name] = tensor, part
        for part in self._parts if count > 1 else ():
            if (stated := _whole(part, "split.tensors.count", len(self.tensors))) != len(self.tensors):
                raise CheckpointError(
                    f"{part.path}: is of a model with {stated} tensors, but the parts have {len(self.tensors)}; "
                    f"they are not of one model, or of one download"
                )

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The stored bytes of a tensor's rows start:stop, [rows, bytes per row], as a new array."""
        return self._of[name].rows(name, start, stop)


def set_of(path: Path) -> tuple[Path, str, str]:
    """What the names of all parts of a file's set have in common; of a file with another name, itself."""
    match = NAME.fullmatch(path.name)
    return (path.parent, match[1], match[3]) if match is not None else (path, "", "")


def _all_parts(named: GGUFFile, count: int) -> list[GGUFFile]:
    """The parts in order. Their names say which they are, and their headers must say the same."""
    match = NAME.fullmatch(named.path.name)
    if match is None or int(match[3]) != count or count > MOST_PARTS:
        raise CheckpointError(
            f"{named.path}: is one of {count} parts, which are found by names like NAME-00001-of-{count:05}.gguf; "
            f"give them their names again, {JOIN}"
        )
    paths = [named.path.with_name(f"{match[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{named.path}: is one of {count} parts, missing are {', '.join(missing[:3])}{more}")
    parts = [named if path == named.path else GGUFFile(path) for path in paths]
    for i, part in enumerate(parts):
        of, number = _whole(part, "split.count", 1), _whole(part, "split.no", 0)
        if (of, number) != (count, i):
            raise CheckpointError(
                f"{part.path}: is part {number + 1} of {of} by its header, expected {i + 1} of {count}; "
                f"the parts are mixed up"
            )
        for key, value in part.metadata.items():
            if key != "split.no" and key in parts[0].metadata and not _same(value, parts[0].metadata[key]):
                raise CheckpointError(f"{part.path}: {key[:80]} is another than in {paths[0].name}; not of one model")
    return parts


def _whole(file: GGUFFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise CheckpointError(f"{file.path}: {key} is {str(value)[:40]}, expected a whole number")
    return value


def _same(one: Any, other: Any) -> bool:
    return (
        bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else type(one) is type(other) and one == other
    )
