"""Is what `lapinfer scale` foresees what happens? Processes of this machine, foreseen and measured in turns.

python bench/scale_calibration.py austen-moe 100m:moe 1b:moe -r 5 -o bench/results/scale-calibration-zen4.json
python bench/scale_calibration.py austen-moe --hint          on a busy machine: the result says so

Each turn measures steps of one process (A), and then what processes do together (B); it is foreseen from A and from
what this machine gives two threads, never from B. Figures are medians over the turns, ratios medians of each turn's.
A model is a name, or SIZE:KIND with random weights. Processes have one thread each: replicas, one and two of them; and
experts apart, a home and two processes of Ray with the experts (left out of dense models).
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
from harness import argument_parser, print_result, write_result

from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.report import roofline
from lapinfer.report.candidates import Candidate
from lapinfer.report.costs import Costs
from lapinfer.report.random_weights import random_weights, shape_formats
from lapinfer.report.shapes import shape_spec
from lapinfer.report.texts import passage, sample_ids
from lapinfer.report.timing import Watch
from lapinfer.runtime.ops import Limits
from lapinfer.scale import primitives
from lapinfer.scale.asking import measured_asking
from lapinfer.scale.foresee import SIZES, subject
from lapinfer.scale.measure import CTX, decoded, measured_times, tape_of
from lapinfer.scale.simulate import Arrangement, Load, Setting, simulate
from lapinfer.tensors import tensors
from lapinfer.text.language_model import LanguageModel

BATCHES = (1, 4, 16, 32)
"""Sequences of each replica, and of a home."""
NODES = 2
"""Processes with experts."""
SECONDS = 0.6
"""Of a run."""
ALIKE = 0.25
"""What is wanted: foreseen is within this share of measured."""
LOAD = Load(0, 12)
"""Decoding alone, from the first position on, as `measure.decoded` does."""


class Worker:
    """A process with a model, which does what it is told."""

    def __init__(self, name: str, nodes: int | None = None):
        """nodes: processes that have its experts."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, nodes))
        self._process.start()

    def tell(self, *task: Any) -> None:
        self._pipe.send(task)

    def told(self) -> Any:
        value = self._pipe.recv()
        if isinstance(value, BaseException):
            raise value
        return value

    def close(self) -> None:
        """It ends its own processes."""
        with suppress(OSError):
            self.tell("end")
        self._process.join(30)
        self._process.kill()


def _serve(pipe: Connection, name: str, nodes: int | None) -> None:
    try:
        with _opened(name, nodes) as loaded:
            pipe.send("ready")
            ids, _ = sample_ids(loaded.tokenizer, loaded.spec.vocab, passage())
            while (task := pipe.recv())[0] != "end":
                pipe.send(_done(name, loaded.model, ids, *task))
    except BaseException as error:
        pipe.send(error)


def _opened(name: str, nodes: int | None) -> LanguageModel:
    size, _, kind = name.partition(":")
    options = LoadOptions(threads=1, ctx=CTX, slots=SIZES[-1], expert_nodes=nodes)
    if nodes is None or not kind:
        return Candidate(size, kind or None).open(options)
    from lapinfer.cluster.nodes import apart_model

    spec = shape_spec(size, kind)
    weights = random_weights(tensors(spec).values(), shape_formats(spec, options.quant))
    return LanguageModel(apart_model(spec, weights, Limits(CTX, SIZES[-1], step=CTX), nodes, threads=1, name=name))


def _done(name: str, model: Model, ids: np.ndarray, task: str, *values: Any) -> Any:
    """A subject, of `steps`; tokens per second, of `run`."""
    if task == "steps":
        times, tape = measured_times(model, ids, *values), tape_of(model, ids)
        if tape.experts:
            home, node = measured_asking(1)
            times = replace(times, home=home, node=node)
        return subject(name, Costs.of(model), times, tape, LOAD, "measured", model.limits.activations)
    batch, begin = values
    time.sleep(max(begin - time.time(), 0))
    steps, seconds, until = 0, 0.0, time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        watch = Watch(model).steps(decoded(ids, batch))
        steps, seconds = steps + len(watch.seconds), seconds + sum(watch.seconds)
    return steps * batch / seconds


def together(workers: list[Worker], batch: int) -> float:
    """Tokens per second of all, which begin at once."""
    begin = time.time() + 0.05
    for worker in workers:
        worker.tell("run", batch, begin)
    return sum(worker.told() for worker in workers)


def turn(replicas: list[Worker], apart: Worker | None) -> dict[str, Any]:
    """What one turn foresees and measures, by arrangement, processes and batch."""
    machine = roofline.measure(2, seconds=0.2)
    shared, network = primitives.shared(machine), primitives.between_processes()
    replicas[0].tell("steps", machine.bandwidth[1])
    of = replicas[0].told()
    sides: list[tuple[Arrangement, int, list[Worker]]] = [("replicas", 1, replicas[:1]), ("replicas", 2, replicas)]
    if apart is not None:
        sides.append(("one home", 1 + NODES, [apart]))
    rows = []
    for arrangement, processes, workers in sides:
        for batch in BATCHES:
            sequences = len(workers) * batch
            setting = Setting(arrangement, processes, sequences, network, LOAD, shared, steps=LOAD.answer)
            foreseen = simulate(of, setting).tokens_per_second
            rows.append({
                "arrangement": arrangement, "processes": processes, "sequences": sequences, "foreseen": foreseen,
                "measured": together(workers, batch),
            })  # fmt: skip
    about = {"shared": asdict(shared), "network": asdict(network), "bandwidth": machine.bandwidth}
    return {**about, "rows": rows}


def calibrated(name: str, turns: int) -> dict[str, Any]:
    workers = [Worker(name) for _ in range(2)]
    apart = None
    try:
        for worker in workers:
            worker.told()
        if not name.endswith("dense"):
            apart = Worker(name, NODES)
            apart.told()
        found = [turn(workers, apart) for _ in range(turns)]
    finally:
        for worker in (*workers, *([apart] if apart else [])):
            worker.close()
    rows = []
    for same in zip(*(each["rows"] for each in found), strict=True):
        ratios = sorted(row["foreseen"] / row["measured"] for row in same)
        rows.append({
            **{name: same[0][name] for name in ("arrangement", "processes", "sequences")},
            "foreseen": median(row["foreseen"] for row in same), "measured": median(row["measured"] for row in same),
            "ratio": median(ratios), "ratios": [ratios[0], ratios[-1]],
        })  # fmt: skip
    return {"model": name, "rows": rows, "turns": found}


def main() -> None:
    parser = argument_parser(__doc__, threads=False, repetitions=5)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--hint", action="store_true", help="the machine is busy: figures are only hints")
    args = parser.parse_args()
    models = [calibrated(name, args.repetitions) for name in args.models]
    for model in models:
        print(model["model"])
        for row in model["rows"]:
            low, high = row["ratios"]
            print(
                f"  {row['arrangement']}, {row['processes']} processes, {row['sequences']:3} sequences: foreseen "
                f"{row['foreseen']:9,.0f} tok/s, "
                f"measured {row['measured']:9,.0f}, {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
            )
    within = [abs(row["ratio"] - 1) <= ALIKE for model in models for row in model["rows"]]
    print(f"{sum(within)} of {len(within)} within {100 * ALIKE:.0f} %")
    result = {"hint": args.hint, "models": models}
    write_result(result, args.output) if args.output else print_result(result)


if __name__ == "__main__":
    main()
