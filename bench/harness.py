"""What the scripts of this folder share: options, token ids, turns with a probe of the machine, and results.

The scripts run from a checkout, as `python bench/NAME.py`; importing this module makes the checkout's packages
importable. It imports nothing but the standard library by itself, so that a peer's interpreter can use it, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    import numpy as np

    from lapinfer.model import Model

PROMPT, ANSWER = 512, 64
"""Tokens of a measured prompt, and of what is decoded after it."""


def argument_parser(
    description: str | None, *, threads: bool = True, repetitions: int | None = None, output: bool = True
) -> argparse.ArgumentParser:
    """A parser with the options that scripts share: -t, -r (where there are repetitions) and -o."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if threads:
        parser.add_argument("-t", "--threads", type=int, default=2)
    if repetitions is not None:
        parser.add_argument("-r", "--repetitions", type=int, default=repetitions)
    if output:
        parser.add_argument("-o", "--output", type=Path)
    return parser


def commit() -> str | None:
    """The checkout's commit, with a + where it was changed; None where git does not know one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_result(result: Mapping[str, Any], path: Path | None) -> None:
    """A result as JSON, with machine, commit and time: into a file, where one is named."""
    from lapinfer.machine import description

    if path is not None:
        path.write_text(json.dumps(_stamped(result, description()), indent=1) + "\n", encoding="utf-8")


def print_result(result: Mapping[str, Any]) -> None:
    """The same on standard output."""
    from lapinfer.machine import description

    print(json.dumps(_stamped(result, description()), indent=1))


def _stamped(result: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"machine": machine, "commit": commit(), "when": when, **result}


def text_ids(folder: Path | None, text: Path, count: int) -> list[int]:
    """The first `count` tokens of a text, by the tokenizer of a folder."""
    from lapinfer.text.tokenizer import Tokenizer

    tokenizer = None if folder is None else Tokenizer.from_folder(folder)
    if tokenizer is None:
        raise SystemExit(f"{folder}: has no tokenizer.json")
    return [int(i) for i in tokenizer.encode(text.read_text(encoding="utf-8")[: 32 * count])[:count]]


def prefill_and_decode(model: Model, ids: np.ndarray) -> dict[str, float]:
    """Tokens per second of a prompt of PROMPT ids and of decoding the rest, and MB that each of these touched."""
    from lapinfer.report.timing import Watch

    prefill, watch, answer = Watch(model).prefill(ids[:PROMPT]), Watch(model), len(ids) - PROMPT
    return {
        "prefill": PROMPT / prefill, "decode": answer / watch.decode(ids, PROMPT, answer),
        "touched_mb": watch.meter.totals()["bytes"] / answer / 1e6,
    }  # fmt: skip


def probe(threads: int) -> dict[str, float]:
    """How well two threads scale right now (2 when each has a core of its own), and bytes per second that are read."""
    from lapinfer.report.bandwidth import read_bandwidth, thread_scaling

    return {"scaling": thread_scaling(), "bandwidth": read_bandwidth(threads)}


def take_turns(
    sides: Mapping[str, Callable[[], dict[str, float]]], repetitions: int, threads: int
) -> list[dict[str, Any]]:
    """What each side measures, A B A B …: whatever else the machine does meets all. Each turn begins with a probe.

    A turn before these warms up, and is not counted.
    """
    for measure in sides.values():
        measure()
    return [
        probe(threads) | {name: measure() for name, measure in sides.items()} for _ in range(repetitions)
    ]  # fmt: skip


def paired(turns: Sequence[Mapping[str, Any]], ours: str, theirs: str, threads: int) -> dict[str, Any]:
    """Medians of both sides and of their paired ratios, over the turns in which threads had cores of their own."""
    from lapinfer.report.doctor import SCALING_WANTED

    good = [turn for turn in turns if threads < 2 or turn["scaling"] >= SCALING_WANTED]
    counted = good or turns
    row: dict[str, Any] = {
        "good": len(good), "scaling": median(turn["scaling"] for turn in turns),
        "bandwidth": median(turn["bandwidth"] for turn in counted),
    }  # fmt: skip
    for test in ("prefill", "decode"):
        for side in (ours, theirs):
            row[f"{test}_{side}"] = median(turn[side][test] for turn in counted)
        row[f"{test}_ratio"] = median(turn[ours][test] / turn[theirs][test] for turn in counted)
    return row


def paired_line(row: Mapping[str, Any], ours: str, theirs: str, turns: int) -> str:
    """What `paired` found, for people."""
    tests = ", ".join(
        f"{test} {row[f'{test}_{ours}']:.1f} / {row[f'{test}_{theirs}']:.1f} = {row[f'{test}_ratio']:.2f}×"
        for test in ("prefill", "decode")
    )
    return (
        f"{tests}  (two-thread scaling {row['scaling']:.2f}, {row['good']} of {turns} turns with cores of their own, "
        f"reads {row['bandwidth'] / 1e9:.1f} GB/s)"
    )
