"""JSON that anybody may have written, bounded in bytes and in values: a byte can become fifty in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lapinfer.checkpoint.magic import of_start
from lapinfer.errors import CheckpointError

MOST_BYTES: Final = 64 << 20
"""Of a file. The largest that are published, indices of 100,000 tensors, have 10 MB."""

MOST_VALUES: Final = 2 << 20
"""Values of one text, which become some 400 MB of Python's objects; headers of 200,000 tensors have as many."""

Pairs = Callable[[list[tuple[str, Any]]], Any]


def parse_json(text: bytes, pairs: Pairs | None = None) -> dict[str, Any]:
    """The JSON object that a UTF-8 text has; `pairs` makes objects of their keys and values, where it is given.

    ValueError says in a few words what else it is.
    """
    if (values := sum(map(text.count, (b"{", b"[", b",")))) > MOST_VALUES:
        raise ValueError(f"has about {values:,} values, expected at most {MOST_VALUES:,}")
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON ({str(error)[:200]})") from None
    if not isinstance(value, dict):
        raise ValueError(f"has a JSON {type(value).__name__}, expected an object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; CheckpointError when it is missing, too large, or something else."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path}: not a file")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MOST_BYTES:
        raise CheckpointError(f"{path}: has more than {MOST_BYTES >> 20} MB, expected a small JSON file")
    try:
        return parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: {of_start(text[:64]) or error}") from None
