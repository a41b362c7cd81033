"""The folder of compiled kernels: used again, and compiled anew when its files are damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lapinfer.kernels import cache
from lapinfer.quant.names import format_names

LOAD = (
    "import sys; from lapinfer.kernels import cache, library; library.load(sys.argv[1:]); print(cache.compiled_fresh)"
)


def load(folder: Path, *kernels: str) -> str:
    """What a new process had to compile."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", LOAD, *(kernels or ["read_clock"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_second_process_compiles_nothing_and_adds_no_file(tmp_path: Path) -> None:
    """Of kernels that are functions of their own, that choose by an operand, and that are stamped for a format."""
    kernels = ["descend", "read_clock", "router_f16"]
    assert load(tmp_path, *kernels) == str(kernels)
    before = files(tmp_path)
    assert before
    assert load(tmp_path, *kernels) == "[]"
    assert files(tmp_path) == before


def test_machine_code_depends_on_all_that_becomes_part_of_it() -> None:
    names = {"/".join(source.parts[-3:]) for source in cache.sources()}
    packages = ("kernels/formats", "quant/formats")
    assert names >= {f"{package}/{name}.py" for package in packages for name in format_names()}
    assert names >= {"lapinfer/kernels/simd.py", "lapinfer/quant/__init__.py"}


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
