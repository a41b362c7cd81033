"""Milliseconds of a step of 1, 2, 3, … tokens behind 512 others, with the logits of all, beside llama.cpp's.

    python bench/steps.py MODEL [--steps 1,2,3,4,8,16] [--quant q4] [--text FILE --tokenizer FOLDER]
        [--peer PYTHON:FILE.gguf …] [-t 2] [-r 5] [-o FILE]

MODEL is a folder or a .gguf file, or SIZE:KIND for random weights (1b:dense; `lapinfer bench --shapes`). PYTHON has
llama-cpp-python or ik-llama-cpp-python. Steps of several tokens are what servers, batches and speculation run. All
sides stay loaded and take turns; a side's figure of a turn is the median of some steps, a ratio is that of one turn.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import ANSWER, PROMPT, argument_parser, take_turns, text_ids, write_result
from llamacpp import Peer

REPETITIONS = 9
"""Steps of each size in one turn."""


class Ours:
    """lapinfer, in this process."""

    def __init__(self, name: str, quant: str, activations: str, threads: int) -> None:
        if ":" in name:
            from lapinfer.report.random_weights import shape_model
            from lapinfer.runtime.ops import Limits

            size, kind = name.split(":")
            limits = Limits(PROMPT + ANSWER, threads=threads, activations="q16" if activations == "q16" else "q8")
            self.model = shape_model(size, kind, quant, limits)
            return
        from lapinfer.loading import load_model
        from lapinfer.options import LoadOptions

        settings: dict[str, Any] = {"quant": quant, "activations": activations}  # checked by LoadOptions
        self.model = load_model(name, LoadOptions(threads=threads, ctx=PROMPT + ANSWER, **settings))

    def steps(self, ids: np.ndarray, steps: list[int]) -> dict[str, float]:
        """Median seconds of a step of each size; 512: of the prompt itself, and what steps touched, in MB."""
        began = time.perf_counter()
        self.model.prefill(ids[:PROMPT])
        times = {str(PROMPT): time.perf_counter() - began}
        for tokens in steps:
            spent = []
            slot, pos, want = np.zeros(tokens, int), np.arange(PROMPT, PROMPT + tokens), np.ones(tokens, bool)
            self.model.usage.reset()
            for _ in range(REPETITIONS):
                began = time.perf_counter()
                self.model.step(ids[PROMPT : PROMPT + tokens], slot, pos, want)
                spent.append(time.perf_counter() - began)
            times[str(tokens)] = median(spent)
            times[f"mb_{tokens}"] = self.model.usage.totals()["bytes"] / REPETITIONS / 1e6
        return times


def measure(options: argparse.Namespace) -> dict[str, Any]:
    steps = [int(tokens) for tokens in options.steps.split(",")]
    ours = Ours(options.model, options.quant, options.activations, options.threads)
    vocab = min(ours.model.spec.vocab, 40_000)
    ids = np.random.default_rng(0).integers(5, vocab, PROMPT + ANSWER)
    if options.text is not None:
        ids = np.array(text_ids(options.tokenizer, options.text, PROMPT + ANSWER))
    sides: dict[str, Any] = {"ours": lambda: ours.steps(ids, steps)}
    peers = [Peer(python, Path(gguf), options.threads) for python, _, gguf in (p.partition(":") for p in options.peer)]
    for peer in peers:
        sides[peer.about["name"]] = lambda peer=peer: peer.steps(ids, steps, REPETITIONS)
    turns = take_turns(sides, options.repetitions, options.threads)
    for peer in peers:
        peer.close()
    result: dict[str, Any] = {
        "model": Path(options.model).name, "quant": options.quant, "activations": ours.model.limits.activations,
        "text": options.text.name if options.text else "random ids", "threads": options.threads,
        "peers": [peer.about for peer in peers], "turns": turns, "ms": {}, "times_one_token": {},
    }  # fmt: skip
    for side in sides:
        result["ms"][side] = {t: round(1e3 * median(turn[side][str(t)] for turn in turns), 2) for t in steps}
        ratios = {t: [turn[side][str(t)] / turn[side][str(steps[0])] for turn in turns] for t in steps}
        result["times_one_token"][side] = {
            t: [round(f, 2) for f in (median(values), min(values), max(values))] for t, values in ratios.items()
        }
        print(f"{side:14}", "  ".join(
            f"{t}: {result['ms'][side][t]:.1f} ms {'{} ({}-{})'.format(*result['times_one_token'][side][t])}"
            for t in steps
        ))  # fmt: skip
    return result


def main() -> None:
    parser = argument_parser(__doc__, repetitions=5)
    parser.add_argument("model")
    parser.add_argument("--steps", default="1,2,3,4,8,16", help="the first is what the others are compared with")
    parser.add_argument("--quant", default="auto")
    parser.add_argument("--activations", default="auto")
    parser.add_argument("--peer", action="append", default=[], metavar="PYTHON:GGUF")
    parser.add_argument("--text", type=Path, help="its first tokens are run; random ones when not given")
    parser.add_argument("--tokenizer", type=Path, help="folder with the tokenizer.json for it (of the same vocabulary)")
    options = parser.parse_args()
    write_result(measure(options), options.output)


if __name__ == "__main__":
    main()
