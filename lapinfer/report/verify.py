"""Whether files are what they were: packed ones by their digests, others as far as somebody has told what they hold."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lapinfer.checkpoint import Checkpoint, smollm2
from lapinfer.checkpoint.fetch import git_sha1
from lapinfer.checkpoint.folder import read_json
from lapinfer.checkpoint.home import FILE_NAME, is_packed, packed_path
from lapinfer.checkpoint.hub import resolve
from lapinfer.checkpoint.identity import identity_alone
from lapinfer.checkpoint.names import copy_folders
from lapinfer.checkpoint.reading import OpenFile
from lapinfer.checkpoint.safetensors import read_metadata
from lapinfer.checkpoint.shipped import SHIPPED, card_figures, shipped_model
from lapinfer.checkpoint.texts import texts_in
from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.packing.integrity import damaged, has_digests
from lapinfer.packing.reader import read_packed
from lapinfer.packing.target import CONFIG, config_digest
from lapinfer.progress import Phase, Progress, silent
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tokenizer import Tokenizer

READING = "reading"


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of a model. problems: none, if it is what was written; unchecked: what nobody can tell."""

    name: str
    path: str
    bytes: int
    problems: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"damaged    {self.name}: {problem}" for problem in self.problems]
        lines += [f"unchecked  {self.name}: {what}" for what in self.unchecked]
        return "\n".join(lines or [f"ok         {self.name}  {self.bytes / 1e6:,.1f} MB  {self.path}"])


def verify(name: str, progress: Progress = silent) -> Iterator[Verified]:
    """The model that a name, folder or file means: itself, and the packed copies that were made of it."""
    try:
        found = resolve(name)
    except CheckpointError as error:
        yield Verified(name, name, 0, (str(error),))
        return
    if isinstance(found, Path):
        packed = _packed(name, found, "convert the checkpoint again", progress)
        yield replace(packed, problems=(*packed.problems, *_of_texts(packed_path(found).parent)))
        return
    yield _source(name, found, progress)
    identity = found.contents.identity()
    for copy in packed_copies():
        if is_packed(copy) and identity_alone(read_metadata(packed_path(copy)).get("source", "")) == identity:
            yield _copy(copy, progress)


def verify_all(progress: Progress = silent) -> Iterator[Verified]:
    """All packed copies in the cache, the model that was pulled by its alias, and those that come with the package."""
    copies = packed_copies()
    pulled = [(smollm2.ALIAS, smollm2.pulled_file())] if smollm2.pulled_file().is_file() else []
    sources = pulled + [(name, folder) for name in SHIPPED if (folder := shipped_model(name)) is not None]
    sizes = [packed_path(path).stat().st_size for path in (*copies, *(path for _, path in sources))]
    told = [
        lambda phase, done, _, before=before: progress(phase, before + done, sum(sizes))
        for before in itertools.accumulate(sizes, initial=0)
    ]
    for copy, tell in zip(copies, told, strict=False):
        yield _copy(copy, tell)
    for (name, path), tell in zip(sources, told[len(copies) :], strict=False):
        try:
            if not isinstance(found := resolve(path), Path):
                yield _source(name, found, tell)
        except CheckpointError as error:
            yield Verified(name, str(path), 0, (str(error),))


def packed_copies() -> list[Path]:
    """Folders of packed copies, damaged ones included; not those that are still being packed."""
    return [folder for folder in copy_folders() if (folder / FILE_NAME).is_file()]


def _copy(folder: Path, progress: Progress) -> Verified:
    return _packed(folder.name, folder, f"lapinfer rm {folder.name}, and it is packed again", progress)


def _packed(name: str, folder: Path, remedy: str, progress: Progress) -> Verified:
    """A packed file against its digests, and config.json against the one that it was packed with."""
    path = packed_path(folder)
    try:
        _, weights = read_packed(path)
        if not has_digests(weights.stored):
            return Verified(
                name, str(folder), weights.nbytes, (), ("packed by an older lapinfer, without digests of its tensors",)
            )
        phase = Phase(READING, "bytes", beside=name)
        problems = damaged(weights.stored, progress=lambda done: progress(phase, done, weights.nbytes))
        progress(phase, weights.nbytes, weights.nbytes)
        known = weights.metadata.get("config")
        if known is not None and config_digest(read_json(path.parent / "config.json")) != known:
            problems.append("config.json, in what it says,")
    except CheckpointError as error:
        return Verified(name, str(folder), 0, (f"{error}; {remedy}",))
    return Verified(
        name, str(folder), weights.nbytes, tuple(f"{what} differs from what was written; {remedy}" for what in problems)
    )


def _source(name: str, checkpoint: Checkpoint, progress: Progress) -> Verified:
    """A checkpoint whose header, sizes and index agree, as it could be opened: its files against known digests."""
    size, problems, unchecked = 0, [], []
    weights = checkpoint.contents.paths
    texts = [checkpoint.folder / text for text in (CONFIG, *texts_in(checkpoint.folder))]
    total, phase = sum(path.stat().st_size for path in weights), Phase(READING, "bytes", beside=name)
    for path in (*weights, *texts):
        expected, before = _known_digest(path), size
        if path in weights:
            size += path.stat().st_size
            if expected is None:
                unchecked.append(f"{path.name} agrees with its header in sizes; nobody has told what its weights are")
        if expected is not None:
            try:
                told = partial(_of_weights, progress if path in weights else silent, phase, before, total)
                found = _digest(path, len(expected), told)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if found != expected:
                problems.append(f"{path.name} has the digest {found[:16]}…, expected {expected[:16]}…; fetch it again")
    problems += _of_texts(checkpoint.folder)
    return Verified(name, str(checkpoint.path), size, tuple(problems), tuple(unchecked))


def _of_texts(folder: Path) -> list[str]:
    """What of tokenizer, templates and generation_config.json cannot be read, as a run would say it."""
    try:
        tokenizer = Tokenizer.from_folder(folder)
        if tokenizer is not None:
            ChatTemplate.from_folder(folder, tokenizer.special_tokens)
    except CheckpointError as error:
        return [str(error)]
    except UnsupportedError:  # nothing is damaged
        pass
    except OSError as error:
        return [f"{error.filename}: cannot be read: {error.strerror or error}"]
    return []


def _known_digest(path: Path) -> str | None:
    """The digest of a file as its publisher has told it: of what is shipped, pulled, or named by it in the hub's cache.

    SHA-256, or of the hub's small files git's SHA-1, which has 40 hexadecimal digits.
    """
    blob = Path(os.path.realpath(path))
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return blob.name
    if path == smollm2.pulled_file():
        return smollm2.MEMBER_SHA256
    for name in SHIPPED:
        if (folder := shipped_model(name)) is not None and path == folder / FILE_NAME:
            return (card_figures(name) or {}).get("sha256")
    return None


def _of_weights(progress: Progress, phase: Phase, before: int, total: int, done: int) -> None:
    """Of one of several files, what is told of all."""
    progress(phase, before + done, total)


def _digest(path: Path, digits: int, progress: Callable[[int], Any]) -> str:
    file, done = OpenFile(path), 0
    digest = hashlib.sha256() if digits == 64 else git_sha1(file.nbytes)
    for piece in file.pieces(0, file.nbytes):
        digest.update(piece)
        done += len(piece)
        progress(done)
    return digest.hexdigest()
