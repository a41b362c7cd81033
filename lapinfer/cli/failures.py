"""What a command raises becomes one line on stderr and an exit code.

0 done, 1 failed, 2 wrong usage, 3 does not fit, 130 stopped by Ctrl-C. -v shows the traceback, too.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from lapinfer.cli.console import note
from lapinfer.errors import InputError, LapinferError


class UsageError(InputError):
    """An option that no model accepts."""

    exit_code = 2


class Commands(TyperGroup):
    """The group of all commands: runs one, and turns what it raises into a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # so that a closed pipe is met here
            return result
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader (`| head`) has what it wanted; keep the last flush from failing too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except LapinferError as error:
            _fail(ctx, str(error), error.exit_code)
        except MemoryError as error:
            _fail(ctx, f"not enough memory{f': {error}' if str(error) else ''}; try --quant q4 or a smaller -c", 3)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(ctx, f"{place}{error.strerror or error}", 1)


def application(help: str, **settings: Any) -> typer.Typer:
    """Commands that are to be added, whose failures are told in this way."""
    return typer.Typer(
        cls=Commands,
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def _fail(ctx: Any, message: str, code: int) -> NoReturn:
    if ctx.meta.get("verbose"):
        traceback.print_exc()
    note(f"error: {message}")
    raise typer.Exit(code) from None
