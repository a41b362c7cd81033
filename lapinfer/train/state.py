"""A run's folder, which a killed run goes on from: every file is written whole or not at all.

run.json            the configuration and a digest of the texts: what a run that goes on must have, too
tokenizer.json
metrics.jsonl       a line every few steps
state.safetensors   weights, moments of the optimiser, state of the random numbers, and the step (metadata)
model/              the checkpoint, when the run is over
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lapinfer.errors import CheckpointError, InputError
from lapinfer.locks import LOCK, holder, locked
from lapinfer.outputs import PART, append, cannot_write, whole_file, write_whole
from lapinfer.train.config import Config
from lapinfer.train.decoder import Decoder

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A whole safetensors file, or none; InputError when it cannot be written."""
    with whole_file(path) as part:
        try:
            save_file(dict(tensors), part, metadata)
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be written: {error}") from error


def find_run(folder: Path, config: Config, digest: str) -> bool:
    """Whether the folder holds this run; InputError when it holds another one, or other files."""
    path = folder / "run.json"
    if not path.is_file():
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder for the run")
        entries = folder.iterdir() if folder.exists() else ()
        left = [entry.name for entry in entries if not entry.name.startswith(PART)]
        if left:
            raise InputError(f"{folder}: has other files ({sorted(left)[0]}); name a new folder for the run")
        return False
    try:
        stored = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if difference := _difference("", stored, _described(config, digest)):
        raise InputError(f"{folder}: holds another run ({difference}); name a new folder, or delete this one")
    return True


def begin_run(folder: Path, config: Config, digest: str) -> None:
    """Make a folder this run's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_whole(folder / "run.json", json.dumps(_described(config, digest), indent=1))


def _described(config: Config, digest: str) -> dict[str, Any]:
    return {"config": config.as_dict(), "texts": digest}


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """The folder, there and locked for this process; InputError when another one trains in it."""
    folder.mkdir(parents=True, exist_ok=True)
    apart = sys.platform == "win32"  # where folders cannot be opened
    descriptor = os.open(folder / LOCK if apart else folder, os.O_RDWR | os.O_CREAT if apart else os.O_RDONLY)
    try:
        if not locked(descriptor):
            raise InputError(f"{folder}: {holder(descriptor)} trains here; wait for it, or name another folder")
        yield
    finally:
        os.close(descriptor)
        if apart:
            with suppress(OSError):  # another process looks at it, and removes it in turn
                (folder / LOCK).unlink()


def _difference(name: str, stored: Any, wanted: Any) -> str | None:
    """The first key that differs, as one phrase."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in [*wanted, *stored]:
            inner = f"{name}.{key}".lstrip(".")
            if difference := _difference(inner, stored.get(key), wanted.get(key)):
                return difference
        return None
    if stored == wanted:
        return None
    if name == "texts":
        return "of other texts"
    words = ["a section" if isinstance(v, dict) else "absent" if v is None else repr(v) for v in (stored, wanted)]
    return f"{name.removeprefix('config.')} is {words[0]} there, {words[1]} here"


def save(path: Path, model: Decoder, optimizer: torch.optim.Optimizer, step: int, records: Mapping[str, Any]) -> None:
    """All that the steps after `step` hang on; `records` are kept as they are (JSON)."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    tensors["random"] = torch.get_rng_state()
    metadata = {"step": str(step), "records": json.dumps(records)}
    save_tensors(path, {name: value.contiguous() for name, value in tensors.items()}, metadata)


def restore(path: Path, model: Decoder, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    """Set everything as `save` found it; (the step, the records). (0, {}) when nothing was saved yet."""
    if not path.is_file():
        return 0, {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, records = int(metadata["step"]), json.loads(metadata["records"])
        torch.set_rng_state(tensors.pop("random"))
        own = {n.removeprefix("model."): tensors.pop(n) for n in list(tensors) if n.startswith("model.")}
        model.load_state_dict(own)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not the state of this run ({error}); delete it to begin anew") from error
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in MOMENTS}
    return step, records


class Metrics:
    """metrics.jsonl: one JSON object a line. Lines of steps after `step` are forgotten: they are run again."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []:
            if not line.endswith("\n") or _step(path, line) > step:  # a torn line is of a later step, too
                break
            kept.append(line)
        write_whole(path, "".join(kept))

    def write(self, values: Mapping[str, Any]) -> None:
        append(self.path, json.dumps(values) + "\n")


def _step(path: Path, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: a line without a step ({line[:50].strip()}); delete the file") from error
