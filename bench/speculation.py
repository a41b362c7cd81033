"""Speculation against plain decoding: tasks whose answers repeat their prompts, and ordinary chat.

    python bench/speculation.py [-m MODEL] [--draft MODEL] [-t 2] [-r 3] [-o bench/results/speculation.json]

Each task of bench/speculation_tasks.json is answered without speculation and with it, token by token in turns, each in
a slot of its own: other work on the machine slows both alike. Greedy and with seeded sampling, both must give the same
tokens, or the script fails. A task's ratio is the median of its repetitions', prompts not counted; what is printed of
all tasks is mean, median and range.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from harness import argument_parser, probe, write_result

if TYPE_CHECKING:
    from lapinfer.text.generation import Token
    from lapinfer.text.language_model import LanguageModel

TASKS = Path(__file__).parent / "speculation_tasks.json"
MODEL = "smollm2"


def begun(model: LanguageModel, task: dict[str, str], **options: Any) -> Iterator[Token]:
    messages = [{"role": "user", "content": task["prompt"]}]
    if "begin" in task:
        messages.append({"role": "assistant", "content": task["begin"]})
        options["continue_final_message"] = True
    return model.stream_chat(messages, **options)


def raced(sides: dict[bool, Iterator[Token]]) -> tuple[dict[bool, list[Token]], dict[bool, float]]:
    """What both say, and the seconds of each after its first token."""
    said: dict[bool, list[Token]] = {side: [] for side in sides}
    seconds = dict.fromkeys(sides, 0.0)
    turn = 0
    while sides:
        for side in sorted(sides, reverse=bool(turn % 2)):
            began = perf_counter()
            token = next(sides[side], None)
            if said[side]:
                seconds[side] += perf_counter() - began
            if token is None:
                del sides[side]
            else:
                said[side].append(token)
        turn += 1
    return said, seconds


def compared(model: LanguageModel, task: dict[str, str], repetitions: int, **options: Any) -> dict[str, Any]:
    """Speeds of both sides, and what was guessed; SystemExit when they do not say the same."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    said: dict[bool, list[Token]] = {}
    for _ in range(repetitions):
        sides = {side: begun(model, task, speculate=side, slot=int(side), **options) for side in (False, True)}
        said, seconds = raced(sides)
        if [token.token for token in said[True]] != [token.token for token in said[False]]:
            raise SystemExit(f"{task['name']}: speculation changes the answer ({options})")
        for side, tokens in said.items():
            speeds[side].append((len(tokens) - 1) / seconds[side])
    timings = said[True][-1].timings
    return {
        "task": task["name"], **options, "tokens": len(said[True]), "steps": timings.steps,
        "drafted": timings.drafted_tokens, "kept": timings.kept_tokens, "plain": speeds[False],
        "speculative": speeds[True], "ratio": median(b / a for a, b in zip(speeds[False], speeds[True], strict=True)),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    ratios = [row["ratio"] for row in rows]
    return {
        "tasks": len(rows), "mean": fmean(ratios), "median": median(ratios), "least": min(ratios), "most": max(ratios),
        "tokens_per_step": sum(row["tokens"] for row in rows) / sum(row["steps"] for row in rows),
        "plain": median(median(row["plain"]) for row in rows),
        "speculative": median(median(row["speculative"]) for row in rows),
    }  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__, repetitions=3)
    parser.add_argument("-m", "--model", default=MODEL)
    parser.add_argument("--draft", help="a smaller model with the same tokens, which guesses, too")
    parser.add_argument("-n", "--max-tokens", type=int, default=200)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0, 0.3, 0.8])
    parser.add_argument("--only", help="tasks whose kind and name (chat sky) have this in them")
    args = parser.parse_args()

    from lapinfer import load

    draft = {} if args.draft is None else {"draft": args.draft}
    tasks, rows, sums = json.loads(TASKS.read_text(encoding="utf-8")), [], {}
    machine = [probe(args.threads)]
    with load(args.model, threads=args.threads, slots=2, **draft) as model:
        raced({False: begun(model, tasks["chat"][0], max_tokens=20)})
        for kind in ("copying", "chat"):
            for temperature in args.temperatures:
                found = []
                for task in tasks[kind]:
                    if args.only is None or args.only in f"{kind} {task['name']}":
                        options = {"temperature": temperature, "seed": 1, "max_tokens": args.max_tokens}
                        row = {"kind": kind} | compared(model, task, args.repetitions, **options)
                        found.append(row)
                        print(
                            f"{kind} {temperature:g} {task['name']:28} {row['ratio']:5.2f}×  {row['tokens']} tokens in "
                            f"{row['steps']} steps, {row['kept']} of {row['drafted']} guesses right",
                            flush=True,
                        )
                if found:
                    sums[f"{kind} {temperature:g}"] = total = summary(found)
                    print(
                        f"== {kind}, temperature {temperature:g}: mean {total['mean']:.2f}×, median "
                        f"{total['median']:.2f}×, {total['least']:.2f} to {total['most']:.2f}×, "
                        f"{total['tokens_per_step']:.2f} tokens per step",
                        flush=True,
                    )
                rows += found
        machine.append(probe(args.threads))
        result = {"model": Path(model.model.name).name, "draft": args.draft, "threads": args.threads, "probes": machine}
        write_result(result | {"summary": sums, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
