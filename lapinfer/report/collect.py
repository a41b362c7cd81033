"""Collect a report and write it: measure the machine, then models in turns; a failure does not end it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from lapinfer import machine
from lapinfer.checkpoint.shipped import card_figures
from lapinfer.errors import InputError
from lapinfer.home import expanded
from lapinfer.options import LoadOptions
from lapinfer.progress import Count, Progress, silent
from lapinfer.report import roofline
from lapinfer.report.candidates import Candidate, candidates
from lapinfer.report.measure import BATCH_CONTEXT, BATCHES, MEASURED_PARTS, measure_batches, measure_model
from lapinfer.report.measured import Machine, Measured, Report, to_json
from lapinfer.report.outputs import check_ending, write_whole
from lapinfer.report.page import page
from lapinfer.report.texts import passage
from lapinfer.report.turns import Loaded, take_turns

CONTEXT = 512
PARTS = MEASURED_PARTS + 1
"""Of what is measured of a model, the batches being the last."""


@dataclass(frozen=True, slots=True)
class Options:
    """loading: of whose fields only quant and threads count; context: positions that the decoded token sees; text: for
    perplexity and routing; source: its name."""

    loading: LoadOptions = field(default_factory=LoadOptions)
    context: int = CONTEXT
    text: str = ""
    source: str = ""


def collect(
    names: Sequence[str], sizes: Sequence[str] = (), options: Options | None = None, progress: Progress = silent
) -> Report:
    """Measure models by name, then the four random ones of each size; without any, the shipped ones.

    Ctrl-C ends it with what there is, and `interrupted`.
    """
    options = options or Options()
    todo = candidates(names, sizes)
    threads = options.loading.threads or machine.default_threads()
    text, source = (options.text, options.source) if options.text else (passage(), "the package's passage.txt")
    progress("measuring the machine")
    roof = roofline.measure(threads)
    about = Machine(
        machine.description(), threads, roof.best_bandwidth, roof.peaks, roof.best_bandwidth, machine.largest_cache()
    )
    report = Report(about, source, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    shown = [_shown(candidate) for candidate in todo]
    count = Count(progress, "measuring", PARTS * len(todo))
    sides = [
        partial(_turns, candidate, options, threads, text, count) for candidate, name in zip(todo, shown, strict=True)
    ]
    latest: dict[int, Measured] = {}
    try:
        for turn in take_turns(sides, machine.available_memory(), progress):
            name = shown[turn.side]
            if isinstance(turn.value, Measured):
                latest[turn.side] = replace(turn.value, paired=turn.paired)
                report.machine = report.machine.also(roofline.bandwidth_now(threads))
            else:
                latest.pop(turn.side, None)
                report.failures.append((name, _message(turn.value)))
                progress(f"error: {name}: {_message(turn.value).removeprefix(f'{name}: ')}")
    except KeyboardInterrupt:
        report.interrupted = True
    report.models += [latest[side] for side in sorted(latest)]
    return report


def _kept_bytes() -> int:
    """Resident memory of the process, without what was freed and not yet given back to the system."""
    machine.return_freed_memory()
    return machine.resident_bytes()


def _shown(candidate: Candidate) -> str:
    """A folder's or file's own name; other names as they are."""
    path = expanded(candidate.name)
    return path.resolve().name if candidate.kind is None and path.exists() else str(candidate)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror or error}"
    return str(error) or type(error).__name__


def _turns(
    candidate: Candidate, options: Options, threads: int, text: str, count: Count
) -> Generator[Loaded | Measured, None, None]:
    """One model, loaded for one sequence, and after its turns again for many short ones."""
    random = candidate.kind is not None
    loading = replace(options.loading, threads=threads, ctx=options.context, slots=1)
    name = _shown(candidate)
    count.progress(f"loading {name}")
    with candidate.open(loading, count.progress) as model:
        yield Loaded.of(model.model)
        card = None if random or options.text else card_figures(candidate.name)
        known = None if card is None else card["perplexity"]
        measured = None
        for measured in measure_model(model, name, text, options.context, count, random, known):
            yield measured
        loaded_bytes = _kept_bytes()
    assert measured is not None
    del model
    resident = max(loaded_bytes - _kept_bytes(), 0)
    with candidate.open(replace(loading, ctx=BATCH_CONTEXT, slots=BATCHES[-1]), count.progress) as model:
        count(f"{name}: batches")
        yield replace(measured, resident=resident, batches=measure_batches(model, text))


PAGES = (".html", ".htm")


def check_outputs(output: Path, data: Path | None = None, png: Path | None = None, *, force: bool = False) -> list[str]:
    """InputError when something of it could not be written; the files of others that go, if `force` lets them."""
    goes = [check_ending(output, PAGES, force=force)]
    if data is not None:
        goes.append(check_ending(data, (".json",), force=force))
    if png is not None:
        goes += _check_pictures(png, force)
    return [file for file in goes if file is not None]


def _check_pictures(png: Path, force: bool) -> list[str | None]:
    if find_spec("matplotlib") is None:
        raise InputError("--png needs matplotlib: pip install matplotlib")
    if png.exists() and not png.is_dir():
        raise InputError(f"{png} is a file; name a folder for the pictures")
    try:
        png.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{png}: cannot be made: {error.strerror or error}") from error
    from lapinfer.report.pictures import PICTURES

    return [check_ending(png / f"{name}.png", (".png",), force=force) for name in PICTURES]


def write_report(
    report: Report, output: Path, data: Path | None = None, png: Path | None = None, *, force: bool = False
) -> list[Path]:
    """The files written. Data first: the page can be made from it again.

    Older reports are replaced; InputError where other files are, unless `force`.
    """
    written: list[Path] = []
    if data is not None:
        write_whole(data, to_json(report).encode(), force=force)
        written.append(data)
    write_whole(output, page(report).encode(), force=force)
    written.append(output)
    if png is not None:
        from lapinfer.report.pictures import pictures

        for name, content in pictures(report).items():
            write_whole(png / name, content, force=force)
            written.append(png / name)
    return written
