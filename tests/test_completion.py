"""Completion in a shell: which names, how light, and that nothing is raised whatever the home is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lapinfer.cli import complete


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for folder in ("home/packed/m-q4-0123", "home/models/smollm2", "home/models/mine", "hub/models--org--name"):
        (tmp_path / folder).mkdir(parents=True)


def shell(*words: str) -> list[str]:
    """What bash is given for the last word, by a process of its own, which tells on stderr what it has imported."""
    code = (
        "import sys\nfrom lapinfer.cli import main\ntry:\n    main()\nfinally:\n"
        "    sys.stderr.write(' '.join({'numpy', 'numba', 'huggingface_hub'} & set(sys.modules)))"
    )
    asked = {"_LAPINFER_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, cwd=Path(__file__).parent.parent, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_gets_names_of_models_without_numpy() -> None:
    assert shell("lapinfer", "run", "-m", "austen-f") == ["austen-fff"]


def test_a_shell_gets_formats() -> None:
    assert shell("lapinfer", "run", "--quant", "q4") == ["q4", "q4_1", "q4n"]


def test_names_are_those_of_what_can_be_done_with_them() -> None:
    assert set(complete.models("")) == {
        "smollm2", "austen-dense", "austen-dense-active", "austen-moe", "austen-fff", "org/name",
    }  # fmt: skip
    assert complete.removable("") == ["smollm2", "org/name", "m-q4-0123"]
    assert complete.models("ORG") == complete.removable("org/") == ["org/name"]
    assert "m-q4-0123" in complete.models_and_copies("m")
    assert "smollm2" in complete.models_to_pull("s")
    assert len(complete.known_models("Qwen/")) > 2
    assert "Qwen3-30B-A3B" in complete.known_models("qwen3-30")
    assert "Qwen3-30B-A3B" not in complete.known_models("")
    assert complete.one_of(("q4", "q8"))("Q8") == ["q8"]


@pytest.mark.parametrize("home", ["~nobody-here/x", "/dev/null", "/dev/null/x", "a" * 5000])
def test_a_home_that_is_none_completes_what_is_left(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("LAPINFER_HOME", home)
    assert complete.removable("") == ["org/name"]
    assert complete.models("austen-m") == ["austen-moe"]
