"""The command line: `lapinfer COMMAND`. Each module has a group of commands; here they are put together.

A command parses, calls the library, and prints: answers to stdout, everything else to stderr. It imports what it needs
when it runs, so that --help answers at once. For the same reason, modules of commands do not postpone annotations:
Typer would compile each of them twice.
"""

import sys
from inspect import signature
from typing import Annotated

import typer

from lapinfer import __version__
from lapinfer.cli import batch, bench, describe, disk, files, quality, report, run, scale, serve, train
from lapinfer.cli.clusters import RayCommand
from lapinfer.cli.failures import application, end, fail
from lapinfer.cli.help_pages import Command
from lapinfer.cli.streams import prepare_streams, tell_of_lost_characters
from lapinfer.interrupts import KEYBOARD

app = application("Run language models on this computer's CPU.")

for command in (
    run.run, batch.batch, serve.serve,
    describe.info, describe.explain, files.convert, bench.bench, quality.perplexity, quality.experts, quality.embed,
    report.report, scale.scale, train.train, describe.fff_sizes, files.pull, files.ls, disk.rm, disk.prune,
    files.verify, describe.doctor,
):  # fmt: skip
    of_class = RayCommand if "ray" in signature(command).parameters else Command
    app.command(command.__name__.replace("_", "-"), cls=of_class)(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lapinfer {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """The `lapinfer` command."""
    prepare_streams()
    with KEYBOARD:
        try:
            app(prog_name="lapinfer")
        except BaseException as error:  # Typer's way to end, or what failed outside of a command
            code = fail(error, verbose=not {"-v", "--verbose"}.isdisjoint(sys.argv))
        else:
            code = 0
        tell_of_lost_characters()
        end(code)
