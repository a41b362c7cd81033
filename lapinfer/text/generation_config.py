"""What generation_config.json recommends, and what of it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapinfer.text.tokenizer_files import optional_json


@dataclass(frozen=True, slots=True)
class Ends:
    """Token ids that end an answer, and the one that a text begins with, as the files have them."""

    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None


def read_ends(folder: Path) -> Ends:
    """Of generation_config.json; what that does not say, of config.json."""
    values = optional_json(folder / "config.json") | optional_json(folder / "generation_config.json")
    return Ends(tuple(ids(values.get("eos_token_id"))), next(iter(ids(values.get("bos_token_id"))), None))


def ids(value: Any) -> list[int]:
    """A token id or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if type(v) is int and v >= 0]
