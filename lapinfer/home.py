"""Where lapinfer keeps what it makes and fetches: packed weights, compiled kernels, pulled models."""

from __future__ import annotations

import os
from pathlib import Path

from lapinfer.errors import InputError

VARIABLE = "LAPINFER_HOME"


def home() -> Path:
    """LAPINFER_HOME, or the platform's cache folder. It may not exist yet.

    InputError where no folder can be meant: a file, or a user without a home folder.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        folder = expanded(chosen)
    else:
        import platformdirs

        try:
            folder = platformdirs.user_cache_path("lapinfer", appauthor=False)
        except RuntimeError:  # its older versions give back the ~
            folder = Path("~")
    if folder.parts[:1] and folder.parts[0].startswith("~"):
        what = f"{VARIABLE}={chosen}" if chosen else "HOME is not set, and this user"
        raise InputError(f"{what} has no home folder: set {VARIABLE} to the full path of a folder that can be written")
    if chosen and os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"{VARIABLE}={chosen} is not a folder; set it to one that can be written")
    return folder.absolute()


def expanded(path: str | Path) -> Path:
    """The path with ~ and ~user replaced, where these have a home folder; else as it is."""
    return Path(os.path.expanduser(path))
