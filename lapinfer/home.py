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


def pulled_models() -> Path:
    """The folder of models fetched by an alias, each in a folder of that name."""
    return home() / "models"


def packed_models() -> Path:
    """The folder of packed copies, each in a folder of its own."""
    return home() / "packed"


def hub_cache() -> Path:
    """The cache folder of huggingface_hub, found as that package does."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return expanded(cache)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("HF_HOME") or Path(base) / "huggingface") / "hub"


def expanded(path: str | Path) -> Path:
    """The path with ~ and ~user replaced, where these have a home folder; else as it is."""
    return Path(os.path.expanduser(path))


def _of_nobody(path: Path) -> bool:
    """Whether a ~ is left, which nobody's home folder could replace."""
    return bool(path.parts) and path.parts[0].startswith("~")
