"""The best logits in two passes: those of the whole head to the bit, and no other row block is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import RandomWeights

from lapinfer.errors import CheckpointError
from lapinfer.kernels.operands import BEST_ROUNDS
from lapinfer.model import Model
from lapinfer.options import SamplingParams
from lapinfer.packing.coarse import NORMS, coarse_copy
from lapinfer.packing.entries import PackedEntry
from lapinfer.quant.blocks import unpack
from lapinfer.quant.choice import coarse_format, expected_share, two_pass_tokens
from lapinfer.runtime.build import head
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.predict import predict_bytes
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec
from lapinfer.tensors import COARSE, tensors
from lapinfer.text.decoding import Conversation, Decoding
from lapinfer.text.sampling import Sampler

VOCAB, WIDTH, STEP = 5000, 64, 24
TWICE = 4
"""Tokens for which heads are read in two passes here: by cost so small ones would be for one alone."""
BLOCKS = -(-VOCAB // 16)


def decoder(**more: object) -> ModelSpec:
    norm = NormSpec("rms", 1e-5)
    layer = LayerSpec(AttentionSpec(2, 1, 16, 16, 0.25), FeedForwardSpec(32, "silu"), norm, norm)
    return replace(ModelSpec("llama", VOCAB, WIDTH, (layer,), norm, 64, tied=False), **more)  # type: ignore[arg-type]


class WithCoarseHead(RandomWeights):
    """Random weights, and a coarse copy of the head."""

    def __init__(
        self, spec: ModelSpec, head: str = "q8", change: Callable[[dict[str, np.ndarray]], None] = lambda values: None
    ) -> None:
        super().__init__(spec, "q8", formats={"head": head, "embed": head}, change=change)
        name = "embed" if spec.tied else "head"
        shape = (spec.vocab, spec.hidden)
        packed, norms = coarse_copy("q4", unpack(head, self.tensor(name), shape))
        entries = [PackedEntry(t, "q4" if t.is_matrix else None) for t in tensors(spec, coarse=True).values()]
        assert {e.name for e in entries} >= {COARSE, NORMS}
        self.formats[COARSE] = "q4"
        self._arrays |= {COARSE: packed, NORMS: norms}


def two_passes(make: Callable[[], Model]) -> Model:
    """A model that reads its head in two passes for up to TWICE tokens of a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "two_pass_tokens", lambda *arguments: TWICE)
        return make()


def build(weights: WithCoarseHead, spec: ModelSpec, threads: int = 1) -> Model:
    return two_passes(lambda: Model(spec, weights, Limits(64, 2, STEP, threads=threads, activations="q16")))


