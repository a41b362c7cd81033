"""Experts on two nodes beside one process: tokens per second by number of sequences, and what a message costs.

Mixtures of random weights decode with one thread, with two, and with one thread where the tokens are and two nodes of
one thread each (processes of a cluster of Ray on this computer; --in-threads: threads of this process). Each measures
all numbers of sequences, up and down in turns, and the three take turns, too. Logits are compared first.

    python bench/experts_apart.py [--shapes granite,large] [--batch 1,2,4,8,16,32,64] [-r 4] [-o results/NAME.json]

For each number: seconds of a step in each turn, tokens per second by their median and by the least; of experts apart
what the exchange of the steps was in the least disturbed turn (runtime/traffic.py has the names). `message` fits what
was waited beyond the slowest node's work, by a constant for each layer and by bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import argument_parser, write_result

from lapinfer.report.random_weights import random_weights, shape_formats
from lapinfer.report.shapes import shape_spec
from lapinfer.report.timing import Watch
from lapinfer.runtime.ops import Limits
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec, RouterSpec
from lapinfer.tensors import tensors

if TYPE_CHECKING:
    from lapinfer.model import Model
    from lapinfer.packing.memory import MemoryWeights

START, STEPS = 24, 8
"""Positions that sequences have before they decode, and tokens of each in one measurement."""


def granite() -> ModelSpec:
    """The shape of Granite 3.1 1B-A400M: 32 experts of 512 neurons, 8 of them for a token."""
    return _spec(hidden=1024, layers=24, heads=16, experts=32, top_k=8, width=512)


def large() -> ModelSpec:
    """A few layers with experts as large as Mixtral's: 8 of 8,192 neurons, 2 of them for a token."""
    return _spec(hidden=2048, layers=4, heads=32, experts=8, top_k=2, width=8192)


