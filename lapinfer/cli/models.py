"""From what -m names to a loaded model: the default where nothing is named, and downloads with their progress."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lapinfer.cli import complete
from lapinfer.cli.bars import Progress
from lapinfer.cli.console import note
from lapinfer.cli.options import MODEL_NAMES
from lapinfer.interrupts import KEYBOARD
from lapinfer.options import LoadOptions

if TYPE_CHECKING:
    from lapinfer.text.language_model import LanguageModel

CHAT_MODEL, SMALL_MODEL = "smollm2", "austen-fff"
"""What runs when no model is named: the first if it was pulled, else the other, which comes with the package."""

DefaultedModel = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        help=MODEL_NAMES,
        show_default=f"{CHAT_MODEL} if it was pulled, else {SMALL_MODEL}",
        autocompletion=complete.models,
    ),
]


def default_name() -> str:
    """The chat model where it was pulled, else a small one that comes with the package: there is always an answer."""
    from lapinfer.checkpoint import hub

    return CHAT_MODEL if hub.is_local(CHAT_MODEL) else SMALL_MODEL


def default_model() -> str:
    """The default model's name, which is told."""
    if (name := default_name()) == CHAT_MODEL:
        note(f"no -m given: running {CHAT_MODEL}; others: lapinfer ls")
    else:
        note(f"no -m given: running {SMALL_MODEL}, which continues novels; for answers: lapinfer run -m {CHAT_MODEL} …")
    return name


def pull_model(name: str) -> Path:
    """Download a model with a bar of progress; its folder or file."""
    from lapinfer.checkpoint import hub

    with Progress() as progress, KEYBOARD.wakes():  # it waits for the network, and removes what is not whole
        return hub.pull(name, progress)


def pulled(name: str) -> str:
    """The same name; an alias is downloaded where it is not there yet."""
    from lapinfer.checkpoint import hub

    if name in hub.ALIASES and not hub.is_local(name):
        note(f"pulling {name} (once)")
        pull_model(name)
    return name


def open_model(
    name: str, options: LoadOptions, verbose: bool = False, progress: Progress | None = None
) -> LanguageModel:  # fmt: skip
    """Load a model, an alias after its first download; `progress` shows what takes long, or else a new one."""
    from lapinfer.text.language_model import open_model

    pulled(name)
    with Progress() if progress is None else nullcontext(progress) as telling:
        model = open_model(name, options, telling)
    if model.model.ctx > model.spec.context:
        note(f"note: this model was made for {model.spec.context:,} positions; after them it may write nonsense")
    if verbose:
        m = model.model
        note(f"{m.name}: loaded {m.load_s:.2f} s, packed {m.pack_s:.2f} s, compiled {m.compile_s:.2f} s")
    return model
