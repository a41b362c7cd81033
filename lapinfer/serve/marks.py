"""What of an answer does not follow from what was asked: its id, its time, and what the work took.

A server has these anew for each request. Whoever runs requests in the process (lapinfer/batch/) may give them, in the
scope of the request, so that equal requests have equal answers to the byte.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

SCOPE_KEY = "lapinfer.marks"
"""Under which a scope has them."""


@dataclass(frozen=True, slots=True)
class Marks:
    """id: 24 hexadecimal digits, which ids of all kinds are made of. created: seconds since 1970.

    tells_work: whether an answer has times, bytes, and how much of its prompt was still known: what depends on when it
    was made, and on what ran beside it.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    tells_work: bool = True

    def in_scope(self) -> dict[str, Any]:
        """What a scope must have for these."""
        return {SCOPE_KEY: self}


def marks_of(http: Request) -> Marks:
    """Those that the request brings, or new ones."""
    return http.scope.get(SCOPE_KEY) or Marks()
