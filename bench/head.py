"""The best logits in two passes against the whole head: exceptions, what is read, how often margins widen, and speed.

    python bench/head.py MODEL TEXT [TEXT …] [--tokens 100000] [--best 40] [--step 1] [--seconds 600] [-o OUT.json]

Each text is run in steps of --step tokens, each step twice: with all logits, and with the best alone. An exception is a
token whose best logits are not the same ones, or not the same bits. Steps of one token, in turns, give the times and
the row blocks that decoding reads.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import argument_parser, print_result, write_result

from lapinfer.kernels.operands import BEST_ROUNDS
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.text.language_model import open_model

CONTEXT = 1024
TURNS, TURN = 6, 48
"""Turns of decoding each way, and tokens of a turn."""


def same_best(whole: np.ndarray, few: np.ndarray, best: int) -> bool:
    """Whether the `best` largest of logits [V] are there with their bits, and nothing is there that is not so."""
    least = np.partition(whole, len(whole) - best)[len(whole) - best]
    needed, there = whole >= least, few > -np.inf
    return bool(there[needed].all()) and np.array_equal(whole[there], few[there])


def compare(model: Model, ids: np.ndarray, best: int, size: int, until: float) -> dict[str, Any]:
    """Counts over the tokens of a text, as far as time allows."""
    counts: dict[str, Any] = dict.fromkeys(("tokens", "steps", "exceptions", "widened_steps", "whole_head_steps"), 0)
    read = 0
    for start in range(0, len(ids) - size + 1, size):
        if time.perf_counter() > until:
            break
        piece, pos = ids[start : start + size], start // size % (CONTEXT // size) * size + np.arange(size)
        step = piece, np.zeros(size, np.int64), pos, np.ones(size, bool)
        whole = model.step(*step).values.copy()
        few = model.step(*step, best=best).values
        counts["exceptions"] += sum(not same_best(a, b, best) for a, b in zip(whole, few, strict=True))
        counts["tokens"] += size
        counts["steps"] += 1
        blocks = model.best_blocks
        if blocks is None:
            raise SystemExit(f"{model.name}: reads the whole head in steps of {size}; try --step 1")
        counts["widened_steps"] += int(blocks[BEST_ROUNDS - 1] > 0)
        counts["whole_head_steps"] += int(blocks[BEST_ROUNDS] > 0)
        read += int(blocks.sum())
    counts["share_of_blocks_by_step"] = read / max(counts["steps"], 1) / -(-model.spec.vocab // 16)
    return counts


def decode(model: Model, ids: np.ndarray, best: int) -> dict[str, Any]:
    """Milliseconds of a token: the least of all turns, and the medians of turns; row blocks read for the best."""
    ways: dict[str, int | None] = {"whole": None, "best": best, "greedy": 1}
    times: dict[str, list[list[float]]] = {way: [] for way in ways}
    read: dict[str, list[int]] = {way: [] for way in ways}
    prompt = min(256, len(ids) // 2)
    model.prefill(ids[:prompt])
    for turn in range(TURNS + 1):  # the first one warms up
        for way, k in ways.items():
            seconds = []
            for i in range(TURN):
                at = prompt + i
                token = ids[(at + turn * TURN) % len(ids)]
                began = time.perf_counter()
                model.step([token], [0], [at], [True], best=k)
                seconds.append(time.perf_counter() - began)
                if model.best_blocks is not None:
                    read[way].append(int(model.best_blocks.sum()))
            if turn:
                times[way].append(seconds)
    blocks = -(-model.spec.vocab // 16)
    return {
        way: {
            "least_ms": 1e3 * min(map(min, found)),
            "median_ms_by_turn": [1e3 * float(np.median(seconds)) for seconds in found],
            "share_of_blocks": float(np.mean(read[way])) / blocks if read[way] else 1.0,
        }
        for way, found in times.items()
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000, help="of all texts together")
    parser.add_argument("--best", type=int, default=40)
    parser.add_argument("--step", type=int, default=1, help="tokens of a step")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which comparing ends")
    asked = parser.parse_args()
    result: dict[str, Any] = {"model": Path(asked.model).name, "best": asked.best, "texts": {}}
    with open_model(asked.model, LoadOptions(ctx=CONTEXT, threads=asked.threads)) as loaded:
        model = loaded.model
        result["formats"] = {name: model.weights.format(name) for name in ("embed", "head.coarse")}
        for text in asked.texts:
            ids = np.array(loaded.encode(text.read_text(encoding="utf-8"))[: asked.tokens // len(asked.texts)])
            until = time.perf_counter() + asked.seconds / len(asked.texts)
            result["texts"][text.name] = compare(model, ids, asked.best, asked.step, until)
            result["decode"] = decode(model, ids, asked.best)
    print_result(result)
    write_result(result, asked.output)


if __name__ == "__main__":
    main()
