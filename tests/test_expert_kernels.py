"""The kernels of mixtures of experts against plain NumPy: choices, tables, gathered tokens, matrices of many experts.

All that they write lies between guards, which must stay as they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
from test_kernels import (
    ALONE,
    DOT_ERROR,
    F32,
    PRODUCTS,
    assert_tiles,
    code_tiles,
    f32_tiles,
    gated,
    multiplier,
    padded,
    random_weights,
)

from lapinfer.kernels import library
from lapinfer.kernels.cache import address
from lapinfer.kernels.operands import (
    ACT_F32,
    ACT_Q8,
    ACT_Q16,
    ACTIVATION_KINDS,
    ACTIVATIONS,
    ACTIVE_EXPERT,
    ADD,
    EXPERT_TILE,
    EXPERT_TILES,
    EXPERTS,
    GATED,
    GATHERED_TILES,
    NOT_A_NUMBER,
    PLAIN,
    PROBLEM,
    PROBLEMS,
    SCORES,
    STEP,
    STORE,
    TILE,
    TILE_GROUP_BYTES,
    TILES,
    TOKENS,
    KernelId,
)
from lapinfer.quant import GROUP, ROWS
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.plan import Op, Operand, encode
from lapinfer.runtime.routing_buffers import most_tiles
from lapinfer.runtime.team import KERNEL
from lapinfer.spec import FeedForwardSpec, RouterSpec

GUARD = 512
"""Bytes on both sides of every buffer."""
SIDE = 0xA5


class Buffers:
    """Arrays between guards."""

    def __init__(self) -> None:
        self._whole: list[np.ndarray] = []

    def array(self, shape: int | Sequence[int], dtype: Any = F32, fill: float = 0) -> np.ndarray:
        values = np.full(shape, fill, dtype)
        whole = np.full(values.nbytes + 2 * GUARD, SIDE, np.uint8)
        self._whole.append(whole)
        inside = whole[GUARD : GUARD + values.nbytes].view(dtype).reshape(values.shape)
        inside[...] = values
        return inside

    def holding(self, values: np.ndarray) -> np.ndarray:
        made = self.array(values.shape, values.dtype)
        made[...] = values
        return made

    def check(self) -> None:
        for whole in self._whole:
            assert (whole[:GUARD] == SIDE).all(), "wrote before a buffer"
            assert (whole[-GUARD:] == SIDE).all(), "wrote behind a buffer"


def run(kernel: KernelId, operands: dict[str, Operand], header: np.ndarray, chunks: Iterable[int]) -> None:
    """Chunks of one op, in this order; each in its turn belongs to another of two threads."""
    assert library
    row = encode(Op(kernel, kernel.name, "test", -1, 0, 1, operands), address(kernel.name))
    for i, chunk in enumerate(chunks):
        KERNEL(address(kernel.name))(row.ctypes.data, header.ctypes.data, chunk, i % 2)


# ---- the choice ----


class Routed:
    """One run of `route` over given logits [T, E], and a shared gate's logits behind them."""

    POSITION = 3

    def __init__(
        self, ff: FeedForwardSpec, logits: np.ndarray, bias: np.ndarray | None = None, gate: np.ndarray | None = None,
        order: np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        router = ff.router
        assert router is not None
        self.ff, self.router, self.T = ff, router, len(logits)
        T, E, k = self.T, router.n_experts, router.top_k
        self.buffers, wide = Buffers(), padded(E + 1, GROUP)
        self.logits = self.buffers.array((padded(T, TILE), wide))
        self.logits[:T, :E] = logits
        if gate is not None:
            self.logits[:T, E] = gate
        self.header = self.buffers.array(len(STEP), np.int64)
        self.header[TOKENS], self.header[TILES] = T, -(-T // TILE)
        self.tiles_there = most_tiles(ff, padded(T, TILE))
        self.chosen = self.buffers.array((padded(T, TILE), k + 1), np.int64, -1)
        self.weight = self.buffers.array((padded(T, TILE), k + 1), F32, -1)
        self.counts = self.buffers.array(ff.experts, np.int64)
        self.distinct = self.buffers.array(1, np.int64, -1)
        self.active = self.buffers.array((ff.experts, len(ACTIVE_EXPERT)), np.int64, -1)
        self.tiles = self.buffers.array((self.tiles_there, len(EXPERT_TILE)), np.int64, -1)
        self.rows = self.buffers.array(self.tiles_there * TILE, np.int64, -1)
        self.row_weights = self.buffers.array(self.tiles_there * TILE, F32, -1)
        self.finished = self.buffers.array(1, np.int64)
        self.scratch = self.buffers.array((2, 3 * padded(ff.experts, GROUP)))
        self.x, self.gathered, self.tile_bytes = 1 << 40, 1 << 41, 1000  # addresses are only passed on
        wide_bias = np.zeros(padded(E, GROUP), F32)
        wide_bias[:E] = 0 if bias is None else bias
        operands: dict[str, Operand] = {
            "logits": self.logits, "logits_stride": self.logits.strides[0], "experts": E, "top_k": k,
            "score": SCORES.index(router.score), "normalise": int(router.normalise), "eps": router.eps,
            "least_sum": router.least_sum,
            "scale": router.scale, "selection_bias": 0 if bias is None else wide_bias, "groups": router.groups,
            "top_groups": router.top_groups, "group_best": router.group_best, "jitter": router.jitter,
            "routed": E, "choices": k, "shared": ff.shared, "shared_weight": 1.0,
            "shared_gate": self.logits[:, E:].ctypes.data if ff.shared_gate else 0,
            "gate_stride": self.logits.strides[0], "chosen": self.chosen, "chosen_stride": k + 1,
            "weight": self.weight, "scratch": self.scratch, "scratch_stride": self.scratch.strides[0],
            "position": self.POSITION, "finished": self.finished, "counts": self.counts, "active": self.active,
            "tiles": self.tiles, "rows": self.rows, "row_weights": self.row_weights, "x": self.x,
            "tile_bytes": self.tile_bytes, "gathered": self.gathered, "distinct": self.distinct,
        }  # fmt: skip
        chunks = np.arange(-(-T // TILE))
        run(KernelId("route"), operands, self.header, chunks if order is None else order.permutation(chunks))
        self.buffers.check()
        assert self.finished[0] == 0
        assert (self.chosen[T:] == -1).all()
        assert (self.chosen[:, k] == -1).all()
        assert (self.weight[:, k] == -1).all()

    @property
    def choice(self) -> tuple[np.ndarray, np.ndarray]:
        k = self.router.top_k
        return self.chosen[: self.T, :k], self.weight[: self.T, :k]

    def check_tables(self) -> None:
        """Every (token, expert) pair once, experts ascending, tokens ascending within one, in tiles of at most 8."""
        E, T = self.router.n_experts, self.T
        chosen, weight = self.choice
        active, tiles, rows, row_weights = [], [], [], []
        routed_tiles = 0
        for e in range(self.ff.experts):
            if e < E:
                token, place = np.nonzero(chosen == e)
                share = weight[token, place]
            else:
                token = np.arange(T)
                share = np.ones(T, F32)
                if self.ff.shared_gate:
                    share = 1 / (1 + np.exp(-self.logits[:T, E].astype(np.float64)))
            if not len(token):
                continue
            first = len(tiles)
            for at in range(0, len(token), TILE):
                n = min(TILE, len(token) - at)
                if T == 1:
                    x = self.x
                elif e < E:
                    x = self.gathered + len(tiles) * self.tile_bytes
                else:
                    x = self.x + at // TILE * self.tile_bytes
                tiles.append((e, n, x))
                rows.append(token[at : at + n])
                row_weights.append(share[at : at + n])
            routed_tiles = len(tiles) if e < E else routed_tiles
            active.append((e, first, len(tiles)))
        assert self.header[EXPERTS] == len(active) == self.distinct[0]
        assert not self.counts.any()  # as they were
        assert self.header[EXPERT_TILES] == len(tiles) <= self.tiles_there
        assert self.header[GATHERED_TILES] == (routed_tiles if T > 1 else 0)
        np.testing.assert_array_equal(self.active[: len(active)], active)
        np.testing.assert_array_equal(self.tiles[: len(tiles)], tiles)
        for i, (of, share) in enumerate(zip(rows, row_weights, strict=True)):
            np.testing.assert_array_equal(self.rows[TILE * i : TILE * i + len(of)], of)
            np.testing.assert_allclose(self.row_weights[TILE * i : TILE * i + len(of)], share, rtol=1e-6)


def expected_choice(
    router: RouterSpec, logits: np.ndarray, bias: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    w = {"router": np.eye(router.n_experts, dtype=F32)}
    if bias is not None:
        w["router.selection_bias"] = bias
    chosen, weight = reference.route(router, w, logits)
    return chosen, weight * F32(router.scale) if router.score == "sparsemixer" else weight


def random_router(rng: np.random.Generator, score: Any) -> RouterSpec:
    """Any router of 1 to 70 experts: borders of vectors, one group or several, all experts or one."""
    groups = int(rng.choice([1, 1, 2, 3, 5]))
    each = int(rng.integers(2, 70 // groups + 1)) if groups > 1 else int(rng.choice([1, 2, 15, 16, 17, 32, 33, 64, 70]))
    top_groups = int(rng.integers(1, groups + 1))
    E, most = groups * each, each * top_groups
    if score == "sparsemixer":
        return RouterSpec(max(E, 2), 2, score, jitter=float(rng.choice([0.0, 0.01, 0.2, 2.0])))
    k = int(rng.choice([1, min(2, most), int(rng.integers(1, most + 1)), most]))
    return RouterSpec(
        E, k, score, bool(rng.integers(2)), float(rng.choice([0.0, 1e-20, 1e-2])), float(rng.choice([1.0, 2.5])),
        groups=groups, top_groups=top_groups, group_best=int(rng.choice([1, 2])),
        least_sum=float(rng.choice([0.0, 0.0, 0.4])),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("score", SCORES)
def test_route(score: str, seed: int) -> None:
    """Logits are multiples of 1/32: many are equal, and those that are not, clearly differ."""
    rng = np.random.default_rng(1000 * SCORES.index(score) + seed)
    router = random_router(rng, score)
    T, E = int(rng.choice([1, 2, 8, 9, 23])), router.n_experts
    spread = float(rng.choice([0.1, 1.0, 3.0]))
    logits = (np.rint(32 * spread * rng.standard_normal((T, E))) / 32).clip(-8, 8).astype(F32)
    bias = None
    if score != "sparsemixer" and rng.integers(2):
        router = replace(router, selection_bias=True)
        bias = rng.uniform(-0.4, 0.4, E).astype(F32)
    shared = int(rng.choice([0, 0, 1, 3]))
    gate = rng.standard_normal(T).astype(F32) * 3 if shared and rng.integers(2) else None
    ff = FeedForwardSpec(32, "silu", router=router, shared=shared, shared_gate=gate is not None)
    got = Routed(ff, logits, bias, gate, order=rng)
    assert got.header[PROBLEM] == 0
    chosen, weight = got.choice
    expected, expected_weight = expected_choice(router, logits, bias)
    if bias is None:
        np.testing.assert_array_equal(chosen, expected)
    else:  # sums with a bias may differ in the last bit
        score_of = {"softmax": reference.softmax, "sigmoid": reference.sigmoid, "logits": np.array}[score]
        keys = score_of(logits.astype(np.float64)) + bias
        np.testing.assert_allclose(np.take_along_axis(keys, chosen, 1), np.take_along_axis(keys, expected, 1), 0, 1e-6)
        expected_weight = expected_weight[(chosen == expected).all(1)]
        weight = weight[(chosen == expected).all(1)]
        assert len(weight) > len(chosen) / 2
    np.testing.assert_allclose(weight, expected_weight, rtol=2e-5, atol=1e-7)
    got.check_tables()


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
@pytest.mark.parametrize("score", SCORES)
def test_of_equal_experts_the_first_are_chosen(score: Any, value: float) -> None:
    for E, k in ((2, 2), (5, 2), (40, 2), (33, 7)):
        if score == "sparsemixer" and k != 2:
            continue
        router = RouterSpec(E, k, score, jitter=0.01)
        logits = np.full((3, E), value, F32)
        logits[1, E // 2] += 1  # one that is better, and equal ones
        logits[2, [0, E - 1]] += 1  # a pair
        got = Routed(FeedForwardSpec(32, "silu", router=router), logits)
        chosen, weight = got.choice
        np.testing.assert_array_equal(chosen[0], np.arange(k))
        assert chosen[1, 0] == E // 2
        np.testing.assert_array_equal(chosen[1, 1:], [e for e in range(E) if e != E // 2][: k - 1])
        np.testing.assert_array_equal(chosen[2, :2], [0, E - 1])
        np.testing.assert_allclose(weight, expected_choice(router, logits)[1], rtol=1e-5)
        got.check_tables()


def test_of_equal_groups_the_first_are_chosen() -> None:
    for best, top in itertools.product((1, 2), (1, 2, 3)):
        router = RouterSpec(12, 3, "sigmoid", groups=4, top_groups=top, group_best=best)
        logits = np.zeros((2, 12), F32)
        logits[1, 9:] = 1  # the last group is better
        chosen, _ = Routed(FeedForwardSpec(32, "silu", router=router), logits).choice
        assert chosen.tolist() == [[0, 1, 2], [9, 10, 11]]


@pytest.mark.parametrize("score", SCORES)
def test_large_logits_stay_finite(score: Any) -> None:
    logits = np.array([[3e4, -3e4, 0, 2.9e4], [-3e4, -3.1e4, -3.2e4, -3.3e4], [1e30, 1e30, -1e30, 0]], F32)
    router = RouterSpec(4, 2, score, jitter=0.01, normalise=score == "softmax")
    got = Routed(FeedForwardSpec(32, "silu", router=router), logits)
    assert got.header[PROBLEM] == 0
    assert np.isfinite(got.choice[1]).all()
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(got.choice[1], expected_choice(router, logits)[1], rtol=1e-5, atol=1e-30)
    got.check_tables()


def test_weights_of_logits_are_finite_when_the_largest_is_not_chosen() -> None:
    """A selection bias may take another one, whose logit is hundreds below."""
    router = RouterSpec(3, 1, "logits", selection_bias=True)
    logits = np.array([[200.0, 0.0, 50.0]], F32)
    got = Routed(FeedForwardSpec(32, "silu", router=router), logits, bias=np.array([0, 1000, 0], F32))
    assert got.choice[0].tolist() == [[1]]
    assert got.choice[1].tolist() == [[1.0]]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("score", SCORES)
def test_logits_that_are_no_numbers_are_noted_and_leave_tables_in_range(score: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    router = random_router(rng, score)
    T, E = int(rng.choice([1, 8, 19])), router.n_experts
    logits = rng.standard_normal((T, E)).astype(F32)
    bad = rng.random((T, E)) < rng.choice([0.01, 0.3, 1.0])
    bad[rng.integers(T), rng.integers(E)] = True
    logits[bad] = rng.choice(np.array([np.nan, np.inf, -np.inf], F32), int(bad.sum()))
    if seed % 4 == 0:
        logits[:] = np.nan
    ff = FeedForwardSpec(32, "silu", router=router, shared=2, shared_gate=True)
    got = Routed(ff, logits, gate=np.full(T, np.nan if seed % 2 else 0.0, F32), order=rng)
    assert got.header[PROBLEM] == PROBLEMS * Routed.POSITION + NOT_A_NUMBER
    chosen, _ = got.choice
    assert ((chosen >= 0) & (chosen < E)).all()
    n_active, n_tiles = got.header[EXPERTS], got.header[EXPERT_TILES]
    assert 0 < n_active <= ff.experts
    assert 0 < n_tiles <= got.tiles_there
    active, tiles = got.active[:n_active], got.tiles[:n_tiles]
    assert (np.diff(active[:, 0]) > 0).all()
    assert active[0, 1] == 0
    np.testing.assert_array_equal(active[1:, 1], active[:-1, 2])
    assert active[-1, 2] == n_tiles
    assert ((tiles[:, 1] > 0) & (tiles[:, 1] <= TILE)).all()
    for i, (expert, n, _) in enumerate(tiles):
        assert 0 <= expert < ff.experts
        rows = got.rows[TILE * i : TILE * i + n]
        assert ((rows >= 0) & (rows < T)).all()


# ---- tokens side by side ----


def stretches(loads: Sequence[Sequence[int]]) -> tuple[list[tuple[int, int, int]], list[tuple[int, list[int]]]]:
    """(active experts, tiles with their tokens) of the tokens that each expert gets."""
    active, tiles = [], []
    for e, tokens in enumerate(loads):
        if tokens:
            first = len(tiles)
            tiles += [(e, list(tokens[at : at + TILE])) for at in range(0, len(tokens), TILE)]
            active.append((e, first, len(tiles)))
    return active, tiles


def loads_of(tokens: int) -> list[list[int]]:
    """One expert gets all, one none, one a token, one more than a tile (if there are so many), one a few."""
    every = list(range(tokens))
    return [every, [], every[-1:], every[::2][:9], every[1:3]]


def activation_tiles(kind: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[T, C] as activation tiles [tiles, groups, bytes], and the float64 values that they stand for."""
    if kind == ACT_F32:
        tiles = f32_tiles(x)
        return tiles.reshape(*tiles.shape[:2], -1).view(np.uint8), x.astype(np.float64)
    return code_tiles(kind, x)


@pytest.mark.parametrize("kind", [ACT_F32, ACT_Q8, ACT_Q16], ids=ACTIVATION_KINDS)
def test_gather(kind: int) -> None:
    for tokens, columns in ((2, 20), (9, 96), (19, 130)):
        rng = np.random.default_rng(tokens)
        x = rng.standard_normal((tokens, columns)).astype(F32)
        stored, buffers = activation_tiles(kind, x)[0], Buffers()
        _, tiles = stretches(loads_of(tokens))
        table = buffers.array((len(tiles), len(EXPERT_TILE)), np.int64)
        rows = buffers.array(TILE * len(tiles), np.int64, 1 << 50)
        for i, (e, of) in enumerate(tiles):
            table[i, :2] = e, len(of)
            rows[TILE * i : TILE * i + len(of)] = of
        gathered = buffers.array((len(tiles), *stored.shape[1:]), np.uint8)
        operands: dict[str, Operand] = {
            "x": buffers.holding(stored), "groups": stored.shape[1], "kind": kind, "tiles": table, "rows": rows,
            "gathered": gathered, "tile_bytes": stored[0].nbytes,
        }  # fmt: skip
        run(KernelId("gather"), operands, np.zeros(len(STEP), np.int64), range(len(tiles)))
        buffers.check()
        for i, (_, of) in enumerate(tiles):
            np.testing.assert_array_equal(gathered[i], activation_tiles(kind, x[of])[0][0])


# ---- matrices ----


EXPERT_COUNT = len(loads_of(1))
CASES = [*(name for name in PRODUCTS if not name.endswith("_q16")), *(n for n in PRODUCTS if n.endswith("_q16"))]


class Bank:
    """Some experts' matrices [R, C], each at a place of its own, behind other bytes."""

    def __init__(self, name: str, blocks: int, columns: int, tokens: int) -> None:
        fmt, self.kind = name.removesuffix("_q16"), PRODUCTS[name]
        self.name, self.blocks, self.groups, self.tokens = name, blocks, -(-columns // GROUP), tokens
        self.offset = 64 * blocks
        self.buffers, self.W = Buffers(), []
        places = self.buffers.array(EXPERT_COUNT, np.int64, -1)  # an expert without tokens has no place
        self.loads = loads_of(tokens)
        for e in range(EXPERT_COUNT):
            packed, W = random_weights(fmt, ROWS * blocks, columns, seed=10 * blocks + e)
            assert len(packed) == blocks
            assert packed[0].nbytes == FORMATS[fmt].row_block_bytes(columns)
            stored = self.buffers.array(self.offset + packed.nbytes, np.uint8, 0xFF)
            stored[self.offset :] = packed.reshape(-1).view(np.uint8)
            self.W.append(W)
            if self.loads[e]:
                places[e] = stored.ctypes.data
        self.active, self.tiles = stretches(self.loads)
        active, count = self.buffers.array((EXPERT_COUNT, 3), np.int64, -1), len(self.tiles)
        active[: len(self.active)] = self.active
        self.table = self.buffers.array((count, 3), np.int64)
        self.rows = self.buffers.array(TILE * count, np.int64, 1 << 50)
        self.row_weights = self.buffers.array(TILE * count, F32, np.nan)
        rng = np.random.default_rng(tokens)
        self.share = rng.uniform(-1, 1, (EXPERT_COUNT, tokens)).astype(F32)
        for i, (e, of) in enumerate(self.tiles):
            self.table[i, :2] = e, len(of)
            self.rows[TILE * i : TILE * i + len(of)] = of
            self.row_weights[TILE * i : TILE * i + len(of)] = self.share[e, of]
        self.bias = self.buffers.holding(rng.uniform(-1, 1, (EXPERT_COUNT, ROWS * blocks + 8)).astype(F32))
        self.header = np.zeros(len(STEP), np.int64)
        self.header[[TOKENS, EXPERTS, EXPERT_TILES]] = tokens, len(self.active), count
        self.operands: dict[str, Operand] = {
            "weights": places, "offset": self.offset, "row_blocks": blocks, "groups": self.groups, "active": active,
            "tiles": self.table, "rows": self.rows, "row_weights": self.row_weights, "bias": 0,
            "bias_stride": self.bias.strides[0], "scale": 1.0, "activation": 0, "out_groups": 0, "out_kind": 0,
            "x": 0, "tile_bytes": 0, "out_stride": 0,
        }  # fmt: skip

    def inputs(self, x: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Tiles of the activations that each tile of tokens has, and what they stand for."""
        made = [activation_tiles(self.kind, values) for values in x]
        return self.buffers.holding(np.concatenate([tiles for tiles, _ in made])), [meant for _, meant in made]

    def run(self, unit: int, chunks: int, **operands: Operand) -> None:
        scratch = self.buffers.array((2, TILE * unit * ROWS))
        more: dict[str, Operand] = {
            "unit": unit, "chunks": -(-self.blocks // unit), "scratch": scratch, "scratch_stride": scratch.strides[0],
        }  # fmt: skip
        order = np.random.default_rng(unit).permutation(chunks)
        run(multiplier("experts", self.name), self.operands | more | operands, self.header, order)
        self.buffers.check()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", [STORE, ADD], ids=["store", "add"])
def test_what_returns_to_the_tokens(name: str, mode: int) -> None:
    """out (+)= scale · Σ share · (W · x + bias), each expert with its own activations of a token."""
    for tokens, blocks, unit, columns in ((1, 1, 1, 20), (2, 21, 8, 40), (19, 5, 2, 96), (9, 8, 8, 64)):
        for biased in (False, True):
            bank, R = Bank(name, blocks, columns, tokens), ROWS * blocks
            rng = np.random.default_rng(0)
            hidden, meant = bank.inputs([rng.standard_normal((len(of), columns)).astype(F32) for _, of in bank.tiles])
            out = bank.buffers.array((tokens + 1, R + 16), F32, 7.0)
            expected = np.full((tokens, R), 7.0 if mode == ADD else 0.0)
            size = np.ones((tokens, R))
            for (e, of), x in zip(bank.tiles, meant, strict=True):
                share = 0.5 * bank.share[e, of, None].astype(np.float64)
                expected[of] += share * (x @ bank.W[e].T + (bank.bias[e, :R] if biased else 0))
                size[of] += np.abs(share) * (np.abs(x) @ np.abs(bank.W[e]).T + 1)
            bank.run(
                unit, -(-blocks // unit), mode=mode, x=hidden, tile_bytes=hidden[0].nbytes, out=out,
                out_stride=out.strides[0], scale=0.5, bias=bank.bias if biased else 0,
            )  # fmt: skip
            assert (np.abs(out[:tokens, :R] - expected) <= 2 * DOT_ERROR * (size + 7)).all()
            assert (out[tokens:] == 7).all()
            assert (out[:, R:] == 7).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", [PLAIN, GATED], ids=["plain", "gated"])
def test_what_becomes_activations(name: str, mode: int) -> None:
    """act(W · x + bias) of each expert's tokens, for which tiles of activations lie anywhere."""
    least = {GATED: 4, PLAIN: 2}[mode]
    activations = itertools.cycle([*ALONE, "swiglu_oai"] if mode == GATED else ALONE)
    for (tokens, blocks, unit), out_kind in itertools.product(
        ((1, least, least), (3, 5 * least, 8), (19, 2 * least, least)), (ACT_F32, ACT_Q8, ACT_Q16)
    ):
        activation, columns = next(activations), 70
        bank = Bank(name, blocks, columns, tokens)
        x = 0.3 * np.random.default_rng(1).standard_normal((tokens, columns)).astype(F32)
        inputs, meant = bank.inputs([x[of] for _, of in bank.tiles])
        bank.table[:, 2] = inputs.ctypes.data + inputs[0].nbytes * np.arange(len(inputs))
        groups = blocks // least
        out = bank.buffers.array((len(bank.tiles), groups, TILE_GROUP_BYTES[out_kind]), np.uint8)
        bank.run(
            unit, len(bank.active) * -(-blocks // unit), mode=mode, out=out, out_groups=groups, out_kind=out_kind,
            activation=ACTIVATIONS.index(activation), bias=bank.bias,
        )  # fmt: skip
        for i, ((e, of), values) in enumerate(zip(bank.tiles, meant, strict=True)):
            y = values @ bank.W[e].T + bank.bias[e, : ROWS * blocks]
            if mode == GATED:
                sides = y.reshape(len(of), -1, 2, ROWS)
                y = gated(activation, sides[:, :, 0], sides[:, :, 1]).reshape(len(of), -1)
            else:
                y = reference.activate(activation, y)
            assert_tiles(out[i : i + 1], out_kind, y, error=1e-5)


def test_swiglu_oai_is_clamped() -> None:
    """Gates above 7 count as 7, up values beyond ±7 as ±7; the kernel's products go far beyond."""
    bank = Bank("f32", 4, 32, 9)
    x = 60 * np.random.default_rng(1).standard_normal((9, 32)).astype(F32)
    inputs, meant = bank.inputs([x[of] for _, of in bank.tiles])
    bank.table[:, 2] = inputs.ctypes.data + inputs[0].nbytes * np.arange(len(inputs))
    out = bank.buffers.array((len(bank.tiles), 1, TILE_GROUP_BYTES[ACT_F32]), np.uint8)
    bank.run(4, len(bank.active), mode=GATED, out=out, out_groups=1, activation=ACTIVATIONS.index("swiglu_oai"))
    beyond = 0
    for i, ((e, of), values) in enumerate(zip(bank.tiles, meant, strict=True)):
        sides = (values @ bank.W[e].T).reshape(len(of), -1, 2, ROWS)
        beyond += int((np.abs(sides) > 7).sum())
        with np.errstate(over="ignore"):
            y = gated("swiglu_oai", sides[:, :, 0], sides[:, :, 1])
        assert_tiles(out[i : i + 1], ACT_F32, y.reshape(len(of), -1), error=1e-5)
    assert beyond > 100
