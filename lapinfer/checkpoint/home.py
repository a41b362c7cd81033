"""Where lapinfer keeps what it makes and fetches."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


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
