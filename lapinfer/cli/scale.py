"""lapinfer scale: what models would cost on several machines, simulated from steps that are measured on this one."""

from pathlib import Path
from typing import Annotated

import typer

from lapinfer.cli.bars import Progress
from lapinfer.cli.bench import comma_list, numbers
from lapinfer.cli.console import note, note_replaced, say
from lapinfer.cli.options import SIZE, Force, LoadingPage, Models, Verbose, option, with_groups
from lapinfer.errors import InputError
from lapinfer.interrupts import KEYBOARD


@with_groups
def scale(
    models: Models = None,
    *,
    shapes: Annotated[
        list[str] | None, option(SIZE, "--shapes", help="Add four models with random weights (repeatable).")
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Nodes at most: 1, 2, 4 … are tried.")] = 8,
    batch: Annotated[
        str, typer.Option("--batch", callback=comma_list, help="Sequences at once, on all nodes together.")
    ] = "1,4,16,64,256",
    network: Annotated[
        str, typer.Option("--network", help="10gbe, 25gbe, 100gbe, infiniband, or local: processes of this machine.")
    ] = "10gbe",
    latency: Annotated[
        float | None, typer.Option("--latency", help="Microseconds.", show_default="of the network")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", help="Gb/s of a link, each way.", show_default="of the network")
    ] = None,
    call: Annotated[
        float | None,
        typer.Option("--call", help="Microseconds of software, each end of a message.", show_default="of the network"),
    ] = None,
    price: Annotated[
        float, typer.Option("--price", min=0, help="Of a node for an hour, in any currency (1: a placeholder).")
    ] = 1.0,
    node_memory: Annotated[
        float | None, typer.Option("--node-memory", min=0.001, help="GB of a node.", show_default="enough")
    ] = None,
    prompt: Annotated[int, typer.Option("--prompt", min=0, max=4096, help="Tokens of each prompt.")] = 128,
    answer: Annotated[int, typer.Option("--answer", min=1, max=4096, help="Tokens of each answer.")] = 128,
    skew: Annotated[
        float, typer.Option("--skew", help="Zipf's exponent of experts that no model of yours chooses; 0: all alike.")
    ] = 0.0,
    twins: Annotated[
        bool, typer.Option("--twins/--no-twins", help="Beside a mixture alone, dense models and trees of its sizes.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn.")] = 0,
    earlier: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Measure nothing: steps of an earlier --json.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="A page to write (.html).")] = None,
    data: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures, too.")] = None,
    force: Force = False,
    loading: LoadingPage,
    verbose: Verbose = False,
) -> None:
    """What models would cost on several nodes: replicas, and experts apart. Simulated; steps are measured here.

    Of a model that is not here but known by its sizes, steps are foreseen. Without a name: the small models that come
    along. Needs: pip install "lapinfer[cluster]".
    """
    _check_installed()
    from lapinfer.scale import run, tables
    from lapinfer.scale.network import NAMES

    if earlier is not None and (models or shapes):
        raise typer.BadParameter("--from: its models are those of the file; leave out names and --shapes")
    if network not in NAMES:
        raise typer.BadParameter(f"--network: expected one of {', '.join(NAMES)}, got {network}")
    for goes in run.check_outputs(output, data, force=force):
        note_replaced(goes)
    asked = run.Asked(
        names=tuple(models or ()),
        sizes=tuple(shapes or ()),
        loading=loading,
        nodes=nodes,
        batches=tuple(numbers(batch)),
        network=network,
        latency=_scaled(latency, 1e-6),
        bandwidth=_scaled(bandwidth, 1e9 / 8),
        call=_scaled(call, 1e-6),
        price=price,
        node_memory=_scaled(node_memory, 1e9),
        prompt=prompt,
        answer=answer,
        skew=skew,
        twins=twins,
        seed=seed,
        earlier=earlier,
    )
    with Progress(still=True) as progress, KEYBOARD.stops():
        study = run.study(asked, progress)
    say(tables.text(study))
    for path in run.write(study, output, data, force=force):
        note(f"wrote {path}")


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _check_installed() -> None:
    try:
        import simpy  # noqa: F401
    except ImportError as error:
        raise InputError(f'lapinfer scale needs {error.name}: pip install "lapinfer[cluster]"') from error
