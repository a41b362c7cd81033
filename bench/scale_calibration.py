"""Is what `lapinfer scale` foresees what happens? Processes of this machine, foreseen and measured in turns.

python bench/scale_calibration.py austen-moe 100m:moe 1b:moe -r 5 -o bench/results/scale-calibration-zen4.json
python bench/scale_calibration.py austen-moe --hint          on a busy machine: the result says so

Each turn measures steps of one process (A), and then what processes do together (B); it is foreseen from A and from
what this machine gives two threads, never from B. Figures are medians over the turns, ratios medians of each turn's.
A model is a name, or SIZE:KIND with random weights. Processes have one thread each.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from harness import argument_parser, print_result, write_result

from lapinfer.options import LoadOptions
from lapinfer.report import roofline
from lapinfer.report.candidates import Candidate
from lapinfer.report.costs import Costs
from lapinfer.report.texts import passage, sample_ids
from lapinfer.report.timing import Watch
from lapinfer.scale import primitives
from lapinfer.scale.foresee import SIZES, subject
from lapinfer.scale.measure import CTX, decoded, measured_times, tape_of
from lapinfer.scale.network import NETWORKS, Shared
from lapinfer.scale.simulate import Load, Setting, simulate
from lapinfer.scale.subject import Subject

BATCHES = (1, 4, 16, 32)
"""Sequences of each process."""
SECONDS = 0.6
"""Of a run."""
ALIKE = 0.25
"""What is wanted: foreseen is within this share of measured."""
LOAD = Load(0, 12)
"""Decoding alone, from the first position on, as `measure.decoded` does."""


class Worker:
    """A process with a model, which does what it is told."""

    def __init__(self, name: str):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name), daemon=True)
        self._process.start()

    def tell(self, *task: Any) -> None:
        self._pipe.send(task)

    def told(self) -> Any:
        value = self._pipe.recv()
        if isinstance(value, BaseException):
            raise value
        return value

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, name: str) -> None:
    try:
        size, _, kind = name.partition(":")
        loaded = Candidate(size, kind or None).open(LoadOptions(threads=1, ctx=CTX, slots=SIZES[-1]))
        model = loaded.model
        ids, _ = sample_ids(loaded.tokenizer, loaded.spec.vocab, passage())
        pipe.send("ready")
        while True:
            task, *values = pipe.recv()
            if task == "steps":
                times = measured_times(model, ids, *values)
                tape = tape_of(model, ids)
                pipe.send(subject(name, Costs.of(model), times, tape, LOAD, "measured", model.limits.activations))
            else:
                batch, begin = values
                time.sleep(max(begin - time.time(), 0))
                steps, seconds, until = 0, 0.0, time.perf_counter() + SECONDS
                while time.perf_counter() < until:
                    watch = Watch(model).steps(decoded(ids, batch))
                    steps, seconds = steps + len(watch.seconds), seconds + sum(watch.seconds)
                pipe.send(steps * batch / seconds)
    except EOFError:
        pass
    except BaseException as error:
        pipe.send(error)


def together(workers: list[Worker], batch: int) -> float:
    """Tokens per second of all, which begin at once."""
    begin = time.time() + 0.05
    for worker in workers:
        worker.tell("run", batch, begin)
    return sum(worker.told() for worker in workers)


def foreseen(of: Subject, processes: int, batch: int, shared: Shared) -> float:
    setting = Setting("replicas", processes, processes * batch, NETWORKS["10gbe"], LOAD, shared, steps=LOAD.answer)
    return simulate(of, setting).tokens_per_second


def turn(workers: list[Worker]) -> dict[str, Any]:
    """What one turn foresees and measures, by processes and batch."""
    machine = roofline.measure(2, seconds=0.2)
    shared = primitives.shared(machine)
    workers[0].tell("steps", machine.bandwidth[1])
    of = workers[0].told()
    rows = [
        {
            "processes": n,
            "batch": batch,
            "foreseen": foreseen(of, n, batch, shared),
            "measured": together(workers[:n], batch),
        }
        for n in (1, 2)
        for batch in BATCHES
    ]
    return {"shared": asdict(shared), "bandwidth": machine.bandwidth, "rows": rows}


def calibrated(name: str, turns: int) -> dict[str, Any]:
    workers = [Worker(name) for _ in range(2)]
    try:
        for worker in workers:
            worker.told()
        found = [turn(workers) for _ in range(turns)]
    finally:
        for worker in workers:
            worker.close()
    rows = []
    for same in zip(*(each["rows"] for each in found), strict=True):
        ratios = sorted(row["foreseen"] / row["measured"] for row in same)
        rows.append({
            "arrangement": "replicas", "processes": same[0]["processes"], "batch": same[0]["batch"],
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
                f"  {row['processes']} processes x {row['batch']:3} sequences: foreseen {row['foreseen']:9,.0f} tok/s, "
                f"measured {row['measured']:9,.0f}, {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
            )
    within = [abs(row["ratio"] - 1) <= ALIKE for model in models for row in model["rows"]]
    print(f"{sum(within)} of {len(within)} within {100 * ALIKE:.0f} %")
    result = {"hint": args.hint, "models": models}
    write_result(result, args.output) if args.output else print_result(result)


if __name__ == "__main__":
    main()
