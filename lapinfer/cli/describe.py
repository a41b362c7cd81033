"""What a model is, and what this computer can do: info, explain, doctor, fff-sizes."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from lapinfer.cli.console import print_figures, print_json, print_wrapped, say
from lapinfer.cli.models import default_model, open_model
from lapinfer.cli.options import (
    DefaultModel,
    Json,
    KnownModel,
    LoadingFit,
    LoadingInMemory,
    Verbose,
    load_option,
    with_groups,
)
from lapinfer.errors import InputError
from lapinfer.shown import shown_line

Rate = TypeVar("Rate")


@with_groups
def info(
    model: KnownModel = None,
    *,
    quant: Annotated[
        str | None, load_option("quant", help="Only packed as this.", show_default="in each format")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            min=0.001,
            help="GB to run in, experts on disk if need be (else exit 3).",
            show_default="what is free",
        ),
    ] = None,
    loading: LoadingFit,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Whether a model will fit, what it takes in memory, and how fast it will be here; reads no weights.

    A config.json is enough, in a folder or fetched from the hub; of many models lapinfer knows the sizes itself.
    """
    from lapinfer.cli.bars import Progress
    from lapinfer.home import packed_models
    from lapinfer.machine import default_threads
    from lapinfer.progress import Phase
    from lapinfer.report.disk import read_rate
    from lapinfer.report.fit_tables import fit_tables
    from lapinfer.report.info import info
    from lapinfer.report.roofline import weights_bandwidth

    threads = loading.threads or default_threads()
    with Progress(still=True) as progress:

        def measured(what: str, measure: Callable[[], Rate]) -> Rate:
            progress(Phase("measuring", beside=what, said="measuring this machine"), 0, None)
            return measure()

        figures, estimates, runs = info(
            model or default_model(), ctx=loading.ctx, kv=loading.kv, quant=quant, memory=memory,
            bandwidth=lambda format: measured(f"memory, {format}", lambda: weights_bandwidth(format, threads)),
            disk=lambda: measured("disk", lambda: read_rate(packed_models(), threads)),
        )  # fmt: skip
    if json:
        print_json(figures)
    else:
        only_json = {name: figures.pop(name) for name in ("fits", "memory", "fit", "notes")}
        print_wrapped("", shown_line(only_json["fits"]))
        say("")
        print_figures(figures, False)
        say(f"\n{fit_tables(estimates, only_json['memory'])}")
        for line in only_json["notes"]:
            say(f"note: {line}")
    if memory is not None and not runs:
        raise typer.Exit(3)


@with_groups
def explain(
    model: DefaultModel = None,
    *,
    analyze: Annotated[bool, typer.Option("--analyze", help="Run it, and add measured time and bandwidth.")] = False,
    loading: LoadingInMemory,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer's ops instead of their sums.")] = False,
    verbose: Verbose = False,
) -> None:
    """The ops of a step, with predicted bytes and operations."""
    from lapinfer.report.explain import explain

    with open_model(model or default_model(), loading, verbose) as loaded:
        say(explain(loaded.model, analyze=analyze, layers=layers))


def doctor(json: Json = False, verbose: Verbose = False) -> None:
    """What this computer can do, and what lapinfer makes of it."""
    from lapinfer.report.doctor import doctor

    print_figures(doctor(), json)


def fff_sizes(
    width: Annotated[int, typer.Option("--width", min=4, help="Neurons of all leaves together, a power of 2.")] = 128,
    json: Json = False,
) -> None:
    """Sizes of fast feedforward layers of one width: neurons in all, and those that a token computes."""
    from dataclasses import asdict

    from lapinfer.layers.sizes import size_table, table_3

    if width & (width - 1):
        raise InputError(f"--width: expected a power of 2, got {width}")
    print_json([asdict(sizes) for sizes in table_3(width)]) if json else say(size_table(width))
