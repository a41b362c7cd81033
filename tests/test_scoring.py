"""How likely the tokens of texts are: as `forward` says, to the bit, whoever shares the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, byte_tokenizer_folder
from test_batches import SPECS, told
from test_determinism import build, prompt

from lapinfer.errors import InputError
from lapinfer.report.perplexity import perplexity
from lapinfer.text import likelihood
from lapinfer.text.language_model import LanguageModel, from_model
from lapinfer.text.likelihood import log_probs
from lapinfer.text.scheduler import Scheduler
from lapinfer.text.scoring import Scored

LENGTHS = (1, 150, 40, 2, 65)


@pytest.fixture(scope="module", params=SPECS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(spec=SPECS[request.param](), slots=3, step=96))


def expected(model: LanguageModel, ids: list[int], top: int) -> Scored:
    """By the logits of all positions."""
    logits = model.forward(ids)
    rows = [log_probs(row) for row in logits[:-1]]
    order = [np.argsort(-row, kind="stable")[:top].tolist() for row in logits[:-1]]
    best = [tuple((id, float(row[id])) for id in ids) for ids, row in zip(order, rows, strict=True)]
    own = [float(row[id]) for row, id in zip(rows, ids[1:], strict=True)]
    return Scored(tuple(ids), (None, *own), ((), *best))


@pytest.mark.parametrize("top", [0, 3])
def test_scores_have_the_bits_of_all_logits(model: LanguageModel, top: int) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    assert model.score(prompts, top=top) == [expected(model, ids, top) for ids in prompts]


def test_what_a_slot_holds_is_read_again(model: LanguageModel) -> None:
    ids = prompt(70, 3)
    model.generate(ids, max_tokens=3)
    [found] = model.score([ids])
    assert found == expected(model, ids, 0)


def test_scoring_beside_others_and_between_other_writers(model: LanguageModel) -> None:
    ids, other = prompt(150, 1), prompt(20, 2)
    alone = told(model.stream(other, max_tokens=12, temperature=0, speculate=False))
    model.forget()
    with Scheduler(model) as scheduler:
        decoding = scheduler.submit(model.request(other, max_tokens=12, temperature=0))
        scoring = scheduler.submit(model.request(ids, prompt_logprobs=2, logprobs=2, max_tokens=2, temperature=0))
        answer = scoring.result()
        assert told(decoding) == alone
    wanted = expected(model, ids, 2)
    assert tuple(each.logprob for each in answer.prompt) == wanted.logprobs
    assert tuple(each.top for each in answer.prompt) == wanted.top
    assert model.generate(ids, prompt_logprobs=2, logprobs=2, max_tokens=2, temperature=0).prompt == answer.prompt


def test_another_writer_in_the_middle_changes_nothing() -> None:
    """One that leaves more of the same prompt in the slot than was scored."""
    model = LanguageModel(build(slots=1, step=16))
    ids = prompt(100, 5)
    wanted = expected(model, ids, 0)
    request = model.request(ids, prompt_logprobs=True, max_tokens=1)
    generation = request.begin(0, model.conversations[0])
    step, calls = model.model.step, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            model.model.step = step
            raise InterruptedError
        return step(*arguments, **options)

    model.model.step = interrupted  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        next(generation.events())
    model.generate(ids, max_tokens=2, speculate=False)
    [event] = generation.events()
    assert tuple(each.logprob for each in event.prompt) == wanted.logprobs


def test_few_logits_are_asked_for_at_once() -> None:
    fake = FakeModel(vocab=12, ctx=200, slots=2)
    fake.max_step, fake.max_wanted = 150, 100
    model, wants, step = LanguageModel(fake), [], fake.step  # pyright: ignore

    def noted(token: Any, slot: Any, pos: Any, want: Any, **options: Any) -> Any:
        wants.append(int(np.sum(want)))
        return step(token, slot, pos, want, **options)

    fake.step = noted  # type: ignore[method-assign]
    model.score([[1] * 200, [2] * 130])
    assert max(wants) <= 100
    assert sum(wants) == 330
    assert likelihood.SCORED_PIECE < 100


def test_texts_and_what_is_refused(tmp_path: Path) -> None:
    model = from_model(FakeModel(byte_tokenizer_folder(tmp_path)))  # pyright: ignore
    [found, empty] = model.score(["héy", ""], top=1)
    assert found.tokens == tuple("héy".encode())
    assert len(found.top[1]) == 1
    assert found.total == sum(found.logprobs[1:])  # type: ignore[arg-type]
    assert empty == Scored((256,), (None,), ((),))
    assert model.score([]) == []
    with pytest.raises(InputError, match="the prompt has 65 tokens, but the context holds 64"):
        model.score(["x" * 65])
    for wrong in (21, -1, True, 1.5):
        with pytest.raises(InputError, match="expected"):
            model.score(["x"], top=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a list of prompts"):
        model.score("text")


def test_perplexity_is_that_of_the_scores() -> None:
    model, ids = LanguageModel(build(slots=2)), prompt(64, 7)
    model.encode = lambda text, special=True: ids if text == "…" else text  # type: ignore[method-assign]
    *_, told = perplexity(model, "…", ctx=32)
    halves = [score.logprobs[17:] for score in model.score([ids[:32], ids[32:]])]
    nll = -np.array(halves, np.float32).ravel().astype(np.float64)
    assert told.ppl == float(np.exp(nll.mean()))
