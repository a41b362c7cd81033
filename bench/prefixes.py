"""A shared beginning of prompts: the time to the first token when it is read, and when it is brought from elsewhere.

    python bench/prefixes.py MODEL TEXT [--prefix 1500] [-r 7] [-o OUT.json]

Each prompt is the beginning of TEXT and 20 ids of its own. `read`: nothing is known of it. `slot`: another slot holds
it. `memory`, `disk`: the store has it; `disk, cold`: the system was asked to forget the file's pages before. In turns
A B C …; ratios are medians of those of the turns. Whether logits after the prompt are the same bits is checked for
each. `together`: eight prompts at once, of which one reads the beginning, and the same without anything in common.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import argument_parser, print_result, text_ids, write_result

from lapinfer.text.language_model import LanguageModel, load
from lapinfer.text.prefixes import PrefixStore

OWN, TOGETHER = 20, 8
PLENTY = 1 << 32


class Bench:
    """One model with stores of its own, in which the beginning is kept."""

    def __init__(self, model: LanguageModel, beginning: list[int], folder: Path) -> None:
        self.model, self.beginning, self.folder = model, beginning, folder
        read = model.model.prefill(beginning)
        del read
        began = time.perf_counter()
        state = model.model.save_slot(0, len(beginning))
        self.saved, self.bytes = time.perf_counter() - began, state.nbytes
        self.memory = PrefixStore(model.model, None, PLENTY)
        self.disk = PrefixStore(model.model, folder, PLENTY, memory=0)
        self.memory.add(beginning, state)
        self.disk.add(beginning, state)
        self.disk.flush()

    def prompt(self, turn: int) -> list[int]:
        rng = np.random.default_rng(turn)
        return [*self.beginning, *rng.integers(100, self.model.spec.vocab, OWN).tolist()]

    def forget(self, keep: int | None = None) -> None:
        """Let no slot hold anything that is known, but one."""
        for slot, conversation in enumerate(self.model.conversations):
            if slot != keep:
                conversation.ids, conversation.writer = [], None

    def first_token(self, ids: list[int]) -> dict[str, float]:
        """Milliseconds to the first token in slot 0, and ids that were not read for it."""
        timings = self.model.generate(ids, max_tokens=1, temperature=0, slot=0).timings
        return {"ms": timings.ttft_ms, "reused": timings.reused_tokens}

    def read(self, ids: list[int]) -> dict[str, float]:
        self.model.prefixes.store = None
        self.forget()
        return self.first_token(ids)

    def slot(self, ids: list[int]) -> dict[str, float]:
        self.model.prefixes.store = None
        self.forget()
        self.model.generate(self.beginning, max_tokens=1, slot=1)
        self.forget(keep=1)
        return self.first_token(ids)

    def stored(self, store: PrefixStore) -> Callable[[list[int]], dict[str, float]]:
        def measure(ids: list[int]) -> dict[str, float]:
            self.model.prefixes.store = store
            self.forget()
            return self.first_token(ids)

        return measure

    def cold(self, ids: list[int]) -> dict[str, float]:
        for path in self.folder.glob("*/*.prefix"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return self.stored(self.disk)(ids)

    def logits(self, ids: list[int], store: PrefixStore | None) -> np.ndarray:
        """All logits after a prompt, by way of the slot that held it last, or of a store."""
        self.model.prefixes.store = store
        reuse, conversation = self.model.prefixes, self.model.conversations[0]
        self.forget(keep=None if store is not None else 1)
        with self.model.model.lock:
            reuse.bring(0, ids, len(ids) - 1)
            count = len(conversation.ids)
            return self.model.model.prefill(ids[count:], 0, count).values.copy()

    def identical(self) -> dict[str, bool]:
        """Whether logits are the bits that reading gives."""
        ids = self.prompt(99)
        expected = self.model.model.prefill(ids).values.copy()
        self.forget()
        self.model.prefixes.store = None
        self.model.generate(self.beginning, max_tokens=1, slot=1)
        found = {name: self.logits(ids, store) for name, store in
                 (("slot", None), ("memory", self.memory), ("disk", self.disk))}  # fmt: skip
        return {name: found.tobytes() == expected.tobytes() for name, found in found.items()}

    def together(self, alike: bool) -> float:
        """Milliseconds until all of several prompts that come together have their first token."""
        self.model.prefixes.store = None
        self.forget()
        prompts = [self.prompt(turn) for turn in range(TOGETHER)]
        if not alike:
            prompts = [[100 + turn, *ids[1:]] for turn, ids in enumerate(prompts)]
        began = time.perf_counter()
        self.model.generate_batch(prompts, max_tokens=1, temperature=0)
        return 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argument_parser(__doc__, repetitions=7)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--prefix", type=int, default=1500)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        load(options.model, threads=options.threads, slots=TOGETHER, ctx=options.prefix + 2 * OWN) as model,
    ):
        beginning = text_ids(model.model.texts, options.text, options.prefix)
        bench = Bench(model, beginning, Path(folder) / "prefixes")
        sides = {"read": bench.read, "slot": bench.slot, "memory": bench.stored(bench.memory),
                 "disk": bench.stored(bench.disk), "disk, cold": bench.cold}  # fmt: skip
        turns = [
            {name: side(bench.prompt(turn)) for name, side in sides.items()} for turn in range(options.repetitions + 1)
        ][1:]
        result: dict[str, Any] = {
            "model": Path(options.model).name, "prefix": options.prefix, "state_bytes": bench.bytes,
            "save_ms": round(1e3 * bench.saved, 1), "identical": bench.identical(),
        }  # fmt: skip
        for name in sides:
            result[name] = {
                "first_token_ms": round(median(turn[name]["ms"] for turn in turns), 2),
                "reused": int(turns[-1][name]["reused"]),
                "sooner": round(median(turn["read"]["ms"] / turn[name]["ms"] for turn in turns), 1),
            }
        result["together_ms"] = {
            "alike": round(bench.together(alike=True)), "unlike": round(bench.together(alike=False)),
        }  # fmt: skip
        model.prefixes.store = None
    print_result(result)
    write_result(result, options.output)


if __name__ == "__main__":
    main()
