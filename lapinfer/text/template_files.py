"""Where a checkpoint's chat templates stand, and which of them count, as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapinfer.checkpoint.texts import TEMPLATES
from lapinfer.errors import CheckpointError
from lapinfer.text.tokenizer_files import optional_json

DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of templates: the one that is taken, and the one that is taken where tools are given."""


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a template and where it stands; `problem` says why there is none."""

    text: str
    where: str
    problem: str | None = None


def template_sources(folder: Path) -> dict[str, Source]:
    """By name: chat_template.jinja and additional_chat_templates/*.jinja; where these are not, those of
    tokenizer_config.json, and those of chat_template.json, which older processors have. Empty: there are none.

    Nothing is refused here: a template that is no text is a problem of its source.
    """
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {path.name.removesuffix(".jinja"): path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    found = {name: _of_file(path) for name, path in files.items() if path.is_file()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = found or _of_config(folder / name)
    return found


def _of_file(path: Path) -> Source:
    try:
        return Source(path.read_text(encoding="utf-8"), str(path))
    except ValueError as error:
        return Source("", str(path), f"not UTF-8 text ({error})")


def _of_config(path: Path) -> dict[str, Source]:
    """One template, or several: a list of {"name": …, "template": …}, or a dictionary."""
    try:
        value: Any = optional_json(path).get("chat_template")
    except CheckpointError as error:
        return {DEFAULT: Source("", str(path), str(error).removeprefix(f"{path}: "))}
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(v, Mapping) and isinstance(v.get("name"), str) for v in value):
        value = {v["name"]: v.get("template") for v in value}
    named = value if isinstance(value, Mapping) else {DEFAULT: value}
    return {name: _of_value(text, str(path)) for name, text in named.items()}


def _of_value(text: Any, where: str) -> Source:
    if isinstance(text, str):
        return Source(text, where)
    return Source("", where, f"expected the chat template as text, got {type(text).__name__}")
