"""Files that reports are written to: checked before the work that they are about, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lapinfer.errors import InputError


def check_ending(path: Path, endings: Iterable[str]) -> None:
    """InputError when no file with one of these endings can be written there."""
    if path.suffix.lower() not in endings:
        raise InputError(f"{path}: expected a name that ends with {', '.join(endings)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write")
    try:
        with _beside(path) as part:
            part.touch()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """A file with this content, or else the one that was there."""
    with _beside(path) as part:
        part.write_bytes(content)
        part.replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A file of another name in the same folder, which does not outlive the block."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
