"""Names of models that are here or known, without a look into any: quick enough for completion in a shell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from lapinfer.home import hub_cache, packed_models

ALIASES: Final = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
ENTRY: Final = "models--"
"""How folders of models are called in the cache of the hub, org--name after it."""


def entry_name(repository: str) -> str:
    """The folder of org/name in the cache of the hub."""
    return ENTRY + repository.replace("/", "--")


def hub_entries() -> list[tuple[str, Path]]:
    """Names org/name and folders of the hub's cache, whole or not; no links."""
    found = [(folder.name.removeprefix(ENTRY).replace("--", "/", 1), folder) for folder in folders_in(hub_cache())]
    return [(name, folder) for name, folder in found if folder.name.startswith(ENTRY)]


def copy_folders() -> list[Path]:
    """Folders of packed copies, damaged ones and those that are being packed included."""
    return folders_in(packed_models())


def folders_in(place: Path) -> list[Path]:
    """The folders that a place has, in the order of their names; no links, which are a user's, and no hidden ones."""
    try:
        return sorted(
            path for path in place.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != "."
        )
    except OSError:  # not there, or another user's
        return []
