"""Decode speed at the default number of threads against one thread, with busy programs beside it.

    python bench/busy_laptop.py MODEL [MODEL …] > busy.json

For 0, 1 and 2 busy processes (hashing, and streaming through memory) two copies of a model in one process decode
blocks of tokens in turn: A B A B …, A at the default setting, B with one thread. The figure is the ratio of the
paired medians; wanted is at least 0.97 with one and with two busy processes on two cores. The first block of A is
not counted: it learns what the machine is like now. Every condition begins with the two-thread scaling probe.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import argument_parser, print_result

from lapinfer.loading import load_model
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.report.bandwidth import thread_scaling
from lapinfer.runtime.pace import Pace

HASHING = "import hashlib; block = bytes(1 << 20)\nwhile True: hashlib.sha256(block).digest()"
STREAMING = "import numpy; a = numpy.ones(1 << 24); b = a.copy()\nwhile True: numpy.copyto(b, a)"
NEIGHBOURS = {
    "quiet": [],
    "1 hashing": [HASHING],
    "1 streaming": [STREAMING],
    "2 hashing": [HASHING, HASHING],
    "hashing and streaming": [HASHING, STREAMING],
}


@contextmanager
def beside(programs: list[str]) -> Iterator[None]:
    """Python programs that run until the block ends."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment) for program in programs]
    try:
        time.sleep(1.0 if running else 0.0)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def block(model: Model, prompt: int, tokens: int) -> tuple[float, float, float]:
    """(tokens a second of one block, mean number of active threads, seconds of the slowest step)."""
    ends, active = [time.perf_counter()], 0
    for pos in range(prompt, prompt + tokens):
        active += model.runner.team.pace.choose(1)
        model.step([pos % model.spec.vocab], [0], [pos], [True])
        ends.append(time.perf_counter())
    return tokens / (ends[-1] - ends[0]), active / tokens, float(np.diff(ends).max())


def condition(models: tuple[Model, Model], programs: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Paired blocks of both models beside `programs`."""
    scaling = thread_scaling()
    speeds: list[list[float]] = [[], []]
    threads: list[float] = []
    slowest = [0.0, 0.0]
    for model in models:
        model.runner.team.pace = Pace(model.threads)  # nothing learned from the last condition
    with beside(programs):
        began = time.perf_counter()
        while len(speeds[0]) <= options.pairs and time.perf_counter() - began < options.seconds:
            for i, model in enumerate(models):
                speed, active, longest = block(model, options.prompt, options.tokens)
                speeds[i].append(speed)
                slowest[i] = max(slowest[i], longest)
                if i == 0:
                    threads.append(active)
        default, single = (values[1:] for values in speeds)
    pairs = [a / b for a, b in zip(default, single, strict=True)]
    return {
        "two_thread_scaling_before": round(scaling, 2),
        "pairs": len(pairs),
        "default_ts": round(median(default), 2),
        "one_thread_ts": round(median(single), 2),
        "ratio_of_medians": round(median(default) / median(single), 3),
        "median_of_ratios": round(median(pairs), 3),
        "first_block_ratio": round(speeds[0][0] / speeds[1][0], 3),
        "mean_active_threads": round(sum(threads[1:]) / len(pairs), 2),
        "slowest_step_ms": {"default": round(1e3 * slowest[0], 1), "one_thread": round(1e3 * slowest[1], 1)},
        "samples_default_ts": [round(s, 2) for s in default],
        "samples_one_thread_ts": [round(s, 2) for s in single],
    }


def main() -> None:
    parser = argument_parser(__doc__, threads=False, output=False)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--quant", default="auto")
    parser.add_argument("--prompt", type=int, default=128, help="tokens in the KV cache before each block")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a block")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0, help="longest time of a condition")
    parser.add_argument("--only", choices=[*NEIGHBOURS], action="append", help="some of the conditions (repeatable)")
    options = parser.parse_args()
    results = []
    for name in options.models:
        load = {"quant": options.quant, "ctx": options.prompt + options.tokens}
        models = load_model(name, LoadOptions(**load)), load_model(name, LoadOptions(threads=1, **load))
        for model in models:
            model.prefill(np.arange(options.prompt) % model.spec.vocab)
        for neighbours in options.only or NEIGHBOURS:
            figures = condition(models, NEIGHBOURS[neighbours], options)
            results.append({"model": Path(name).name, "beside": neighbours, **figures})
            print(f"{name}: {neighbours}: {figures['ratio_of_medians']}", file=sys.stderr)
        for model in models:
            model.close()
    print_result({"results": results})


if __name__ == "__main__":
    main()
