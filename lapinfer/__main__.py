"""The `lapinfer` command. Ctrl-C ends it without a traceback at any moment, imports and interpreter exit included."""

import atexit
import gc
import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is a handler (lapinfer/interrupts.py)
    gc.set_threshold(50_000, 20, 100)  # imports make a million objects and no garbage: 0.08 s of looking for it
    from lapinfer import cli

    try:
        cli.main()
    except SystemExit as ended:
        _leave(ended.code)


def _leave(code: str | int | None) -> None:
    """End the process without freeing its objects one by one, which takes Python and LLVM 0.2 s."""
    atexit._run_exitfuncs()  # what Python runs before it begins to free
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # cli.end has told of it
            stream.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
