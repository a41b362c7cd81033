"""What kills change of a batch on a cluster: drivers, engines and nodes die at random moments, and all lines are there.

    python bench/kill_batch.py MODEL TEXT… [-n 2000] [--kills driver,engine,node] [--seed 1] [-r 1] [-o OUT]

A cluster of two nodes of one CPU each is started on this computer, and for each kind of kill the batch of
bench/batch_documents.py runs on it: after a random part of the seconds that it took unharmed, a process is killed
(kill -9). A driver that was killed is started again; a node that was killed stays away, and another one comes for the
next run. `same`: whether the output has the bytes of one process without a cluster; `repeated`, `missing`: its
lines by number.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from batch_documents import write_lines
from harness import ROOT, argument_parser, print_result, write_result

from lapinfer.cluster.start import imported

STORE = 100_000_000
KINDS = ("none", "driver", "engine", "node")


class Killed:
    """A cluster whose processes may be killed, and the batch that runs on it."""

    def __init__(self, command: list[str]) -> None:
        imported()
        from ray.cluster_utils import Cluster

        self._command = command
        node = {"num_cpus": 1, "object_store_memory": STORE}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        self._add = lambda: self._cluster.add_node(**node)
        self._second: Any = self._add()

    def close(self) -> None:
        self._cluster.shutdown()

    def run(self, kind: str, out: Path, after: float) -> dict[str, Any]:
        """Seconds of a run with one kill of a kind, and what it said last."""
        began = time.perf_counter()
        process = self._start(out)
        killed = None
        if kind != "none":
            time.sleep(after)
            killed = self._kill(kind, process)
        _, said = process.communicate()
        if kind == "driver":
            _, said = self._start(out).communicate()
        if process.returncode and kind != "driver":
            raise SystemExit(f"{kind}: exit code {process.returncode}: {said[-500:]}")
        seconds = time.perf_counter() - began
        if kind == "node" and killed:
            self._cluster.worker_nodes.discard(self._second)
            self._second = self._add()
        return {
            "seconds": round(seconds, 3),
            "after": round(after, 3),
            "killed": killed,
            "said": said.splitlines()[-2:],
        }

    def _start(self, out: Path) -> subprocess.Popen[str]:
        command = [*self._command, "-o", str(out), "--ray", self._cluster.address, "--workers", "2"]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def _kill(self, kind: str, process: subprocess.Popen[str]) -> int | None:
        """The process that was killed; None where there was none of the kind any more."""
        (raylet,) = self._second.all_processes["raylet"]
        found = {"driver": [process.pid], "node": [raylet.process.pid], "engine": self._engines()}[kind]
        if not found or process.poll() is not None:
            return None
        os.kill(found[0], signal.SIGKILL)
        return found[0]

    def _engines(self) -> list[int]:
        """Processes of engines of this cluster: those of its raylets."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self._cluster.list_all_nodes()}
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and (place / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                    found.append(int(place.name))
            except OSError:
                continue
        return found


def main() -> None:
    parser = argument_parser(__doc__, repetitions=1)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("-n", "--count", type=int, default=2000)
    parser.add_argument("--kills", default=",".join(KINDS[1:]))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chance, runs = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as folder:
        lines, plain = Path(folder) / "in.jsonl", Path(folder) / "plain.jsonl"
        count = write_lines(lines, given.texts, given.count, 100, 24)
        command = [sys.executable, "-m", "lapinfer", "batch", str(lines), "-m", given.model, "-c", "512"]
        subprocess.run([*command, "-o", str(plain)], cwd=ROOT, check=True)
        digest = hashlib.sha256(plain.read_bytes()).hexdigest()
        cluster = Killed(command)
        try:
            whole = 0.0
            for turn, kind in enumerate(["none", *given.kills.split(",") * given.repetitions]):
                out = Path(folder) / f"{turn}.jsonl"
                run = cluster.run(kind, out, whole * chance.uniform(0.1, 0.9))
                whole = whole or run["seconds"]
                numbers = Counter(json.loads(line)["line"] for line in out.read_bytes().splitlines())
                runs.append({"kind": kind} | run | {
                    "same": hashlib.sha256(out.read_bytes()).hexdigest() == digest,
                    "repeated": [number for number, times in numbers.items() if times > 1],
                    "missing": [number for number in range(1, count + 1) if number not in numbers],
                })  # fmt: skip
                print(runs[-1], file=sys.stderr)
        finally:
            cluster.close()
    result = {"bench": "kill_batch", "model": given.model, "lines": count, "runs": runs}
    print_result(result)
    write_result(result, given.output)


if __name__ == "__main__":
    main()