def _spec(*, hidden: int, layers: int, heads: int, experts: int, top_k: int, width: int) -> ModelSpec:
    norm, dim = NormSpec("rms", 1e-6), hidden // heads
    rope = RopeSpec(dim, tuple(float(10_000 ** (-2 * i / dim)) for i in range(dim // 2)))
    layer = LayerSpec(
        AttentionSpec(heads, 8, dim, dim, dim**-0.5, rope),
        FeedForwardSpec(width, "silu", router=RouterSpec(experts, top_k)),
        norm,
        norm,
    )
    return ModelSpec("mixtral", 16_384, hidden, (layer,) * layers, norm, 4096)


SHAPES = {"granite": granite, "large": large, "1b": lambda: shape_spec("1b", "moe")}


@dataclass
class Arrangement:
    """A model, and what was measured of it by number of sequences: seconds of a step in each turn, and traffic."""

    name: str
    model: Model
    seconds: dict[int, list[float]] = field(default_factory=dict)
    traffic: dict[int, dict[str, Any]] = field(default_factory=dict)
    asks: list[tuple[float, float, float]] = field(default_factory=list)
    """(seconds that were not computing, bytes sent, bytes received) of a layer, on average of each measurement."""

    def measure(self, batch: int, ids: np.ndarray) -> None:
        exchange = self.model.exchange
        Watch(self.model).decode(ids[:batch], START, 1)  # warms up
        if exchange is not None:
            exchange.traffic.reset()
        spent = Watch(self.model).decode(ids[:batch], START, STEPS)
        self.seconds.setdefault(batch, []).append(spent / STEPS)
        if exchange is not None:
            stats = exchange.traffic.stats()
            asks = STEPS * len(exchange.placement.node_of)
            rest = (stats["seconds_waited"] - stats["seconds_of_slowest"]) / asks
            self.asks.append((rest, stats["bytes_sent"] / asks, stats["bytes_received"] / asks))
            kept = self.traffic.setdefault(batch, stats)
            if kept is not stats and stats["seconds_waited"] < kept["seconds_waited"]:
                self.traffic[batch] = stats  # that of the least disturbed turn

    def row(self, batch: int) -> dict[str, Any]:
        times = self.seconds[batch]
        row = {"step_seconds": times, "tokens_per_second": batch / median(times), "best": batch / min(times)}
        return row | ({"exchange_of_steps": STEPS, "exchange": self.traffic[batch]} if batch in self.traffic else {})


@contextmanager
def arrangements(
    spec: ModelSpec, weights: MemoryWeights, most: int, nodes: int, threads: bool
) -> Iterator[list[Arrangement]]:
    """The three; logits of the first step must be the same bits."""
    from lapinfer.model import Model

    def limits(count: int) -> Limits:
        return Limits(START + STEPS + 8, slots=most, step=max(most, START), threads=count, kv="f16")

    with ExitStack() as stack:
        found = [Arrangement(f"one process, {n} threads", Model(spec, weights, limits(n))) for n in (1, 2)]
        found.append(Arrangement(f"{nodes} nodes", _apart(spec, weights, limits(1), nodes, threads)))
        for each in found:
            stack.callback(each.model.close)
        yield found


def _apart(spec: ModelSpec, weights: MemoryWeights, limits: Limits, nodes: int, threads: bool) -> Model:
    from lapinfer.cluster.nodes import apart_model
    from lapinfer.model import Model
    from lapinfer.runtime.local_nodes import LocalNodes
    from lapinfer.runtime.placement import placed

    if not threads:
        return apart_model(spec, weights, limits, nodes, threads=1)
    routed = [layer.feed_forward for layer in spec.layers if layer.feed_forward.router is not None]
    return Model(spec, weights, limits, nodes=LocalNodes(spec, weights, limits, placed(routed, nodes)))


def fitted(asks: list[tuple[float, float, float]]) -> dict[str, float]:
    """Seconds of a layer's messages, and bytes per second in both directions, by least squares that weigh ratios."""
    rest, sent, received = np.array(asks).T
    columns = np.stack([np.ones(len(rest)), sent + received], axis=1) / rest[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(columns, np.ones(len(rest)), rcond=None)
    return {"seconds": float(latency), "bytes_per_second": float(1 / per_byte) if per_byte > 0 else float("inf")}


def crossover(rows: list[dict[str, Any]], apart: str, other: str) -> int | None:
    """The least number of sequences from which on experts apart were quicker."""
    found = None
    for row in reversed(rows):
        if row[apart]["tokens_per_second"] <= row[other]["tokens_per_second"]:
            break
        found = row["batch"]
    return found


def measured(name: str, options: Any) -> dict[str, Any]:
    spec = SHAPES[name]()
    batches = [int(text) for text in options.batch.split(",")]
    weights = random_weights(tensors(spec).values(), shape_formats(spec, options.quant))
    ids = np.random.default_rng(0).integers(0, spec.vocab, (max(batches), START + STEPS))
    with arrangements(spec, weights, max(batches), options.nodes, options.in_threads) as found:
        first = []
        for each in found:
            for slot in range(max(batches)):
                each.model.prefill(ids[slot, :START], slot)
            first.append(each.model.prefill(ids[0, :START], 0).values.copy())
        if not all(np.array_equal(first[0], logits) for logits in first):
            raise SystemExit(f"{name}: logits differ")
        for turn in range(options.repetitions):
            for batch in batches if turn % 2 == 0 else reversed(batches):
                for each in found if turn % 2 == 0 else reversed(found):
                    each.measure(batch, ids)
        distinct = {}
        for batch in batches:
            found[0].measure(batch, ids)
            distinct[batch] = float(np.mean(list(found[0].model.distinct_experts.values())))
            found[0].seconds[batch].pop()
        rows = [{"batch": b, "distinct_experts": distinct[b]} | {each.name: each.row(b) for each in found}
                for b in batches]  # fmt: skip
        apart, message = found[2].name, fitted(found[2].asks)
        for row in rows:
            told = ", ".join(f"{each.name} {row[each.name]['tokens_per_second']:.1f}" for each in found)
            stats = row[apart]["exchange"]
            print(
                f"{name}, {row['batch']} sequences: {told} tok/s; waited "
                f"{1e3 * stats['seconds_waited'] / STEPS:.1f} ms a step, computed "
                f"{1e3 * stats['seconds_of_slowest'] / STEPS:.1f}; {row['distinct_experts']:.1f} experts a layer",
                flush=True,
            )
        crossed = {each.name: crossover(rows, apart, each.name) for each in found[:2]}
        print(f"{name}: a message {1e6 * message['seconds']:.0f} µs and {message['bytes_per_second'] / 1e9:.2f} GB/s; "
              f"quicker than others from {crossed}", flush=True)  # fmt: skip
        return {"shape": name, "rows": rows, "message": message, "crossover": crossed}


def main() -> None:
    parser = argument_parser(__doc__, threads=False, repetitions=4)
    parser.add_argument("--shapes", default="granite,large", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--batch", default="1,2,4,8,16,32,64", help="numbers of sequences")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--quant", default="q4")
    parser.add_argument("--in-threads", action="store_true", help="nodes are threads of this process, without Ray")
    options = parser.parse_args()
    results = [measured(name, options) for name in options.shapes.split(",")]
    write_result({"quant": options.quant, "nodes": options.nodes, "in_threads": options.in_threads, "shapes": results},
                 options.output)  # fmt: skip


if __name__ == "__main__":
    main()
