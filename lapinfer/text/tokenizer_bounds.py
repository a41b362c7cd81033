"""Bounds on what the file of a tokenizer can cost: it comes from anybody, and the library that runs it has none.

Before it is parsed, its bytes and values are counted. Then its steps are looked at: how many there are, and how much
longer they can make a text. Its patterns are known ones, or texts are encoded within a time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

import tokenizers

from lapinfer.checkpoint.pretokenizers import CUTS
from lapinfer.errors import CheckpointError

MOST_BYTES: Final = 64 << 20
"""Of tokenizer.json. Gemma's, the largest that is published, has 33 MB."""
MOST: Final = {b'":': 1_000_000, b"[": 2_000_000, b",": 4_000_000}
"""What entries of vocabularies, merges and lists of tokens are told by. Gemma's has a third of these."""
MOST_STEPS: Final = 64
"""Of a normalizer, pre-tokenizer, post-processor or decoder, parts of parts included; published ones have up to 20."""
MOST_GROWTH: Final = 64
"""How many times longer replacements may make a text, all of them together; those that are published: three times."""
MOST_SECONDS, SECONDS_PER_CHARACTER = 10.0, 20e-6
"""How long encoding a text may take where the patterns are not known ones; usual ones take 0.2 µs a character."""
SHORT: Final = 2_000
"""Characters of a text that no pattern takes long for: the library ends a match after ten million steps."""

T = TypeVar("T")


def check_size(data: bytes, where: str) -> None:
    """CheckpointError for a tokenizer.json that would take too long, or too much memory, to be parsed."""
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{where}: has more than {MOST_BYTES >> 20} MB, expected less")
    for mark, most in MOST.items():
        if (found := data.count(mark)) > most:
            raise CheckpointError(f"{where}: has about {found:,} values, expected at most {most:,} of their kind")


def check_steps(backend: tokenizers.Tokenizer, where: str) -> None:
    """CheckpointError for steps that could make a text endlessly long, or that are endlessly many."""
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        steps, growth = list(islice(_steps(getattr(backend, name)), MOST_STEPS + 1)), 1.0
        if len(steps) > MOST_STEPS:
            raise CheckpointError(f"{where}: its {name} has more than {MOST_STEPS} parts, expected fewer")
        for step in steps:
            growth *= _growth(step)
        if growth > MOST_GROWTH:
            raise CheckpointError(
                f"{where}: its {name} can make a text {growth:.3g} times as long, expected at most {MOST_GROWTH} times"
            )


def unknown_patterns(backend: tokenizers.Tokenizer) -> bool:
    """Whether there are patterns that none of the usual tokenizers has: they may take any time."""
    steps = [*_steps(backend.normalizer), *_steps(backend.pre_tokenizer)]
    found = {step["pattern"]["Regex"] for step in steps if "Regex" in (step.get("pattern") or ())}
    return not found <= {pattern for cut in CUTS.values() for pattern in cut.patterns}


def within_time(encode: Callable[[], T], characters: int, where: str) -> T:
    """encode() in a thread of its own, which is left alone after a time; it must not hold Python's lock."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((encode(), None))
        except BaseException as error:  # a Rust panic arrives as a BaseException; it is raised where it is waited for
            result.append((None, error))

    seconds = MOST_SECONDS + SECONDS_PER_CHARACTER * characters
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise CheckpointError(
            f"{where}: encoding {characters:,} characters takes more than {seconds:.0f} s: its patterns are too slow"
        )
    value, error = result[0]
    if error is not None:
        raise error
    return value


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer and its parts, as JSON has them, and each piece of a template."""
    todo = [] if part is None else [json.loads(part.__getstate__())]
    while todo:
        step = todo.pop()
        yield step
        for key in ("normalizers", "pretokenizers", "processors", "decoders", "single"):
            todo += [inner for inner in step.get(key) or () if isinstance(inner, dict)]


def _growth(step: dict[str, Any]) -> float:
    """How many times longer a step can make a text."""
    match step.get("type"):
        case "Replace":
            pattern, content = step["pattern"], step["content"]
            length = len(pattern.get("String") or "")
            return max(1.0, len(content) / length) if length else 1.0 + len(content)
        case "Prepend":
            return 1.0 + len(step["prepend"]) / 16
        case "TemplateProcessing":
            return max(1, sum("Sequence" in piece for piece in step["single"]))
        case _:
            return 1.0
