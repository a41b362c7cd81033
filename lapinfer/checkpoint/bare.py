"""What only a config.json says, where the weights are not: a file, a folder that has no more, a name.

A name is that of a model in lapinfer's own table (popular.py), which needs no network, or org/name on the hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapinfer.arguments import path_like
from lapinfer.checkpoint.foreign import WEIGHTS, has_only_config
from lapinfer.checkpoint.hub import ALIASES, is_local, remote_config
from lapinfer.checkpoint.json_files import read_json
from lapinfer.checkpoint.magic import look_at
from lapinfer.checkpoint.popular import like, popular
from lapinfer.errors import CheckpointError
from lapinfer.home import expanded


@dataclass(frozen=True, slots=True)
class BareConfig:
    """A config.json without weights. where: what errors name; told: what the model is called, and where it is not;
    notes: lines that a user should see."""

    config: dict[str, Any]
    where: str
    told: str
    notes: tuple[str, ...] = ()


def local_name(name: str | Path) -> str | Path:
    """The name under which a model is on this computer, where `name` is another way to write it; else `name`."""
    if is_local(name) or _exists(expanded(name)):
        return name
    if (known := popular(str(name))) is None:
        return name
    others = (known.name, *(alias for alias, repository in ALIASES.items() if repository == known.name))
    return next((other for other in others if is_local(other)), name)


def bare_config(name: str | Path) -> BareConfig | None:
    """The config.json of a model whose weights are not here; None where they are, or where `name` means nothing.

    CheckpointError for a file that cannot be read, and for a name on the hub that cannot be had.
    """
    path_like("model", name)
    path = expanded(name)
    if _exists(path) and path.is_file():
        return _of_file(path)
    if _exists(path) and path.is_dir():
        file = path / "config.json"
        return BareConfig(read_json(file), str(file), f"{path} (no weights)") if has_only_config(path) else None
    if is_local(name):
        return None
    name = str(name)
    if (known := popular(ALIASES.get(name, name))) is not None:
        notes = () if known.note is None else (known.note,)
        return BareConfig(known.config, known.name, f"{known.name} (not on this computer; sizes known here)", notes)
    try:
        remote = remote_config(name)
    except CheckpointError as error:
        if not (close := like(name, 1)):
            raise
        raise CheckpointError(f"{error}; the sizes of {close[0]} are known here") from error
    if remote is None:
        return None
    return BareConfig(read_json(remote), str(remote), f"{name} (not on this computer)")


def _of_file(path: Path) -> BareConfig | None:
    """None: it is no JSON of a model."""
    if path.name != "config.json" and look_at(path).kind != "json":
        return None
    config = read_json(path)
    if path.name != "config.json" and "model_type" not in config:
        return None
    beside = any((path.parent / name).is_file() for name in WEIGHTS)
    notes = (f"{path.parent}: has the weights, too; name the folder, and they are looked at",) if beside else ()
    return BareConfig(config, str(path), f"{path} (no weights)", notes)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for a file's
        return False
