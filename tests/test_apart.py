"""Experts on several nodes: the same bits as in one process, the same bytes, and what is told of the exchange."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import tiny
from random_weights import RandomWeights

from lapinfer.errors import CheckpointError, InputError
from lapinfer.families import spec_from_config
from lapinfer.kernels.operands import ROW_GROUP_BYTES, TILE, TILE_GROUP_BYTES
from lapinfer.model import Model
from lapinfer.runtime.exchange import Exchange
from lapinfer.runtime.expert_node import ExpertNode
from lapinfer.runtime.expert_nodes import Answer, Request
from lapinfer.runtime.local_nodes import LocalNodes
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.placement import Placement, expected_loads, placed
from lapinfer.runtime.predict import predict_bytes
from lapinfer.spec import FeedForwardSpec, ModelSpec, RouterSpec, TreeSpec

CASES = {
    "mixtral-plain": "all layers alike",
    "qwen2_moe-dense_layer": "a dense layer, gated shared experts",
    "deepseek_v3-groups": "groups, a selection bias, shared experts",
    "gpt_oss-yarn": "biases",
    "granitemoe-multipliers": "what returns is multiplied",
    "tree": "wide leaves of two trees, a shared expert, no gate",
}
STEP, THREE = 40, 3
LENGTH = STEP + THREE + 1


def feed_forwards(spec: ModelSpec) -> list[FeedForwardSpec]:
    return [layer.feed_forward for layer in spec.layers if layer.feed_forward.router is not None]


@cache
def spec_of(name: str) -> ModelSpec:
    if name != "tree":
        return spec_from_config(tiny.read_golden(tiny.GOLDEN / f"{name}.npz")[0], name)
    spec = spec_of("mixtral-plain")
    tree = FeedForwardSpec(96, "relu", gated=False, bias=True, router=TreeSpec(2, trees=2), shared=1)
    return replace(spec, layers=tuple(replace(layer, feed_forward=tree) for layer in spec.layers))


@cache
def weights_of(name: str, fmt: str) -> RandomWeights:
    return RandomWeights(spec_of(name), fmt)


def limits_of(**changed: Any) -> Limits:
    return Limits(**{"ctx": 64, "slots": 4, "step": STEP, "threads": 1, "kv": "f32"} | changed)


def steps(model: Model) -> np.ndarray:
    """Logits of a prompt of 40 tokens, one of 3 in another slot, and a lone token of each."""
    ids, rows = tiny.prompt(101, LENGTH), []
    for slot, piece, start in ((0, ids[:STEP], 0), (2, ids[STEP:-1], 0), (0, ids[-1:], STEP), (2, ids[-1:], THREE)):
        n = len(piece)
        logits = model.step(piece, np.full(n, slot), start + np.arange(n), np.ones(n, bool))
        rows.append(logits.values.copy())
    return np.concatenate(rows)


@cache
def expected(name: str, fmt: str, activations: str) -> tuple[np.ndarray, dict[str, int], int]:
    """Logits of one process, bytes by part, and multiply-adds."""
    model = Model(spec_of(name), weights_of(name, fmt), limits_of(activations=activations))
    try:
        return steps(model), model.usage.parts(), int(model.usage.totals()["macs"])
    finally:
        model.close()


@contextmanager
def apart(name: str, fmt: str, placement: Placement | int, **limits: Any) -> Iterator[tuple[Model, LocalNodes]]:
    spec, weights = spec_of(name), weights_of(name, fmt)
    if isinstance(placement, int):
        placement = placed(feed_forwards(spec), placement)
    nodes = LocalNodes(spec, weights, limits_of(**limits), placement)
    model = Model(spec, weights, limits_of(**limits), nodes=nodes)
    try:
        yield model, nodes
    finally:
        model.close()


def exchange_of(model: Model) -> Exchange:
    assert model.exchange is not None
    return model.exchange


@pytest.mark.parametrize(
    ("fmt", "activations", "nodes", "threads"), [("q8", "q8", 2, 1), ("q4", "q16", 3, 2), ("f32", "q8", 1, 1)]
)
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_and_bytes(name: str, fmt: str, activations: Any, nodes: int, threads: int) -> None:
    logits, parts, macs = expected(name, fmt, activations)
    with apart(name, fmt, nodes, activations=activations, threads=threads) as (model, others):
        np.testing.assert_array_equal(steps(model), logits)
        assert model.usage.parts() == parts
        assert model.usage.totals()["macs"] == macs
        node_bytes = [int(node.usage.bytes.sum()) for node in others.nodes]
        stats = exchange_of(model).traffic.stats()
    assert sum(node_bytes) == parts["experts"]
    assert stats["node_bytes"] == node_bytes


def test_any_placement() -> None:
    """Uneven ones, others in each layer, nodes without an expert of some layer."""
    logits, _, _ = expected("qwen2_moe-dense_layer", "q8", "q8")
    experts = [ff.experts for ff in feed_forwards(spec_of("qwen2_moe-dense_layer"))]
    rng = np.random.default_rng(3)
    for nodes in (2, 4):
        node_of = tuple(rng.integers(0, nodes, n) for n in experts)
        with apart("qwen2_moe-dense_layer", "q8", Placement(nodes, node_of)) as (model, _):
            np.testing.assert_array_equal(steps(model), logits)


def test_a_placement_of_other_experts_is_refused() -> None:
    spec, weights = spec_of("mixtral-plain"), weights_of("mixtral-plain", "q8")
    nodes = LocalNodes(spec, weights, limits_of(), placed(feed_forwards(spec), 1))
    nodes.placement = Placement(1, tuple(np.zeros(n + 1, np.int64) for n in (3, 3)))
    with pytest.raises(ValueError, match=r"a placement of \[4, 4\] experts"):
        Model(spec, weights, limits_of(), nodes=nodes)
    nodes.close()


def test_predicted_bytes_are_those_of_home_and_nodes() -> None:
    name = "deepseek_v3-groups"
    ids, want = tiny.prompt(101, 5), np.ones(5, bool)
    with apart(name, "q8", 2) as (model, nodes):
        model.step(ids, np.zeros(5, int), np.arange(5), want)
        predicted = predict_bytes(
            spec_of(name), model.weights.formats, model.kv, np.zeros(5, int), np.arange(5), 5,
            model.distinct_experts, model.distinct_nodes,
        )  # fmt: skip
        assert model.usage.parts() == {part: n for part, n in predicted.items() if n}
        assert sum(int(node.usage.bytes.sum()) for node in nodes.nodes) == predicted["experts"]


def test_traffic_is_what_was_sent() -> None:
    """A token's activations go to a node once; a row comes back for each of its experts."""
    spec = spec_of("mixtral-plain")
    routers = [cast(RouterSpec, ff.router) for ff in feed_forwards(spec)]
    with apart("mixtral-plain", "q8", 2) as (model, _):
        traffic = exchange_of(model).traffic
        model.step(tiny.prompt(101, 9), np.zeros(9, int), np.arange(9), np.zeros(9, bool))
        pairs = sum(9 * router.top_k for router in routers)
        assert traffic.pairs.sum() == pairs
        node_of = exchange_of(model).placement.node_of
        tokens = sum(
            len(set(of[chosen].tolist()))
            for of, layer in zip(node_of, model.chosen_experts.values(), strict=True)
            for chosen in layer
        )
        assert traffic.tokens.sum() == tokens
        groups, width = -(-spec.hidden // 32), -(-spec.hidden // 16) * 16
        assert traffic.sent.sum() == tokens * groups * ROW_GROUP_BYTES[1] + 16 * pairs
        assert traffic.received.sum() == pairs * 4 * width
        stats = traffic.stats()
        assert stats["messages"] == 2 * len(routers)
        assert stats["seconds_waited"] >= stats["seconds_of_slowest"] > 0
        assert 1 <= stats["imbalance"] <= 2
        assert stats["tokens"] == 9
        assert f"{stats['messages'] / 9:.1f} messages" in traffic.line()
        traffic.reset()
        empty = traffic.stats()
        assert empty == {name: [0] * 2 if isinstance(value, list) else 0 for name, value in empty.items()} | {
            "nodes": 2,
            "imbalance": 1.0,
        }
    assert [TILE * size for size in ROW_GROUP_BYTES] == list(TILE_GROUP_BYTES)


def test_experts_are_spread_by_number_and_by_work() -> None:
    ff = FeedForwardSpec(64, "silu", router=RouterSpec(7, 2), shared=1)
    placement = placed([ff, ff], 3)
    for position in range(2):
        counts = [len(experts[position]) for experts in map(placement.experts, range(3))]
        assert sorted(counts) == [2, 3, 3]
        work = [expected_loads(ff)[experts[position]].sum() for experts in map(placement.experts, range(3))]
        assert max(work) < 1.6  # a shared expert has the work of 3.5 others
    heavy = np.array([9.0, 1, 1, 1, 8, 1, 1, 1])
    of = placed([ff], 2, [heavy]).node_of[0]
    assert of[0] != of[4]
    assert abs(heavy[of == 0].sum() - heavy[of == 1].sum()) <= 1
    with pytest.raises(InputError, match="expert_nodes: expected at most 8"):
        placed([ff], 9)


class Wrong(LocalNodes):
    """Answers what nobody asked for."""

    change: Any = None

    def ask(self, requests: Any) -> dict[int, Answer]:
        answers = super().ask(requests)
        return {node: replace(answer, rows=self.change(answer.rows)) for node, answer in answers.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"answered float32 \(.*expected float32"),
        (lambda rows: rows.astype(np.float64), "answered float64"),
        (lambda rows: np.asfortranarray(rows), "side by side"),
    ],
)
def test_answers_of_another_shape_are_refused(change: Any, message: str) -> None:
    spec, weights = spec_of("mixtral-plain"), weights_of("mixtral-plain", "q8")
    nodes = Wrong(spec, weights, limits_of(), placed(feed_forwards(spec), 1))
    nodes.change = change
    model = Model(spec, weights, limits_of(), nodes=nodes)
    with pytest.raises(RuntimeError, match=message):
        model.step([1, 2], [0, 0], [0, 1], [True, True])
    nodes.change = lambda rows: rows  # and the model runs on
    logits = model.step([1, 2], [0, 0], [0, 1], [True, True]).values.copy()
    model.close()
    whole = Model(spec, weights, limits_of())
    np.testing.assert_array_equal(whole.step([1, 2], [0, 0], [0, 1], [True, True]).values, logits)
    whole.close()


