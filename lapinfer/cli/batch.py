"""lapinfer batch: a file of requests, answered into another file."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapinfer import __version__
from lapinfer.cli.bars import Progress
from lapinfer.cli.clusters import (
    THREADS_OF_ENGINES,
    Ray,
    check_ray,
    engines,
    engines_option,
    joined,
    needs_ray,
    shared,
)
from lapinfer.cli.console import note
from lapinfer.cli.logs import tell_logs
from lapinfer.cli.models import DefaultedModel, default_model, open_model, pulled
from lapinfer.cli.options import Force, LoadingBatch, SamplingSeeded, Verbose, with_groups
from lapinfer.cli.schemas import read_schema
from lapinfer.digits import duration, number
from lapinfer.errors import InputError
from lapinfer.interrupts import KEYBOARD
from lapinfer.options import LoadOptions

if TYPE_CHECKING:
    from lapinfer.batch.lines import Line
    from lapinfer.batch.records import Answered
    from lapinfer.batch.requests import Defaults
    from lapinfer.batch.run import Answers, Summary

_of_answer = partial(typer.Option, rich_help_panel="Answer")
_of_prompt = partial(typer.Option, rich_help_panel="Prompt")
NEUTRAL = ("threads", "slots", "memory", "policy", "draft", "prefix_cache", "lora", "expert_nodes")
"""Ways to load a model that change no answer, or that its identity has."""


@with_groups
def batch(
    file: Annotated[
        str, typer.Argument(metavar="IN", help="JSON Lines (.jsonl), Parquet, or prompts (.txt), one a line; -: stdin.")
    ],
    *,
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="OUT", help="JSON Lines, or Parquet (.parquet); -: stdout, as done."),
    ],
    model: DefaultedModel = None,
    max_tokens: Annotated[
        int | None,
        _of_answer("-n", "--max-tokens", min=1, help="Tokens of an answer at most.", show_default="no limit"),
    ] = None,
    sampling: SamplingSeeded,
    system: Annotated[str | None, _of_prompt("-s", "--system", help="The system message of chats without one.")] = None,
    raw: Annotated[bool, _of_prompt("--raw", help="Continue prompts without the chat template.")] = False,
    schema: Annotated[
        Path | None, _of_answer("--schema", help="Chats answer in JSON that keeps to the JSON schema in this file.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--as", metavar="NAME", help="What lines may call the model, too (repeatable)."),
    ] = None,
    loading: LoadingBatch,
    ray: Ray = None,
    workers: Annotated[str | None, engines_option("--workers", "Engines")] = None,
    worker_threads: Annotated[int | None, THREADS_OF_ENGINES] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 if any line failed.")] = False,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Answer a file of requests: prompts, chats, texts to embed, or OpenAI's and Anthropic's batch formats.

    Each line of IN becomes one of OUT, in the same order, as a server would answer it; a line that fails becomes an
    error beside the answers. What lines say themselves comes before the options here. Killed at any moment, the same
    command goes on where it was: until OUT is whole, what is done is in OUT.part. The same lines have the same answers,
    to the byte, in whatever order and company they run. The exit code is 1 if all lines failed.
    """
    _check_installed()
    needs_ray(ray, workers=workers, worker_threads=worker_threads)
    count = engines("--workers", workers)
    if ray is not None:
        check_ray()
    from lapinfer.batch.files import check_output, open_source
    from lapinfer.batch.lines import STDIN
    from lapinfer.batch.requests import Defaults
    from lapinfer.batch.run import run, run_to_stream

    given = dict(sampling)
    defaults = Defaults(
        seed=given.pop("seed", 0), sampling=given, max_tokens=max_tokens, system=system, raw=raw,
        names=tuple(also or ()),
        schema=None if schema is None else loads(read_schema(schema)),
    )  # fmt: skip
    source = open_source(file)
    check_output(output)
    name = pulled(default_model() if model is None else model)
    tell_logs(verbose)
    with Progress() as progress:
        if ray is None:
            start = partial(_engine, name, loading, defaults, verbose, progress)
        else:
            of_cluster = replace(loading, threads=worker_threads or loading.threads)
            start = partial(_engines, ray, name, of_cluster, defaults, count, progress)
        if output == STDIN:
            summary = run_to_stream(source, sys.stdout.buffer, start, progress)
        else:
            about = _about(name, loading, defaults, progress)
            summary = run(source, Path(output), start, about, force=force, progress=progress)
    _tell(summary, output)
    if summary.sums.failed and (strict or summary.sums.failed == summary.sums.lines):
        raise typer.Exit(1)


