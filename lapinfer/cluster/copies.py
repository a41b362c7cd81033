"""A packed model on every node: the node's own where it has the same, else ours, brought through the object store.

A node takes piece after piece from the node that has the files, into its LAPINFER_HOME, where packed copies are: once,
however many engines it runs, and never again as long as the copy is there. What came is read against the digests that
packed files have before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint.home import FILE_NAME, is_packed, packed_path
from lapinfer.checkpoint.hub import is_local, resolve
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.checkpoint.texts import texts_in
from lapinfer.errors import CheckpointError, InputError, LapinferError
from lapinfer.home import packed_models
from lapinfer.loading import packed
from lapinfer.locks import LOCK, wait_for_lock
from lapinfer.options import LoadOptions
from lapinfer.outputs import NOT_FOLLOWED, cannot_write, not_followed
from lapinfer.packing.copies import Use, cached_folder
from lapinfer.packing.integrity import DamagedError, damaged, told
from lapinfer.packing.reader import content_of
from lapinfer.packing.target import CONFIG, beside, write_beside
from lapinfer.packing.writer import PARTIAL
from lapinfer.private import make_folders
from lapinfer.progress import Progress, silent

PIECE = 16_000_000
"""Bytes that are sent at a time: the store of objects needs room for a few of these, not for a model."""
OF_CONTENT = 32
"""Digits of a digest in a folder's name, where that is of a folder that a user has packed."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A packed model that nodes may take. It can be pickled.

    name: what the model was called, as a full path where it is one; nodes may know it, too. quant: what was asked for.
    copy: the name that its folder has among a node's packed copies. content: of the weights (`content_of`), of so many
    bytes. texts: the other files, by their paths in the folder. holder: an actor that has the weights (`Holder`), None
    where every engine sees the files of this process.
    """

    name: str
    quant: str
    copy: str
    content: str
    bytes: int
    texts: Mapping[Path, bytes]
    holder: Any = None


@dataclass(frozen=True, slots=True)
class Held:
    """A model on this node: what to load, how, and that nobody removes it meanwhile."""

    path: str
    options: LoadOptions
    use: Use | None = None


class Holder:
    """Gives pieces of a packed file to nodes that ask; runs, as an actor, on the node that has it."""

    def __init__(self, weights: str) -> None:
        self._file = open(weights, "rb")  # noqa: SIM115 (as long as the actor)

    def piece(self, start: int, stop: int) -> np.ndarray:
        """These bytes of the file."""
        return np.frombuffer(os.pread(self._file.fileno(), stop - start, start), np.uint8)


def offered(name: str, options: LoadOptions, progress: Progress = silent) -> tuple[Offer, Path]:
    """(offer without a holder, the file of its weights), packed now if it was not. Errors are those of `load_model`.

    CheckpointError for a packed file of an older version, which has no digests: nobody could tell what has arrived.
    """
    name = os.path.abspath(os.path.expanduser(name)) if os.path.exists(os.path.expanduser(name)) else name
    found = packed(name, options, progress)
    weights = packed_path(found.folder)
    file = SafetensorsFile(weights)
    if (content := content_of(file)) is None:
        raise CheckpointError(f"{weights}: has no digests, as it was packed by an older lapinfer; convert it again")
    if found.source is not None:
        texts, copy = beside(found.source), found.folder.name
    else:
        texts = {path: (found.texts / path).read_bytes() for path in (CONFIG, *texts_in(found.texts))}
        copy = f"{found.folder.name}-{content[:OF_CONTENT]}"
    return Offer(name, options.quant, copy, content, file.nbytes, texts), weights


def held(offer: Offer, options: LoadOptions) -> Held:
    """The model on this node, taken from the holder if it was not there. Waits for others who take it.

    CheckpointError for what arrived damaged; InputError where it cannot be written, or nobody has it.
    """
    if _has(offer):
        return Held(offer.name, options)
    folder = packed_models() / offer.copy
    try:
        make_folders(folder)
        use = Use(folder)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | NOT_FOLLOWED, 0o600)
        try:
            wait_for_lock(lock, lambda who: None)
            if not _is(folder / FILE_NAME, offer):
                _take(offer, folder)
            write_beside(offer.texts, folder)
        finally:
            os.close(lock)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return Held(str(folder), replace(options, quant="auto"), use)


def _has(offer: Offer) -> bool:
    """Whether this node knows the same model, texts included, by the same name, packed already."""
    with suppress(LapinferError, OSError):
        if not is_local(offer.name):
            return False
        source = resolve(offer.name)
        if isinstance(source, Path):
            texts = {path: (source / path).read_bytes() for path in (CONFIG, *texts_in(source))}
            return texts == offer.texts and _is(packed_path(source), offer)
        folder = packed_models() / offer.copy
        if _is(folder / FILE_NAME, offer) and beside(source) == offer.texts:
            return cached_folder(source, offer.quant, packed_models()) == folder
    return False


def _is(weights: Path, offer: Offer) -> bool:
    """Whether a file is the packed file that is offered."""
    with suppress(CheckpointError, OSError):
        return is_packed(weights) and content_of(SafetensorsFile(weights)) == offer.content
    return False


def _take(offer: Offer, folder: Path) -> None:
    """Write the weights, piece by piece, and read them again."""
    if offer.holder is None:
        raise InputError(f"{offer.name}: this node does not have it, and nobody offers it")
    import ray

    partial = folder / f"{FILE_NAME}{PARTIAL}"
    spans = [(start, min(start + PIECE, offer.bytes)) for start in range(0, offer.bytes, PIECE)]
    with open(partial, "wb", opener=not_followed) as file:
        coming: Any = offer.holder.piece.remote(*spans[0])
        for span in [*spans[1:], None]:
            piece: Any = ray.get(coming)
            coming = None if span is None else offer.holder.piece.remote(*span)  # on its way while this one is written
            file.write(piece)
            del piece
        file.flush()
        os.fsync(file.fileno())
    found = damaged(SafetensorsFile(partial))
    if found or not _is(partial, offer):
        raise DamagedError(told(partial, found or ["its digests"]))
    os.replace(partial, folder / FILE_NAME)
