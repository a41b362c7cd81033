"""The scheduler: everyone gets the tokens that they would get alone, whoever comes and goes meanwhile."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_model import FakeModel
from test_batches import SPECS, told
from test_determinism import build, prompt

from lapinfer.errors import InputError, LapinferError, QueueFullError
from lapinfer.text.decoding import Conversation
from lapinfer.text.generation import Token
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.pace import Pace
from lapinfer.text.scheduler import Scheduler
from lapinfer.text.shared_steps import SharedSteps
from lapinfer.text.speculation import Speculating, Speculation
from lapinfer.text.waiting import Waiting


@pytest.fixture
def fake() -> LanguageModel:
    return LanguageModel(FakeModel(slots=2))  # pyright: ignore


@pytest.fixture
def gate(fake: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Steps of the fake model wait until they are let through."""
    gate, step = threading.Semaphore(0), fake.model.step

    def waits(*arguments: Any, **options: Any) -> Any:
        gate.acquire()
        return step(*arguments, **options)

    monkeypatch.setattr(fake.model, "step", waits)
    return gate


@pytest.fixture(scope="module", params=SPECS)
def model(request: pytest.FixtureRequest) -> Iterator[LanguageModel]:
    model = LanguageModel(build(spec=SPECS[request.param](), slots=3, step=64))
    yield model
    model.close()


def test_an_answer_tells_what_its_steps_touched(model: LanguageModel) -> None:
    model.forget()
    with Scheduler(model) as scheduler:
        before = model.usage.parts()
        *_, last = scheduler.submit(model.request(prompt(90, 1), max_tokens=70))
        after = model.usage.parts()
        assert last.touched is not None
        assert last.touched.parts() == {part: after[part] - before.get(part, 0) for part in after}
        assert (last.touched.steps, last.touched.sharing) == (2 + 69, 1)


def test_steps_that_are_shared_count_whole(fake: LanguageModel) -> None:
    steps = SharedSteps(fake.model, [Conversation(), Conversation()])
    for most in (2, 4):
        steps.begin(fake.request([1, 2, 3], max_tokens=most), 0.0)
    tokens = [token for _ in range(4) for _, token in steps.step() if isinstance(token, Token)]
    assert [(each.steps, each.sharing, each.parts()) for token in tokens if (each := token.touched)] == [
        (2, 2.0, {"head": 8000}), (4, 1.5, {"head": 10_000}),
    ]  # fmt: skip


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 7, "logprobs": True}])
def test_everyone_has_the_tokens_of_alone(model: LanguageModel, sampling: dict[str, Any]) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate((5, 90, 40, 1, 33, 17))]
    alone = []
    for ids in prompts:
        model.forget()
        alone.append(told(model.stream(ids, max_tokens=8, speculate=False, **sampling)))
    model.forget()
    with Scheduler(model) as scheduler:
        tickets = [
            scheduler.submit(model.request(ids, max_tokens=8, **sampling), client=str(i % 2))
            for i, ids in enumerate(prompts)
        ]
        assert [told(ticket) for ticket in tickets] == alone
    stats = scheduler.stats()
    assert (stats.requests, stats.finished, stats.tokens) == (6, 6, 48)
    assert stats.prompt_tokens + stats.reused_tokens == sum(map(len, prompts))


