"""What lapinfer takes on disk, and freeing it: ls --sizes, rm, prune."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lapinfer.cli.bars import Progress
from lapinfer.cli.complete import removable
from lapinfer.cli.console import note, print_json, say
from lapinfer.cli.failures import UsageError
from lapinfer.cli.options import Json, Verbose
from lapinfer.digits import size
from lapinfer.errors import InputError
from lapinfer.shown import columns, padded, shown_line

if TYPE_CHECKING:
    from lapinfer.storage.owned import Owned

Yes = Annotated[bool, typer.Option("-y", "--yes", help="Remove it without asking.")]


def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="As lapinfer ls shows them, or files that were packed.", autocompletion=removable
        ),
    ],
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Remove models that were pulled, and packed copies; says what goes, and asks.

    Files that are yours stay: of a .gguf file or a folder somewhere, only the packed copies go.
    """
    from lapinfer.storage.removal import owned_by

    failed, found = False, {}
    for name in names:
        try:
            found |= {owned.path + owned.what: owned for owned in owned_by(name)}
        except InputError as error:  # of one name: the others are listed
            failed = True
            note(f"error: {error}")
    if failed:
        raise typer.Exit(1)
    if not yes and (json or not sys.stdin.isatty()):
        _tell(list(found.values()), json, removed=False)
        raise UsageError("nothing is removed; --yes does it without asking")
    _remove(list(found.values()), yes, json)


def prune(
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than", min=0.0, metavar="DAYS", show_default="no",
            help="Also packed copies and beginnings of prompts that were not used for so many days.",
        ),
    ] = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:  # fmt: skip
    """Remove what is of no more use; lists it, and asks at a terminal.

    Packed copies whose source is gone or has changed, or that this version makes anew; packings that were broken off;
    machine code, beginnings of prompts and texts of GGUF files of other versions; what killed processes have left.
    """
    from lapinfer.storage.models import half_downloads
    from lapinfer.storage.prune import prunable

    for half in half_downloads() if not json else ():
        goes_on = f"lapinfer pull {half.name} goes on with it, lapinfer rm {half.name} removes it"
        note(f"note: {half.name} is half a download in the hub's cache ({size(half.bytes)}): {goes_on}")
    with Progress() as progress:
        found = list(prunable(older_than, progress))
    if not yes and (json or not found or not sys.stdin.isatty()):
        _tell(found, json, removed=False)
        if found and not json:
            note("nothing is removed yet: lapinfer prune --yes does it")
        return
    _remove(found, yes, json)


def _tell(found: "list[Owned]", json: bool, *, removed: bool, problems: tuple[str, ...] = ()) -> None:
    """What goes, and how much that is."""
    from dataclasses import asdict

    if json:
        items = [{name: value for name, value in asdict(each).items() if name in SHOWN} for each in found]
        freed = sum(each.bytes for each in found)
        print_json({"items": items, "bytes": freed, "removed": removed, "problems": problems})
        return
    for each in found:
        say(shown_line(str(each)))
    nothing = "nothing to remove: all is of use; lapinfer ls --sizes shows it, lapinfer rm NAME removes it"
    say(f"{size(sum(each.bytes for each in found)):>8}  in all" if found else nothing)


SHOWN = ("what", "why", "path", "bytes")


def _remove(found: "list[Owned]", yes: bool, json: bool) -> None:
    """Say what goes, ask, and remove it; exit 1 where something stays that was to go."""
    from lapinfer.storage.owned import removed

    if not json:
        _tell(found, json, removed=False)
    if not found:
        return
    if not yes and not typer.confirm("remove it?", err=True):
        raise typer.Exit(1)
    gone, problems = [], []
    for each in found:
        if problem := removed(each):
            problems.append(problem)
            note(f"error: {problem}")
        else:
            gone.append(each)
    if json:
        _tell(gone, json, removed=True, problems=tuple(problems))
    else:
        note(f"removed {size(sum(each.bytes for each in gone))}")
    if problems:
        raise typer.Exit(1)


def print_sizes(json: bool) -> None:
    """The table of `ls --sizes`, or an object of the same."""
    from lapinfer.storage.listing import sizes

    found = sizes()
    if json:
        print_json(found.as_json())
        return
    rows = [tuple(map(shown_line, row)) for row in found.table()]
    widths = [max(map(columns, cells)) for cells in zip(*rows, strict=True)]
    for name, kind, source, packed, used in rows:
        cells = (padded(name, widths[0]), padded(kind, widths[1]), source.rjust(widths[2]), packed.rjust(widths[3]))
        say("  ".join((*cells, used)))
    say("")
    rest = found.rest()
    width = max(len(what) for what, _ in rest)
    for what, much in rest:
        say(f"{what:{width}}  {much:>12}")
    say(shown_line(f"in {found.home}; the hub's cache is {found.hub_cache}"))
