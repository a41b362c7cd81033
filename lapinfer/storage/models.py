"""Models on this computer's disks: each with the packed copies that were made of it, and when one was last used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lapinfer.checkpoint import hub, smollm2
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.checkpoint.names import copy_folders, hub_entries
from lapinfer.errors import CheckpointError
from lapinfer.packing import copies
from lapinfer.packing.writer import PARTIAL
from lapinfer.storage.owned import disk_bytes, is_used


@dataclass(frozen=True, slots=True)
class Copy:
    """A packed copy. sources: where its checkpoint was found, none where that is not noted. used: seconds since 1970.

    outdated: this version makes another one instead. whole: False for one that is being packed, or was given up.
    """

    name: str
    path: str
    bytes: int
    quant: str
    used: float | None
    sources: tuple[str, ...]
    whole: bool
    outdated: bool
    in_use: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """A model: its files, of `bytes`, and its copies.

    kind: shipped, pulled or hub as `lapinfer ls` has them; half, of a download that is not whole; yours, of files that
    lapinfer has read somewhere else and never removes; packed, of a copy whose source is not here.
    """

    name: str
    kind: str
    path: str
    bytes: int
    copies: tuple[Copy, ...]

    @property
    def packed_bytes(self) -> int:
        return sum(copy.bytes for copy in self.copies)

    @property
    def used(self) -> float | None:
        """When one of its copies was last used."""
        return max((copy.used for copy in self.copies if copy.used is not None), default=None)


def stored_models() -> list[Stored]:
    """All models: sources that are known, then copies without one. Headers are read, no weights."""
    left = {copy.path: copy for copy in packed_copies()}
    models = []
    for name, kind, path in _sources():
        of_it = [copy for copy in left.values() if any(_within(source, path) for source in copy.sources)]
        models.append(Stored(name, kind, str(path), disk_bytes(path), tuple(of_it)))
        for copy in of_it:
            del left[copy.path]
    yours: dict[str, list[Copy]] = {}
    for copy in list(left.values()):
        if source := next((source for source in copy.sources if os.path.exists(source)), None):
            yours.setdefault(source, []).append(left.pop(copy.path))
    models += [Stored(path, "yours", path, disk_bytes(Path(path)), tuple(of)) for path, of in yours.items()]
    return models + [Stored(copy.name, "packed", copy.path, 0, (copy,)) for copy in left.values()]


def half_downloads() -> list[Stored]:
    """Of the hub's cache, which is not lapinfer's alone."""
    return [model for model in stored_models() if model.kind == "half" and model.name != smollm2.ALIAS]


def packed_copies() -> Iterator[Copy]:
    """The packed copies in the cache, with those that are not whole."""
    for folder in copy_folders():
        weights, note = folder / FILE_NAME, folder / copies.NOTE
        partial = weights.with_name(FILE_NAME + PARTIAL)
        try:
            metadata = copies.metadata_of(folder)
        except CheckpointError:  # damaged, or removed just now
            metadata = {}
        if not metadata and not any(file.is_file() for file in (weights, partial, note)):
            continue  # nothing of ours
        yield Copy(
            folder.name, str(folder), disk_bytes(folder), metadata.get("quant", ""), copies.last_used(folder),
            tuple(map(str, copies.sources(folder))), weights.is_file(), copies.is_outdated(folder, metadata),
            is_used(note) or is_used(partial),
        )  # fmt: skip


def _sources() -> Iterator[tuple[str, str, Path]]:
    """Name, kind and place of every source: of the hub, the folder with all versions."""
    whole = set()
    for model in hub.list_local():
        if model.kind == "hub":
            whole.add(model.name)
        elif model.kind != "packed":
            yield model.name, model.kind, Path(model.path)
    if not smollm2.pulled_file().is_file() and disk_bytes(smollm2.pulled_file().parent):
        yield smollm2.ALIAS, "half", smollm2.pulled_file().parent
    for name, folder in hub_entries():
        yield name, "hub" if name in whole else "half", folder


def _within(source: str, path: Path) -> bool:
    return source == str(path) or source.startswith(f"{path}{os.sep}")
