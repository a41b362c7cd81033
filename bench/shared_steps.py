"""Requests that share steps: tokens per second of all, and how long those that decode wait while a long prompt is read.

For each number of sequences: tokens per second of them together, in turns, beside one; what Python takes of a step
beside the model; then, while they decode, a prompt of --prompt tokens arrives, and a short one after it: the gaps
between tokens of the others before and meanwhile, and when the two have their first token.

    python bench/shared_steps.py MODEL --text TEXT [--slots 1,4,8] [-r 5] [-o results/NAME.json]
"""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from harness import argument_parser, write_result

if TYPE_CHECKING:
    from lapinfer.text.language_model import LanguageModel
    from lapinfer.text.scheduler import Scheduler

BEGINNING, TOKENS, SHORT = 100, 64, 40
"""Tokens of a sequence's prompt, of its answer where speed is measured, and of the short prompt."""
SAMPLING: dict[str, Any] = {"temperature": 0.8, "seed": 1}


def together(model: LanguageModel, prompts: list[list[int]]) -> float:
    """Tokens per second after the last one has begun."""
    model.forget()
    began = time.perf_counter()
    answers = model.generate_batch(prompts, max_tokens=TOKENS, **SAMPLING)
    seconds = time.perf_counter() - began
    first = max(answer.timings.ttft_ms for answer in answers) / 1e3
    return sum(len(answer.tokens) - 1 for answer in answers) / (seconds - first)


def beside_model(model: LanguageModel, prompts: list[list[int]]) -> float:
    """Milliseconds of a step that the threads of the model do not run."""
    steps: list[float] = []
    run, inside = model.model.runner.run, [0.0]

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return run(*arguments)
        finally:
            inside[0] += time.perf_counter() - began

    model.forget()
    model.model.runner.run = timed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        last = None
        for index, _ in model.stream_batch(prompts, max_tokens=TOKENS, **SAMPLING):
            if index == 0:
                now = time.perf_counter()
                if last is not None:
                    steps.append((now - last) - inside[0])
                last, inside[0] = now, 0.0
    finally:
        model.model.runner.run = run
    return median(steps) * 1e3


def arrival(model: LanguageModel, scheduler: Scheduler, beginnings: list[list[int]], long: list[int]) -> dict[str, Any]:
    """Gaps of those that decode before and while a long prompt is read, in ms, and times to first tokens."""
    model.forget()
    length = 600
    others = [scheduler.submit(model.request(ids, max_tokens=length, **SAMPLING)) for ids in beginnings]
    times: list[list[float]] = [[] for _ in others]
    going = threading.Event()

    def read(index: int) -> None:
        for _ in others[index]:
            times[index].append(time.perf_counter())
            if len(times[index]) == 60:
                going.set()

    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(others))]
    for reader in readers:
        reader.start()
    going.wait()
    began = time.perf_counter()
    first = scheduler.submit(model.request(long, max_tokens=1))
    time.sleep(0.05)
    late = time.perf_counter()
    second = scheduler.submit(model.request(long[-SHORT:], max_tokens=1))
    second.result()
    short_s = time.perf_counter() - late
    first.result()
    ended = time.perf_counter()
    for other in others:
        other.cancel()
    for reader in readers:
        reader.join()

    def gaps(start: float, stop: float) -> list[float]:
        found = [(a, b) for each in times for a, b in pairwise(each)]
        return [(b - a) * 1e3 for a, b in found if start <= a and b <= stop]

    before, meanwhile = gaps(0, began), gaps(began, ended)
    return {
        "median_before_ms": median(before), "p99_before_ms": quantiles(before, n=100)[98],
        "median_meanwhile_ms": median(meanwhile), "p99_meanwhile_ms": quantiles(meanwhile, n=100)[98],
        "p99_to_median": quantiles(meanwhile, n=100)[98] / median(before),
        "long_first_token_s": ended - began, "short_first_token_s": short_s,
    }  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__, repetitions=5)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--slots", default="1,2,4,8")
    parser.add_argument("--prompt", type=int, default=2000)
    given = parser.parse_args()

    import lapinfer
    from lapinfer.text.scheduler import Scheduler

    counts = [int(count) for count in given.slots.split(",")]
    model = lapinfer.load(given.model, slots=max(counts) + 2, ctx=given.prompt + 1000, threads=given.threads)
    ids = model.encode(given.text.read_text(encoding="utf-8")[20_000:60_000])
    prompts = [ids[i * 120 : i * 120 + BEGINNING] for i in range(max(counts))]
    long = ids[-given.prompt :]
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    arrivals: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    together(model, prompts)
    for _ in range(given.repetitions):
        for count in counts:
            speeds[count].append(together(model, prompts[:count]))
    with Scheduler(model) as scheduler:
        for _ in range(given.repetitions):
            for count in counts:
                arrivals[count].append(arrival(model, scheduler, prompts[:count], long))
    rows: list[dict[str, Any]] = []
    for count in counts:
        ratios = [speed / one for speed, one in zip(speeds[count], speeds[counts[0]], strict=True)]
        row = {
            "sequences": count, "tokens_per_second": median(speeds[count]), "to_first": median(ratios),
            "beside_model_ms": beside_model(model, prompts[:count]),
            **{name: median(each[name] for each in arrivals[count]) for name in arrivals[count][0]},
        }  # fmt: skip
        rows.append(row)
        print(", ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
    write_result({"model": given.model, "prompt": given.prompt, "rows": rows}, given.output)


if __name__ == "__main__":
    main()
