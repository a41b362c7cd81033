"""--help that shows what was written: Typer takes the words of help for Rich's markup, in which [chat] is a style."""

from __future__ import annotations

import copy
from typing import Any

from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose help is text."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        TyperCommand.format_help(as_text(self), ctx, formatter)


def as_text(command: Any) -> Any:
    """The same command or group with every help that it shows escaped for Rich's markup."""
    from rich.markup import escape

    def escaped(shown: Any) -> Any:
        same = copy.copy(shown)
        for field in ("help", "short_help", "epilog"):
            if isinstance(text := getattr(same, field, None), str):
                setattr(same, field, escape(text))
        return same

    page = escaped(command)
    page.params = [escaped(param) for param in command.params]
    if hasattr(command, "commands"):
        page.commands = {name: escaped(each) for name, each in command.commands.items()}
    return page