def test_requests_that_are_none_are_refused() -> None:
    """Kernels get addresses alone, so a node looks at what it gets."""
    spec, weights = spec_of("mixtral-plain"), weights_of("mixtral-plain", "q8")
    placement = placed(feed_forwards(spec), 2)
    experts = placement.experts(0)
    node = ExpertNode(spec, weights, limits_of(), experts)
    own, foreign = int(experts[0][0]), int(placement.experts(1)[0][0])
    row_bytes = -(-spec.hidden // 32) * ROW_GROUP_BYTES[1]
    rows = np.zeros((2, row_bytes), np.uint8)
    good = Request(0, rows, np.array([[own, 0], [own, 1]]))
    assert node.answer(good).rows.shape == (2, -(-spec.hidden // 16) * 16)
    many = np.stack([np.full(1000, own), np.zeros(1000, np.int64)], axis=1)
    for wrong, message in (
        (replace(good, position=9), "layer 9"),
        (replace(good, rows=rows[:, 1:]), "rows: expected"),
        (replace(good, rows=rows.astype(np.int8)), "rows: expected"),
        (replace(good, pairs=np.array([[own, 2]])), "a token is none of the 2"),
        (replace(good, pairs=np.array([[own, -1]])), "a token is none"),
        (replace(good, pairs=np.array([[foreign, 0]])), "none of this node's"),
        (replace(good, pairs=np.zeros((0, 2), np.int64)), "pairs: expected 1 to"),
        (replace(good, pairs=many), "pairs: expected 1 to"),
    ):
        with pytest.raises(ValueError, match=message):
            node.answer(wrong)
    node.close()


def test_numbers_that_are_none_are_found_on_nodes() -> None:
    """The step is run again, op by op, nodes included, to name where they came from."""
    spec = spec_of("mixtral-plain")

    def spoil(values: dict[str, np.ndarray]) -> None:
        values["layers.1.experts.down"][:] = 3e38

    weights = RandomWeights(spec, "f32", change=spoil)
    nodes = LocalNodes(spec, weights, limits_of(), placed(feed_forwards(spec), 2))
    model = Model(spec, weights, limits_of(), nodes=nodes)
    with pytest.raises(CheckpointError, match="came from experts of layer 1"):
        model.step([1, 2], [0, 0], [0, 1], [True, True])
    model.close()