@pytest.mark.parametrize("seed", range(3))
def test_whoever_comes_and_goes_and_whatever_is_guessed(
    model: LanguageModel, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random arrivals, cancellations, samplings, guesses and portions of prompts change no token."""
    drawn = random.Random(seed)
    beginning = prompt(30, 50 + seed)
    prompts = [[*beginning[: drawn.choice((0, 0, 20, 30))], *prompt(drawn.choice((1, 7, 40)), i)] for i in range(9)]
    asked = [
        {"max_tokens": drawn.randint(1, 12), "temperature": drawn.choice((0, 1.0)), "seed": i, "top_k": 20}
        | drawn.choice(({}, {"logprobs": 2}, {"repetition_penalty": 1.3}))
        for i in range(9)
    ]
    alone: list[list[Any]] = []
    for ids, options in zip(prompts, asked, strict=True):
        model.forget()
        alone.append(told(model.stream(ids, speculate=False, **options)))
    model.forget()

    def guesses(decoding: Speculating, most: int) -> list[int]:
        """Some that are right, and often one that is not."""
        known = next(tokens for ids, tokens in zip(prompts, alone, strict=True) if decoding.ids[: len(ids)] == ids)
        said = len(decoding.ids) - (decoding._end - len(known))  # all of these answers end at their limit
        right = [token for token, *_ in known[max(said, 0) :]][: drawn.randint(0, max(min(most, 4), 0))]
        return [drawn.choice((token, token, 1)) for token in right[: decoding._end - len(decoding.ids) - 1]]

    def shared(speculation: Speculation, all: list[Any]) -> list[list[int]]:
        return [[] if each is None or not speculation.most else guesses(each, 4) for each in all]

    monkeypatch.setattr(Speculating, "_guess", guesses)
    monkeypatch.setattr(Speculation, "shared", shared)
    monkeypatch.setattr(Pace, "room", lambda pace, decoding: drawn.choice((0, 3, 20)))
    steps, waiting, found = SharedSteps(model.model, model.conversations, model.speculation), list(range(9)), {}
    indices: dict[Any, int] = {}
    while waiting or steps.running:
        while waiting and steps.free and (not steps.running or drawn.random() < 0.6):
            index = waiting.pop(drawn.randrange(len(waiting)))
            indices[steps.begin(model.request(prompts[index], **asked[index]), 0.0)] = index
            found[index] = []
        if drawn.random() < 0.03:
            steps.drop(drawn.choice(steps.running))
        if steps.running:
            for each, event in steps.step():
                found[indices[each]].append(event)
    for index, events in found.items():
        assert told(events) == alone[index][: len(events)]
        assert len(events) == len(alone[index]) or events == [] or events[-1].finish_reason is None


def test_tokens_in_an_event_loop(fake: LanguageModel) -> None:
    async def tokens(scheduler: Scheduler, ids: list[int]) -> list[Any]:
        return told([token async for token in scheduler.submit(fake.request(ids, max_tokens=9, temperature=0))])

    async def all_tokens() -> list[list[Any]]:
        with Scheduler(fake) as scheduler:
            return await asyncio.gather(*(tokens(scheduler, [i] * i) for i in range(1, 6)))

    alone = [told(fake.stream([i] * i, max_tokens=9, temperature=0)) for i in range(1, 6)]
    assert asyncio.run(all_tokens()) == alone


def test_one_that_leaves_frees_its_slot(fake: LanguageModel, gate: threading.Semaphore) -> None:
    with Scheduler(fake) as scheduler:
        first, second, third = (scheduler.submit(fake.request([i], max_tokens=20)) for i in range(3))
        gate.release()
        assert next(first)
        first.cancel()
        second.cancel()
        assert list(first) == list(second) == []
        with pytest.raises(InputError, match="no whole answer"):
            first.result()
        gate.release(100)
        assert third.result().finish_reason in ("stop", "length")
    stats = scheduler.stats()
    assert (stats.cancelled, stats.finished, stats.running, stats.waiting) == (2, 1, 0, 0)
    assert stats.steps <= 2 + 20


def test_too_many_are_refused(fake: LanguageModel, gate: threading.Semaphore) -> None:
    with Scheduler(fake, most_waiting=1) as scheduler:
        tickets = [scheduler.submit(fake.request([i], max_tokens=2)) for i in range(3)]
        with pytest.raises(QueueFullError, match="wait already") as caught:
            scheduler.submit(fake.request([1], max_tokens=2))
        assert caught.value.retry_after >= 1
        gate.release(100)
        assert all(ticket.result().tokens for ticket in tickets)


def test_how_long_requests_have_a_slot_is_not_how_long_they_waited(
    fake: LanguageModel, gate: threading.Semaphore
) -> None:
    with Scheduler(fake) as scheduler:
        *_, last = (scheduler.submit(fake.request([i], max_tokens=2)) for i in range(3))
        last.since -= 1000.0
        gate.release(100)
        assert last.result().tokens
    assert 0 < scheduler._held < 100


def test_clients_take_turns(fake: LanguageModel, gate: threading.Semaphore) -> None:
    """One who asks for much does not keep others waiting."""
    order: list[str] = []
    with Scheduler(fake) as scheduler:
        tickets = [(client, scheduler.submit(fake.request([1], max_tokens=1), client=client)) for client in "aaaaaabbc"]
        threads = [
            threading.Thread(target=lambda c=client, t=ticket: (list(t), order.append(c))) for client, ticket in tickets
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            gate.release()
            threads[0].join(0.01)
    assert "".join(order).rindex("c") < 6
    assert "".join(order).rindex("b") < 8


def test_clients_with_fewest_slots_come_first() -> None:
    waiting: Waiting[str] = Waiting()
    for item in ("a1", "a2", "a3", "b1", "b2", "c1"):
        waiting.add(item[0], item)
    held = {"a": 2, "b": 1, "c": 1}
    order: list[str] = []
    while waiting:
        order.append(waiting.take(held))
        held[order[-1][0]] += 1
    assert order == ["b1", "c1", "a1", "b2", "a2", "a3"]


def test_an_error_ends_one_and_an_error_of_a_step_all_in_it(
    fake: LanguageModel, gate: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scheduler(fake) as scheduler:
        good, bad = (scheduler.submit(fake.request([i], max_tokens=5, temperature=0)) for i in (1, 2))
        gate.release()
        next(good), next(bad)

        def fails(*arguments: Any, **options: Any) -> Any:
            raise LapinferError("nothing is allowed")

        bad_one = next(each for each, ticket in scheduler._tickets.items() if ticket is bad)
        monkeypatch.setattr(bad_one.generation.decoding.sampler, "sample", fails)
        gate.release(1)
        with pytest.raises(LapinferError, match="nothing is allowed"):
            list(bad)
        with monkeypatch.context() as patch:
            patch.setattr(fake.model, "step", fails)
            gate.release(1)
            with pytest.raises(LapinferError, match="nothing is allowed"):
                list(good)
        gate.release(100)
        assert scheduler.submit(fake.request([1], max_tokens=3)).result().tokens
        assert scheduler.stats().failed == 2


def test_closing(fake: LanguageModel, gate: threading.Semaphore) -> None:
    scheduler = Scheduler(fake)
    tickets = [scheduler.submit(fake.request([i], max_tokens=5)) for i in range(4)]
    gate.release(1)
    next(tickets[0])
    threading.Timer(0.01, gate.release, [100]).start()
    scheduler.close(drain=False)
    for ticket in tickets:
        with pytest.raises(LapinferError, match="closed before"):
            ticket.result()
    with pytest.raises(InputError, match="is closed"):
        scheduler.submit(fake.request([1]))
    scheduler.close()


def test_requests_of_others_are_refused(fake: LanguageModel) -> None:
    with Scheduler(fake) as scheduler:
        with pytest.raises(InputError, match="the request is one of"):
            scheduler.submit(LanguageModel(FakeModel()).request([1]))  # pyright: ignore
        with pytest.raises(InputError, match="request: expected what"):
            scheduler.submit([1])  # pyright: ignore
    with pytest.raises(InputError, match="slot"):
        fake.request([1], slot=1)  # pyright: ignore
