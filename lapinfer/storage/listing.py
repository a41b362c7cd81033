"""What lapinfer takes on disk, in all: `lapinfer ls --sizes`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from lapinfer.digits import size
from lapinfer.errors import InputError
from lapinfer.home import home, hub_cache
from lapinfer.kernels.store import FOLDER as KERNELS
from lapinfer.storage.models import Stored, stored_models
from lapinfer.storage.owned import disk_bytes
from lapinfer.text.prefixes import FOLDER as PREFIXES

FREE = ("shipped", "yours")
"""Kinds of models whose own files are no concern of a cache's."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes on disk. total: all that lapinfer has made or pulled, in `home` and in the cache of the hub."""

    home: str
    hub_cache: str
    models: tuple[Stored, ...]
    kernels: int
    prefixes: int
    other: int

    @property
    def total(self) -> int:
        own = sum(model.packed_bytes + (model.bytes if model.kind not in FREE else 0) for model in self.models)
        return own + self.kernels + self.prefixes + self.other

    def as_json(self) -> dict[str, Any]:
        models = [asdict(model) | {"packed_bytes": model.packed_bytes, "used": model.used} for model in self.models]
        return {**asdict(self), "models": models, "total": self.total}

    def table(self) -> list[tuple[str, ...]]:
        """Lines of cells: name, kind, bytes of its own and of its copies, and when one was last used."""
        rows: list[tuple[str, ...]] = [("model", "kind", "source", "packed", "last used")]
        for model in self.models:
            used = datetime.fromtimestamp(model.used).strftime("%Y-%m-%d %H:%M") if model.used is not None else "-"
            rows.append((model.name, model.kind, _size(model.bytes), _size(model.packed_bytes), used))
        return rows

    def rest(self) -> list[tuple[str, str]]:
        """(what, how much) of what is no model."""
        rows = (
            ("machine code of kernels", self.kernels),
            ("beginnings of prompts", self.prefixes),
            ("texts of GGUF files, notes, history", self.other),
            ("total without shipped and yours", self.total),
        )
        return [(what, _size(count)) for what, count in rows]


def sizes() -> Sizes:
    """Looks at files, and reads headers of models; InputError where LAPINFER_HOME can be no folder."""
    place = home()
    known = {"packed", "models", KERNELS, PREFIXES}
    try:
        others = [path for path in place.iterdir() if path.name not in known]
    except FileNotFoundError:
        others = []
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror or error}") from error
    return Sizes(
        str(place), str(hub_cache()), tuple(stored_models()), disk_bytes(place / KERNELS), disk_bytes(place / PREFIXES),
        disk_bytes(*others),
    )  # fmt: skip


def _size(count: int) -> str:
    return size(count) if count else "-"
