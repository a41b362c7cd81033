"""What `lapinfer rm NAME` removes: what was downloaded under that name, and the packed copies that were made of it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from lapinfer.checkpoint import hub, smollm2
from lapinfer.checkpoint.fetch import HALF
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.checkpoint.texts import TEMPLATES, texts_in
from lapinfer.errors import CheckpointError, InputError
from lapinfer.home import expanded, home, hub_cache, packed_models
from lapinfer.outputs import PART
from lapinfer.packing.copies import NOTE
from lapinfer.packing.reader import content_of
from lapinfer.packing.target import CONFIG
from lapinfer.packing.writer import JOURNAL, PARTIAL
from lapinfer.storage.models import Copy, Stored, packed_copies, stored_models
from lapinfer.storage.owned import Owned, disk_bytes
from lapinfer.text import prefixes


def owned_by(name: str) -> list[Owned]:
    """What goes with a model of this name, as `lapinfer ls` shows it, or with that in a user's own folder or file.

    InputError where nothing is lapinfer's to remove.
    """
    models = stored_models()
    place = os.path.abspath(expanded(name))
    for copy in packed_copies():
        if name == copy.name or place == copy.path:
            return owned_copy(copy, "")
    if (found := _named(name, models)) is None:
        raise InputError(_nothing(name, models))
    of_copies = [owned for copy in found.copies for owned in owned_copy(copy, "")]
    match found.kind:
        case "shipped":
            if not of_copies:
                raise InputError(f"{name}: comes with lapinfer, and has no packed copy to remove")
            return of_copies
        case "yours":
            return of_copies
        case "hub" | "half" if Path(found.path).parent == hub_cache():
            return [owned_entry(found.name, Path(found.path)), *of_copies]
        case _ if found.name == smollm2.ALIAS:
            return [*_pulled(), *of_copies]
    raise InputError(f"{found.path}: was not put there by lapinfer, which never removes it; delete it yourself")


def owned_copy(copy: Copy, why: str) -> list[Owned]:
    """A packed copy, and the beginnings of prompts that were kept of it."""
    folder = Path(copy.path)
    weights = folder / FILE_NAME
    begun = [weights.with_name(FILE_NAME + ending) for ending in (PARTIAL, JOURNAL)]
    texts, templates = [folder / name for name in (CONFIG, *texts_in(folder))], folder / TEMPLATES
    if templates.is_symlink():  # the link goes, and nothing that it leads to
        texts = [templates, *(path for path in texts if path.parent != templates)]
    parts = [path for path in folder.glob(f"{PART}*") if path.is_file()]
    files = tuple(path for path in (weights, *begun, *texts, *parts, folder / NOTE) if os.path.lexists(path))
    folders = (templates, folder) if templates.is_dir() and not templates.is_symlink() else (folder,)
    locks = (folder / NOTE, begun[0])
    what = f"{'packed copy' if copy.whole else 'half-packed copy'} {copy.name}"
    found = [Owned(what, why, copy.path, disk_bytes(*files), files, folders, locks)]
    if kept := _prefixes_of(weights):
        place = home() / prefixes.FOLDER
        beginnings = f"beginnings of prompts of {copy.name}"
        found.append(Owned(beginnings, why, str(place), disk_bytes(*kept), kept, (), (place / "lock",)))
    return found


def owned_entry(name: str, folder: Path) -> Owned:
    """A model in the hub's cache, all versions of it."""
    locks = hub_cache() / ".locks" / folder.name
    paths = (folder, locks) if locks.is_dir() and not locks.is_symlink() else (folder,)
    halves = tuple(folder.glob(f"blobs/*{HALF}"))
    return Owned(f"{name} in the hub's cache", "", str(folder), disk_bytes(folder), paths, (), halves)


def _pulled() -> Iterable[Owned]:
    """What pulling the alias has written, and nothing else that lies in its folder."""
    file, halves = smollm2.pulled_file(), tuple(smollm2.half_downloads())
    locks = tuple(path for path in halves if path.is_file())
    if files := (*(path for path in (file,) if path.is_file()), *halves):
        yield Owned(f"{smollm2.ALIAS}, pulled", "", str(file), disk_bytes(*files), files, (file.parent,), locks)


def _prefixes_of(weights: Path) -> tuple[Path, ...]:
    try:
        content = content_of(SafetensorsFile(weights)) if weights.is_file() else None
    except CheckpointError:  # damaged
        content = None
    if content is None:
        return ()
    pattern = f"{'?' * prefixes.OF_ARITHMETIC}{content[: prefixes.OF_CONTENT]}*"
    return tuple(sorted(path for path in (home() / prefixes.FOLDER).glob(pattern) if not path.is_symlink()))


def _named(name: str, models: list[Stored]) -> Stored | None:
    """The model of a name, an alias, or a path of the user's."""
    by_name = {model.name: model for model in reversed(models)}  # what comes first in `ls` counts
    if found := by_name.get(name) or by_name.get(hub.ALIASES.get(name, "")):
        return found
    path = expanded(name)
    for place in {os.path.abspath(path), os.path.realpath(path)}:
        of_it = [model for model in models if model.kind == "yours" and model.path in (place, os.path.dirname(place))]
        if of_it and os.path.exists(place):
            return of_it[0]
    return None


def _nothing(name: str, models: list[Stored]) -> str:
    if os.path.islink(link := packed_models() / os.path.basename(name)):
        return f"{link}: is a link, which lapinfer did not make; remove it yourself"
    if os.path.exists(expanded(name)):
        return (
            f"{name}: is yours, and has no packed copy in {home()}; lapinfer removes nothing elsewhere: do so yourself"
        )
    known = [*(model.name for model in models), *(copy.name for model in models for copy in model.copies)]
    close = difflib.get_close_matches(name, known, 1)
    return f"{name}: no such model here; {f'did you mean {close[0]}?' if close else 'lapinfer ls shows what there is'}"
