"""Servers as processes of their own: lapinfer's and llama.cpp's, started, watched and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from harness import ROOT

SECONDS = 300
"""Until a server must be ready: the first start may compile kernels."""
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ours(model: Path | str, *, slots: int, ctx: int, threads: int, port: int, more: list[str]) -> list[str]:
    """lapinfer, of this checkout. ctx: tokens of a slot."""
    command = [sys.executable, "-m", "lapinfer", "serve", str(model), "--port", str(port), "--threads", str(threads)]
    return [*command, "--ctx-size", str(ctx), "--slots", str(slots), *more]


def llama_server(
    binary: Path, model: Path | str, *, slots: int, ctx: int, threads: int, port: int, more: list[str]
) -> list[str]:
    """llama.cpp's, with as many slots of the same size."""
    command = [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-t", str(threads)]
    return [*command, "-tb", str(threads), "-np", str(slots), "-c", str(ctx * slots), *more]


class Server:
    """A server that runs while the block does. It is ready at its beginning: /health has answered."""

    def __init__(self, command: list[str], port: int) -> None:
        self._command, self.url = command, f"http://127.0.0.1:{port}"
        self.seconds = 0.0

    def __enter__(self) -> Server:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        began = time.perf_counter()
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log, env=environment)
        while not self._ready():
            if self._process.poll() is not None or time.perf_counter() - began > SECONDS:
                self._end()
                raise SystemExit(f"{' '.join(self._command)}: did not start\n{self.log()[-3000:]}")
            time.sleep(0.05)
        self.seconds = time.perf_counter() - began
        return self

    def _ready(self) -> bool:
        try:
            with OPENER.open(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """What it has written on stdout and stderr."""
        self._log.seek(0)
        return self._log.read()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        self._log.close()


def memory(pid: int) -> dict[str, float]:
    """MB of a process: rss, all that is resident; anonymous, without pages of files; threads that it has."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kilobytes = {name: int(lines[key].split()[0]) for name, key in (("rss", "VmRSS"), ("anonymous", "RssAnon"))}
    return {name: value / 1e3 for name, value in kilobytes.items()} | {"threads": int(lines["Threads"])}


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