def both(model: Model, tokens: list[int], best: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All logits of a step; the same and block maxima with only the best."""
    n = len(tokens)
    step = tokens, [0] * n, range(n), [True] * n
    whole = model.step(*step).values.copy()
    few = model.step(*step, best=best)
    return whole, few.values.copy(), few.block_max.copy()


def check(whole: np.ndarray, few: np.ndarray, block_max: np.ndarray, best: int) -> None:
    """All of the best are there, ties included; what is there has the bits of the whole head."""
    for all_of_them, some, largest in zip(whole, few, block_max, strict=True):
        there = np.isfinite(some)
        assert there[all_of_them >= np.sort(all_of_them)[-best]].all()
        assert np.array_equal(all_of_them[there], some[there])
        padded = np.pad(some, (0, -len(some) % 16), constant_values=-np.inf)
        assert np.array_equal(padded.reshape(-1, 16).max(axis=1), largest)


def outliers(values: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(5)
    values["head"][rng.integers(0, VOCAB, 40)] *= 20
    values["head"][:, 7] *= 6


def ties(values: dict[str, np.ndarray]) -> None:
    values["head"][:] = values["head"][np.random.default_rng(6).integers(0, 300, VOCAB)]


CASES = {
    "plain": (decoder(), "q8", lambda values: None),
    "outliers": (decoder(), "q8", outliers),
    "ties": (decoder(), "q8", ties),
    "six bits": (decoder(), "q6", lambda values: None),
    "bias": (decoder(head_bias=True), "q8", lambda values: None),
    "cap and scale": (decoder(logit_softcap=5.0, logit_scale=0.5), "q8", lambda values: None),
    "negative scale": (decoder(logit_scale=-0.5), "q8", lambda values: None),
    "tied": (decoder(tied=True), "q8", lambda values: None),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), best=st.sampled_from([1, 2, 17, 39]), tokens=st.integers(1, TWICE))
def test_the_best_have_the_bits_of_the_whole_head(name: str, seed: int, best: int, tokens: int) -> None:
    spec, head, change = CASES[name]
    if name not in MODELS:
        MODELS[name] = build(WithCoarseHead(spec, head, change), spec, threads=1 + len(MODELS) % 2)
    model = MODELS[name]
    ids = np.random.default_rng(seed).integers(0, spec.vocab, tokens).tolist()
    model.usage.reset()
    whole, few, block_max = both(model, ids, best)
    check(whole, few, block_max, best)
    assert model.best_blocks is not None
    blocks = int(model.best_blocks.sum())
    assert (blocks == BLOCKS) == bool(model.best_blocks[BEST_ROUNDS])
    if not model.best_blocks[BEST_ROUNDS]:
        computed = np.isfinite(block_max).any(axis=0)
        assert computed.sum() == blocks


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000), best=st.sampled_from([1, 2, 17, 39]), tokens=st.integers(1, TWICE),
    share=st.sampled_from([0.0, 0.001, 0.02, 0.5, 0.98, 1.0]), clustered=st.booleans(), free=st.booleans(),
)  # fmt: skip
def test_the_best_of_those_allowed(
    name: str, seed: int, best: int, tokens: int, share: float, *, clustered: bool, free: bool
) -> None:
    """All of them, ties included, with their bits, and no other logit; whatever the others are."""
    spec, head, change = CASES[name]
    if name not in MODELS:
        MODELS[name] = build(WithCoarseHead(spec, head, change), spec, threads=1 + len(MODELS) % 2)
    model, rng = MODELS[name], np.random.default_rng(seed)
    step = rng.integers(0, spec.vocab, tokens), [0] * tokens, range(tokens), [True] * tokens
    whole = model.step(*step).values.copy()
    masks = rng.random((tokens, VOCAB)) < share
    if clustered:
        masks = np.repeat(rng.random((tokens, BLOCKS)) < share, 16, axis=1)[:, :VOCAB]
    masks[np.arange(tokens), rng.integers(0, VOCAB, tokens)] = True
    masks[0] |= free and tokens > 1
    given = [None if free and tokens > 1 and t == 0 else bits_of(mask) for t, mask in enumerate(masks)]
    model.usage.reset()
    few = model.step(*step, best=best, allowed=given)
    assert model.best_blocks is not None
    read = int(model.best_blocks.sum())
    if not few.masked:
        assert read == BLOCKS
        np.testing.assert_array_equal(few.values, whole)
        return
    for t, allowed in enumerate(np.where(masks, whole, np.float32(-np.inf))):
        check(allowed[None], few.values[t : t + 1], few.block_max[t : t + 1], min(best, int(masks[t].sum())))
    assert not np.isfinite(few.values[~masks]).any()
    assert read <= np.any(np.pad(masks, ((0, 0), (0, -VOCAB % 16))).reshape(-1, BLOCKS, 16), axis=(0, 2)).sum()
    totals = model.usage.totals()
    metered = {key.removeprefix("bytes_"): n for key, n in totals.items() if key.startswith("bytes_")}
    formats = dict(model.weights.formats)
    assert predict_bytes(spec, formats, "f16", *step[1:3], tokens, best_blocks=read) == metered


class Some:
    """Ids that may follow, by a hash of those before them: few, or many."""

    def allowed(self, ids: Sequence[int]) -> np.ndarray:
        rng = np.random.default_rng(list(ids))
        mask = rng.random(VOCAB) < rng.choice([0.0, 0.01, 0.5])
        mask[rng.integers(0, VOCAB)] = True
        return mask

    def bits(self, ids: Sequence[int]) -> np.ndarray:
        return bits_of(self.allowed(ids))


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(temperature=1, top_k=9, seed=3)])
@pytest.mark.parametrize("banned", [(), range(7)], ids=["all", "bans"])
def test_constrained_texts_do_not_depend_on_how_the_head_is_read(params: SamplingParams, banned: Sequence[int]) -> None:
    spec = decoder()
    model, texts = build(WithCoarseHead(spec), spec), []
    for logprobs in (None, 0):  # the best logits, all of them
        sampler = Sampler(params, logprobs)
        decoding = Decoding(model, 0, Conversation(), [1, 2, 3], sampler, lambda ids: [*banned], Some())
        texts.append([decoding.next().token for _ in range(25)])
        assert (model.best_blocks is None) == (logprobs is not None)
        assert all(Some().allowed([1, 2, 3, *texts[-1][:i]])[token] for i, token in enumerate(texts[-1]))
    assert texts[0] == texts[1]


def bits_of(mask: np.ndarray) -> np.ndarray:
    """uint16 [ceil(V/16)]."""
    return np.packbits(np.pad(mask, (0, -len(mask) % 16)), bitorder="little").view(np.uint16)


MODELS: dict[str, Model] = {}


@pytest.mark.parametrize("scale", [0.5, -0.5])
@pytest.mark.parametrize("bias", [False, True])
def test_padded_rows_are_never_the_maximum(scale: float, bias: bool) -> None:
    """Of the whole head, whatever the sign of its scale: the last block's maximum is that of a logit."""
    spec = decoder(logit_scale=scale, head_bias=bias)
    assert spec.vocab % 16
    logits = Model(spec, RandomWeights(spec, "q8"), Limits(64, 1, STEP, threads=1)).step([3], [0], [0], [True])
    assert logits.block_max[0, -1] == logits.values[0, spec.vocab // 16 * 16 :].max()


@pytest.mark.parametrize("tokens", [1, 3, TWICE + 1])
def test_predicted_bytes_are_the_metered_ones(tokens: int) -> None:
    spec = decoder()
    weights = WithCoarseHead(spec)
    model = build(weights, spec)
    model.usage.reset()
    step = [1] * tokens, [0] * tokens, range(tokens), [True] * tokens
    model.step(*step, best=3)
    totals = model.usage.totals()
    metered = {key.removeprefix("bytes_"): n for key, n in totals.items() if key.startswith("bytes_")}
    read = model.best_blocks
    assert (read is None) == (tokens > TWICE)
    blocks = None if read is None else int(read.sum())
    predicted = predict_bytes(spec, weights.formats, "f16", [0] * tokens, range(tokens), tokens, best_blocks=blocks)
    assert predicted == metered
    macs = sum(op["macs"] for op in model.usage.by_op() if op["part"] == "head")
    expected = VOCAB * WIDTH * tokens + (0 if blocks is None else blocks * 16 * WIDTH * tokens)
    assert macs == expected


@pytest.mark.parametrize("spec", [decoder(), decoder(head_bias=True)], ids=["plain", "bias"])
def test_hidden_states_alone_read_nothing_of_the_head(spec: ModelSpec) -> None:
    weights = WithCoarseHead(spec)
    model = build(weights, spec)
    step = [3, 5], [0, 0], [0, 1], [True, True]
    whole = model.step(*step).hidden.copy()
    few = model.step(*step, best=3).hidden.copy()
    model.usage.reset()
    alone = model.step(*step, best=0)
    assert alone.values.shape == (0, VOCAB)
    assert alone.hidden.shape == (2, WIDTH)
    assert np.array_equal(alone.hidden, whole)
    assert np.array_equal(few, whole)
    totals = model.usage.totals()
    assert totals["bytes_head"] == 4 * WIDTH
    predicted = predict_bytes(spec, weights.formats, "f16", [0, 0], [0, 1], 2, hidden=True)
    assert predicted["head"] == totals["bytes_head"]
    assert sum(op["macs"] for op in model.usage.by_op() if op["part"] == "head") == 0


@pytest.mark.parametrize("share", [0.35, 1.0])
def test_errors_near_the_margin_widen_it(share: float) -> None:
    """A residual that is aligned with x: its errors are far beyond what is usual, yet the best are found."""
    spec = decoder()
    weights = WithCoarseHead(spec)
    model = build(weights, spec)
    whole = model.step([3], [0], [0], [True]).values[0].copy()
    x = model_input(model)
    rows = unpack("q8", weights.tensor("head"), (VOCAB, WIDTH))
    low = np.argsort(whole)[: VOCAB // 2]
    copy = rows.copy()
    # What lifts the lower half's coarse logits above all others lies along x alone.
    copy[low] += share * x * (1.2 * (whole.max() - whole.min()) / (x @ x))
    packed, norms = coarse_copy("q4", copy)
    norms = np.linalg.norm(rows - unpack("q4", packed, (VOCAB, WIDTH)), axis=1).astype(np.float32)
    weights._arrays |= {COARSE: packed, NORMS: norms}
    model = build(weights, spec)
    check(*both(model, [3], 5), 5)
    assert model.best_blocks is not None
    assert model.best_blocks[BEST_ROUNDS] or model.best_blocks[2]


def model_input(model: Model) -> np.ndarray:
    """What the head multiplied in the last step."""
    op = next(op for op in model.runner.plan.ops if op.label == "norm")
    exact = op.operands["exact"]
    assert isinstance(exact, np.ndarray)
    return exact[0, :WIDTH].copy()


def test_numbers_that_are_not_finite_are_found() -> None:
    spec = decoder()
    weights = WithCoarseHead(spec)
    weights._arrays["norm.weight"] = np.full(WIDTH, np.nan, np.float32)
    model = build(weights, spec)
    with pytest.raises(CheckpointError, match="not finite"):
        model.step([3], [0], [0], [True], best=1)
    with pytest.raises(CheckpointError, match="the hidden states are not finite"):
        model.step([3], [0], [0], [True], best=0)


def test_which_heads_have_a_copy() -> None:
    """By bytes alone: large ones of 6 bits and more, which a copy in 4 bits spares enough."""
    assert coarse_format("q8", 49_152, 576) == "q4"
    assert coarse_format("q8", 262_144, 640)
    assert coarse_format("q8", 4096, 256) is None
    assert coarse_format("q4", 49_152, 2048) is None
    assert coarse_format("f16", 49_152, 576) is None
    assert expected_share("q4", 49_152) == pytest.approx(1 / 14, rel=0.2)
    assert expected_share("q4", 600) == 1


@pytest.mark.parametrize(
    ("shape", "activations", "tokens"),
    [((49_152, 576), "q16", 1), ((49_152, 576), "q8", 1), ((262_144, 640), "q16", 3), ((262_144, 640), "q8", 5)],
)
def test_two_passes_run_while_they_are_quicker(shape: tuple[int, int], activations: str, tokens: int) -> None:
    """What was measured of SmolLM2 and Gemma 3 270M (bench/LOG.md)."""
    assert two_pass_tokens("q4", "q8", *shape, activations) == tokens
