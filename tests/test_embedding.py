"""Embeddings: hidden states of transformers, and the same bits in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fake_model import FakeModel, byte_tokenizer_folder
from test_batches import SPECS, told
from test_determinism import build, prompt
from test_parity import BOUND, distance

from lapinfer.errors import InputError, LapinferError
from lapinfer.text.language_model import LanguageModel, from_model, load
from lapinfer.text.scheduler import Scheduler

LENGTHS = (1, 150, 40, 2, 65)


@pytest.fixture(scope="module", params=SPECS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(spec=SPECS[request.param](), slots=3, step=96))


def hidden(model: LanguageModel, ids: list[int]) -> np.ndarray:
    """Hidden states [T, D], a token at a time."""
    engine = model.model
    states = [engine.step([id], [0], [pos], [True], best=0).hidden[0].copy() for pos, id in enumerate(ids)]
    model.forget()
    return np.stack(states)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_bits_are_those_of_one_token_at_a_time(model: LanguageModel, pooling: Any) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    found = model.embed(prompts, pooling=pooling, normalize=False)
    assert found.dtype == np.float32
    for vector, ids in zip(found, prompts, strict=True):
        states = hidden(model, ids).astype(np.float64)
        total = states[-1]
        if pooling == "mean":
            total = np.zeros(states.shape[1])
            for state in states:
                total += state
            total /= len(ids)
        assert np.array_equal(vector, total.astype(np.float32))
    lengths = np.linalg.norm(model.embed(prompts, pooling=pooling), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_embedding_beside_others(model: LanguageModel) -> None:
    ids, other = prompt(150, 1), prompt(20, 2)
    alone = told(model.stream(other, max_tokens=12, temperature=0, speculate=False))
    [expected] = model.embed([ids])
    model.forget()
    with Scheduler(model) as scheduler:
        decoding = scheduler.submit(model.request(other, max_tokens=12, temperature=0))
        embedding = scheduler.submit(model.embedding_request(ids))
        [event] = embedding
        assert np.array_equal(event.vector, expected)
        assert event.prompt_tokens == 150
        assert told(decoding) == alone
    stats = scheduler.stats()
    assert (stats.finished, stats.tokens) == (2, 12)
    assert told(model.stream(ids, max_tokens=3, temperature=0)) == told(model.stream(ids, max_tokens=3, temperature=0))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_other_writers_and_failed_steps_change_nothing(pooling: Any) -> None:
    model = LanguageModel(build(slots=1, step=16))
    ids = prompt(100, 5)
    [expected] = model.embed([ids], pooling=pooling)
    reading = model.embedding_request(ids, pooling=pooling).begin(0, model.conversations[0])
    events, steps = [], 0
    while not events:
        piece = reading.due(16, 16)
        if steps == 3:
            assert model.conversations[0].ids == []  # a step that failed would leave no one knows what
            model.generate(ids[:50], max_tokens=2)
            piece = reading.due(16, 16)
            assert piece.start == 0
        n = len(piece.tokens)
        want = np.arange(n) >= n - piece.wanted
        logits = model.model.step(piece.tokens, [0] * n, piece.start + np.arange(n), want, best=0)
        events, steps = reading.ran(piece, logits, 0), steps + 1
    assert np.array_equal(events[0].vector, expected)


CASES = [case for case in tiny.CASES if str(case) in ("llama-odd", "gpt2-plain", "gemma2-plain", "lfm2-options")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_transformers(case: tiny.Case, tmp_path: Path) -> None:
    """In float32, as near as logits are: sums in another order differ by 1e-6."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, ids, _ = tiny.make(case, tmp_path)
    made = tiny.build(case.family, case.config)
    with torch.no_grad():
        states = made.model if hasattr(made, "model") else made.transformer
        expected = states(torch.tensor([ids]), use_cache=False).last_hidden_state[0].float().numpy()
    with load(folder, quant="f32", kv="f32", ctx=len(ids), threads=2) as model:
        assert distance(model.embed([ids], normalize=False)[0], expected.mean(axis=0)) <= BOUND
        assert distance(model.embed([ids], pooling="last", normalize=False)[0], expected[-1]) <= BOUND


def test_texts_and_what_is_refused(tmp_path: Path) -> None:
    model = from_model(FakeModel(byte_tokenizer_folder(tmp_path)))  # pyright: ignore
    found = model.embed(["héy", "", "héy"])
    assert found.shape == (3, 16)
    assert np.array_equal(found[0], found[2])
    assert model.embed([]).shape == (0, 16)
    with pytest.raises(InputError, match=r"the text has 65 tokens, but the context holds 64: give it at least 65"):
        model.embed(["x" * 65])
    with pytest.raises(InputError, match=r"pooling: expected mean or last, got 'max' \(str\)"):
        model.embed(["x"], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="normalize: expected True or False"):
        model.embed(["x"], normalize=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a list of texts"):
        model.embed("text")
    with pytest.raises(LapinferError, match="empty"):
        LanguageModel(build(slots=1)).embed([[]])
