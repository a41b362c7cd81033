"""Fuzzing: mutants of all kinds of files are loaded and run, in processes that may die.

    python bench/fuzz.py --mutants 50000 -o bench/results/fuzz-NAME.json
    python bench/fuzz.py --only packed:1234          # one again, in this terminal

What must not happen: an end by a signal, more than 10 s of processor time for a mutant, more than 1.5 GB more memory,
an exception that is no LapinferError, a message of several lines. A mutant is a kind, a seed and a number. Stopped runs
go on where they were: finished parts are in OUTPUT.parts.
"""

from __future__ import annotations

import collections
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import ROOT, argument_parser, commit, write_result

PART = 250
"""Mutants of a process; then a new one begins, so that nothing adds up."""
SECONDS, MEGABYTES = 10.0, 1500
WAIT = 180.0
"""Seconds on the clock: a mutant that computes nothing and never ends is one that hangs, too."""
COMPILING = 900.0
CHECKED_MEMORY = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"} if sys.platform == "linux" else {}
"""The GNU C library then ends a process that has written beyond a buffer."""


@dataclass
class Part:
    """Mutants first … last − 1 of a kind, and what became of them."""

    kind: str
    first: int
    last: int
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    slowest: list[tuple[float, int]] = field(default_factory=list)
    largest: list[tuple[float, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.first}"

    def fail(self, index: int, what: str, detail: str = "") -> None:
        self.outcomes[what] += 1
        self.failures.append({"mutant": f"{self.kind}:{index}", "what": what, "detail": detail})


class Runner:
    """Runs parts, each in as many processes as it kills."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder

    def run(self, part: Part) -> Part:
        next_one = part.first
        while next_one < part.last:
            next_one = self._run_some(part, next_one)
        return part

    def _run_some(self, part: Part, first: int) -> int:
        """Start a process at `first`; the first mutant that is still to be run after it has ended."""
        reader, writer = os.pipe()
        errors = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        command = [sys.executable, "-m", "bench.fuzzing.child", part.kind, str(self.seed), str(first), str(part.last)]
        command += [str(writer), str(self.folder / part.kind), str(MEGABYTES)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder), "RUST_BACKTRACE": "0"}
        environment |= CHECKED_MEMORY
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=(writer,), stdin=subprocess.DEVNULL, stdout=errors,
            stderr=errors,
            preexec_fn=lambda: os.nice(5), start_new_session=True,
        )  # fmt: skip
        os.close(writer)
        current, why = first, ""
        with os.fdopen(reader, "rb", buffering=0) as lines:
            for line in _watched(lines, child):
                if isinstance(line, str):
                    why = line
                    break
                if "begin" in line:
                    current = line["begin"]
                elif "end" in line:
                    self._note(part, line)
                    current = line["end"] + 1
        if child.poll() is None and why:
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        if current >= part.last and not why:
            return current
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
        part.fail(current, why or f"ended with {code}", said if len(said) < 4000 else f"{said[:2000]} … {said[-2000:]}")
        return current + 1

    def _note(self, part: Part, line: dict[str, Any]) -> None:
        index, outcome = line["end"], line["outcome"]
        part.slowest = sorted([*part.slowest, (line["s"], index)], reverse=True)[:3]
        part.largest = sorted([*part.largest, (line["mb"], index)], reverse=True)[:3]
        if outcome == "wrong":
            part.fail(index, "wrong", line["detail"])
        elif line["mb"] > MEGABYTES:
            part.fail(index, "memory", f"{line['mb']} MB")
        else:
            part.outcomes[outcome] += 1


def _watched(lines: Any, child: subprocess.Popen) -> Iterator[dict[str, Any] | str]:
    """Lines of a child as they come; "hang" instead of the next one where a mutant takes too long."""
    rest, began, used, compiling = b"", time.monotonic(), _processor_seconds(child.pid), False
    first = True  # imports, and the sound model, are no mutant's
    while True:
        ready, _, _ = select.select([lines], [], [], 0.5)
        if ready:
            data = lines.read(1 << 16)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            for text in whole:
                line = json.loads(text)
                compiling = line.get("compiling", compiling)
                first = first and "end" not in line
                began, used = time.monotonic(), _processor_seconds(child.pid)
                yield line
        elif (waited := time.monotonic() - began) > (COMPILING if compiling or first else WAIT):
            yield f"waits {waited:.0f} s"
        elif not compiling and not first and _processor_seconds(child.pid) - used > SECONDS:
            yield f"takes more than {SECONDS:.0f} s"


def _processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def parts_of(total: int, kinds: list[str]) -> list[Part]:
    """Parts of all kinds, in turns, so that a run that is stopped has seen some of each."""
    from bench.fuzzing.subjects import SHARES

    whole = sum(SHARES[kind] for kind in kinds)
    parts = []
    for kind in kinds:
        count = round(total * SHARES[kind] / whole)
        parts += [Part(kind, at, min(at + PART, count)) for at in range(0, count, PART)]
    return sorted(parts, key=lambda part: (part.first / SHARES[part.kind], part.kind))


def fuzz(total: int, seed: int, kinds: list[str], processes: int, kept: Path | None = None) -> list[Part]:
    """Run this many mutants. kept: a file of finished parts, which are not run again, and to which others are added."""
    done: dict[str, Part] = {}
    if kept is not None and kept.is_file():
        for line in kept.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            part = Part(**{**values, "outcomes": collections.Counter(values["outcomes"])})
            done[part.name] = part
    todo: queue.SimpleQueue[Part] = queue.SimpleQueue()
    parts = parts_of(total, kinds)
    for part in parts:
        if part.name not in done:
            todo.put(part)
    lock = threading.Lock()

    def work(number: int) -> None:
        base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{number}-", dir=base))
        runner = Runner(seed, folder)
        while True:
            try:
                part = todo.get_nowait()
            except queue.Empty:
                break
            finished = runner.run(part)
            with lock:
                done[finished.name] = finished
                print(f"{finished.name}: {dict(finished.outcomes)}", file=sys.stderr, flush=True)
                for failure in finished.failures:
                    where = f"  {failure['mutant']}: {failure['what']}:"
                    print(where, failure["detail"][:200], "…", failure["detail"][-600:], file=sys.stderr, flush=True)
                if kept is not None:
                    with kept.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(finished.__dict__) + "\n")
        shutil.rmtree(folder, ignore_errors=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [done[part.name] for part in parts]


def summary(parts: list[Part]) -> dict[str, Any]:
    kinds: dict[str, Any] = {}
    for kind in dict.fromkeys(part.kind for part in parts):
        own = [part for part in parts if part.kind == kind]
        outcomes = sum((part.outcomes for part in own), collections.Counter())
        kinds[kind] = {
            "mutants": outcomes.total(), "outcomes": dict(outcomes.most_common()),
            "slowest_s": max((part.slowest[0][0] for part in own if part.slowest), default=0),
            "most_mb": max((part.largest[0][0] for part in own if part.largest), default=0),
            "failures": sum(len(part.failures) for part in own),
        }  # fmt: skip
    failures = [failure for part in parts for failure in part.failures]
    return {"mutants": sum(k["mutants"] for k in kinds.values()), "kinds": kinds, "failures": failures}


def main() -> None:
    from bench.fuzzing.subjects import SUBJECTS

    parser = argument_parser(__doc__, threads=False)
    parser.add_argument("--mutants", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="run one mutant here")
    options = parser.parse_args()
    if options.only:
        kind, _, number = options.only.partition(":")
        folder = Path(tempfile.mkdtemp(prefix="fuzz-one-"))
        from bench.fuzzing.child import main as run

        run(kind, options.seed, int(number), int(number) + 1, sys.stdout.fileno(), folder, MEGABYTES)
        print(f"its files: {folder}")
        return
    began = time.time()
    kept = options.output and options.output.with_suffix(".parts")
    parts = fuzz(options.mutants, options.seed, options.kinds, options.processes, kept)
    told = {"seed": options.seed, "commit": commit(), "minutes": round((time.time() - began) / 60, 1), **summary(parts)}
    print(json.dumps({**told, "failures": len(told["failures"])}, indent=1))
    write_result(told, options.output)


if __name__ == "__main__":
    main()
