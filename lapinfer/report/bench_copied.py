"""A test of `lapinfer bench`: decoding an answer that repeats its prompt, with speculation. The most that it brings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lapinfer.options import SamplingParams
from lapinfer.quant.choice import TYPICAL_BEST
from lapinfer.report.bench_runs import Runs
from lapinfer.report.costs import Costs
from lapinfer.report.timing import Watch, head_blocks
from lapinfer.text.decoding import Conversation
from lapinfer.text.likelihood import Chosen
from lapinfer.text.sampling import Sampler
from lapinfer.text.speculation import Speculating, Speculation

if TYPE_CHECKING:
    from lapinfer.model import Model


class Saying(Sampler):
    """Chooses the tokens of a text, whatever the logits; as many are computed as in the other tests."""

    def __init__(self, text: Sequence[int]) -> None:
        super().__init__(SamplingParams(temperature=0))
        self._text = text

    def needed(self, history: Sequence[int] = (), banned: Sequence[int] = ()) -> int:
        return TYPICAL_BEST

    def sample(
        self,
        logits: np.ndarray,
        block_max: np.ndarray | None = None,
        history: Sequence[int] = (),
        banned: Sequence[int] = (),
        allowed: np.ndarray | None = None,
        masked: bool = False,
    ) -> Chosen:
        return Chosen(self._text[len(history)])


class Copied(Runs):
    """Runs whose answers are the last n tokens before them; steps run as many guesses as speculation finds worth it."""

    def __init__(self, model: Model, text: np.ndarray, n: int, d: int):
        super().__init__(model, text[None], 0, n, d)
        self.name = f"tg{n} copied" + (f" @ d{d}" if d else "")
        self._speculation = Speculation(model)
        self._steps: list[range] = []

    def _generate(self, watch: Watch) -> float:
        ids = self.texts[0, : self.d + self.n].tolist()
        text = ids + ids[self.d :]
        self.model.prefill(ids[:-1], 0, 0)
        conversation = Conversation(ids[:-1])
        decoding = Speculating(
            self._speculation, self.model, 0, conversation, ids, Saying(text), lambda ids: (), ends=frozenset(),
            limit=self.n,
        )  # fmt: skip
        began = time.perf_counter()
        with self.model.runner.metered(watch.meter):
            for _ in range(self.n):
                steps, drafted, start = decoding.steps, decoding.drafted, len(conversation.ids)
                now = time.perf_counter()
                decoding.next()
                if decoding.steps > steps:
                    watch.seconds.append(time.perf_counter() - now)
                    watch.blocks.append(head_blocks(self.model))
                    if watch is self.watch:
                        self._steps.append(range(start, start + 1 + decoding.drafted - drafted))
        return time.perf_counter() - began

    def tokens_per_step(self) -> float:
        return len(self.seconds) * self.n / len(self._steps)

    def _predicted(self, costs: Costs) -> int:
        steps = zip(self._steps, self.watch.blocks, strict=True)
        touched = (costs.touched(pos, len(pos), best_blocks=blocks) for pos, blocks in steps)
        return sum(sum(parts.values()) for parts in touched) // len(self.seconds)
