"""Batches: tokens of each sequence are those that it has alone, whatever shares its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from test_determinism import build, decoder, hybrid_decoder, prompt, recurrent_decoder, routed_decoder, tree_decoder

from lapinfer.errors import InputError, LapinferError
from lapinfer.options import SamplingParams
from lapinfer.text.decoding import Conversation, Decoding, common
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.pace import Pace
from lapinfer.text.sampling import Sampler
from lapinfer.text.shared_steps import SharedSteps
from lapinfer.text.step_times import StepTimes

SPECS = {
    "plain": lambda: decoder(None),
    "windows": lambda: decoder(48),
    "mixture, latents": lambda: routed_decoder(latent=True),
    "trees": tree_decoder,
    "convolutions": hybrid_decoder,
    "recurrences": recurrent_decoder,
}
LENGTHS = (5, 90, 40, 1, 33, 17)


@pytest.fixture(scope="module", params=SPECS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(spec=SPECS[request.param](), slots=3, step=64))


def told(events: Any) -> list[Any]:
    return [(e.token, e.logprob, e.finish_reason) for e in events]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 7, "logprobs": True}])
def test_a_batch_has_the_tokens_of_each_alone(model: LanguageModel, sampling: dict[str, Any]) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    alone = []
    for ids in prompts:
        model.forget()
        alone.append(told(model.stream(ids, max_tokens=8, speculate=False, **sampling)))
    model.forget()
    together: list[list[Any]] = [[] for _ in prompts]
    for index, event in model.stream_batch(prompts, max_tokens=8, **sampling):
        together[index].append(event)
    assert [told(events) for events in together] == alone


def test_a_batch_shares_steps_and_bytes() -> None:
    model = LanguageModel(build(spec=decoder(None), slots=4))
    prompts = [prompt(3, seed) for seed in range(4)]
    model.usage.reset()
    answers = model.generate_batch(prompts, max_tokens=6, temperature=0)
    assert [len(answer.tokens) for answer in answers] == [6] * 4
    assert model.usage.steps == 6
    assert all(answer.timings.steps == 6 for answer in answers)


def test_what_a_slot_holds_is_reused(model: LanguageModel) -> None:
    model.forget()
    shared = prompt(60, 3)
    model.generate_batch([prompt(9, 4), shared, prompt(9, 5)], max_tokens=1)
    [answer] = model.generate_batch([[*shared, 1, 2]], max_tokens=1)
    assert answer.timings.reused_tokens in (60, 0)  # a convolution keeps nothing to go on from but the last position
    if all(layer.window is None for layer in model.spec.layers):
        assert answer.timings.reused_tokens == 60


def test_nobody_waits_for_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "room", lambda pace, decoding: 16)
    model = LanguageModel(build(spec=decoder(None), slots=2))
    prompts = [prompt(model.model.ctx - 1), prompt(2), prompt(160, 1)]  # the first one ends with its context
    order = [index for index, _ in model.stream_batch(prompts, max_tokens=20)]
    meanwhile = order[: order.index(2)]  # tokens of others while the last prompt was read
    assert meanwhile.count(1) >= 160 // 16


def test_more_sequences_than_a_step_takes() -> None:
    fake = FakeModel(vocab=12, ctx=40, slots=5)
    fake.max_step = 2
    model = LanguageModel(fake)  # pyright: ignore
    prompts = [[1] * n for n in (1, 5, 3, 2, 4)]
    together = [answer.tokens for answer in model.generate_batch(prompts, max_tokens=9, temperature=0)]
    assert together == [model.generate(ids, max_tokens=9, temperature=0).tokens for ids in prompts]


def test_an_interrupted_batch_leaves_slots_right(model: LanguageModel) -> None:
    prompts = [prompt(70, seed) for seed in range(3)]
    model.forget()
    alone = told(model.stream(prompts[1], max_tokens=5, temperature=0, speculate=False))
    events = model.stream_batch(prompts, max_tokens=5, temperature=0)
    for _ in range(4):
        next(events)
    events.close()  # type: ignore[attr-defined]
    for slot in range(3):
        assert told(model.stream(prompts[1], max_tokens=5, temperature=0, slot=slot, speculate=False)) == alone


def test_wrong_batches_are_refused_before_anything_runs() -> None:
    model = LanguageModel(FakeModel())  # pyright: ignore
    with pytest.raises(InputError, match="prompts: expected a list of prompts"):
        model.generate_batch("text")
    with pytest.raises(InputError, match="token 1 of the prompt"):
        model.generate_batch([[1], [1, 10**6]])
    with pytest.raises(InputError, match="slot"):
        model.generate_batch([[1]], slot=0)  # pyright: ignore
    assert model.generate_batch([]) == []


def repeating(token_cost: float) -> LanguageModel:
    """A model that repeats itself; and what a token more of a step costs, in steps, is known."""
    fake = FakeModel(ctx=400, slots=3)
    fake.script = [*b"a fox jumps over a dog; " * 16]
    model = LanguageModel(fake)  # pyright: ignore
    model.speculation.times = StepTimes(lambda tokens: 1 + token_cost * (tokens - 1), 16)
    model.speculation.times.record(1, 1.0)
    model.speculation.times.record = lambda tokens, seconds: None  # a fake model's
    return model


def test_sequences_of_a_batch_guess_where_a_step_is_worth_it() -> None:
    prompts = [[1], [2], [3]]
    alone = [told(repeating(0).stream(ids, max_tokens=80, temperature=0, speculate=False)) for ids in prompts]
    drafted: list[int] = []
    for token_cost in (0.01, 1.0):
        model = repeating(token_cost)
        together: list[list[Any]] = [[] for _ in prompts]
        for index, event in model.stream_batch(prompts, max_tokens=80, temperature=0):
            together[index].append(event)
        assert [told(events) for events in together] == alone
        last = [events[-1].timings for events in together]
        drafted.append(sum(each.drafted_tokens for each in last))
        assert all(each.steps + each.kept_tokens == 80 for each in last)
    assert drafted[0] > 60
    assert drafted[1] == 0


def test_a_step_that_guesses_spoil_is_run_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = repeating(0.01)
    step = model.model.step
    spoiled: list[int] = []

    def spoils(tokens: Any, *arguments: Any, guessed: bool = False, **options: Any) -> Any:
        if guessed:
            spoiled.append(len(tokens))
            raise LapinferError("a guess")
        return step(tokens, *arguments, **options)

    monkeypatch.setattr(model.model, "step", spoils)
    answers = model.generate_batch([[1], [2]], max_tokens=60, temperature=0)
    assert spoiled
    assert [len(answer.tokens) for answer in answers] == [60, 60]
    assert all(answer.timings.drafted_tokens == 0 for answer in answers)


def test_prompts_do_not_wait_for_the_end_of_guesses() -> None:
    """Where a step without prompts is to be measured, it runs without guesses: else none ever would."""
    model = repeating(0.01)
    steps = SharedSteps(model.model, model.conversations, model.speculation)
    for first in (1, 2):
        steps.begin(model.request([first], max_tokens=300, temperature=0), 0.0)
    for _ in range(40):
        steps.step()
    assert model.model.steps[-1] > 2  # type: ignore[attr-defined]
    steps._pace = Pace()
    new = steps.begin(model.request([3] * 8, max_tokens=9, temperature=0), 0.0)
    steps.step()
    assert model.model.steps[-1] == 2  # type: ignore[attr-defined]
    steps.step()
    assert new.left < 8


def test_a_grammar_that_fails_beside_others_ends_its_answer() -> None:
    """Though logits of the others are masked, none of its own is taken."""

    class Fails:
        def bits(self, ids: Sequence[int]) -> np.ndarray:
            raise InputError("schema: beyond its bounds")

        allowed = bits

    model: Any = FakeModel()
    decoding = Decoding(model, 0, Conversation(), [1, 2], Sampler(SamplingParams()), lambda ids: (), Fails())
    assert decoding.bits() is None
    logits = model.prefill([1, 2])
    logits.masked = True
    with pytest.raises(InputError, match="beyond its bounds"):
        decoding.choose(logits, 0)


def test_ids_that_become_fewer_while_they_are_compared() -> None:
    class Shrinks(list[int]):
        def __len__(self) -> int:
            return 5

    assert common(Shrinks([1, 2]), [1, 2, 3, 4, 5]) == 2
    assert common([1, 2, 3, 4, 5], Shrinks([1, 2])) == 2
