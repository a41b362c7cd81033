"""Random JSON schemas: is every finished answer valid, and what does decoding by a schema cost?

    python bench/schemas.py MODEL [--schemas 1000] [--tokens 400] [--seconds 3600] [--turns 5] [-o OUT.json]

Each schema gets one answer at temperature 1, without top-k, eight in shared steps, until as many as wanted have come to
their end, and each of these validates by the package jsonschema. Those that were cut by their length, and schemas that
llguidance does not know how to meet, are counted. Before that the same prompt is answered with and
without a schema in turns, each also with all logits, as if no head were read in two passes; nothing is guessed.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter, deque
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import jsonschema
from harness import argument_parser, print_result, write_result
from random_schemas import random_schema

from lapinfer.errors import InputError
from lapinfer.text.language_model import LanguageModel, load
from lapinfer.text.scheduler import Scheduler
from lapinfer.text.ticket import Ticket

PROMPT = "Write a long list of animals as JSON."
ANIMALS = {"type": "array", "items": {"type": "string"}, "minItems": 60}
ANSWER = 160
SLOTS = 8
Schema = dict[str, Any]


def answered(model: LanguageModel, count: int, tokens: int, seconds: float) -> dict[str, Any]:
    """Counts of valid, wrong, cut and refused answers; wrong ones are told whole."""
    counts: Counter[str] = Counter()
    wrong, refused, until = [], Counter[str](), time.monotonic() + seconds
    running: deque[tuple[int, Schema, Ticket]] = deque()
    with Scheduler(model) as scheduler:
        for seed in itertools.count():
            if counts["valid"] + counts["wrong"] >= count or time.monotonic() > until:
                break
            schema = random_schema(Random(seed))
            options: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "seed": seed, "max_tokens": tokens}
            try:
                running.append((seed, schema, scheduler.submit(model.request("JSON: ", schema=schema, **options))))
            except InputError as error:
                counts["refused"] += 1
                refused[str(error)[:80]] += 1
            if len(running) > SLOTS:
                _judge(*running.popleft(), counts, wrong)
        for entry in running:
            _judge(*entry, counts, wrong)
    return {**counts, "refusals": dict(refused), "wrongs": wrong}


def _judge(seed: int, schema: Schema, ticket: Ticket, counts: Counter[str], wrong: list[dict[str, Any]]) -> None:
    answer = ticket.result()
    if answer.finish_reason != "stop":
        counts["cut"] += 1
        return
    try:
        jsonschema.validate(json.loads(answer.text), schema)
        counts["valid"] += 1
    except (ValueError, jsonschema.ValidationError) as error:
        counts["wrong"] += 1
        wrong.append({"seed": seed, "text": answer.text, "reason": str(error).splitlines()[0]})


def speeds(model: LanguageModel, turns: int) -> dict[str, Any]:
    """Tokens per second of each kind, medians of turns, and the ratio to plain decoding."""
    by_schema, whole = {"schema": ANIMALS}, {"logprobs": True}
    kinds = {"plain": {}, "all logits": whole, "schema": by_schema, "schema, all logits": by_schema | whole}
    found: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
    for turn in range(turns + 1):
        for kind, options in kinds.items():
            answer = model.generate(PROMPT, seed=turn, max_tokens=ANSWER, speculate=False, **options)
            if turn and answer.finish_reason == "length":  # the first one warms up; short ones measure nothing
                found[kind][turn] = answer.timings.tokens_per_second
    result = {kind: round(median(values.values()), 1) for kind, values in found.items() if values}
    for one, other in (("schema", "plain"), ("schema", "schema, all logits")):
        ratios = [value / found[other][turn] for turn, value in found[one].items() if turn in found[other]]
        result[f"{one} / {other}"] = round(median(ratios or [0.0]), 3)
    return result


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=1000, help="answers that come to their end")
    parser.add_argument("--tokens", type=int, default=400, help="most of an answer")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with load(options.model, threads=options.threads, slots=SLOTS, ctx=2 * options.tokens) as model:
        result = {"model": Path(options.model).name, "decode": speeds(model, options.turns)}
        result["schemas"] = answered(model, options.schemas, options.tokens, options.seconds)
    print_result(result)
    write_result(result, options.output)


if __name__ == "__main__":
    main()
