"""Checks of what callers hand over. An InputError names the argument, what is expected, and what came."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from os import PathLike
from typing import Any

from lapinfer.errors import InputError, UnknownOptionError


def described(value: object) -> str:
    """A value in a few words, for an error."""
    if value is None:
        return "None"
    if (shape := getattr(value, "shape", None)) and hasattr(value, "dtype"):
        return f"an array of shape {tuple(shape)}"
    if isinstance(value, str | bytes | bool | int | float | complex):
        text = repr(value)
        return f"{text if len(text) <= 40 else text[:37] + '…'} ({type(value).__name__})"
    return type(value).__name__


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number from `least` to `most`: an int or one of NumPy's, no bool and no float."""
    if is_whole(value) and least <= int(value) and (most is None or int(value) <= most):
        return int(value)
    upto = "" if most is None else f" to {most}"
    raise InputError(f"{name}: expected a whole number from {least}{upto}, got {described(value)}")


def is_whole(value: Any) -> bool:
    """Whether it is an int, or one of NumPy's; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def json_object(name: str, value: Any) -> Mapping[str, Any]:
    """What JSON has in braces."""
    if isinstance(value, Mapping):
        return value
    raise InputError(f"{name}: expected an object, got {described(value)}")


def json_list(name: str, value: Any) -> Sequence[Any]:
    """What JSON has in brackets."""
    if isinstance(value, list):
        return value
    raise InputError(f"{name}: expected a list, got {described(value)}")


def flag(name: str, value: Any) -> bool:
    """True or False, and nothing that only counts as such."""
    if isinstance(value, bool):
        return value
    raise InputError(f"{name}: expected True or False, got {described(value)}")


def whole_numbers(name: str, values: Any) -> list[int]:
    """A list of whole numbers, of anything that gives them one after the other: a list, a range, an array [T] …"""
    expected = f"{name}: expected a list of whole numbers"
    if hasattr(values, "tolist"):
        if len(getattr(values, "shape", ())) != 1:
            raise InputError(f"{expected}, got {described(values)}")
        values = values.tolist()
    if isinstance(values, str | bytes | bytearray | Mapping | set | frozenset) or not isinstance(values, Iterable):
        raise InputError(f"{expected}, got {described(values)}")
    listed: list[int] = []
    for i, value in enumerate(values):
        if not is_whole(value):
            raise InputError(f"{name}[{i}]: expected a whole number, got {described(value)}")
        listed.append(int(value))
    return listed


def row(name: str, values: Any) -> Any:
    """`whole_numbers`, but an array of them [T] stays as it is."""
    dtype = getattr(values, "dtype", None)
    if dtype is not None and getattr(dtype, "kind", "") in ("i", "u") and len(values.shape) == 1:
        return values
    return whole_numbers(name, values)


def flags(name: str, values: Any) -> Any:
    """Booleans, or numbers that stand for them, in a list or an array [T]."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, list | tuple) or not all(
        isinstance(value, Integral) or getattr(getattr(value, "dtype", None), "kind", "") == "b" for value in listed
    ):
        raise InputError(f"{name}: expected a list of booleans, got {described(values)}")
    return listed


def path_like(name: str, value: Any) -> None:
    """A path, or a name, as text or as an object that has one."""
    if not isinstance(value, str | PathLike) or not str(value):
        raise InputError(f"{name}: expected a name or a path, got {described(value)}")


def texts(name: str, values: Any) -> list[str]:
    """A list of texts that are not empty."""
    expected = f"{name}: expected a list of non-empty strings"
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence | Iterator | set | frozenset):
        raise InputError(f"{expected}, got {described(values)}")
    listed = list(values)
    for value in listed:
        if not isinstance(value, str) or not value:
            raise InputError(f"{expected}, got {described(value)} among them")
    return listed


def float_array(name: str, values: Any) -> Any:
    """float32 of numbers in any shape; what float32 cannot hold becomes infinite, without a warning."""
    import numpy as np

    try:
        array = np.asarray(values)
    except Exception as error:  # of rows of different lengths, of tensors that NumPy cannot read
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: expected an array of numbers, got {described(values)} ({reason})") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: expected an array of numbers, got one of {array.dtype.name}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


OTHER_NAMES = {
    "temp": "temperature", "repeat_penalty": "repetition_penalty",
    "ctx_size": "ctx", "n_ctx": "ctx", "context": "ctx", "context_length": "ctx",
    "max_new_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "n_predict": "max_tokens",
    "num_threads": "threads", "n_threads": "threads", "system": "a message of the role 'system'",
}  # fmt: skip
"""What options are called on the command line and by other programs, where no likeness tells."""


def check_options(given: Iterable[str], known: Iterable[str], of: str) -> None:
    """UnknownOptionError for a keyword that `of` does not have, with the nearest that it has."""
    names = sorted(known)
    for name in given:
        if name not in names:
            meant = OTHER_NAMES.get(name, "")
            known_here = meant in names or (" " in meant and "template_kwargs" in names)
            close = [meant] if known_here else difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
            raise UnknownOptionError(f"{of} has no option {name!r}: {hint}")
