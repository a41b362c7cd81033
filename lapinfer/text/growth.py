"""Operations of chat templates that make, or take, far more than a small multiple of what they are given.

Each is charged first for what it is about to make: an estimate is a function of the budget and the operation's
arguments. Methods of Python's values that a template may call are named here, too; all others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

from lapinfer.text.budget import HELD, MOST_BITS, Budget

Estimate = Callable[..., None]

CHARACTER = 100
"""Bytes of a character that becomes a string of its own, in a list."""
WIDE = 4
"""Bytes of a character at most."""
ELEMENT = 32
"""Bytes that `Budget.size` counts at least for an element of a container."""
MOST_PLACES = 400
"""Places to round to."""


def nothing(budget: Budget, *_: Any, **__: Any) -> None:
    """For all that makes at most a small multiple of what it is given, in time of the same kind."""


def characters(budget: Budget, value: Any, *_: Any, **__: Any) -> None:
    """Each character of a string becomes a string."""
    if isinstance(value, str):
        budget.charge(CHARACTER * len(value))


def escaped(budget: Budget, value: Any, *_: Any, **__: Any) -> None:
    budget.charge(6 * budget.size(value))


def quadratic(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    """Text is copied for each of its pieces."""
    size = budget.size(value) + sum(budget.size(v) for v in (*args, *kwargs.values()))
    budget.charge(size * size / 64)


def searched_backwards(budget: Budget, text: str, part: Any = None, *_: Any, **__: Any) -> None:
    """Python searches backwards, and strips characters, in a time that is the product of both lengths."""
    budget.charge(len(text) * len(part) / 64 if isinstance(part, str) and isinstance(text, str) else 0)


def split(budget: Budget, text: str, sep: Any = None, maxsplit: Any = -1) -> None:
    pieces = text.count(sep) if isinstance(sep, str) else len(text)
    if isinstance(maxsplit, int) and maxsplit >= 0:
        pieces = min(pieces, maxsplit)
    budget.charge(HELD + CHARACTER * pieces)


def split_from_the_end(budget: Budget, text: str, sep: Any = None, maxsplit: Any = -1) -> None:
    searched_backwards(budget, text, sep)
    split(budget, text, sep, maxsplit)


def replaced(budget: Budget, text: Any, old: Any, new: Any, count: Any = -1) -> None:
    text, old, new = str(text), str(old), str(new)
    times = text.count(old)
    if isinstance(count, int) and count >= 0:
        times = min(times, count)
    budget.charge(WIDE * (len(text) + times * len(new)))


def joined(budget: Budget, values: Any, d: Any = "", attribute: Any = None) -> None:
    characters(budget, values)
    budget.charge(budget.size(values) + (len(values) * budget.size(d) if d != "" else 0))


def joined_by(budget: Budget, separator: str, values: Any) -> None:
    joined(budget, values, separator)


def widened(budget: Budget, text: Any, width: Any = 80, *_: Any) -> None:
    budget.charge(WIDE * width if isinstance(width, int) else 0)


def tabs_expanded(budget: Budget, text: str, tabsize: Any = 8) -> None:
    budget.charge(WIDE * text.count("\t") * tabsize if isinstance(tabsize, int) else 0)


def indented(budget: Budget, text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    lines = len(str(text).splitlines()) + 1
    by = len(width) if isinstance(width, str) else width if isinstance(width, int) else 0
    budget.charge(lines * (CHARACTER + WIDE * by))


def in_rows(budget: Budget, values: Any, linecount: Any, fill_with: Any = None) -> None:
    characters(budget, values)
    budget.charge(8 * linecount if fill_with is not None and isinstance(linecount, int) else 0)


def rounded(budget: Budget, value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    if isinstance(precision, int) and abs(precision) > MOST_PLACES:
        raise SecurityError(f"it rounds to more than {MOST_PLACES} places")


def summed(budget: Budget, values: Any, attribute: Any = None, start: Any = 0) -> None:
    characters(budget, values)
    if not isinstance(start, int | float):  # then each term makes a new list
        budget.charge(len(values) * budget.size(values))


def json_of(
    budget: Budget,
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> None:
    """Indents and separators come once for each element, the indent as often as it is nested."""
    size, each = budget.size(value), 0
    if isinstance(separators, list | tuple):
        each = sum(len(s) for s in separators if isinstance(s, str))
    if indent is not None:
        each += budget.depth(value) * (len(indent) if isinstance(indent, str) else max(0, int(indent)))
    budget.charge(2 * size + WIDE * each * size / ELEMENT)


def formatted(budget: Budget, format: Any, *args: Any, **kwargs: Any) -> None:
    """'%5d' % values: each field may write all of them, as wide as the largest number in it says."""
    _fields(budget, str(format), "%", r"%[^%a-zA-Z]*\*", (*args, *kwargs.values()))


def braces_formatted(budget: Budget, format: str, *args: Any, **kwargs: Any) -> None:
    _fields(budget, format, "{", r":[^{}]*\{", (*args, *kwargs.values()))


def _fields(budget: Budget, text: str, mark: str, width_from_value: str, values: tuple[Any, ...]) -> None:
    if re.search(r"\d{5}", text) or re.search(width_from_value, text):
        raise SecurityError("a format is too wide, or its width is a value")
    widest = max(map(int, re.findall(r"\d+", text)), default=0)
    budget.charge(WIDE * (len(text) + text.count(mark) * (widest + sum(map(budget.size, values)))))


def power(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MOST_BITS:
        raise SecurityError("a number is too large")


def times(budget: Budget, left: Any, right: Any) -> None:
    for value, n in ((left, right), (right, left)):
        if isinstance(n, int) and isinstance(value, str | list | tuple):
            width = 8 if isinstance(value, list | tuple) else 1 if value.isascii() else WIDE
            budget.charge(n * len(value) * width)


def modulo(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, str):
        formatted(budget, left, right)


OPERATORS: Mapping[str, Estimate] = dict.fromkeys(("+", "-", "/", "//"), nothing) | {
    "**": power,
    "*": times,
    "%": modulo,
}

FILTERS: Mapping[str, Estimate] = {
    "batch": in_rows,
    "center": widened,
    "e": escaped,
    "escape": escaped,
    "forceescape": escaped,
    "format": formatted,
    "indent": indented,
    "join": joined,
    "pprint": quadratic,
    "replace": replaced,
    "round": rounded,
    "striptags": quadratic,
    "sum": summed,
    "tojson": json_of,
    "trim": searched_backwards,
    "urlencode": escaped,
    "urlize": quadratic,
    "wordwrap": quadratic,
    "xmlattr": escaped,
} | dict.fromkeys(
    (
        "groupby",
        "list",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "select",
        "selectattr",
        "slice",
        "sort",
        "title",
        "unique",
        "wordcount",
    ),
    characters,
)
"""Filters that are charged beforehand."""

PLAIN_METHODS = (
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower",
    "partition", "removeprefix", "removesuffix", "startswith", "swapcase", "title", "upper",
)  # fmt: skip
"""Methods of text that make at most a small multiple of it."""

METHODS: tuple[tuple[type, Mapping[str, Estimate]], ...] = (
    (
        str,
        dict.fromkeys(PLAIN_METHODS, nothing)
        | dict.fromkeys(("lstrip", "rfind", "rindex", "rpartition", "rstrip", "strip"), searched_backwards)
        | dict.fromkeys(("center", "ljust", "rjust", "zfill"), widened)
        | {
            "expandtabs": tabs_expanded,
            "format": braces_formatted,
            "format_map": braces_formatted,
            "join": joined_by,
            "replace": replaced,
            "rsplit": split_from_the_end,
            "split": split,
            "splitlines": characters,
        },
    ),
    (dict, dict.fromkeys(("copy", "fromkeys", "get", "items", "keys", "values"), nothing)),
    (list, dict.fromkeys(("copy", "count", "index"), nothing)),
    (tuple, dict.fromkeys(("count", "index"), nothing)),
    (int, dict.fromkeys(("as_integer_ratio", "bit_count", "bit_length", "conjugate", "is_integer"), nothing)),
    (float, dict.fromkeys(("as_integer_ratio", "conjugate", "hex", "is_integer"), nothing)),
)
"""Methods that may be called, by what they belong to; all others are refused."""
