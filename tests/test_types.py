"""Types of what needs PyTorch or Ray, where these are installed; `pyright` alone checks the rest."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("needed", ["torch", "ray"])
def test_types_of_what_needs(needed: str) -> None:
    pytest.importorskip(needed)
    project = Path(__file__).parent / f"pyright_{needed}.json"
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "-p", project], capture_output=True, text=True, timeout=200, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
