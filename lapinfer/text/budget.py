"""What a chat template may use: bytes that it makes, and seconds.

One rule bounds both. Every value that a template makes is charged by its size when it is made, and every operation a
few bytes; nothing is given back. No operation makes, or takes, more than a small multiple of what it was given, but for
those in growth.py, which are charged first for what they are about to make. Between operations the clock is read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, MappingView
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError

BASE_BYTES, BYTES_PER_BYTE, SECONDS = 8_000_000, 400, 3.0
"""What one rendering may make: so much, and so much for each byte of messages; and its seconds of processor time. Real
templates need a hundredth of it."""
OPERATION = 8
"""Bytes that an operation counts as, or a round of a loop, even if it makes nothing."""
MOST_BITS = 4096
"""Longer integers are refused: arithmetic on them, and writing them, is no longer a matter of nanoseconds."""
MOST_NESTED = 200
"""Deeper containers are refused: Python hashes and compares them recursively, in C."""
HELD, SLOT = 256, 8
"""Bytes of a container, and of each of its places."""


class Budget:
    """What is left of one rendering's bytes and seconds; SecurityError when it is used up."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, int, int]] = {}  # by id: the container, which lives on, its size and depth
        self.left = self.largest = sys.maxsize
        self.deadline = time.thread_time() + SECONDS

    def allow(self, given: Any) -> None:
        """Set what may be made by the size of what the caller gave."""
        self.left = self.largest = BASE_BYTES + BYTES_PER_BYTE * self.size(given)

    def charge(self, size: float = 0) -> None:
        """Take the bytes that an operation is about to make, or has just made."""
        self.left -= OPERATION + max(0, int(min(size, sys.maxsize)))
        if self.left < 0:
            raise SecurityError("it does too much work, or makes too much text")
        if time.thread_time() > self.deadline:
            raise SecurityError(f"it takes more than {SECONDS:g} seconds")

    def made(self, value: Any) -> Any:
        """Charge a new value, and return it; what an iterator gives is charged as it comes."""
        if isinstance(value, str):
            self.charge(sys.getsizeof(value))
        elif isinstance(value, Iterator):
            return self.counted(value)
        else:
            if not isinstance(value, MappingView):  # which makes nothing, and is measured where it is written out
                self.size(value)
            self.charge()
        return value

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.charge() if isinstance(value, str) else self.made(value)
            yield value

    def size(self, value: Any) -> int:
        """Bytes of a value written out: what a container holds counts as often as it occurs. New ones are charged."""
        return self._measured(value)[0]

    def depth(self, value: Any) -> int:
        """How deep containers are nested in a value; 0 for what is none."""
        return self._measured(value)[1]

    def _measured(self, value: Any) -> tuple[int, int]:
        if isinstance(value, str | bytes):
            return sys.getsizeof(value), 0
        if isinstance(value, int):
            if value.bit_length() > MOST_BITS:
                raise SecurityError("a number is too large")
            return 32, 0
        if not isinstance(value, list | tuple | set | frozenset | Mapping | MappingView):
            return 64, 0
        if (known := self._known.get(id(value))) is not None:
            return known[1:]
        size, depth = HELD, 0
        children: Any = chain(value, value.values()) if isinstance(value, Mapping) else value
        for child in children:
            # The pairs of a view are made only now, and are not kept.
            for part in child if isinstance(value, MappingView) and isinstance(child, tuple) else (child,):
                of_child, depth_of_child = self._measured(part)
                size, depth = size + SLOT + of_child, max(depth, depth_of_child)
            if size > self.largest:
                raise SecurityError("it makes too large a value")
        if depth >= MOST_NESTED:
            raise SecurityError(f"it nests values more than {MOST_NESTED} deep")
        if not isinstance(value, MappingView):
            self._keep(value, size, depth + 1)
        return size, depth + 1

    def _keep(self, value: Any, size: int, depth: int) -> None:
        self.charge(HELD + SLOT * len(value))
        self._known[id(value)] = (value, size, depth)

    def concatenated(self, value: Any, left: Any, right: Any) -> Any:
        """`made` of left + right: long lists, to which templates add message by message, are not measured anew."""
        if not isinstance(value, list | tuple):
            return self.made(value)
        parts = [self._measured(part) for part in (left, right)]
        self._keep(value, sum(size for size, _ in parts), max(depth for _, depth in parts))
        return value
