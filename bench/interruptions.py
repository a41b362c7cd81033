"""Ctrl-C at random moments, many times: no run may end by a signal of the C library, or with a traceback of ours.

    python bench/interruptions.py -n 2000 -j 2 -o bench/results/interruptions.json

Runs take turns in what they are about to do: answer (`warm`), compile their kernels (`cold`: an empty kernel cache),
pack their weights (`packing`: an empty LAPINFER_HOME), and measure (`bench`). SIGINT comes 0 to 2 s after the start, in
every third run twice. Right are exit code 130, 0 where the run had ended before, and what Python itself does before our
first line and after our last one: -2, death by SIGINT, or 1 with its own KeyboardInterrupt.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 2.0
"""Seconds from the start to the signal, at most."""
KINDS = ("warm", "cold", "packing", "bench")
RIGHT = (0, 130, -signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str
    delay: float
    twice: bool
    code: int
    errors: str

    @property
    def wrong(self) -> bool:
        ours = "lapinfer/" in self.errors
        if self.code == 1 and "KeyboardInterrupt" in self.errors:
            return ours
        return self.code not in RIGHT or ("Traceback" in self.errors and ours)


def interrupted(number: int, seed: int, model: str, kernels: Path) -> Outcome:
    """One run, the `number`-th, and how it ended."""
    chance = random.Random(f"{seed} {number}")
    kind, delay, twice = KINDS[number % len(KINDS)], chance.uniform(0, LONGEST), number % 3 == 0
    folder = Path(tempfile.mkdtemp(prefix="interruptions-"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(kernels)}
    if kind in ("cold", "packing"):
        environment["NUMBA_CACHE_DIR" if kind == "cold" else "LAPINFER_HOME"] = str(folder)
    answer = ["run", "-m", model, "-n", "400", "--temp", "0", "It is"]
    command = ["bench", "-m", model, "-r", "99"] if kind == "bench" else answer
    process = subprocess.Popen(
        [sys.executable, "-m", "lapinfer", *command], env=environment, cwd=folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        if twice:
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGINT)
        errors = _ended(process, 120)
        if errors is None:  # a signal in Python's first milliseconds can be lost: then the run is still there to hear
            process.send_signal(signal.SIGINT)
            errors = _ended(process, 120)
        if errors is None:
            process.kill()
            errors = f"hangs: {_ended(process, 60)}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(kind, round(delay, 3), twice, process.returncode, errors[-2000:])


def _ended(process: subprocess.Popen[bytes], seconds: float) -> str | None:
    """What a process that has ended wrote to stderr."""
    try:
        return process.communicate(timeout=seconds)[1].decode(errors="replace")
    except subprocess.TimeoutExpired:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=40, help="how many runs")
    parser.add_argument("-j", type=int, default=2, help="how many at once")
    parser.add_argument("-m", "--model", default="austen-fff", help="what they run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="where the summary goes, as JSON")
    options = parser.parse_args()
    kernels = Path(os.environ.get("NUMBA_CACHE_DIR") or tempfile.mkdtemp(prefix="interruptions-kernels-"))
    once = [sys.executable, "-m", "lapinfer", "run", "-m", options.model, "-n", "2", "It is"]
    subprocess.run(
        once, env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(kernels)}, check=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    began, outcomes = time.time(), []
    with ThreadPoolExecutor(options.j) as pool:
        runs = pool.map(lambda n: interrupted(n, options.seed, options.model, kernels), range(options.n))
        for number, outcome in enumerate(runs, 1):
            outcomes.append(outcome)
            if outcome.wrong:
                print(f"wrong: {outcome}", flush=True)
            if number % 100 == 0:
                print(f"{number} of {options.n}, {sum(o.wrong for o in outcomes)} wrong", flush=True)
    codes = {kind: dict(sorted(Counter(o.code for o in outcomes if o.kind == kind).items())) for kind in KINDS}
    wrong = [
        {"kind": o.kind, "delay": o.delay, "twice": o.twice, "code": o.code, "stderr": o.errors}
        for o in outcomes if o.wrong
    ]  # fmt: skip
    summary = {
        "runs": options.n, "at_once": options.j, "model": options.model, "seed": options.seed,
        "seconds": round(time.time() - began), "python": sys.version.split()[0], "exit_codes": codes, "wrong": wrong,
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
