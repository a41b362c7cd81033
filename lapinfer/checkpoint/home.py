"""How a packed folder is told from others, and what lies in LAPINFER_HOME."""

from __future__ import annotations

from pathlib import Path

from lapinfer.checkpoint.safetensors import read_metadata
from lapinfer.errors import CheckpointError, InputError
from lapinfer.home import home

FILE_NAME = "model.safetensors"
"""The weights in a packed folder."""


def in_home(path: Path) -> bool:
    """Whether a path lies where LAPINFER_HOME says, and not where a user has named it."""
    try:
        return home() in path.absolute().parents
    except InputError:
        return False


def packed_path(path: str | Path) -> Path:
    """The file of a packed folder, or the file itself."""
    path = Path(path)
    return path / FILE_NAME if path.is_dir() else path


def is_packed(folder: str | Path) -> bool:
    """Whether a folder (or file) is of the packed form; its header alone is looked at."""
    path = packed_path(folder)
    try:
        return path.is_file() and read_metadata(path).get("format") == "lapinfer"
    except CheckpointError:
        return False
