"""Windows and macOS, as far as that can be seen on Linux: what they lack is taken away (other_systems.py)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import other_systems
import pytest

import lapinfer

PACKAGE = Path(lapinfer.__file__).parent
FILES = [path for path in PACKAGE.rglob("*.py") if "weights" not in path.parts]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes Linux away")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_is_imported_and_a_model_says_the_same_there(system, home, monkeypatch):
    """In a new process; the bits of its logits are those of this one."""
    monkeypatch.setenv("LAPINFER_HOME", str(home / "here"))
    expected = other_systems.answer()
    environment = os.environ | {"LAPINFER_HOME": str(home / system), "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, other_systems.__file__, system], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["answer"] == expected
    assert len(told["modules"]) > 250
    assert "cores" in told["doctor"]


def test_no_file_imports_what_one_system_has_alone():
    """Training, too, which the test above leaves out: it needs PyTorch. Systems are told by sys.platform, which type
    checkers know and tests can change; a changed os.name breaks pathlib."""
    names = "|".join((*other_systems.MODULES, "msvcrt", "winreg", "_winapi"))
    imported = re.compile(rf"^(?:import|from) (?:{names})\b|\bos\.name\b", re.MULTILINE)
    assert [path.name for path in FILES if imported.search(path.read_text("utf-8"))] == []


def test_open_files_are_kept_here(kept_while_open, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb"), pytest.raises(PermissionError):
        path.unlink()
    path.unlink()
