"""Models on this computer: convert, pull, ls."""

from pathlib import Path
from typing import Annotated

import typer

from lapinfer.cli.bars import Progress
from lapinfer.cli.complete import models, models_and_copies, models_to_pull
from lapinfer.cli.console import note, print_json, say
from lapinfer.cli.disk import print_sizes
from lapinfer.cli.models import CHAT_MODEL, pull_model
from lapinfer.cli.options import MODEL_NAMES, Force, Json, Verbose, load_option
from lapinfer.digits import size
from lapinfer.shown import shown_line


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help=MODEL_NAMES, autocompletion=models)],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    quant: Annotated[str, load_option("quant")] = "q4",
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="A text whose activations weigh the quantization error.")
    ] = None,
    lora: Annotated[list[str] | None, load_option("lora")] = None,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Write a packed checkpoint, which starts without packing."""
    from lapinfer.loading import convert

    with Progress() as progress:
        convert(source, target, quant, calibrate=calibrate, lora=lora or (), progress=progress, force=force)
    written = sum(file.stat().st_size for file in target.glob("*"))
    note(f"wrote {target}: {size(written)}")


def verify(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODELS",
            help=MODEL_NAMES,
            show_default="packed copies, smollm2, what comes with lapinfer",
            autocompletion=models_and_copies,
        ),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Read models in full, and tell whether they are what was written; exit 1 where one is damaged.

    Of a checkpoint, its packed copies are read, too. Weights that nobody has told a digest of are unchecked.
    """
    from dataclasses import asdict

    from lapinfer.report.verify import verify, verify_all

    found = []
    with Progress() as progress:
        verified = verify_all(progress) if not models else (each for name in models for each in verify(name, progress))
        for each in verified:
            found.append(each)
            if not json:
                say(str(each))
    if json:
        print_json([asdict(each) for each in found])
    if any(each.problems for each in found):
        raise typer.Exit(1)


def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="smollm2, or org/name; org/name:Q8_0 of several .gguf models in one place.",
            autocompletion=models_to_pull,
        ),
    ],
    verbose: Verbose = False,
) -> None:
    """Download a model: what lapinfer reads of it, checked by its digests.

    A download that was ended goes on where it was. Models of the hub lie in its own cache, which other programs share.
    """
    say(str(pull_model(name)))


def ls(
    sizes: Annotated[
        bool,
        typer.Option("--sizes", help="What each takes on disk with its packed copies, when it was used, and the rest."),
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the models on this computer."""
    from dataclasses import asdict

    from lapinfer.checkpoint import hub

    if sizes:
        print_sizes(json)
        return
    models = hub.list_local()
    if json:
        print_json([asdict(model) for model in models])
        return
    for line in models:
        say(shown_line(str(line)))
    if not models:
        note(f"no models yet; get one with: lapinfer pull {CHAT_MODEL}")
