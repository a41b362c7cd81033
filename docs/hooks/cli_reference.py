"""The page of all commands, made from the Typer app when the site is built."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lapinfer.cli import app

PAGE = "reference/cli.md"
"""Its beginning lies in docs/, for those who read the files where they lie."""
EXTRA = re.compile(r"\s+\[((?:env var|default|required|x?[<>=\d]).*)\]$", re.DOTALL)
"""What Typer appends to the help of an option."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    beginning = files.src_uris[PAGE]
    files.remove(beginning)
    files.append(File.generated(config, PAGE, content=page(beginning.content_string)))
    return files


def page(beginning: str) -> str:
    """Markdown: the beginning, a table of the commands, and a section for each."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rows = [(f"[`{name}`](#{name})", _cell(command.get_short_help_str(200))) for name, command in commands.items()]
    sections = [_section(name, command) for name, command in commands.items()]
    return "\n\n".join([beginning, _table(("command", ""), rows), *sections]) + "\n"


def _section(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"lapinfer {name}")
    usage = " ".join([context.info_name, *command.collect_usage_pieces(context)])
    parts = [f"## {name}", inspect.cleandoc(command.help or "").replace("<", "&lt;"), f"```text\n{usage}\n```"]
    panels: dict[str, list[tuple[str, ...]]] = {}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is None or param.name == "help":
            continue
        flags, help = record
        extra = EXTRA.search(help)
        told = [_cell(help[: extra.start()] if extra else help)]
        if param.param_type_name == "argument":
            panels.setdefault("argument", []).append((f"`{flags}`", *told))
            continue
        panel = (getattr(param, "rich_help_panel", None) or "option").lower()
        panels.setdefault(panel, []).append((f"`{flags}`", *told, _default(extra[1] if extra else "")))
    tables = [_table((title, "", "default")[: len(rows[0])], rows) for title, rows in panels.items()]
    return "\n\n".join([*parts, *tables])


def _default(extra: str) -> str:
    """`env var: NAME; default: (value); x>=1` -> value (or NAME)."""
    said = dict(part.partition(": ")[::2] for part in extra.split("; "))
    value = said.get("default", "required" if "required" in said else "")
    value = value.removeprefix("(").removesuffix(")") if value.startswith("(") else value
    return _cell(value) + (f" (or `{said['env var']}`)" if "env var" in said else "")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(text: str) -> str:
    """Text in a cell of a table: one line, nothing in it is markup."""
    return re.sub(r"([|<>*_\\\[\]])", r"\\\1", " ".join(text.split()))
