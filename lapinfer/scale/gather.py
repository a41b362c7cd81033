"""From names to subjects: models that are here are run, of others steps are foreseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from lapinfer.errors import DoesNotFitError
from lapinfer.machine import available_memory
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.progress import Phase, Progress, silent
from lapinfer.report import roofline
from lapinfer.report.candidates import Candidate, candidates
from lapinfer.report.costs import Costs
from lapinfer.report.fit import formats_of
from lapinfer.report.known import Known, known
from lapinfer.report.random_weights import random_weights
from lapinfer.report.texts import passage, sample_ids
from lapinfer.runtime.kv import kv_format
from lapinfer.runtime.predict import packed_bytes
from lapinfer.scale.asking import measured_asking
from lapinfer.scale.foresee import SIZES, Speeds, foreseen_times, subject
from lapinfer.scale.measure import CTX, measured_times, tape_of
from lapinfer.scale.simulate import Load
from lapinfer.scale.subject import Subject
from lapinfer.scale.tape import drawn
from lapinfer.scale.times import Asking
from lapinfer.scale.twins import twin_formats, twins
from lapinfer.tensors import tensors
from lapinfer.text.language_model import LanguageModel

MEASURED, RANDOM, FORESEEN = "measured", "measured with random weights", "foreseen from bytes and multiply-adds"


@dataclass(frozen=True, slots=True)
class Wanted:
    """names, sizes: as of a report; loading: quant and threads count. skew, seed: of experts that are drawn, where no
    model chooses them. with_twins: beside a mixture that is named alone, dense models and trees of its sizes."""

    names: Sequence[str]
    sizes: Sequence[str]
    loading: LoadOptions
    load: Load
    skew: float = 0.0
    seed: int = 0
    with_twins: bool = True


def gather(wanted: Wanted, measured: Callable[[], roofline.Roofline], progress: Progress = silent) -> Iterator[Subject]:
    """Each as soon as it is known; names that mean nothing are told before anything is measured. measured: gives this
    machine, with as many threads as models are loaded with."""
    chosen = candidates(wanted.names, wanted.sizes)
    known_ones = {candidate: known(candidate.name) for candidate in chosen if candidate.kind is None}
    machine = measured()
    asking = _Asking(machine.threads, progress)
    with_twins = wanted.with_twins and len(chosen) == 1
    speeds = cache(lambda format: _speeds(format, machine.threads))
    for candidate in chosen:
        about = known_ones.get(candidate)
        if about is not None and about.folder is None:
            yield from map(asking.added, _foreseen(about, candidate.name, wanted, speeds, with_twins))
            continue
        context = CTX if about is None else min(CTX, about.spec.context)
        options = replace(wanted.loading, ctx=context, slots=min(SIZES[-1], context))
        with candidate.open(options, progress) as loaded:
            yield from map(asking.added, _measured(loaded, candidate, wanted, machine, with_twins, progress))


class _Asking:
    """What asking nodes takes the engine: measured when the first model needs it."""

    def __init__(self, threads: int, progress: Progress):
        self._threads, self._progress = threads, progress

    @cached_property
    def _found(self) -> tuple[Asking, Asking]:
        self._progress(Phase("measuring", beside="asking nodes"), 0, None)
        return measured_asking(self._threads)

    def added(self, subject: Subject) -> Subject:
        if not subject.layers:
            return subject
        home, node = self._found
        return replace(subject, times=replace(subject.times, home=home, node=node))


def _speeds(format: str, threads: int) -> Speeds:
    return Speeds(roofline.weights_bandwidth(format, threads), roofline.peak(format, threads))


def _foreseen(
    about: Known, name: str, wanted: Wanted, speeds: Callable[[str], Speeds], with_twins: bool
) -> Iterator[Subject]:
    quant = wanted.loading.quant
    spec = about.spec
    formats = formats_of(spec, quant, about.stored)
    kv = kv_format(wanted.loading.kv, quant)
    sides = {"": (spec, formats)}
    if with_twins:
        sides |= {f"-{kind}": (twin, twin_formats(twin, formats)) for kind, twin in twins(spec).items()}
    for suffix, (own, chosen) in sides.items():
        costs = Costs(own, chosen, kv)
        times = foreseen_times(costs, speeds(costs.main_format))
        tape = drawn(own, wanted.skew, wanted.seed)
        yield subject(name + suffix, costs, times, tape, wanted.load, FORESEEN)


def _measured(
    loaded: LanguageModel, candidate: Candidate, wanted: Wanted, machine: roofline.Roofline, with_twins: bool,
    progress: Progress,
) -> Iterator[Subject]:  # fmt: skip
    model, bandwidth = loaded.model, machine.best_bandwidth
    ids, _ = sample_ids(loaded.tokenizer, loaded.spec.vocab, passage())

    def told(what: str) -> None:
        progress(Phase("measuring", beside=what, said=f"measuring {model.name}"), 0, None)

    with model.lock:
        times = measured_times(model, ids, bandwidth, told)
        tape = tape_of(model, ids)
    activations = model.limits.activations
    source = MEASURED if candidate.kind is None else RANDOM
    yield subject(str(candidate), Costs.of(model), times, tape, wanted.load, source, activations)
    for kind, spec in twins(model.spec).items() if with_twins else ():
        name, formats = f"{candidate}-{kind}", twin_formats(spec, model.weights.formats)
        _check_room(name, sum(packed_bytes(spec, formats).values()))
        with_weights = random_weights(tensors(spec).values(), formats)
        twin = Model(spec, with_weights, model.limits, name=name)
        own = replace(measured_times(twin, ids, bandwidth, told), head=times.head)  # the same head
        tape = drawn(spec, wanted.skew, wanted.seed)
        yield subject(name, Costs.of(twin), own, tape, wanted.load, RANDOM, activations)
        twin.close()


def _check_room(name: str, needed: int) -> None:
    free = available_memory()
    if free is not None and needed > free:
        raise DoesNotFitError(
            f"{name}: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; --no-twins leaves it out"
        )
