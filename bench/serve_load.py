"""Load on a server that has OpenAI's /v1/chat/completions: ours, llama.cpp's, or another.

    python bench/serve_load.py TEXT --server URL [--clients 1,8,32] [--kinds short,200,800] [--each 6] [--tokens 64]
    python bench/serve_load.py TEXT --server URL --stall [--clients 4] [--prompt 2000] [--turns 5]
    python bench/serve_load.py TEXT --server URL --count 10000 [--clients 32] [--tokens 4]
    python bench/serve_load.py TEXT --server URL --soak MINUTES --pid PID [--clients 8]
        [--model NAME] [--key KEY] [--seed 0] [-o FILE]

The first way: so many clients, each of whom asks again when its answer has ended; prompts of mixed lengths, cut from
TEXT. --stall: gaps between the tokens of steady clients, alone and while a long prompt is read. --count: short
requests; none may be lost, and the same question must have the same answer. --soak: mixed requests, some of which are
left in the middle, and the memory of the process PID (its slope from the second half on).

Tokens are those of the server's `usage`; gaps are those between texts that came a millisecond or more apart, since a
server may choose several tokens in one step. The load runs on the same cores as the server: `load_cpu` is the share of
a core that it took.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
from harness import argument_parser, print_result, write_result
from prompts import SHORT, Prompts
from server_process import memory
from stream_client import Answer, Client, Question, read

ONES = ["red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "silver"]
OTHERS = ["fox", "hen", "owl", "cat", "dog", "cow", "bee", "ant", "eel", "elk"]
LEAVERS = 0.1
"""Share of a soak's clients who go away in the middle."""
EVERY = 10.0
"""Seconds between two looks at a process's memory."""


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median, 99th percentile and largest."""
    if not seconds:
        return None
    p50, p99 = np.percentile(np.array(seconds) * 1e3, (50, 99))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(max(seconds) * 1e3, 2)}


def outcome(answers: Sequence[Answer]) -> dict[str, Any]:
    """What went wrong, and how many did not."""
    errors = Counter(answer.error for answer in answers if answer.error)
    return {
        "requests": len(answers), "errors": sum(errors.values()), "lost": sum(answer.lost for answer in answers),
        "left": sum(answer.left for answer in answers), "messages": dict(errors.most_common(5)),
    }  # fmt: skip


def speeds(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Tokens per second of all clients together, and what one of them feels."""
    tokens, prompt = (sum(getattr(answer, name) for answer in answers) for name in ("tokens", "prompt_tokens"))
    return {
        "seconds": round(seconds, 3), "tokens": tokens, "prompt_tokens": prompt,
        "tokens_per_second": round(tokens / seconds, 2),
        "prompt_tokens_per_second": round(prompt / seconds, 2),
        "first_ms": {
            kind: milliseconds([a.first for a in answers if a.kind == kind and a.first is not None])
            for kind in sorted({answer.kind for answer in answers})
        },
        "gap_ms": milliseconds([gap for answer in answers for gap in answer.gaps]),
    }  # fmt: skip


async def load(
    client: Client, prompts: Prompts, clients: int, *, kinds: list[str], each: int, tokens: int
) -> dict[str, Any]:
    """One level: as many clients, each with so many requests on the average."""
    questions = list(prompts.mixed(kinds, clients * each, tokens))
    began, cpu = time.perf_counter(), time.process_time()
    heard = await client.ask_all(questions, clients)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    answers = [read(one) for one in heard]
    return {
        "clients": clients, **outcome(answers), **speeds(answers, seconds), "load_cpu": round(cpu / seconds, 3),
    }  # fmt: skip


async def stall(
    client: Client, prompts: Prompts, clients: int, *, prompt: int, tokens: int, turns: int
) -> dict[str, Any]:
    """Gaps between tokens of steady clients without and with a prompt that is read beside them.

    With: those that end between its arrival and its first token. Without: those before it came, but not while the
    steady ones' own prompts were read.
    """
    rows = []
    for _ in range(turns):
        steady = [asyncio.create_task(client.ask(prompts.question(SHORT, tokens))) for _ in range(clients)]
        await asyncio.sleep(0.3)
        quiet = time.perf_counter()
        await asyncio.sleep(0.5)
        long = read(await client.ask(prompts.question(str(prompt), 1)))
        answers = [read(await one) for one in steady]
        if long.first is None or long.error or any(answer.error for answer in answers):
            raise SystemExit(f"the server failed: {long.error or [answer.error for answer in answers]}")
        arrived, done = long.sent, long.sent + long.first
        gaps = [gap for answer in answers for gap in pairwise(answer.arrivals)]
        alone = [after - before for before, after in gaps if quiet <= before and after <= arrived]
        beside = [after - before for before, after in gaps if arrived < after and before < done]
        if not alone or not beside:
            raise SystemExit("the steady clients' answers ended too early: raise --tokens")
        rows.append(
            {"alone_ms": milliseconds(alone), "beside_ms": milliseconds(beside),
             "first_ms": round(long.first * 1e3, 1), "prompt_tokens": long.prompt_tokens,
             "gaps": [len(alone), len(beside)],
             "p99_to_median": round(float(np.percentile(beside, 99)) / median(alone), 2)}
        )  # fmt: skip
    return {
        "clients": clients, "turns": rows, "p99_to_median": median(row["p99_to_median"] for row in rows),
        "worst": max(row["p99_to_median"] for row in rows),
    }  # fmt: skip


