"""Options of commands that may run on a cluster of Ray: --ray [ADDRESS], and how many engines it runs.

Nothing of Ray is imported here; lapinfer/cluster/ is, by who has been given --ray.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapinfer.cli.console import note
from lapinfer.cli.failures import UsageError
from lapinfer.cli.help_pages import Command
from lapinfer.errors import InputError
from lapinfer.options import LoadOptions

if TYPE_CHECKING:
    from lapinfer.cluster.shares import Range
    from lapinfer.cluster.start import Cluster

FLAG = "--ray"
ALONE = "local"
"""What --ray without an address means: a cluster of this computer's own, for as long as the command runs."""
ADDRESS = re.compile(r"local|auto|[^/\s=]+:\d{1,5}|ray://.*", re.IGNORECASE)


class RayCommand(Command):
    """A command whose --ray may stand alone: what follows is its address if it looks like one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[str] = []
        for index, argument in enumerate(args):
            following = args[index + 1] if index + 1 < len(args) else ""
            is_alone = argument == FLAG and ADDRESS.fullmatch(following) is None
            given.append(f"{FLAG}={ALONE}" if is_alone else argument)
            if argument == "--":
                given += args[index + 1 :]
                break
        return super().parse_args(ctx, given)


Ray = Annotated[
    str | None,
    typer.Option(
        FLAG,
        metavar="[ADDRESS]",
        help="Run on a cluster of Ray: HOST:PORT of its head, auto: this computer's; alone, one that is started here.",
        show_default="no cluster",
        rich_help_panel="Cluster",
    ),
]


THREADS_OF_ENGINES = typer.Option(
    "--worker-threads", min=1, help="Threads of each engine.", show_default="what the nodes have room for",
    rich_help_panel="Cluster",
)  # fmt: skip


def engines_option(flag: str, what: str) -> Any:
    """An option that takes N or MIN:MAX."""
    return typer.Option(
        flag,
        metavar="N|MIN:MAX",
        help=f"{what} of a cluster.",
        show_default="as many as fit",
        rich_help_panel="Cluster",
    )


def engines(flag: str, given: str | None) -> Any:
    """The `Range` of such an option; None where it was not given."""
    from lapinfer.cluster.shares import Range

    if given is None:
        return None
    try:
        return Range.parsed(flag, given)
    except InputError as error:
        raise UsageError(str(error)) from None


def needs_ray(ray: str | None, **options: object) -> None:
    """UsageError for options that mean something on a cluster alone."""
    for name, value in options.items():
        if ray is None and value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for clusters: add --ray")


def check_ray() -> None:
    """InputError where Ray is not installed: before anything is read or packed."""
    from lapinfer.cluster.start import imported

    imported()


@contextmanager
def joined(address: str) -> "Iterator[Cluster]":
    """The cluster of --ray, within the block."""
    from lapinfer.cluster.start import cluster

    if address == ALONE:
        note("starting Ray on this computer")
    with cluster(address) as found:
        yield found


def shared(cluster: "Cluster", count: Any, loading: LoadOptions, flag: str) -> "tuple[Range, LoadOptions]":
    """How many engines a cluster gets, and how they are loaded; flag: the option that says how many."""
    from lapinfer.cluster.shares import shares

    count, threads = shares(cluster.cpus, count, loading.threads, flag)
    return count, replace(loading, threads=threads)
