"""lapinfer report: a page about models side by side."""

from pathlib import Path
from typing import Annotated

import typer

from lapinfer.cli.bars import Progress
from lapinfer.cli.console import note, note_replaced
from lapinfer.cli.options import SIZE, Force, LoadingPage, Models, Verbose, option, with_groups
from lapinfer.interrupts import KEYBOARD


@with_groups
def report(
    models: Models = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
    shapes: Annotated[
        list[str] | None, option(SIZE, "--shapes", help="Add four models with random weights (repeatable).")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="For perplexity and routing.", show_default="a passage that comes with lapinfer"),
    ] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=2, help="Positions a decoded token sees.")] = 512,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FOLDER", help="Write pictures, too (needs matplotlib).")
    ] = None,
    data: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was measured, too.")] = None,
    force: Force = False,
    loading: LoadingPage,
    verbose: Verbose = False,
) -> None:
    """What dense models, experts and trees cost in memory and in compute: one page, without a network.

    A model that fails is named in the page, and the exit code is 1. Ctrl-C writes what was measured so far.
    """
    from lapinfer.report import collect
    from lapinfer.texts import read_text

    for goes in collect.check_outputs(output, data, png, force=force):
        note_replaced(goes)
    passage = {} if text is None else {"text": read_text(text), "source": text.name}
    options = collect.Options(loading, ctx_size, **passage)
    with Progress(still=True) as progress, KEYBOARD.stops():
        measured = collect.collect(models or [], shapes or [], options, progress)
    if measured.models:
        for path in collect.write_report(measured, output, data, png, force=force):
            note(f"wrote {path}")
    elif not measured.interrupted:
        note("error: no model could be measured; nothing was written")
    if measured.interrupted:
        note("stopped" if measured.models else f"stopped before a model was measured: {output} was not written")
        raise KeyboardInterrupt
    if measured.failures:
        raise typer.Exit(1)
