"""The scripts of bench/ start: each says its options, wherever it is called from. test_types.py checks their types."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
NEEDS_TORCH = {"quality_perplexity.py"}
SCRIPTS = [path for path in sorted(BENCH.glob("*.py")) if "= argument_parser(" in path.read_text(encoding="utf-8")]


def test_scripts_say_their_options(tmp_path: Path) -> None:
    assert len(SCRIPTS) > 9
    started = {
        script.name: subprocess.Popen(
            [sys.executable, script, "--help"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for script in SCRIPTS
        if script.name not in NEEDS_TORCH
    }
    for name, process in started.items():
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, (name, stderr)
        assert f"bench/{name}" in stdout, name


def test_the_script_that_needs_torch_says_its_options(tmp_path: Path) -> None:
    for module in ("torch", "transformers"):
        pytest.importorskip(module)
    (script,) = (BENCH / name for name in NEEDS_TORCH)
    command = [sys.executable, script, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert script.name in done.stdout
