"""The folder of compiled kernels: used again, and compiled anew when its files are damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = "from lapinfer.kernels import cache, library; library.load(['read_clock']); print(cache.compiled_fresh)"


def load(folder: Path) -> str:
    """What a new process had to compile."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_second_process_compiles_nothing_and_adds_no_file(tmp_path: Path) -> None:
    assert load(tmp_path) == "['read_clock']"
    before = files(tmp_path)
    assert before
    assert load(tmp_path) == "[]"
    assert files(tmp_path) == before


@pytest.mark.parametrize("kept", [0, 10, 200])
@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_damaged_files_are_compiled_anew(tmp_path: Path, ending: str, kept: int) -> None:
    load(tmp_path)
    for path in files(tmp_path):
        if path.suffix == ending:
            path.write_bytes(path.read_bytes()[:kept])
    assert load(tmp_path) == "['read_clock']"
    assert load(tmp_path) == "[]"


def test_a_folder_that_cannot_be_used_is_done_without(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert load(blocked) == "['read_clock']"