def _check_installed() -> None:
    try:
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
    except ImportError as error:
        raise InputError(f'lapinfer batch needs {error.name}: pip install "lapinfer[batch]"') from error


def _about(name: str, loading: LoadOptions, defaults: "Defaults", progress: Progress) -> dict[str, Any]:
    """What decides the answers besides the lines."""
    from lapinfer.batch.engine import model_name
    from lapinfer.batch.identity import model_identity

    chosen = {key: value for key, value in asdict(loading).items() if key not in NEUTRAL}
    model = f"{model_name(name)} {model_identity(name, loading, progress)}"  # records have the name
    return {"version": __version__, "model": model} | chosen | asdict(defaults)


@contextmanager
def _engine(
    name: str, loading: LoadOptions, defaults: "Defaults", verbose: bool, progress: Progress
) -> Iterator["Answers"]:
    """This computer, as what answers lines."""
    from lapinfer.batch.engine import Engine, model_name
    from lapinfer.loading import memory_needed
    from lapinfer.machine import keep_one_heap

    keep_one_heap()
    loaded = open_model(name, loading, verbose, progress)
    engine = Engine(model_name(name), loaded, defaults)
    try:
        needed = memory_needed(name, loading)
        about = f"{loaded.model.slots} lines at once, of {loaded.model.ctx:,} positions each, {needed / 1e6:,.0f} MB"
        note(f"{model_name(name)}: {about}")
        yield partial(_stoppable, engine.answers)
    finally:
        engine.close()


@contextmanager
def _engines(
    address: str, name: str, loading: LoadOptions, defaults: "Defaults", count: Any, progress: Progress
) -> Iterator["Answers"]:
    """A cluster, as what answers lines."""
    from lapinfer.cluster.documents import engines
    from lapinfer.cluster.offers import offer_of

    with joined(address) as cluster:
        count, loading = shared(cluster, count, loading, "--workers")
        offer = offer_of(cluster, name, loading, progress)
        note(f"starting {count} engines of {loading.threads} threads, {loading.slots} lines at once, on {cluster}")
        with engines(offer, loading, defaults, count) as answers:
            yield partial(_stoppable, answers)


def _stoppable(answers: "Answers", lines: Iterable["Line"]) -> Iterator["Answered"]:
    with KEYBOARD.stops():
        yield from answers(lines)


def _tell(summary: "Summary", output: str) -> None:
    from lapinfer.batch.columns import error_of

    sums, seconds = summary.sums, max(summary.seconds, 1e-3)
    done = sums.lines - summary.before
    failed = f", {sums.failed:,} failed" if sums.failed else ""
    before = f" ({summary.before:,} of them before)" if summary.before else ""
    note(f"{sums.lines:,} lines{before}{failed}: {sums.read:,} tokens read, {sums.made:,} made")
    if done:
        rates = f"{number(done / seconds, 3)} lines/s, {number(summary.read / seconds, 3)} tok/s read"
        note(f"{done:,} lines in {duration(seconds)}: {rates}, {number(summary.made / seconds, 3)} made")
    if sums.first is not None:
        note(f"the first that failed is line {sums.first.number}: {error_of(sums.first.record)}")
    if repeated := sums.repeated():
        note(f"note: {repeated:,} lines have a custom_id that another line has, too")
