"""Batches: tokens of each sequence are those that it has alone, whatever shares its steps."""

from __future__ import annotations

from typing import Any

import pytest
from fake_model import FakeModel
from test_determinism import build, decoder, hybrid_decoder, prompt, routed_decoder, tree_decoder

from lapinfer.errors import InputError
from lapinfer.text import shared_steps
from lapinfer.text.language_model import LanguageModel

SPECS = {
    "plain": lambda: decoder(None),
    "windows": lambda: decoder(48),
    "mixture, latents": lambda: routed_decoder(latent=True),
    "trees": tree_decoder,
    "convolutions": hybrid_decoder,
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


def test_nobody_waits_for_a_long_prompt() -> None:
    model = LanguageModel(build(spec=decoder(None), slots=2))
    prompts = [prompt(model.model.ctx - 1), prompt(2), prompt(160, 1)]  # the first one ends with its context
    order = [index for index, _ in model.stream_batch(prompts, max_tokens=20)]
    meanwhile = order[: order.index(2)]  # tokens of others while the last prompt was read
    assert meanwhile.count(1) >= 160 // shared_steps.PIECE


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
