"""lapinfer train: a small model from texts."""

from pathlib import Path
from typing import Annotated

import typer

from lapinfer.cli.bars import Progress
from lapinfer.cli.console import print_figures
from lapinfer.cli.options import Json, Verbose
from lapinfer.errors import InputError
from lapinfer.interrupts import KEYBOARD


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Sizes and options: docs/training.md.")],
    files: Annotated[list[Path], typer.Argument(metavar="DATA", help="The texts to train on.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The run's folder.", show_default="CONFIG's name")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of all random numbers.", show_default="the configuration's"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="How long to train.", show_default="the configuration's")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a small language model (needs the extra `train`); the same command goes on with a run that was stopped."""
    from dataclasses import replace

    try:
        from lapinfer import train as training
    except ImportError as error:
        raise InputError(str(error)) from error
    settings = training.Config.from_toml(config)
    given = {name: value for name, value in (("seed", seed), ("steps", steps)) if value is not None}
    settings = replace(settings, training=replace(settings.training, **given))
    texts = training.read_texts(files)
    with Progress() as progress, KEYBOARD.stops():
        result = training.train(settings, texts, Path(config.stem) if output is None else output, progress=progress)
    figures = {
        "checkpoint": str(result.checkpoint),
        "parameters": result.parameters,
        "active_parameters": result.active_parameters,
        "loss": result.loss,
        **{name: value for name, value in result.validation.items() if json or name != "layers"},
    }
    print_figures(figures, json)
