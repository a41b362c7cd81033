"""What of lapinfer's files is of no more use: `lapinfer prune` lists it, and removes it.

The hub's cache belongs to other programs, too: nothing of it is listed here.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lapinfer.calibration import CALIBRATION
from lapinfer.checkpoint import hub, smollm2
from lapinfer.checkpoint.gguf_tokenizer import FOLDER as TEXTS
from lapinfer.checkpoint.gguf_tokenizer import RULES
from lapinfer.checkpoint.identity import identity_alone
from lapinfer.errors import InputError, LapinferError
from lapinfer.home import home
from lapinfer.kernels import cache
from lapinfer.kernels.store import SUFFIX, is_machine_code
from lapinfer.outputs import PART
from lapinfer.packing.copies import NOTE, metadata_of
from lapinfer.storage.models import Copy, packed_copies
from lapinfer.storage.owned import Owned, disk_bytes, is_used, newest
from lapinfer.storage.removal import owned_copy
from lapinfer.text import prefixes
from lapinfer.text.prefix_files import SUFFIX as PREFIX

DAY = 24 * 3600.0
SETTLED = 3600.0
"""Seconds after which a temporary file that nobody locks counts as left by a killed process."""
Progress = Callable[[str, int, int], None]


def prunable(days: float | None = None, progress: Progress = lambda what, done, total: None) -> Iterator[Owned]:
    """What can go: as `Owned` says why. What somebody uses now is left out.

    days: with it, also what is of use, but was not used for so many days: packed copies and beginnings of prompts.
    progress: of sources that must be read to be told from others, large ones once.
    """
    before = None if days is None else time.time() - days * DAY
    yield from _copies(before, progress)
    yield from _kernels()
    yield from _prefixes(before)
    yield from _texts()
    yield from _leftovers()


def _copies(before: float | None, progress: Progress) -> Iterator[Owned]:
    for copy in packed_copies():
        if not copy.in_use and (why := _why(copy, before, progress)):
            yield from owned_copy(copy, why)


def _why(copy: Copy, before: float | None, progress: Progress) -> str:
    """Why a copy is of no more use; "" where it is of some, or nobody knows."""
    if not copy.whole:
        return "its packing was broken off"
    if copy.outdated:
        return "of an older lapinfer, which this one packs anew"
    if copy.sources:
        there = [source for source in copy.sources if os.path.exists(source)]
        if not there:
            return f"its source is gone, {copy.sources[-1]}"
        if all(_has_changed(source, copy, progress) for source in there):
            return f"its source has changed, {there[-1]}"
    if before is not None and (copy.used or newest([Path(copy.path)])) < before:
        return "not used for so long"
    return ""


def _has_changed(source: str, copy: Copy, progress: Progress) -> bool:
    """Whether a checkpoint is another one than when it was packed; no, where it cannot be read now."""
    try:
        found = hub.resolve(source)
        if isinstance(found, Path):
            return False
        known = metadata_of(Path(copy.path)).get("source")
        now = found.contents.identity(lambda *counts: progress(source, *counts))
        return known is not None and identity_alone(known) != now
    except (LapinferError, OSError):
        return False


def _kernels() -> Iterator[Owned]:
    """Machine code of other versions of the sources, of Python or Numba, or of another processor."""
    old = [folder for folder in kernel_folders() if folder.name != cache.version()]
    files = [path for folder in old for path in folder.glob(f"*{SUFFIX}") if is_machine_code(path)]
    if files:
        why = "of other versions, or another processor"
        yield _of_files("machine code of kernels", why, old[0].parent, files, folders=old)


def kernel_folders() -> list[Path]:
    """The folders of each version's machine code, where this process would keep its own."""
    own = cache.store().folder
    return [] if own is None else [f for f in _folders(own.parent) if re.fullmatch("[0-9a-f]{16}", f.name)]


def _prefixes(before: float | None) -> Iterator[Owned]:
    place = home() / prefixes.FOLDER
    folders = [folder for folder in _folders(place) if re.fullmatch("[0-9a-f]{32,48}", folder.name)]
    files: dict[str, list[Path]] = {}
    for folder in folders:
        is_read = folder.name.startswith(prefixes.arithmetic())
        for file in folder.glob(f"*{PREFIX}"):
            if not is_read:
                files.setdefault("of another version, which this one does not read", []).append(file)
            elif before is not None and newest([file]) < before:
                files.setdefault("not used for so long", []).append(file)
    for why, old in files.items():
        yield _of_files("beginnings of prompts", why, place, old, folders=folders, locks=(place / "lock",))


def _texts() -> Iterator[Owned]:
    """Tokenizers of GGUF files that another version has made."""
    place, old = home() / TEXTS, []
    for folder in _folders(place):
        found = re.fullmatch(r".+-[0-9a-f]{16}-(\d+)", folder.name, re.DOTALL)
        if found is not None and int(found[1]) != RULES:
            old.append(folder)
    files = [path for folder in old for path in folder.iterdir() if path.is_symlink() or path.is_file()]
    if files:
        yield _of_files("texts of GGUF files", "of other versions", place, files, folders=old)


def _leftovers() -> Iterator[Owned]:
    """What killed processes have left. Packed copies have their own, which go with them."""
    for folder in _folders(home() / CALIBRATION):
        if not is_used(folder / NOTE) and _is_settled(folder):
            yield _whole(folder, (folder / NOTE,))
    begun: list[Path] = [*(home() / TEXTS).glob(".partial-*"), *smollm2.half_downloads()]
    begun += [*(home() / "identities").glob("*.partial"), *(home() / prefixes.FOLDER).glob(f"*/{PART}*")]
    for folder in kernel_folders():
        begun += folder.glob("*.partial")
    for path in sorted(set(begun)):
        locks = (path,) if path.is_file() else ()
        if _is_settled(path) and not is_used(path):
            yield _whole(path, locks)


def _is_settled(path: Path) -> bool:
    return newest([path]) < time.time() - SETTLED


def _whole(path: Path, locks: tuple[Path, ...] = ()) -> Owned:
    return Owned("temporary files", "left by a process that was ended", str(path), disk_bytes(path), (path,), (), locks)


def _of_files(
    what: str, why: str, place: Path, files: list[Path], *, folders: list[Path], locks: tuple[Path, ...] = ()
) -> Owned:
    return Owned(what, why, str(place), disk_bytes(*files), tuple(files), tuple(folders), locks)


def _folders(place: Path) -> list[Path]:
    """The folders in one of lapinfer's; no links."""
    with suppress(OSError, InputError):
        return sorted(path for path in place.iterdir() if path.is_dir() and not path.is_symlink())
    return []
