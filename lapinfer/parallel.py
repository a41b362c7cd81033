"""Work for several threads, or for as many as the system allows. Standard library alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def started(target: Callable[..., object], *arguments: object, name: str | None = None) -> threading.Thread | None:
    """A running daemon thread; None where the system refuses one more (ulimit -u, a container's limit, no memory)."""
    thread = threading.Thread(target=target, args=arguments, daemon=True, name=name)
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        return None
    return thread


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """[work(item) for item in items], done by at most `threads` threads, the caller's among them.

    The first error ends it, after the items that have been begun.
    """
    waiting = list(items)
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    left = iter(range(len(waiting)))  # shared: each item is taken once

    def take() -> None:
        try:
            for index in left:
                if errors:
                    return
                results[index] = work(waiting[index])
        except BaseException as error:
            errors.append(error)

    helpers = []
    for _ in range(min(threads, len(waiting)) - 1):
        if (helper := started(take)) is None:
            break
        helpers.append(helper)
    take()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(waiting))]
