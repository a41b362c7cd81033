"""What a command raises becomes one line on stderr and an exit code.

0 done, 1 failed, 2 wrong usage, 3 does not fit, 130 stopped by Ctrl-C. -v shows the traceback, too. What nobody has
foreseen is told as such, with what to report.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from lapinfer.cli.console import note, note_lines
from lapinfer.cli.help_pages import as_text
from lapinfer.errors import InputError, LapinferError
from lapinfer.shown import shown_line

OWN_OF_TYPER: tuple[type[Exception], ...] = (
    typer.Exit,
    typer.Abort,
    *(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"),
)
"""How Typer ends a command, and how it tells of wrong usage."""
NEXT_STEPS = {
    errno.EROFS: "set LAPINFER_HOME to a folder that can be written",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs",
}
"""What helps, by what the system says."""


MEANT = {
    "chat": "run", "generate": "run", "ask": "run", "models": "ls", "download": "pull", "get": "pull", "remove": "rm",
    "delete": "rm", "quantize": "convert", "embeddings": "embed", "server": "serve", "run-batch": "batch",
    "help": "--help",
}  # fmt: skip
"""Commands by names that other programs have for them."""


class UsageError(InputError):
    """An option that no model accepts."""

    exit_code = 2


class Commands(TyperGroup):
    """The group of all commands: runs one, and turns what it raises into a line and an exit code."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        TyperGroup.format_help(as_text(self), ctx, formatter)

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        with _usage_shown():
            return super().make_context(*arguments, **more)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except OWN_OF_TYPER as error:
            message = getattr(error, "message", "")
            if (meant := MEANT.get(args[0])) is not None and "Did you mean" not in message:
                error.message = f"{message} Did you mean {meant!r}?"  # pyright: ignore[reportAttributeAccessIssue]
            raise

    def invoke(self, ctx: Any) -> Any:
        with _usage_shown():
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # so that a closed pipe or a full disk is met here
            return result
        except OWN_OF_TYPER:
            raise
        except BaseException as error:
            raise typer.Exit(fail(error, ctx.meta.get("verbose", False))) from None


@contextmanager
def _usage_shown() -> Iterator[None]:
    """What Typer is going to print of wrong usage may quote what it was given."""
    try:
        yield
    except Exception as error:
        if isinstance(getattr(error, "message", None), str):  # of all that Typer raises of this kind
            told = shown_line(error.message)  # pyright: ignore[reportAttributeAccessIssue]
            error.message = told + _hint(error, told)  # pyright: ignore[reportAttributeAccessIssue]
        raise


def _hint(error: Exception, message: str) -> str:
    """What helps with usage that is often wrong."""
    if getattr(error, "option_name", None) in ("-m", "--model"):
        return ": the model is an argument of this command, its first"
    return "; put text with spaces into quotes" if message.startswith("Got unexpected extra argument") else ""


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


def fail(error: BaseException, verbose: bool) -> int:
    """Tell of an error on stderr, in a line, and of where it came from if that was asked for; the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, OSError):  # of stdout, maybe: then what is left there would fail again at the end
        drop_stdout()
    if isinstance(error, BrokenPipeError):  # the reader (`| head`) has what it wanted
        return 0
    message, code = told(error)
    if verbose:
        note_lines("".join(traceback.format_exception(error)).rstrip())
    note(f"error: {message}")
    return code


def told(error: BaseException) -> tuple[str, int]:
    """(what went wrong and what to do, in a line; the exit code)."""
    text = " ".join(str(error).split())
    match error:
        case LapinferError():
            return str(error), error.exit_code
        case MemoryError():
            return f"not enough memory{text and f': {text}'}; try --quant q4 or a smaller -c", 3
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            hint = NEXT_STEPS.get(error.errno or 0, "")
            return f"{place}{error.strerror or text}{hint and f'; {hint}'}", 1
        case ImportError():
            what = f"{error.name}: " if error.name else ""
            return f"{what}cannot be imported: {text[:300]}; install lapinfer again (pip install --force-reinstall)", 1
        case RecursionError():
            return f"something is nested too deeply: {text[:300]}", 1
        case RuntimeError() if "start new thread" in text:
            return "the system refuses one more thread: allow more (ulimit -u, or the container's limit)", 1
        case _:
            name = type(error).__name__
            return (
                f"this should not have happened: {name}{text and f': {text[:300]}'}; please report it to lapinfer's "
                f"issue tracker, with what the same command with -v prints"
            ), 1


def drop_stdout() -> None:
    """Write what is left for stdout to nowhere, where it can no longer be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError:  # closed
        pass


def end(code: int) -> NoReturn:
    """Leave with an exit code; what can only now not be written is told."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = fail(error, verbose=False) or code
    raise SystemExit(code)
