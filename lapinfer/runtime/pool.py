"""Experts of a model that is larger than memory (kernels/place.py says what happens in a step).

`pool`: a fixed number of slots of equal size in memory of this process, filled by positioned reads: an exact bound.
`mapped`: experts stay in the mapped file, and the system decides which pages it keeps; it is asked for the chosen ones.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.errors import CheckpointError, DoesNotFitError, UnsupportedError
from lapinfer.kernels.operands import LOAD, POLICIES, POOL_COUNTERS
from lapinfer.options import Policy
from lapinfer.spec import FeedForwardSpec

PIECE = 1 << 21
"""Bytes of one read, so that several threads share a large expert."""
HALF_LIFE = 128
"""Tokens after which an earlier use counts half (lrfu); on recorded routing 32 to 1,024 differ by under a percent."""


def _address(name: str) -> int:
    """The address of a function of the C library."""
    if sys.platform == "win32":
        raise UnsupportedError("--memory needs pread and madvise, which Windows lacks; run without it")
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except AttributeError:
        raise UnsupportedError(f"--memory needs the C library's {name}, which is not there; run without it") from None


def reserved(nbytes: int) -> np.ndarray:
    """uint8 [nbytes], zeros: only address space, which takes memory where it is used. DoesNotFitError."""
    flags = {}
    if sys.platform != "win32":
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)}
    try:
        return np.frombuffer(mmap.mmap(-1, nbytes, **flags), np.uint8)
    except (OSError, ValueError) as error:
        raise DoesNotFitError(f"{nbytes:,} bytes for experts cannot be had: {error}") from error


@dataclass(frozen=True, slots=True)
class Bank:
    """The experts of one routed layer in the packed file: mapped [E, stride], from `offset` on; an expert is read in
    its first `expert_bytes`."""

    mapped: np.ndarray
    offset: int
    expert_bytes: int


class ExpertPool:
    """State that all routed layers of a model share; their experts are numbered throughout.

    banks: of the routed layers in order. slots: None for experts in the mapped file.
    """

    def __init__(
        self, feed_forwards: Sequence[FeedForwardSpec], file: Path, banks: Sequence[Bank],
        slots: int | None, policy: Policy = "lrfu",
    ):  # fmt: skip
        self.file, self.policy, self.banks = file, policy, list(banks)
        routers = [ff.router for ff in feed_forwards if ff.router is not None]
        self.experts = [router.n_experts for router in routers]
        self.first = np.concatenate([[0], np.cumsum(self.experts)]).astype(np.int64)
        total, most = int(self.first[-1]), max(self.experts)
        self.counters = np.zeros(len(POOL_COUNTERS), np.int64)
        self.top_k = max(router.top_k for router in routers)
        self.slots = np.zeros(1, np.int64)
        self.slot_bytes = max(-(-bank.expert_bytes // mmap.PAGESIZE) for bank in banks) * mmap.PAGESIZE
        self.pooled = slots is not None
        if slots is None:
            self.advise = _address("madvise")
            return
        self.read = _address("pread")
        try:
            self.fd = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        capacity = min(slots, total)
        self.memory = reserved(capacity * self.slot_bytes)
        self.slots[0] = capacity
        self.slot_of = np.full(total, -1, np.int64)
        self.owner = np.full(capacity, -1, np.int64)
        self.used = np.zeros(capacity, np.int64)
        self.rank, self.uses = np.zeros(total), np.zeros(total, np.int64)
        self.clock = np.zeros(1, np.int64)
        pieces = max(-(-bank.expert_bytes // PIECE) for bank in banks)
        self.loads = np.zeros((most * pieces, len(LOAD)), np.int64)

    def shrink(self, slots: int) -> None:
        """Use at most `slots` slots. Call it before the first step."""
        self.slots[0] = min(int(self.slots[0]), slots)

    def most_tokens(self, step: int) -> int:
        """Tokens of a step, at most `step`, whose experts of one layer fit the slots together, whatever they choose."""
        slots = int(self.slots[0])
        if not self.pooled or slots >= max(self.experts):
            return step
        if slots < self.top_k:
            raise ValueError(f"{slots} slots cannot hold the {self.top_k} experts of a token")
        return min(step, slots // self.top_k)

    def forget(self) -> None:
        """Empty all slots, after a failed read."""
        if self.pooled:
            self.slot_of[:] = self.owner[:] = -1

    def request_operands(self, position: int) -> dict[str, Any]:
        bank = self.banks[position]
        return {
            "bank": bank.mapped.ctypes.data, "stride": bank.mapped.strides[0], "bytes": bank.expert_bytes,
            "advise": self.advise,
        }  # fmt: skip

    def place_operands(self, position: int) -> dict[str, Any]:
        bank = self.banks[position]
        return {
            "experts": self.experts[position], "first": int(self.first[position]), "slot_of": self.slot_of,
            "owner": self.owner, "used": self.used, "rank": self.rank, "uses": self.uses, "slots": self.slots,
            "pool": self.memory, "slot_bytes": self.slot_bytes, "offset": bank.offset, "stride": bank.mapped.strides[0],
            "bytes": bank.expert_bytes, "piece": PIECE, "policy": POLICIES.index(self.policy), "clock": self.clock,
            "half_life": float(HALF_LIFE * len(self.experts)), "loads": self.loads, "counters": self.counters,
        }  # fmt: skip

    def load_operands(self) -> dict[str, Any]:
        return {"loads": self.loads, "read": self.read, "file": self.fd}

    def stats(self) -> dict[str, Any]:
        """Hits, misses and bytes read since the last `reset`; the number of slots, their size, and the policy."""
        counts = {name: int(n) for name, n in zip(POOL_COUNTERS, self.counters, strict=True)}
        return counts | {"slots": int(self.slots[0]), "slot_bytes": self.slot_bytes, "policy": self.policy}

    def line(self, tokens: int) -> str:
        """The same as a line of text, for a number of tokens."""
        if not self.pooled:
            return "experts in the mapped file"
        stats = self.stats()
        hits, used = stats["hits"], stats["hits"] + stats["misses"]
        return (
            f"experts: {stats['slots']} of {self.first[-1]} kept ({self.policy}), {hits / max(used, 1):.1%} of {used} "
            f"were there, {stats['bytes_read'] / max(tokens, 1) / 1e6:.1f} MB read per token"
        )

    def reset(self) -> None:
        self.counters[:] = 0

    def close(self) -> None:
        if self.pooled and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
