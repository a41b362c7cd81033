"""The command `python -m bench.studies`: a command for each study, with the same options."""

from pathlib import Path
from typing import Annotated

import typer

from bench.studies import STUDIES
from lapinfer.cli.bars import Progress
from lapinfer.cli.console import note, print_json
from lapinfer.cli.failures import application
from lapinfer.cli.options import Json, Verbose
from lapinfer.errors import InputError

app = application(
    "Look at claims about experts and trees by many small trainings (extra `train`); see docs/studies.md.",
    add_completion=False,
)


def add_command(name: str) -> None:
    title, metavar = STUDIES[name]

    @app.command(name, help=f"{title}.")
    def study(
        data: Annotated[list[Path], typer.Argument(metavar=metavar, help="What it learns from: docs/studies.md.")],
        output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path(f"study-{name}"),
        seeds: Annotated[
            int, typer.Option("--seeds", min=0, help="Trainings of each cell.", show_default="the study's own")
        ] = 0,
        jobs: Annotated[
            int, typer.Option("--jobs", min=0, help="Trainings at a time.", show_default="one per core")
        ] = 0,
        only: Annotated[
            list[str] | None,
            typer.Option("--only", metavar="PATTERN", help="Trials by name, such as 'moe/*'.", show_default="all"),
        ] = None,
        quick: Annotated[bool, typer.Option("--quick", help="A minute's version, which shows that it runs.")] = False,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        try:
            from bench.studies.study import Setting, find_study, run_study
        except ImportError as error:
            raise InputError(str(error)) from error
        chosen = find_study(name)
        setting = Setting(tuple(data), seeds, quick, tuple(only or ()))
        with Progress() as progress:
            summary = run_study(chosen, setting, output, jobs=jobs, progress=progress)
        print_json(summary) if json else print(chosen.text(summary))
        note(f"wrote {output / name}.json, .md, .svg")


for each in STUDIES:
    add_command(each)


if __name__ == "__main__":
    app(prog_name="python -m bench.studies")
