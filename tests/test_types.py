"""Types of what needs PyTorch, where it is installed; `pyright` alone checks the rest."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_types_of_training_and_benches() -> None:
    pytest.importorskip("torch")
    project = Path(__file__).parent / "pyright_training.json"
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "-p", project], capture_output=True, text=True, timeout=200, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
