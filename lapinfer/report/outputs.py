"""Files that reports are written to: checked before the work that they are about, marked, and written whole."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lapinfer import __version__
from lapinfer.errors import InputError
from lapinfer.outputs import begins_with, check_place, check_writable
from lapinfer.outputs import write_whole as write_unchecked

GENERATOR: Final = f"lapinfer {__version__}"
"""What pages and pictures say that they were made by."""
_PAGE: Final = rb'<meta name="generator" content="lapinfer '
MARKS: Final = {
    ".html": _PAGE,
    ".htm": _PAGE,
    ".json": rb'\A\{\s*"lapinfer":',
    ".npz": rb"lapinfer\.npy",
    ".png": rb"Software\0lapinfer ",
}
"""What the first bytes of a file of ours hold: such a file may be replaced."""
FIRST: Final = 4096


def is_report(path: Path) -> bool:
    """Whether a file was written by one of our reports."""
    return re.search(MARKS[path.suffix.lower()], begins_with(path, FIRST)) is not None


def check_ending(path: Path, endings: Iterable[str], *, force: bool = False) -> str | None:
    """InputError when no file with one of these endings can be written there; what goes for it, if `force` lets it."""
    if path.suffix.lower() not in endings:
        raise InputError(f"{path}: expected a name that ends with {', '.join(endings)}")
    goes = check_place(path, is_report, force=force)
    check_writable(path)
    return goes


def write_whole(path: Path, content: bytes, *, force: bool = False) -> None:
    """A file with this content, or else the one that was there; only a report is replaced, or with `force` any."""
    check_place(path, is_report, force=force)
    write_unchecked(path, content)
