"""Beginnings of texts that a model has read, kept in memory and on disk: it need not read them again.

A store belongs to one model: what it gives back was computed by the same weights, with the same arithmetic (sources of
kernels and ops, instruction set, activations) and the same formats of caches, so that steps after it have the bits that
they would have. Sizes of contexts, steps and slots do not matter. What a model keeps after a layer of its was widened
depends on other texts as well, and is not stored.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import lapinfer.runtime
from lapinfer.errors import InputError
from lapinfer.home import home
from lapinfer.machine import available_memory
from lapinfer.model import Model
from lapinfer.progress import Notice
from lapinfer.runtime.slots import SlotState, shortened
from lapinfer.text.prefix_files import PrefixFiles
from lapinfer.text.prefix_memory import PrefixMemory
from lapinfer.text.prefix_writer import PrefixWriter

Ids = Sequence[int] | np.ndarray
FOLDER = "prefixes"
"""Of files, in LAPINFER_HOME."""
OF_ARITHMETIC, OF_CONTENT = 8, 8
"""Hexadecimal digits that a key begins with: of what computes, then of the packed file's content."""
OF_FREE = 4
"""What is kept in memory takes at most one part of so many of what is free when a model was loaded."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A place where beginnings are kept: how often one came from there, of how many tokens in all, and bytes that it
    holds now.
    """

    hits: int
    tokens: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Known:
    """How many ids of a text's beginning a slot can be given, from memory and from disk; and how many any text has that
    is known, whether it can still be given or not.
    """

    memory: int
    disk: int
    agreeing: int


class PrefixStore:
    """Prefixes of one model, as many as fit into `limit` bytes on disk; those that were used longest ago go first.

    folder: where files are kept, of all models together, that nobody else can write to; None: in memory alone.
    memory: bytes of those that are in memory, by default `limit`, too. Files are written by a thread of their own.
    notice: gets a line where a file was damaged, and has been removed, or where none can be kept.
    InputError for a folder and a model of which it is not known what it holds (not loaded from a packed file).
    """

    def __init__(
        self, model: Model, folder: Path | None, limit: int, *, memory: int | None = None,
        notice: Notice = lambda line: None,
    ) -> None:  # fmt: skip
        self._model = model
        self._lock = threading.RLock()
        self._memory = PrefixMemory(model.spec, limit if memory is None else memory)
        self._files = self._writer = None
        if folder is not None:
            if (key := model_key(model)) is None:
                raise InputError(f"{model.name}: has no digests, so nothing is kept of it on disk; convert it again")
            self._files = PrefixFiles(folder, key, model.spec, model.limits.kv, limit, notice)
            self._writer = PrefixWriter(self._files)

    def add(self, ids: Ids, state: SlotState) -> bool:
        """Keep what a slot holds after `ids`. Whether it is kept: not if it is too large, or a layer was widened."""
        ids = np.array(ids, np.int32)
        if len(ids) != state.count:
            raise InputError(f"the state is of {state.count} positions, {len(ids)} ids were given")
        if not is_as_loaded(self._model):
            return False
        with self._lock:
            kept = self._memory.add(ids, state)
        return (self._writer is not None and self._writer.put(ids, state)) or kept

    def known(self, ids: Ids) -> Known:
        """What there is of a text's beginning."""
        ids = np.array(ids, np.int32)
        if not is_as_loaded(self._model):
            return Known(0, 0, 0)
        disk, agreed = (0, 0) if self._files is None else self._files.known(ids)
        with self._lock:
            return Known(self._memory.count(ids), disk, max(agreed, self._memory.agreeing(ids)))

    def from_memory(self, ids: Ids) -> SlotState | None:
        """What a slot held after the longest beginning of `ids` that is in memory."""
        with self._lock:
            return self._memory.find(np.array(ids, np.int32)) if is_as_loaded(self._model) else None

    def from_disk(self, ids: Ids) -> SlotState | None:
        """The same from a file; it is in memory after that."""
        ids = np.array(ids, np.int32)
        if self._files is None or not is_as_loaded(self._model) or (found := self._files.find(ids)) is None:
            return None
        count, stored, state = found
        with self._lock:
            self._memory.add(stored, state)
        return shortened(self._model.spec, state, count)

    @property
    def has_files(self) -> bool:
        """Whether what is kept outlasts the process."""
        return self._files is not None

    def nbytes(self) -> tuple[int, int]:
        """Bytes that are kept in memory, and of this model on disk."""
        files = 0 if self._files is None else self._files.nbytes()  # steps do not wait for a disk here
        with self._lock:
            return self._memory.nbytes, files

    def flush(self) -> bool:
        """Wait until what was added is written, for at most some seconds; whether it is."""
        return self._writer is None or self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def open_prefixes(model: Model, gigabytes: float, notice: Notice) -> PrefixStore:
    """The store of a model, in files of LAPINFER_HOME and in as much memory, but no more than a part of what is free.

    In memory alone, with a notice, where there is no such folder, or it is not known what the model holds.
    """
    limit = int(gigabytes * 1e9)
    available = available_memory()
    memory = limit if available is None else min(limit, available // OF_FREE)
    try:
        return PrefixStore(model, home() / FOLDER, limit, memory=memory, notice=notice)
    except InputError as error:
        notice(f"note: prefixes are kept in memory alone: {error}")
        return PrefixStore(model, None, memory, notice=notice)


def is_as_loaded(model: Model) -> bool:
    """Whether no layer's cache has been widened."""
    return all(kind == model.limits.kv for kind in model.kv)


def model_key(model: Model) -> str | None:
    """48 hexadecimal digits: the same for models whose slots hold the same after the same ids; None: not known.

    They begin with those of `arithmetic`, and the first 8 of the packed file's content, so that it can be told of what
    is kept whether it can be of use again.
    """
    content = getattr(model.weights, "content", None)
    if content is None:
        return None
    said = (content, model.spec, model.limits.kv, model.limits.activations)
    return arithmetic() + content[:OF_CONTENT] + hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def arithmetic() -> str:
    """8 hexadecimal digits of whatever computes a slot's state in this process."""
    from lapinfer.kernels import cache  # imports Numba, as a model's runner has done

    return hashlib.sha256(repr((cache.version(), _ops(), np.__version__)).encode()).hexdigest()[:OF_ARITHMETIC]


@functools.cache
def _ops() -> str:
    """A digest of the sources that say which ops a model is made of, and compute tables for them."""
    digest = hashlib.sha256()
    for source in sorted(Path(next(iter(lapinfer.runtime.__path__))).rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()
