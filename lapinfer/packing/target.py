"""Where a packed form is written to: a folder that is ours, or has nothing in the way, and never the source's own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.home import FILE_NAME, is_packed
from lapinfer.checkpoint.safetensors import read_metadata
from lapinfer.checkpoint.texts import texts_in
from lapinfer.errors import CheckpointError, InputError
from lapinfer.outputs import cannot_write, check_place, write_whole
from lapinfer.packing.writer import JOURNAL, PARTIAL, is_begun

CONFIG = Path("config.json")
WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".npz")
"""Endings of files that make a folder somebody's checkpoint."""


def check_target(checkpoint: Checkpoint, folder: Path, beside: Mapping[Path, bytes], *, force: bool) -> list[str]:
    """What others lose when a checkpoint is packed into `folder` by `force`, in words.

    beside: the files that go with the weights, by their paths in the folder. InputError for the source's own folder
    and for one with other weights; and unless `force` where a file is in the way: weights, or the packed form of
    another checkpoint, or a text that is not the same.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder to write")
    if not folder.exists():
        return []
    for source in _source_files(checkpoint):
        if source.exists() and os.path.samefile(source.parent, folder):
            raise InputError(f"{folder} is the folder of {source.name}, which is to be packed; name another one")
    check_no_other_weights(folder)
    weights, identity = folder / FILE_NAME, checkpoint.contents.identity()
    metadata = read_metadata(weights) if is_packed(weights) else {}
    is_from_here = bool(metadata) and metadata.get("source") == identity
    foreign = "the packed form of another checkpoint" if metadata else "weights that lapinfer did not pack"
    goes = [check_place(weights, lambda path: is_from_here, force=force, otherwise=foreign)]
    for ending in (PARTIAL, JOURNAL):
        file = weights.with_name(weights.name + ending)
        goes.append(check_place(file, is_begun, force=force, otherwise="not begun by lapinfer"))
    for name, content in beside.items():
        if len(name.parts) > 1 and (folder / name.parent).is_symlink():
            raise InputError(f"{folder / name.parent} is a link, which is not written through; remove it")
        same = partial(_holds, content=content)
        goes.append(check_place(folder / name, same, force=force, otherwise="not that of the checkpoint"))
    return [file for file in goes if file is not None]


def check_no_other_weights(folder: Path) -> None:
    """InputError when a folder has weights under another name than ours: they'd be another model beside this one."""
    for entry in sorted(folder.iterdir()):
        if entry.name.lower().endswith(WEIGHTS) and entry.name != FILE_NAME:
            raise InputError(f"{folder} has {entry.name}, the weights of another checkpoint; name a new folder")


def _source_files(checkpoint: Checkpoint) -> list[Path]:
    """All files that are read of a checkpoint, and what links among them lead to."""
    texts = [checkpoint.folder / name for name in (CONFIG, *texts_in(checkpoint.folder))]
    files = [*checkpoint.contents.paths, *texts]
    return [*files, *(Path(os.path.realpath(file)) for file in files)]


def beside(checkpoint: Checkpoint) -> dict[Path, bytes]:
    """What a packed form has beside its weights: the config that they were packed with, and the texts of now."""
    try:
        texts = {name: (checkpoint.folder / name).read_bytes() for name in texts_in(checkpoint.folder)}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    return {CONFIG: json.dumps(checkpoint.config, indent=2).encode(), **texts}


def config_digest(config: Mapping[str, Any]) -> str:
    """By which a packed file knows the config.json that it was packed with."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]


def write_beside(files: Mapping[Path, bytes], folder: Path) -> None:
    """Write these files into the folder of a packed form, each whole; those that are there already are left alone."""
    for name, content in files.items():
        if not _holds(folder / name, content):
            try:
                (folder / name).parent.mkdir(exist_ok=True)
            except OSError as error:
                raise cannot_write(folder / name, error) from error
            write_whole(folder / name, content)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file is just what would be written there."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False
