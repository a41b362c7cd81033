"""What `lapinfer scale` does: gathers subjects, simulates them, and writes what came out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lapinfer.machine import default_threads, description
from lapinfer.options import LoadOptions
from lapinfer.progress import Phase, Progress, silent
from lapinfer.report import roofline
from lapinfer.report.outputs import check_ending, write_whole
from lapinfer.scale import primitives
from lapinfer.scale.data import subjects_of, to_json
from lapinfer.scale.gather import Wanted, gather
from lapinfer.scale.network import LOCAL, Network, Shared, network
from lapinfer.scale.page import page
from lapinfer.scale.simulate import Load
from lapinfer.scale.study import Options, Study, rows

UNKNOWN = Network(LOCAL, 0.0, 1.0, 0.0)
"""What lies between processes, before it is measured."""


@dataclass(frozen=True, slots=True)
class Asked:
    """latency, call: seconds; bandwidth: bytes per second; node_memory: bytes; earlier: a file whose subjects are
    taken. Others are as `study.Options` and `gather.Wanted` say."""

    names: tuple[str, ...]
    sizes: tuple[str, ...]
    loading: LoadOptions
    nodes: int
    batches: tuple[int, ...]
    network: str
    latency: float | None = None
    bandwidth: float | None = None
    call: float | None = None
    price: float = 1.0
    node_memory: float | None = None
    prompt: int = 128
    answer: int = 128
    skew: float = 0.0
    twins: bool = True
    seed: int = 0
    earlier: Path | None = None


def study(asked: Asked, progress: Progress = silent) -> Study:
    """InputError for what cannot be simulated, before anything is measured."""
    load = Load(asked.prompt, asked.answer)
    figures = (asked.latency, asked.bandwidth, asked.call)
    options = Options(
        _powers(asked.nodes), tuple(sorted(set(asked.batches))), network(asked.network, *figures, UNKNOWN), None, load,
        asked.price, asked.node_memory, asked.seed,
    )  # fmt: skip
    if asked.network == LOCAL:
        local, shared = _between_processes(progress)
        options = replace(options, network=network(LOCAL, *figures, local), shared=shared)
    if asked.earlier is not None:
        subjects = subjects_of(asked.earlier)
    else:
        wanted = Wanted(asked.names, asked.sizes, asked.loading, load, asked.skew, asked.seed, asked.twins)
        subjects = tuple(gather(wanted, lambda: _machine(_threads(asked), progress), progress))
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Study(subjects, options, rows(subjects, options, progress), description(), created)


def _threads(asked: Asked) -> int:
    """Of a node: all of this machine, but of processes that share it, one."""
    return asked.loading.threads or (1 if asked.network == LOCAL else default_threads())


def _machine(threads: int, progress: Progress) -> roofline.Roofline:
    progress(Phase("measuring", beside="this machine", said="measuring this machine"), 0, None)
    return roofline.measure(threads)


def _between_processes(progress: Progress) -> tuple[Network, Shared]:
    shared = primitives.shared(_machine(default_threads(), progress))
    progress(Phase("measuring", beside="messages", said="measuring messages between processes"), 0, None)
    return primitives.between_processes(), shared


def _powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, … and the number itself."""
    return tuple(sorted({*(1 << i for i in range(most.bit_length())), most} - {0}))


def check_outputs(output: Path | None, data: Path | None, *, force: bool = False) -> Iterator[str | None]:
    """What goes, for each file that is written; InputError where one cannot be."""
    if output is not None:
        yield check_ending(output, (".html", ".htm"), force=force)
    if data is not None:
        yield check_ending(data, (".json",), force=force)


def write(study: Study, output: Path | None, data: Path | None, *, force: bool = False) -> Iterator[Path]:
    """The files written, figures first: the page can be made of them again."""
    if data is not None:
        write_whole(data, to_json(study).encode(), force=force)
        yield data
    if output is not None:
        write_whole(output, page(study).encode(), force=force)
        yield output
