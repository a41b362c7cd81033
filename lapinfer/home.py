"""Where lapinfer keeps what it makes and fetches: packed weights, compiled kernels, pulled models."""

from __future__ import annotations

import os
from pathlib import Path

from lapinfer.errors import InputError

VARIABLE = "LAPINFER_HOME"
WANTED = "full path of a folder that can be written"


def home() -> Path:
    """LAPINFER_HOME, or the platform's cache folder. It may not exist yet.

    InputError where no folder can be meant: a file, or a user without a home folder.
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return cache_folder()
    folder = expanded(chosen)
    if _of_nobody(folder):
        raise InputError(f"{VARIABLE}={chosen}: nobody's home folder; set it to the {WANTED}")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"{VARIABLE}={chosen} is not a folder; set it to one that can be written")
    return folder.absolute()


def cache_folder() -> Path:
    """The platform's folder for what can be made again; InputError for a user without a home folder."""
    import platformdirs

    try:
        folder = platformdirs.user_cache_path("lapinfer", appauthor=False)
    except RuntimeError:  # its older versions give back the ~
        folder = Path("~")
    if _of_nobody(folder):
        raise InputError(f"HOME is not set, and this user has no home folder: set {VARIABLE} to the {WANTED}")
    return folder


def expanded(path: str | Path) -> Path:
    """The path with ~ and ~user replaced, where these have a home folder; else as it is."""
    return Path(os.path.expanduser(path))


def _of_nobody(path: Path) -> bool:
    """Whether a ~ is left, which nobody's home folder could replace."""
    return bool(path.parts) and path.parts[0].startswith("~")
