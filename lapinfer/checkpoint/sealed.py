"""Small folders in the cache that are made once: whole or not at all, with digests of their files, or made again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

SUMS = "sha256.json"
"""In each folder: the SHA-256 of every other file, by name."""


def sealed_folder(folder: Path, make: Callable[[], Mapping[str, str]]) -> Path:
    """The folder of these texts, by their names; `make` is called where it is missing or damaged. Raises OSError."""
    if _is_whole(folder):
        return folder
    files = {name: text.encode("utf-8") for name, text in make().items()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        new, old = partial / "new", partial / "old"
        new.mkdir()
        for name, data in (files | {SUMS: json.dumps(sums).encode()}).items():
            (new / name).write_bytes(data)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError:
        if not _is_whole(folder):  # else another process made it meanwhile
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder has the files that it was made with, as they were."""
    try:
        sums = json.loads((folder / SUMS).read_bytes())
        found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sums}
        return found == sums and {SUMS, *sums} == {file.name for file in folder.iterdir()}
    except (OSError, ValueError, TypeError):
        return False
