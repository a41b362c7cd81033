"""The sampler against a plain one that sorts everything."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapinfer.errors import CheckpointError, InputError
from lapinfer.text.likelihood import log_probs
from lapinfer.text.sampling import Sampler, SamplingParams


def block_max(values):
    padded = np.pad(values, (0, -len(values) % 16), constant_values=-np.inf)
    return padded.reshape(-1, 16).max(axis=1)


def kept_by_sorting(values, p):
    """Ids that the filters leave, by a full sort: the oracle."""
    order = np.argsort(-values, kind="stable")
    if p.top_k:
        order = order[: p.top_k]
    weight = np.exp(values[order].astype(np.float64) - float(values.max()))
    if p.top_p < 1:
        mass = weight.cumsum()
        order = order[: int(np.searchsorted(mass, p.top_p * mass[-1])) + 1]
    if p.min_p > 0:
        least = np.float32(float(values.max()) + np.log(p.min_p))
        order = order[values[order] >= least]
    return np.sort(order)


def drawn(ids, values, p, u):
    weight = np.exp((values[ids].astype(np.float64) - float(values.max())) / p.temperature).cumsum()
    return int(ids[min(int(weight.searchsorted(u * weight[-1], side="right")), len(ids) - 1)])


values_of = st.one_of(
    # Few different numbers: many ties. Many: none.
    st.tuples(st.integers(1, 400), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3.0, 20.0])).map(
        lambda a: (np.random.default_rng(a[1]).standard_normal(a[0]) * a[2]).astype(np.float32)
    ),
    st.tuples(st.integers(1, 400), st.integers(0, 2**32 - 1)).map(
        lambda a: np.random.default_rng(a[1]).integers(0, 4, a[0]).astype(np.float32)
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    values=values_of,
    top_k=st.sampled_from([0, 1, 2, 17, 40, 10_000]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    seed=st.integers(0, 2**64),
)
def test_draws_what_sorting_everything_draws(values, top_k, top_p, min_p, temperature, seed):
    p = SamplingParams(temperature, top_k, top_p, min_p, seed=seed)
    u = np.random.Generator(np.random.PCG64(seed)).random()
    token, logprob, _ = Sampler(p, logprobs=0).sample(values, block_max(values))
    ids = kept_by_sorting(values, p)
    assert token in ids
    assert token == drawn(ids, values, p, u)
    exact = values.astype(np.float64)
    assert logprob == pytest.approx(exact[token] - np.log(np.exp(exact - exact.max()).sum()) - exact.max(), abs=1e-4)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 0, "min_p": 0.0}, {"top_k": 0, "top_p": 1.0}, {}])
def test_large_vocabulary_keeps_what_sorting_keeps(options):
    rng = np.random.default_rng(1)
    for scale in (0.01, 1.0, 4.0):
        values = (rng.standard_normal(50_257) * scale).astype(np.float32)
        for seed in range(10):
            p = SamplingParams(seed=seed, **options)
            u = np.random.Generator(np.random.PCG64(seed)).random()
            assert Sampler(p).sample(values, block_max(values))[0] == drawn(kept_by_sorting(values, p), values, p, u)


@settings(max_examples=100, deadline=None)
@given(values=values_of)
def test_greedy_takes_the_first_largest(values):
    token = Sampler(SamplingParams(temperature=0)).sample(values, block_max(values)).token
    assert token == int(values.argmax())


def test_block_maxima_are_optional():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    with_them = Sampler(SamplingParams(seed=5)).sample(values, block_max(values))
    assert Sampler(SamplingParams(seed=5)).sample(values) == with_them


def test_follows_the_distribution():
    values = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=0))
    counts = np.bincount([sampler.sample(values)[0] for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)


def test_a_seed_gives_the_same_tokens_everywhere():
    values = np.linspace(-2, 2, 100, dtype=np.float32)
    sampler = Sampler(SamplingParams(temperature=1, seed=42))
    # Stored numbers: another platform or NumPy must give these too.
    assert [sampler.sample(values)[0] for _ in range(8)] == [95, 86, 97, 93, 70, 99, 94, 95]


def test_repetition_penalty_looks_at_all_tokens_before():
    values = np.full(40, -1.0, np.float32)
    values[[3, 7, 20]] = 5.0, 4.0, 3.0
    original = values.copy()
    greedy = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), logprobs=0)
    assert greedy.sample(values, block_max(values), [3])[0] == 7
    assert greedy.sample(values, block_max(values), [3, 7, 3])[0] == 20
    assert greedy.sample(values, block_max(values), [3] + [1] * 500)[0] == 7
    np.testing.assert_array_equal(values, original)
    logprob = greedy.sample(values, block_max(values), [3]).logprob
    assert Sampler(SamplingParams(temperature=0)).sample(values, None, [], [3, 7])[0] == 20
    with pytest.raises(CheckpointError, match="bans every token"):
        greedy.sample(values, None, [], range(40))
    plain = values.astype(np.float64)
    assert logprob == pytest.approx(4.0 - np.log(np.exp(plain).sum()), abs=1e-5)  # the model's own, not penalized


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_logits_that_are_not_numbers_are_refused(bad, temperature):
    values = np.zeros(100, np.float32)
    values[37] = bad
    for maxima in (None, block_max(values)):
        with pytest.raises(CheckpointError, match="not numbers"):
            Sampler(SamplingParams(temperature=temperature)).sample(values, maxima)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 1.5},
        {"min_p": -1},
        {"repetition_penalty": 0},
        {"seed": -1},
    ],
)
def test_wrong_parameters_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_recommended_parameters_are_taken_where_they_make_sense():
    config = {"temperature": 0.6, "top_p": 0.9, "top_k": "many", "repetition_penalty": -3, "do_sample": True}
    assert SamplingParams.from_generation_config(config) == SamplingParams(temperature=0.6, top_p=0.9)
    assert SamplingParams.from_generation_config({"top_k": 20}) == SamplingParams(top_k=20)
    assert SamplingParams.from_generation_config({"do_sample": False, "temperature": 0.6}).temperature == 0


def test_bans_of_tokens_that_the_model_lacks_change_nothing():
    values = np.arange(40, dtype=np.float32)
    greedy = SamplingParams(temperature=0)
    assert Sampler(greedy).sample(values, banned=[-1, 40, 300])[0] == 39
    assert Sampler(greedy).sample(values, banned=[39, 40])[0] == 38


def test_logits_at_both_ends_of_float32_are_told_apart_without_a_warning():
    values = np.full(20, -3e38, np.float32)
    values[7] = 3e38
    with warnings.catch_warnings(action="error"):
        assert Sampler(SamplingParams(temperature=0), logprobs=0).sample(values) == (7, 0.0, ())
        assert Sampler(SamplingParams(seed=1)).sample(values)[0] == 7


@given(
    seed=st.integers(0, 2**32),
    top_k=st.sampled_from([1, 3, 40]),
    penalty=st.sampled_from([1.0, 1.3, 30.0]),
    temperature=st.sampled_from([0, 0.8]),
    history=st.lists(st.integers(0, 199), max_size=30),
    banned=st.lists(st.integers(-3, 210), max_size=5),
)
def test_the_needed_logits_decide(seed, top_k, penalty, temperature, history, banned):
    values = np.random.default_rng(seed).standard_normal(200).astype(np.float32).round(1)
    params = SamplingParams(temperature, top_k, repetition_penalty=penalty, seed=seed)
    needed = Sampler(params).needed(history, banned)
    assert needed is not None
    few = np.where(values >= np.sort(values)[-needed], values, -np.inf).astype(np.float32)
    found = [Sampler(params).sample(each, block_max(each), history, banned)[0] for each in (values, few)]
    assert found[0] == found[1]


@pytest.mark.parametrize("params", [{"top_k": 0}, {"repetition_penalty": 0.9}])
def test_all_logits_are_needed(params):
    assert Sampler(SamplingParams(**params)).needed([3]) is None
    assert Sampler(SamplingParams(), logprobs=0).needed() is None


@settings(max_examples=100, deadline=None)
@given(values=values_of, top=st.sampled_from([0, 1, 5, 20]), banned=st.lists(st.integers(0, 399), max_size=3))
def test_the_most_likely_tokens_are_those_of_the_models_own_logits(values, top, banned):
    """Whatever is sampled, banned or penalized; in the order of a full sort, and ties by id."""
    sampler = Sampler(SamplingParams(seed=1, repetition_penalty=1.5), logprobs=top)
    banned = banned if len(set(banned)) < len(values) and len(values) > 3 else []
    token, logprob, found = sampler.sample(values, block_max(values), [0], banned)
    exact = values.astype(np.float64) - np.log(np.exp(values.astype(np.float64)).sum())
    order = np.argsort(-values, kind="stable")[:top].tolist()
    assert [id for id, _ in found] == order
    np.testing.assert_allclose([value for _, value in found], exact[order], atol=1e-4)
    assert dict(found).get(token, logprob) == logprob == log_probs(values)[token]
