"""Models on the Hugging Face hub: which files of a repository are needed, and fetching them into the hub's own cache.

huggingface_hub (the extra `hub`) tells what a repository has, and as whom to ask. It starts a file that was broken off
anew, so the bytes are fetched here (fetch.py), and put where its cache has them: blobs/DIGEST, a link to it in
snapshots/COMMIT, and COMMIT in refs/main.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lapinfer.checkpoint.fetch import RefusedError, Wanted, fetch_all
from lapinfer.checkpoint.foreign import WEIGHTS
from lapinfer.checkpoint.json_files import read_json
from lapinfer.checkpoint.names import entry_name
from lapinfer.checkpoint.texts import TEMPLATES, TEXTS
from lapinfer.digits import size
from lapinfer.errors import CheckpointError, LapinferError
from lapinfer.home import hub_cache
from lapinfer.outputs import write_whole

CONFIG = "config.json"
INSTALL = 'pip install "lapinfer[hub]"'
LOG_IN = "log in (hf auth login), or set HF_TOKEN"
PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
"""What names of a GGUF model's parts have at their end."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; digest: SHA-256 of a large one, else git's SHA-1."""

    name: str
    bytes: int
    digest: str
    algorithm: Literal["sha256", "git"]


@dataclass(frozen=True, slots=True)
class Repository:
    """What the hub says of a repository as it is now."""

    name: str
    commit: str
    files: dict[str, RemoteFile]
    url: Callable[[str], str]
    headers: dict[str, str]


def pull_repository(
    name: str, tag: str | None, progress: Callable[[int, int], object], told: Callable[[str], object]
) -> Path:
    """Fetch what is needed of org/name; the folder, or the GGUF file, in the hub's cache.

    tag: which of several GGUF models, by a part of its name. CheckpointError in a line for what cannot be had.
    """
    repository = look_at(name)
    if CONFIG in repository.files and tag is None and (weights := weights_of(repository)):
        if weights == [WEIGHTS[1]]:
            index = _fetch(repository, weights, lambda done, total: None, told) / WEIGHTS[1]
            weights += _shards(repository, index)
        return _fetch(repository, [*weights, *beside(repository)], progress, told)
    models = gguf_models(repository.files)
    if not models:
        raise CheckpointError(
            f"{name}: has no {WEIGHTS[0]}, no {WEIGHTS[1]} and no .gguf file on the hub, and nothing else is read; "
            f"look for a repository of the same model that has"
        )
    parts = _chosen(repository, models, tag)
    return _fetch(repository, parts, progress, told) / parts[0]


def look_at(name: str) -> Repository:
    """Ask the hub what org/name has."""
    try:
        from huggingface_hub import HfApi, constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers
    except ImportError:
        raise CheckpointError(f"{name}: not in {hub_cache()}; downloading it needs: {INSTALL}") from None
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    with _told_in_a_line(name):
        info = HfApi(endpoint=endpoint).model_info(name, files_metadata=True)
        headers = {key: value for key, value in build_hf_headers(library_name="lapinfer").items() if value}
    commit = str(info.sha)
    files = {file.name: file for file in map(_remote, info.siblings or ()) if file is not None}
    if re.fullmatch("[0-9a-f]{40}", commit) is None or not files:
        raise CheckpointError(f"{name}: the hub's answer says no commit and no files of it; try again later")
    return Repository(
        name, commit, files, lambda file: hf_hub_url(name, file, revision=commit, endpoint=endpoint), headers
    )


def _remote(said: Any) -> RemoteFile | None:
    """A file as the hub tells it; None without a size and a digest, or with a name that is no file of a folder."""
    name, lfs = str(said.rfilename), getattr(said, "lfs", None)
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
        return None
    digest = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    algorithm: Literal["sha256", "git"] = "sha256" if digest else "git"
    digest, length = str(digest or said.blob_id), {"sha256": 64, "git": 40}[algorithm]
    if not isinstance(said.size, int) or re.fullmatch(f"[0-9a-f]{{{length}}}", digest) is None:
        return None
    return RemoteFile(name, said.size, digest, algorithm)


def weights_of(repository: Repository) -> list[str]:
    """Of safetensors: the one file, or the index of several; none of both."""
    return next(([name] for name in WEIGHTS if name in repository.files), [])


def beside(repository: Repository) -> list[str]:
    """Config, tokenizer, templates: what is read beside weights, and there."""
    templates = [name for name in repository.files if re.fullmatch(rf"{TEMPLATES}/[^/]+\.jinja", name)]
    return [name for name in (CONFIG, *TEXTS) if name in repository.files] + sorted(templates)


def gguf_models(names: Iterable[str]) -> dict[str, list[str]]:
    """Models of GGUF files by their names, each with its parts in order; none of what sees or hears (mmproj)."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf") and "/" not in name and not name.lower().startswith("mmproj"):
            models.setdefault(PART.sub("", name), []).append(name)
    return models


