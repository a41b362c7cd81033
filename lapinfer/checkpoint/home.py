"""Where lapinfer keeps what it makes and fetches."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from lapinfer.checkpoint.safetensors import read_metadata
from lapinfer.errors import CheckpointError

FILE_NAME = "model.safetensors"
"""The weights in a packed folder."""


def home() -> Path:
    """LAPINFER_HOME, or the platform's cache folder. It may not exist yet."""
    chosen = os.environ.get("LAPINFER_HOME")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("lapinfer", appauthor=False)


def pulled_models() -> Path:
    """The folder of models fetched by an alias, each in a folder of that name."""
    return home() / "models"


def packed_models() -> Path:
    """The folder of packed copies, each in a folder of its own."""
    return home() / "packed"


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
