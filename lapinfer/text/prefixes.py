"""Beginnings of texts that a model has read, kept in memory or on disk: it need not read them again.

A store belongs to one model: what it gives back was computed by the same weights, with the same arithmetic (sources of
kernels, instruction set, activations) and the same formats of caches, so that steps after it have the bits that they
would have. Sizes of contexts, steps and slots do not matter. What a model keeps after a layer of its was widened
depends on other texts as well, and is not stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapinfer.errors import InputError
from lapinfer.model import Model
from lapinfer.runtime.runner import Notice
from lapinfer.runtime.slots import SlotState, shortened
from lapinfer.text.prefix_files import PrefixFiles, agreeing


@dataclass(slots=True)
class _Kept:
    ids: np.ndarray
    state: SlotState


class PrefixStore:
    """Prefixes of one model, as many as fit into `limit` bytes; those that were used longest ago go first.

    folder: where files are kept, of all models together, that nobody else can write to; None: in memory.
    notice: gets a line where a file was damaged, and has been removed, or where none can be kept.
    InputError for a folder and a model of which it is not known what it holds (not loaded from a packed file).
    """

    def __init__(self, model: Model, folder: Path | None, limit: int, *, notice: Notice = lambda line: None) -> None:
        self._model, self._limit = model, limit
        self._memory: list[_Kept] = []  # used longest ago first
        self._files = None
        if folder is not None:
            if (key := model_key(model)) is None:
                raise InputError(f"{model.name}: has no digests, so nothing is kept of it on disk; convert it again")
            self._files = PrefixFiles(folder, key, model.spec, model.limits.kv, limit, notice)

    def add(self, ids: Sequence[int] | np.ndarray, state: SlotState) -> bool:
        """Keep what a slot holds after `ids`. Whether it is kept: not if it is too large, or a layer was widened."""
        ids = np.array(ids, np.int32)
        if len(ids) != state.count:
            raise InputError(f"the state is of {state.count} positions, {len(ids)} ids were given")
        with self._model.lock:
            if not self._is_as_loaded():
                return False
            return self._remember(ids, state) if self._files is None else self._files.add(ids, state)

    def find(self, ids: Sequence[int] | np.ndarray) -> SlotState | None:
        """What a slot holds after the longest known prefix of `ids`, shorter than these: the last one is always run.

        A stored text that goes on otherwise counts as far as it agrees, if the model has no windows and convolutions
        that have moved on.
        """
        ids = np.array(ids, np.int32)
        with self._model.lock:
            if not self._is_as_loaded():
                return None
            if self._files is None:
                return self._remembered(ids)
            found = self._files.find(ids)
            return None if found is None else shortened(self._model.spec, found[1], found[0])

    def _remember(self, ids: np.ndarray, state: SlotState) -> bool:
        self._memory = [kept for kept in self._memory if not np.array_equal(kept.ids, ids)]
        if _nbytes(ids, state) > self._limit:
            return False
        self._memory.append(_Kept(ids, state))
        while sum(_nbytes(kept.ids, kept.state) for kept in self._memory) > self._limit:
            del self._memory[0]
        return True

    def _remembered(self, ids: np.ndarray) -> SlotState | None:
        best, of = None, None
        for kept in self._memory:
            count = agreeing(kept.ids, ids)
            if count > (0 if best is None else best.count) and (cut := shortened(self._model.spec, kept.state, count)):
                best, of = cut, kept
        if of is not None:
            self._memory = [*(kept for kept in self._memory if kept is not of), of]
        return best

    def _is_as_loaded(self) -> bool:
        """Whether no layer's cache has been widened."""
        return all(kind == self._model.limits.kv for kind in self._model.kv)


def model_key(model: Model) -> str | None:
    """32 hexadecimal digits: the same for models whose slots hold the same after the same ids; None: not known."""
    from lapinfer.kernels import cache  # imports Numba, as the model's runner has done

    content = getattr(model.weights, "content", None)
    if content is None:
        return None
    said = (content, model.spec, model.limits.kv, model.limits.activations, cache.store().version)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def _nbytes(ids: np.ndarray, state: SlotState) -> int:
    return ids.nbytes + state.nbytes