def _chosen(repository: Repository, models: dict[str, list[str]], tag: str | None) -> list[str]:
    """The files of the one model that is meant."""
    found = [model for model in models if tag is None or tag.lower() in model.lower()]
    exact = [model for model in found if tag is not None and model.lower().endswith(f"{tag.lower()}.gguf")]
    found = exact if len(exact) == 1 else found
    if len(found) == 1:
        return models[found[0]]
    sizes = {model: sum(repository.files[part].bytes for part in models[model]) for model in found or models}
    listed = ", ".join(f"{model} ({size(of)})" for model, of in sorted(sizes.items(), key=lambda item: item[1])[:8])
    which = f"none has {tag} in its name" if tag is not None and not found else f"name one, as {repository.name}:Q8_0"
    raise CheckpointError(f"{repository.name}: has {len(sizes)} models in .gguf files: {listed}; {which}")


def _shards(repository: Repository, index: Path) -> list[str]:
    """The files that an index names, which must be in the repository."""
    named = read_json(index).get("weight_map")
    shards = sorted({str(shard) for shard in named.values()}) if isinstance(named, dict) else []
    missing = [shard for shard in shards if shard not in repository.files]
    if missing or not shards:
        what = f"names {missing[0][:80]!r}, which the repository lacks" if missing else "names no files"
        raise CheckpointError(f"{repository.name}: {index.name} {what}; it is not whole on the hub")
    return shards


def _fetch(
    repository: Repository, names: list[str], progress: Callable[[int, int], object], told: Callable[[str], object]
) -> Path:
    """Fetch these files, those first that are small; the folder of the snapshot, which has them all then."""
    entry = hub_cache() / entry_name(repository.name)
    files = sorted((repository.files[name] for name in names), key=lambda file: file.bytes)
    wanted = {
        file.digest: Wanted(
            f"{repository.name}/{file.name}", repository.url(file.name), entry / "blobs" / file.digest, file.bytes,
            file.digest, file.algorithm, repository.headers,
        )
        for file in files
        if not _is_linked(entry, repository.commit, file)
    }  # fmt: skip
    with _told_in_a_line(repository.name):
        fetch_all(wanted.values(), progress, told)
    snapshot = entry / "snapshots" / repository.commit
    try:
        for file in files:
            _link(entry, snapshot / file.name, file)
        (entry / "refs").mkdir(exist_ok=True)
        write_whole(entry / "refs" / "main", repository.commit)
    except OSError as error:
        raise CheckpointError(f"{error.filename or entry}: cannot be written: {error.strerror or error}") from error
    return snapshot


def _is_linked(entry: Path, commit: str, file: RemoteFile) -> bool:
    """Whether a snapshot has the file itself, as on systems without links."""
    path = entry / "snapshots" / commit / file.name
    return path.is_file() and not path.is_symlink() and path.stat().st_size == file.bytes


def _link(entry: Path, path: Path, file: RemoteFile) -> None:
    """A link to the blob, or where the system has none, the blob itself."""
    blob = entry / "blobs" / file.digest
    if path.is_file() and (not path.is_symlink() or os.path.realpath(path) == os.path.realpath(blob)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.unlink()
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except FileExistsError:  # another process has just made it
        pass
    except OSError:
        shutil.move(blob, path)


@contextmanager
def _told_in_a_line(name: str) -> Iterator[None]:
    """Errors of the hub's client, of several HTTP libraries without a common base, as one line with what to do."""
    try:
        yield
    except RefusedError as error:
        raise CheckpointError(_told(name, error.kind, error.status, str(error))) from error
    except LapinferError:
        raise
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{name}: the hub's answer is no JSON: is HF_ENDPOINT right?") from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise CheckpointError(_told(name, type(error).__name__, status, " ".join(str(error).split())[:200])) from error


def _told(name: str, kind: str, status: int | None, text: str) -> str:
    if kind in ("GatedRepoError", "GatedRepo") or status == 403:
        return f"{name}: is given only to those who have asked: accept its terms on its page of the hub, and {LOG_IN}"
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError") or status == 404:
        return f"{name}: no such model on the hub, or it is private: look at its name, or {LOG_IN}"
    if status == 401:
        return f"{name}: the hub does not know who asks: {LOG_IN}"
    if status == 429:
        return f"{name}: the hub has answered too many questions from here: wait some minutes, or {LOG_IN}"
    if kind == "OfflineModeIsEnabled":
        return f"{name}: not in {hub_cache()}, and HF_HUB_OFFLINE is set, so the hub is not asked"
    if status is not None:
        return f"{name}: the hub answers {status}: {text}; try again later"
    if kind in ("HFValidationError", "ValueError"):
        return f"{name}: {text}"
    return f"{name}: not in {hub_cache()}, and the hub cannot be reached: {kind}: {text}"
