"""Logs of what serves requests, as notes on stderr."""

from __future__ import annotations

import logging

from lapinfer.cli.console import note_lines


class _Notes(logging.Handler):
    """Logs as other notes: strangers' text in them cannot move a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        note_lines(self.format(record))


def tell_logs(verbose: bool) -> None:
    """Tell of what went wrong; verbose: of each answer, too."""
    logging.basicConfig(handlers=[_Notes()], level=logging.WARNING, format="%(message)s")
    logging.getLogger("lapinfer.serve").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING if verbose else logging.ERROR)
