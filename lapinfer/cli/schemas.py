"""Schemas that options name."""

from __future__ import annotations

from pathlib import Path

import typer

from lapinfer.errors import InputError


def read_schema(path: Path) -> str:
    """The JSON of --schema; what can be wrong without a model is told before one is loaded."""
    from lapinfer.text.grammar import check, check_installed, grammar_of
    from lapinfer.texts import read_text

    check_installed()
    if str(path).lstrip().startswith("{"):
        raise typer.BadParameter("--schema: expected a file with a JSON schema, got JSON: write it to a file")
    text = read_text(path)
    try:
        if (grammar := grammar_of(schema=text)) is not None:
            check(grammar)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return text
