"""lapinfer bench: speed and bytes of models side by side."""

from operator import itemgetter
from pathlib import Path
from typing import Annotated

import typer

from lapinfer.cli.bars import Progress
from lapinfer.cli.complete import models as models_here
from lapinfer.cli.console import note, note_lines, say
from lapinfer.cli.options import SIZE, LoadingGrid, Models, Verbose, check_usage, load_declaration, option, with_groups
from lapinfer.interrupts import KEYBOARD


def numbers(text: str) -> list[int]:
    """Of 512, or of 128,512."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError
    return numbers


def comma_list(text: str | None) -> str | None:
    """Checks what `_numbers` reads, while Typer still knows which option it is."""
    try:
        numbers(text or "0")
    except ValueError:
        raise typer.BadParameter(f"expected numbers from 0 with commas between them, got {text!r}") from None
    return text


@with_groups
def bench(
    models: Models = None,
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("-m", "--model", help="The same, as llama-bench has it; repeatable.", autocompletion=models_here),
    ] = None,
    shapes: Annotated[
        str | None, option(SIZE, "--shapes", help="Random weights instead, dense and routed, of this size.")
    ] = None,
    n_prompt: Annotated[str, typer.Option("-p", "--n-prompt", callback=comma_list, help="Prompt lengths.")] = "512",
    n_gen: Annotated[str, typer.Option("-n", "--n-gen", callback=comma_list, help="Tokens to generate.")] = "128",
    batch: Annotated[
        str, typer.Option("--batch", callback=comma_list, help="Sequences that are decoded together.")
    ] = "1",
    speculation: Annotated[
        bool, typer.Option("--speculation", help="Also decode an answer that repeats its prompt, with guesses.")
    ] = False,
    depth: Annotated[str, typer.Option("-d", "--n-depth", callback=comma_list, help="Tokens before the test.")] = "0",
    threads: Annotated[
        str | None,
        typer.Option("-t", "--threads", callback=comma_list, help="Threads.", show_default="all cores"),
    ] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Repetitions of a test.")] = 5,
    output: Annotated[str, typer.Option("-o", "--output", help="md, csv, json or jsonl.")] = "md",
    text: Annotated[Path | None, typer.Option("--text", help="A text to measure perplexity on, too.")] = None,
    compare: Annotated[Path | None, typer.Option("--compare", help="Older rows (-o json) to compare with.")] = None,
    loading: LoadingGrid,
    verbose: Verbose = False,
) -> None:
    """Measure prompts and generation as llama-bench does, and what they touch; comma lists make a grid.

    Several models are set side by side; without any, the small ones that come along: dense, experts, and trees.
    """
    from lapinfer.report import bench, bench_tables
    from lapinfer.report.candidates import candidates

    if output not in bench_tables.WRITERS:
        raise typer.BadParameter(f"-o: expected one of {', '.join(bench_tables.WRITERS)}, got {output}")
    names = [*(models or []), *(model or [])]
    if shapes is not None and (names or loading.memory or loading.expert_nodes):
        raise typer.BadParameter(
            "--shapes: random weights in memory go with neither models nor --memory, nor --expert-nodes"
        )
    counts = [None] if threads is None else numbers(threads)
    for count in counts:
        check_usage(load_declaration("threads"), "--threads", count)
    for count in numbers(batch):
        check_usage(load_declaration("slots"), "--batch", count)
    tests = bench.Tests(
        numbers(n_prompt), numbers(n_gen), numbers(depth), numbers(batch), repetitions, text, copied=speculation
    )
    older_rows = None if compare is None else bench_tables.read_rows(compare)
    write = bench_tables.WRITERS[output]
    placed, failed, stopped = [], 0, False
    with Progress(still=True) as progress, KEYBOARD.stops():
        to_measure = candidates(names, [] if shapes is None else [shapes])
        if shapes is not None:
            note("random weights: speed and bytes are measured, quality is not")
        try:
            for place, row in bench.bench(to_measure, loading, tests, counts, progress):
                if isinstance(row, bench.Failure):
                    if len(to_measure) == 1:
                        raise row.error
                    message = str(row.error) or "not enough memory"
                    note(f"error: {row.model}: {message.removeprefix(f'{row.model}: ')}")
                    failed += 1
                    continue
                placed.append((place, row))
                if output == "jsonl":
                    say(write([row]))
        except KeyboardInterrupt:
            stopped = True
    rows = [row for _, row in sorted(placed, key=itemgetter(0))]
    if output != "jsonl" and (rows or not stopped):
        say(write(rows))
    if older_rows is not None:  # beside rows for programs, for people
        (say if output == "md" else note_lines)(f"\n{bench_tables.compared(rows, older_rows)}")
    if stopped:
        note(f"stopped; {len(rows)} finished tests are shown")
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)
