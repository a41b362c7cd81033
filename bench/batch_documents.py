"""Documents through `lapinfer batch`: how long each way takes, whether all give the same bytes, and what kills change.

    python bench/batch_documents.py MODEL TEXT… [-n 2000] [--ways embedded,one-slot] [--kills 3] [-t 2] [-r 1] [-o OUT]

TEXTs are cut into documents of so many --words; each is asked about in a chat whose answer has at most --tokens, drawn
with the model's own sampling, and every tenth is embedded instead. A way is a command, run in turns with the others;
its seconds are those of the whole process, its pace is what it said of answering alone, without loading a model or
starting Ray. --kills: the first way once more, killed (kill -9) so often after a random
part of its time, and run to its end. `same`: whether a file has the bytes of the first way's.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import ROOT, argument_parser, print_result, write_result

WAYS: dict[str, list[str]] = {
    "embedded": [],
    "one-slot": ["--slots", "1"],
    "16-slots": ["--slots", "16"],
    "ray": ["--ray", "--workers", "2", "--worker-threads", "1"],
}
"""Options of `lapinfer batch` that a way adds."""
QUESTION = "In one sentence: what happens here?"
EMBEDDED = 10
"""One document of so many is embedded."""


def documents(texts: list[Path], words: int) -> Iterator[tuple[str, str]]:
    """(name, text) of pieces of texts, in turns from each."""
    pieces = []
    for path in texts:
        all_words = path.read_text(encoding="utf-8").split()
        pieces.append([
            (f"{path.stem}-{at // words}", " ".join(all_words[at : at + words]))
            for at in range(0, len(all_words) - words, words)
        ])  # fmt: skip
    for index in range(max(map(len, pieces))):
        yield from (some[index] for some in pieces if index < len(some))


def write_lines(path: Path, texts: list[Path], count: int, words: int, tokens: int) -> int:
    """The input of the batch; how many lines it has."""
    lines: list[dict[str, Any]] = []
    for name, text in documents(texts, words):
        if len(lines) == count:
            break
        if len(lines) % EMBEDDED == EMBEDDED - 1:
            lines.append({"custom_id": name, "text": text})
        else:
            lines.append({"custom_id": name, "prompt": f"{QUESTION}\n\n{text}", "max_tokens": tokens})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


class Bench:
    """One input, and the command that answers it."""

    def __init__(self, model: str, lines: Path, threads: int, ctx: int) -> None:
        self.lines, self.digest = lines, ""
        command = [sys.executable, "-m", "lapinfer", "batch", str(lines), "-m", model]
        self.command = [*command, "-t", str(threads), "-c", str(ctx)]

    def start(self, way: str, out: Path) -> subprocess.Popen[str]:
        command = [*self.command, *WAYS[way], "-o", str(out)]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def whole(self, way: str, out: Path) -> dict[str, Any]:
        """Run a way to its end; what it said last, and whether it wrote what the first one did."""
        began = time.perf_counter()
        process = self.start(way, out)
        _, said = process.communicate()
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{way}: exit code {process.returncode}: {said[-500:]}")
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        self.digest = self.digest or digest
        pace = re.search(r"([\d,.]+) lines/s", said)
        return {
            "seconds": round(seconds, 3), "pace": pace and float(pace[1].replace(",", "")),
            "same": digest == self.digest, "said": said.splitlines()[-2:],
        }  # fmt: skip

    def killed(self, way: str, out: Path, kills: int, seconds: float) -> dict[str, Any]:
        """The same with kills between; done: lines that were kept at each."""
        chance, done = random.Random(kills), []
        for _ in range(kills):
            process = self.start(way, out)
            time.sleep(seconds * chance.uniform(0.1, 1.2 / kills))
            process.kill()
            process.communicate()
            part = out.with_name(f"{out.name}.part")
            done.append(max(part.read_bytes().count(b"\n") - 1, 0) if part.exists() else None)
        return self.whole(way, out) | {"done": done}


def main() -> None:
    parser = argument_parser(__doc__, repetitions=1)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("-n", "--count", type=int, default=2000)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--ways", default="embedded")
    parser.add_argument("--kills", type=int, default=0)
    given = parser.parse_args()
    ways = given.ways.split(",")
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "in.jsonl"
        count = write_lines(lines, given.texts, given.count, given.words, given.tokens)
        bench = Bench(given.model, lines, given.threads, given.ctx)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for turn in range(given.repetitions):
            for way in ways:
                runs[way].append(bench.whole(way, Path(folder) / f"{way}-{turn}.jsonl"))
                print(way, runs[way][-1], file=sys.stderr)
        best = {way: min(run["seconds"] for run in some) for way, some in runs.items()}
        if given.kills:
            runs["killed"] = [bench.killed(ways[0], Path(folder) / "killed.jsonl", given.kills, best[ways[0]])]
    result = {
        "bench": "batch_documents", "model": given.model, "lines": count, "words": given.words, "tokens": given.tokens,
        "threads": given.threads, "runs": runs,
        "pace": {way: max(run["pace"] or 0 for run in some) for way, some in runs.items()},
        "lines_per_second": {way: round(count / seconds, 3) for way, seconds in best.items()},
    }  # fmt: skip
    print_result(result)
    write_result(result, given.output)


if __name__ == "__main__":
    main()