async def count(client: Client, clients: int, *, requests: int, tokens: int) -> dict[str, Any]:
    """Short requests: how many were lost, and how many answers differed from others to the same question."""
    texts = [f"A {one} {other}" for one in ONES for other in OTHERS]
    questions = (Question(texts[index % len(texts)], texts[index % len(texts)], tokens) for index in range(requests))
    began = time.perf_counter()
    answers = [read(one) for one in await client.ask_all(questions, clients)]
    seconds = time.perf_counter() - began
    first = {answer.kind: answer.text for answer in answers if not answer.error and not answer.lost}
    other = sum(answer.text != first.get(answer.kind) for answer in answers if not answer.error and not answer.lost)
    return {
        "clients": clients, **outcome(answers), "other_answers": other, "seconds": round(seconds, 1),
        "requests_per_second": round(requests / seconds, 1),
    }  # fmt: skip


async def soak(
    client: Client, prompts: Prompts, clients: int, *, minutes: float, pid: int, kinds: list[str], tokens: int
) -> dict[str, Any]:
    """Requests without an end, and what memory the server has meanwhile."""
    until, random = time.perf_counter() + 60 * minutes, Random(0)
    looks: list[dict[str, float]] = []
    sums: Counter[str] = Counter()
    messages: Counter[str] = Counter()

    async def ask() -> None:
        while time.perf_counter() < until:
            leave = random.randrange(1, 12) if random.random() < LEAVERS else None
            answer = read(await client.ask(prompts.question(random.choice(kinds), tokens, leave)))
            sums.update(
                requests=1, tokens=answer.tokens, lost=answer.lost, left=answer.left, errors=answer.error is not None
            )
            if answer.error:
                messages[answer.error] += 1

    async def look() -> None:
        began = time.perf_counter()
        while time.perf_counter() < until:
            looks.append({"second": round(time.perf_counter() - began, 1), **memory(pid)})
            await asyncio.sleep(EVERY)

    await asyncio.gather(look(), *(ask() for _ in range(clients)))
    return {
        "clients": clients, "minutes": minutes, **sums, "messages": dict(messages.most_common(5)),
        "mb_per_hour": {name: slope(looks, name) for name in ("rss", "anonymous")}, "looks": looks,
    }  # fmt: skip


def slope(looks: Sequence[dict[str, float]], name: str) -> float | None:
    """MB per hour of a fitted line through the second half, which begins when caches are full."""
    late = looks[len(looks) // 2 :]
    if len(late) < 3:
        return None
    return round(float(np.polyfit([look["second"] for look in late], [look[name] for look in late], 1)[0]) * 3600, 2)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for, of a server that runs."""
    levels = [int(each) for each in options.clients.split(",")] if options.clients else None
    prompts, kinds = Prompts(options.text, options.seed), options.kinds.split(",")
    async with Client(options.server, model=options.model, key=options.key) as client:
        about = {"model": client.model, "text": options.text.name}
        if options.count:
            found = await count(client, (levels or [32])[0], requests=options.count, tokens=options.tokens or 4)
            return about | {"count": found}
        await prompts.measure(client)
        if options.stall:
            found = await stall(
                client, prompts, (levels or [4])[0],
                prompt=options.prompt, tokens=options.tokens or 400, turns=options.turns,
            )  # fmt: skip
            return about | {"stall": found}
        tokens = options.tokens or 64
        if options.soak:
            found = await soak(
                client, prompts, (levels or [8])[0],
                minutes=options.soak, pid=options.pid, kinds=kinds, tokens=tokens,
            )  # fmt: skip
            return about | {"soak": found}
        rows = []
        for clients in levels or [1, 8, 32]:
            rows.append(await load(client, prompts, clients, kinds=kinds, each=options.each, tokens=tokens))
            print(line(rows[-1]), flush=True)
        return about | {"kinds": kinds, "levels": rows}


def line(row: dict[str, Any]) -> str:
    """A level, for people."""
    gap, first = row["gap_ms"], row["first_ms"]
    waits = ", ".join(f"{kind} {each['p50']:.0f}" for kind, each in first.items() if each)
    return (
        f"{row['clients']:3} clients: {row['tokens_per_second']:7.1f} tok/s, first ms {waits}; gap ms "
        f"p50 {gap['p50']:.1f} p99 {gap['p99']:.1f}; {row['errors']} errors, {row['lost']} lost, "
        f"load took {row['load_cpu']:.0%} of a core"
    )


def parser() -> argparse.ArgumentParser:
    """Options of the script; `measure` takes what it parses."""
    parser = argument_parser(__doc__, threads=False)
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--server", required=True, metavar="URL")
    parser.add_argument("--model", help="as the server names it; the first one that it tells")
    parser.add_argument("--key")
    parser.add_argument("--clients")
    parser.add_argument("--kinds", default="short,200,800")
    parser.add_argument("--each", type=int, default=6, help="requests of a client")
    parser.add_argument("--tokens", type=int, help="most tokens of an answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stall", action="store_true")
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of --stall's prompt")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--count", type=int)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--pid", type=int, help="the server's process, for --soak")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.soak and not options.pid:
        raise SystemExit("--soak needs --pid: whose memory is looked at")
    result = asyncio.run(measure(options))
    write_result(result, options.output)
    if options.output is None:
        print_result(result)


if __name__ == "__main__":
    main()
