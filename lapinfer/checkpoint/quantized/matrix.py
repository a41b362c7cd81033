"""A logical matrix of stored codes and scales: what all layouts share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from lapinfer.checkpoint.quantized.parts import Part
from lapinfer.errors import CheckpointError, UnsupportedError, quoted
from lapinfer.families.config import Config, shown
from lapinfer.families.keys import says_nothing, unknown_keys


class Stored(Protocol):
    """The tensors of a folder as they lie in its files."""

    def names(self) -> Collection[str]: ...

    def __contains__(self, name: str) -> bool: ...

    def where(self, name: str) -> str:
        """The file that has it, for messages."""
        ...

    def dtype(self, name: str) -> str: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Stored numbers; types that NumPy lacks as their bits."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A tensor of floats as float32."""
        ...


@dataclass(frozen=True, slots=True)
class Matrix:
    """A quantized matrix: its logical shape, and the stored tensors that are `parts` of it.

    kind: what its numbers are, as formats have it in their nearest_types. part: rows start:stop.
    """

    shape: tuple[int, ...]
    kind: str
    parts: tuple[str, ...]
    part: Callable[[int, int], Part]


class LastRead:
    """Whole tensors, of the matrices that are being read: their rows lie across all of the stored bytes."""

    MOST: Final = 8

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._kept: dict[str, np.ndarray] = {}

    def whole(self, name: str, read: Callable[[str], np.ndarray] | None = None) -> np.ndarray:
        if name not in self._kept:
            if len(self._kept) >= self.MOST:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = (read or self._stored.rows)(name)
        return self._kept[name]

    def drop(self, *names: str) -> None:
        """These are read to their end."""
        for name in names:
            self._kept.pop(name, None)


def modules(stored: Stored, suffix: str) -> Iterator[str]:
    """Names of modules that have a tensor of this suffix, with a dot at their ends."""
    return (name.removesuffix(suffix) for name in stored.names() if name.endswith(f".{suffix}"))


def expect(stored: Stored, name: str, dtypes: Collection[str], *shapes: tuple[int, ...]) -> None:
    """CheckpointError where a tensor is missing, or has none of these types and shapes (none: any)."""
    if name not in stored:
        raise CheckpointError(f"{stored.where('')}: tensor {quoted(name)} is missing, which quantized weights need")
    dtype, shape = stored.dtype(name), stored.shape(name)
    if dtype not in dtypes:
        raise CheckpointError(
            f"{stored.where(name)}: tensor {quoted(name)} has dtype {dtype}, expected {' or '.join(dtypes)}"
        )
    if shapes and shape not in shapes:
        raise CheckpointError(
            f"{stored.where(name)}: tensor {quoted(name)} has shape {shape}, expected {' or '.join(map(str, shapes))}"
        )


def two_sizes(stored: Stored, name: str) -> tuple[int, int]:
    """The sizes of a stored matrix; CheckpointError where it is none."""
    shape = stored.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"{stored.where(name)}: tensor {quoted(name)} has shape {shape}, expected a matrix")
    return shape[0], shape[1]


def stored_groups(stored: Stored, name: str, count: int) -> np.ndarray:
    """The group of each column, as a tensor says; CheckpointError for one that there is not."""
    group = stored.rows(name).astype(np.int64)
    if (group < 0).any() or (group >= count).any():
        raise CheckpointError(
            f"{stored.where(name)}: tensor {quoted(name)} names groups beyond the {count} of its scales"
        )
    return group


def block_sizes(section: Config, key: str, default: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """Rows and columns of blocks that have a scale; an absent key is the default, null means none."""
    value = section.get(key, default)
    if value is None or value is default:
        return value
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 0 < n <= 1 << 16 for n in value):
        raise section.wrong(key, "two sizes")
    return value[0], value[1]


def check_known(section: Config, harmless: Collection[str] = ()) -> None:
    """UnsupportedError for a key that nobody asked for, is not on the list, and says something."""
    for name, value in unknown_keys(section):
        if name not in harmless and not says_nothing(name, value):
            raise UnsupportedError(
                f"{section.where}: {name[:80]!r} is {shown(value)}, which is not known here and may change what the "
                "weights are; remove the key if it does not"
            )


def one_of(section: Config, key: str, supported: Collection[object], default: object) -> object:
    """A value that must be one of those; an absent one is the default."""
    value = section.get(key)
    value = default if value is None else value
    if not any(value is each or (type(value) is type(each) and value == each) for each in supported):
        raise section.unsupported(key, ", ".join(map(str, supported)))
    return value
