"""A model that can run: packed weights, their ops with a runner, and the step that everything is made of.

A step is a batch of tokens: token[T], slot[T] (which sequence), pos[T], want[T] (whether its logits are wanted). A
prompt, one token of decoding and several sequences at once are the same call with another T.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from lapinfer.arguments import flags, row, whole
from lapinfer.errors import CheckpointError, InputError
from lapinfer.interrupts import check
from lapinfer.kernels.operands import (
    BEST,
    BEST_BLOCKS,
    COARSE_HEAD,
    ITEMS,
    KEYS,
    LOST,
    NOT_A_NUMBER,
    NOT_READ,
    PROBLEM,
    PROBLEM_BITS,
    PROBLEMS,
    TILE,
    TOKENS,
    VALUES,
    WANT,
    WANT_TILES,
    WHOLE_HEAD,
)
from lapinfer.machine import default_threads as default_threads  # what Limits of a model are made with
from lapinfer.options import KVName
from lapinfer.progress import Notice, Progress, silent
from lapinfer.quant.search import HALF_MAX
from lapinfer.runtime.build.head import BestRows
from lapinfer.runtime.build.model import build_model
from lapinfer.runtime.diagnosis import first_not_finite
from lapinfer.runtime.expert_nodes import ExpertNodes
from lapinfer.runtime.items import attention_items
from lapinfer.runtime.meter import Meter
from lapinfer.runtime.ops import Limits, Weights
from lapinfer.runtime.routing import Routing
from lapinfer.runtime.runner import Runner
from lapinfer.runtime.slots import Slots, SlotState
from lapinfer.runtime.widening import cache_kind, cache_kinds, widen
from lapinfer.spec import AttentionSpec, ModelSpec

Allowed = Sequence[np.ndarray | None]
"""For each of some tokens: which logits may be chosen, as bits in uint16 [≥ ceil(V/16)]; None: all."""

SPLIT_BELOW = 8
"""Attention is split over key blocks when a step has fewer tiles of tokens than this."""


@dataclass(frozen=True, slots=True)
class Logits:
    """Views into the model's buffers, valid until the next step.

    values: [n_want, V] float32; block_max: [n_want, ceil(V/16)], the largest of each 16 neighbouring logits; both
    without rows where no logits were asked for. hidden: [n_want, D] float32, the hidden states after the last norm.
    masked: whether logits that were not allowed are −∞.
    """

    values: np.ndarray
    block_max: np.ndarray
    hidden: np.ndarray
    masked: bool = False


class Model:
    """Weights and ops of one model. It runs one step at a time, and holds `lock` meanwhile.

    texts: the folder of its tokenizer, templates and generation_config.json, which is the checkpoint's own.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, limits: Limits, *, name: str = "", texts: Path | None = None,
        notice: Notice | None = None, progress: Progress = silent, nodes: ExpertNodes | None = None,
    ):  # fmt: skip
        """nodes: those that have the experts; they are closed with the model."""
        self.spec, self.weights, self.limits = spec, weights, limits
        self.name, self.texts = name, texts
        self.ctx, self.slots = limits.ctx, limits.slots
        self.max_step, self.max_wanted = limits.step, limits.most_wanted
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._closed = False
        # A bound of memory is kept; and a step is run again only where it overwrites nothing that it reads.
        self._widens = limits.experts != "pool" and all(layer.attention is not None for layer in spec.layers)
        self._notice: Notice = notice or (lambda line: None)
        built = build_model(spec, weights, limits, nodes)
        self._step, self._routed, self._best = built.step, built.routing, built.best
        self.best_blocks: np.ndarray | None = None
        """Row blocks of the head that the last step has read for its best logits, by round, and at last with the whole
        head (int64 [BEST_ROUNDS + 1]); None after a step of all logits, or of none."""
        self.routing: Routing | None = None
        self.pool, self.exchange = built.pool, built.exchange
        if self.pool is not None:
            self.max_step = self.pool.most_tokens(limits.step)
        self.runner = Runner(built.ops, limits.threads, progress=progress, apart=built.pool is not None)
        self._slots = Slots(spec, self.runner, limits.slots, limits.kv)
        self.threads = self.runner.team.threads
        if notice is not None and self.threads < limits.threads:
            notice(
                f"note: the system refuses more than {self.threads} of {limits.threads} threads (ulimit -u, or the "
                f"container's limit of processes): this is slower; ask for fewer with -t"
            )
        self.compile_s = self.runner.compile_s
        self.load_s = self.pack_s = 0.0

    @property
    def lock(self) -> threading.RLock:
        """Held while a step runs. A forked child has one of its own: nobody there would ever release the parent's."""
        if self._pid != os.getpid():
            held, self._lock, self._pid = self._lock, threading.RLock(), os.getpid()
            if not held.acquire(blocking=False) and self.pool is not None:
                self.pool.forget()  # the fork came in the middle of a step
        return self._lock

    @property
    def kv(self) -> list[KVName]:
        """The format in which each layer keeps keys and values now."""
        return cache_kinds(self.spec, self.runner, self.limits.kv)

    @property
    def usage(self) -> Meter:
        """What steps have touched so far."""
        return self.runner.meter

    def step(
        self, token: Sequence[int] | np.ndarray, slot: Sequence[int] | np.ndarray, pos: Sequence[int] | np.ndarray,
        want: Sequence[bool] | np.ndarray, *, best: int | None = None, guessed: bool = False,
        allowed: Allowed | None = None,
    ) -> Logits:  # fmt: skip
        """Run T ≤ max_step tokens; returns the logits of those that are wanted, at most max_wanted.

        Tokens of a slot come in the order of their positions, and continue what the slot already holds.
        best: how many of the largest logits of each token are needed; others may be −∞. Those that are not have the
        bits that they have without it. 0: none, hidden states alone, and nothing of the head is read.
        allowed: which logits may be among the best, as bits (bit i of uint16 [b] is that of 16·b + i) for each wanted
        token, None for all: less of the head is read then, if it is read for the best alone (`Logits.masked`).
        guessed: some of the tokens may be taken back, so no layer's cache is widened for them: InputError instead.
        """
        with self.lock:
            check()
            if self._closed:
                raise InputError(f"{self.name}: the model is closed; load it again")
            token, slot, pos, want = row("token", token), row("slot", slot), row("pos", pos), flags("want", want)
            buffers, n = self._step, len(token)
            if n == 1 and len(slot) == len(pos) == len(want) == 1:  # fast path, see runtime/meter.py
                self._check_one(int(token[0]), int(slot[0]), int(pos[0]))
            else:
                self._check(n, token, slot, pos, want)
            buffers.token[:n], buffers.slot[:n], buffers.pos[:n] = token, slot, pos
            wanted = 0
            for t in range(n):
                if want[t]:
                    buffers.want[wanted] = t
                    wanted += 1
            if wanted > self.max_wanted:
                raise InputError(f"a step gives the logits of at most {self.max_wanted} tokens, {wanted} were wanted")
            runner = self.runner
            places = buffers.slot[:n].tolist(), buffers.pos[:n].tolist()
            self._slots.begin(*places)
            runner.begin(n)
            header = runner.words
            header[WANT], header[WANT_TILES] = wanted, -(-wanted // TILE)
            few = self._enter_head(wanted, best, allowed)
            header[ITEMS] = attention_items(
                buffers.slot[:n], buffers.pos[:n], buffers.items, buffers.part, buffers.partials, SPLIT_BELOW
            )
            elapsed = runner.run()
            while header[PROBLEM]:
                self._mend(may_widen=self._widens and not guessed)
                self._enter_head(wanted, best, allowed)
                elapsed = runner.run()
            logits = 0 if best == 0 else wanted
            if logits and not np.isfinite(buffers.block_max[:logits].max()):
                self._raise_not_finite("the logits")
            hidden = buffers.hidden[:wanted, : self.spec.hidden]
            if wanted > logits and not np.isfinite(hidden).all():
                self._raise_not_finite("the hidden states")
            self._slots.done(*places)
            routed, self.best_blocks = self._routed, None if few is None else few.blocks
            runner.meter.record(
                buffers.slot[:n],
                buffers.pos[:n],
                wanted,
                elapsed,
                routed.distinct,
                routed.nodes,
                self.best_blocks,
                hidden=wanted > logits,
            )
            if self.routing is not None:
                self.routing.record(
                    buffers.slot[:n], buffers.pos[:n], routed.chosen[:, :n], routed.weight[:, :n], routed.path[:, :n]
                )
            masked = few is not None and few.masked
            return Logits(buffers.logits[:logits, : self.spec.vocab], buffers.block_max[:logits], hidden, masked)

    def _enter_head(self, wanted: int, best: int | None, allowed: Allowed | None) -> BestRows | None:
        """Say in the header how the head is read: for the best logits alone, or all of it (None)."""
        rows, header = self._best, self.runner.words
        if rows is not None and not (best is not None and 1 <= best <= rows.most and 1 <= wanted <= rows.tokens):
            rows = None
        header[WHOLE_HEAD] = int(wanted > 0 and rows is None and best != 0)
        header[COARSE_HEAD] = int(rows is not None)
        header[BEST], header[BEST_BLOCKS] = best or 0, 0
        if rows is not None:
            rows.allow(allowed)
        return rows

    def _check_one(self, token: int, slot: int, pos: int) -> None:
        for name, value, stop in (
            ("token id", token, self.spec.vocab), ("slot", slot, self.slots), ("position", pos, self.ctx),
        ):  # fmt: skip
            if not 0 <= value < stop:
                raise InputError(f"{name} {value} is out of range, expected 0 to {stop - 1}")

    def _check(self, n: int, token, slot, pos, want) -> None:
        if not 1 <= n <= self.max_step or not n == len(slot) == len(pos) == len(want):
            raise InputError(
                f"a step takes 1 to {self.max_step} tokens with as many slots, positions and wants, got {n}"
            )
        for name, values, stop in (
            ("token id", token, self.spec.vocab), ("slot", slot, self.slots), ("position", pos, self.ctx),
        ):  # fmt: skip
            low, high = int(np.min(values)), int(np.max(values))
            if low < 0 or high >= stop:
                wrong = low if low < 0 else high
                raise InputError(f"{name} {wrong} is out of range, expected 0 to {stop - 1}")

    @property
    def in_trouble(self) -> bool:
        """Whether the running step has met a problem: it will be run again, or raises."""
        return bool(self.runner.words[PROBLEM])

    def _mend(self, *, may_widen: bool) -> None:
        """Let a layer whose keys or values do not fit their cache keep them in a wider one, if it may.

        CheckpointError where numbers were not finite, or experts could not be read; InputError for an option that would
        hold the numbers.
        """
        bits, problem = divmod(self.runner.words[PROBLEM], 1 << PROBLEM_BITS)
        place, kind = divmod(problem, PROBLEMS)
        self.runner.words[PROBLEM] = 0
        if kind == NOT_READ and self.pool is not None:
            self.pool.forget()
            raise CheckpointError(
                f"{self.pool.file}: experts of layer {self._routed.layers[place]} could not be read: the file has "
                "changed or its disk fails; load the model again"
            )
        if kind == NOT_A_NUMBER:
            self._raise_not_finite(f"the logits of the router of layer {self._routed.layers[place]}")
        what = {KEYS: "keys", VALUES: "values"}[kind]
        lost, bits = divmod(bits, LOST)
        largest = float(np.uint32(bits).view(np.float32))
        if not np.isfinite(largest):
            self._raise_not_finite(f"the {what} of layer {place}")
        held = cache_kind(self.runner, place)
        problem = "leave nothing of their neighbours" if lost else f"are too {'large' if largest > 1 else 'small'}"
        said = f"layer {place}: {what} of {largest:.1e} {problem} in a cache of {held}"
        wider: KVName = "f16" if lost and largest < HALF_MAX else "f32"
        if not may_widen:
            raise InputError(f'{self.name}: {said}; load the model with --kv {wider} (kv="{wider}")')
        attention = self.spec.layers[place].mixer
        assert isinstance(attention, AttentionSpec)
        wider = widen(self.runner, place, attention, wider)
        self._notice(f"note: {said}, so this layer's is {wider} from here on")

    def _raise_not_finite(self, what: str) -> NoReturn:
        """CheckpointError that names the op whose numbers were the first that are not finite."""
        culprit = first_not_finite(self, self.runner.words[TOKENS], lambda: self.runner.run())
        self.runner.words[PROBLEM] = 0
        raise CheckpointError(
            f"{self.name}: {what} are not finite numbers; the first that were not came from {culprit}: they are beyond "
            "float32, or its weights are damaged; download or convert the model again"
        )

    def shrink_pool(self, slots: int) -> None:
        """Keep at most `slots` experts; prompts then run in shorter pieces if necessary. Call before the first step."""
        assert self.pool is not None
        self.pool.shrink(slots)
        self.max_step = self.pool.most_tokens(self.limits.step)

    def buffer_bytes(self) -> int:
        """Bytes of all that steps may write: KV cache, activations, logits, tables, whether touched yet or not."""
        slots = self.pool.memory.nbytes if self.pool is not None and self.pool.pooled else 0
        return self.runner.plan.buffer_bytes() - slots

    @property
    def chosen_experts(self) -> dict[int, np.ndarray]:
        """By layer: the experts of the last step's tokens, int64 [T, A] in order of rank, without the shared ones."""
        n, routed = self.runner.words[TOKENS], self._routed
        return {layer: chosen[:n] for layer, chosen in zip(routed.layers, routed.chosen, strict=True)}

    @property
    def distinct_experts(self) -> dict[int, int]:
        """By layer: how many experts the last step read, shared ones included."""
        return dict(zip(self._routed.layers, self._routed.distinct.tolist(), strict=True))

    @property
    def distinct_nodes(self) -> dict[int, int]:
        """By layer: how many nodes of its trees the last step read, each once."""
        return dict(zip(self._routed.layers, self._routed.nodes.tolist(), strict=True))

    def prefill(
        self, ids: Sequence[int] | np.ndarray, slot: int = 0, start: int = 0, *, best: int | None = None,
        allowed: Allowed | None = None,
    ) -> Logits:  # fmt: skip
        """Run a prompt from position `start` on, in chunks of max_step; the logits of its last token, as in `step`."""
        ids, slot, start = (
            row("ids", ids),
            whole("slot", slot, 0, self.slots - 1),
            whole("start", start, 0, self.ctx - 1),
        )
        if len(ids) == 0:
            raise InputError("the prompt is empty: at least one token is needed")
        logits = None
        for offset in range(0, len(ids), self.max_step):
            piece = ids[offset : offset + self.max_step]
            want = np.zeros(len(piece), bool)
            want[-1] = offset + len(piece) == len(ids)
            positions = start + offset + np.arange(len(piece))
            logits = self.step(piece, np.full(len(piece), slot), positions, want, best=best, allowed=allowed)
        assert logits is not None
        return logits

    def continues(self, slot: int, count: int) -> bool:
        """Whether a step may go on at position `count` of a slot, in place of what that has from there on."""
        return self._slots.continues(slot, count)

    def holds(self, slot: int, count: int) -> bool:
        """Whether `save_slot` can give what a slot held after so many positions."""
        return self._slots.holds(slot, count)

    def save_slot(self, slot: int, count: int) -> SlotState:
        """A copy of what a slot held after its first `count` positions: steps after it have the same bits anywhere.

        InputError where the slot has fewer, or a layer that has its last positions alone has moved on.
        """
        slot, count = whole("slot", slot, 0, self.slots - 1), whole("count", count, 1, self.ctx)
        with self.lock:
            return self._slots.save(slot, count)

    def restore_slot(self, slot: int, state: SlotState) -> None:
        """Put what was saved into a slot, in place of what that holds; its next position is `state.count`.

        Of this model, or of another with the same weights, activations and formats of caches: else InputError, as far
        as shapes and formats tell.
        """
        slot = whole("slot", slot, 0, self.slots - 1)
        with self.lock:
            self._slots.restore(slot, state, self.ctx)

    def copy_slot(self, origin: int, target: int, count: int) -> None:
        """Let a slot hold the first `count` positions of another one, as `save_slot` and `restore_slot` do."""
        origin, target = whole("slot", origin, 0, self.slots - 1), whole("slot", target, 0, self.slots - 1)
        with self.lock:
            self._slots.copy(origin, target, count)

    def forward(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits [T, V] float32 of every position of a fresh sequence (it takes slot 0)."""
        ids = row("ids", ids)
        if len(ids) == 0:
            raise InputError("forward needs at least one token id")
        if len(ids) > self.ctx:
            raise InputError(f"{len(ids)} tokens do not fit the context of {self.ctx}: load with a larger ctx")
        out = np.empty((len(ids), self.spec.vocab), np.float32)
        with self.lock:
            size = min(self.max_step, self.max_wanted)
            for start in range(0, len(ids), size):
                piece = ids[start : start + size]
                positions = np.arange(start, start + len(piece))
                logits = self.step(piece, np.zeros(len(piece), np.int64), positions, np.ones(len(piece), bool))
                out[start : start + len(piece)] = logits.values
        return out

    def close(self) -> None:
        """Let the team's threads end, after the step that another thread may be running; later steps are refused."""
        with self.lock:
            self._closed = True
            self.runner.close()
            if self.pool is not None:
                self.pool.close()
            if self.exchange is not None:
                self.exchange.close()
