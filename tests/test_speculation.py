"""Guessed tokens change nothing but the number of steps: tokens, log-probabilities, texts, what a slot holds, bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, byte_tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import RandomWeights
from test_best import TWICE, WithCoarseHead, two_passes
from test_best import decoder as coarse_decoder
from test_determinism import decoder, hybrid_decoder, prompt, recurrent_decoder, routed_decoder, tree_decoder

from lapinfer import load
from lapinfer.errors import CheckpointError, DoesNotFitError, InputError, UnsupportedError
from lapinfer.kernels.operands import BEST_ROUNDS
from lapinfer.loading import _needed_by
from lapinfer.model import Model
from lapinfer.options import LoadOptions, SamplingParams
from lapinfer.report.timing import head_blocks
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.predict import predict_bytes
from lapinfer.spec import ModelSpec
from lapinfer.text.copies import NEAR, RUNS, Copies
from lapinfer.text.generation import stream
from lapinfer.text.generation_config import Bans
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.speculation import Speculating, expected_time, most_guesses
from lapinfer.text.step_times import Balance, StepTimes, worth
from lapinfer.text.tokenizer import Tokenizer

EOS = 257


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(byte_tokenizer_folder(tmp_path_factory.mktemp("bytes")))
    assert tokenizer is not None
    return tokenizer


@contextmanager
def guessing(right: list[int], vocab: int, seed: int = 0, share: float = 0.85) -> Iterator[None]:
    """Every step guesses as many tokens as it may: each is that of `right` (prompt and answer), or any other one."""
    rng = np.random.default_rng(seed)

    def guess(self: Speculating, most: int) -> list[int]:
        count = int(rng.integers(0, max(most, 0) + 1))
        known = right[len(self.ids) : len(self.ids) + count]
        known += rng.integers(0, vocab, count - len(known)).tolist()
        return [token if rng.random() < share else int(rng.integers(0, vocab)) for token in known]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Speculating, "_guess", guess)
        yield


def told(events: Any) -> list[Any]:
    """All of some events but their timings."""
    return [(e.token, e.logprob, e.text, e.thinking, e.finish_reason) for e in events]


def compared(model: LanguageModel, ids: list[int], seed: int = 0, **options: Any) -> Any:
    """The last event with guesses; all of them are those without."""
    options["logprobs"] = seed % 2 == 0
    plain = list(model.stream(ids, speculate=False, **options))
    model.forget()
    with guessing([*ids, *(e.token for e in plain)], model.spec.vocab, seed):
        events = list(model.stream(ids, **options))
    assert told(events) == told(plain)
    steps = [(e.timings.steps, e.timings.drafted_tokens, e.timings.kept_tokens) for e in events]
    assert all(0 <= kept <= drafted for _, drafted, kept in steps)
    assert len(events) <= steps[-1][0] + steps[-1][2]  # a stop string may come before the end of what was kept
    assert all(n == m for n, m in zip(model.conversations[0].ids, [*ids, *(e.token for e in plain)], strict=False))
    return events[-1]


BANS = Bans(always=(5,), sequences=((7, 9), (3,)), ngram=3, least=4)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    params=st.builds(
        SamplingParams, temperature=st.sampled_from([0, 0.3, 2.0]), top_k=st.sampled_from([0, 3, 40]),
        top_p=st.sampled_from([0.9, 1.0]), min_p=st.sampled_from([0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.3]), seed=st.integers(0, 99),
    ),
    ids=st.lists(st.integers(0, 11), min_size=1, max_size=20),
    max_tokens=st.sampled_from([None, 1, 2, 9]),
    bans=st.sampled_from([Bans(), BANS]),
)  # fmt: skip
def test_guesses_change_no_token(
    seed: int, params: SamplingParams, ids: list[int], max_tokens: int | None, bans: Bans
) -> None:
    model = LanguageModel(FakeModel(vocab=12, ctx=40))  # pyright: ignore
    model.recommended = dataclasses.replace(model.recommended, bans=bans)
    compared(model, ids, seed, params=params, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [("a fox, a fox, é fox", [], "stop"), ("hello END world", ["END"], "stop_string"), ("ab" * 40, [], "length")],
)
def test_answers_end_where_they_did(byte_tokenizer: Tokenizer, text: str, stop: list[str], reason: str) -> None:
    fake = FakeModel(ctx=50)
    fake.script = [*text.encode(), EOS]
    model = LanguageModel(fake, byte_tokenizer)  # pyright: ignore
    for seed in range(5):
        assert compared(model, [1, 2, 3], seed, temperature=0, stop=stop).finish_reason == reason


@pytest.mark.usefixtures("clock")
def test_guesses_spare_steps_and_are_counted(byte_tokenizer: Tokenizer) -> None:
    fake = FakeModel(ctx=400)
    fake.script = [*b"a fox jumps over a dog; " * 6, EOS]
    model = LanguageModel(fake, byte_tokenizer)  # pyright: ignore
    model.speculation.times = StepTimes(lambda tokens: 1 + tokens / 10, 16)
    fake.delay = 0.002  # a step of any length: the longer, the better
    last = list(model.stream([1, 2, 3], temperature=0))[-1].timings
    assert last.kept_tokens > 80
    assert last.steps + last.kept_tokens == len(fake.script)
    assert last.drafted_tokens < 1.3 * last.kept_tokens
    assert fake.runner.meter.steps == last.steps
    assert list(model.stream([1, 2, 3], temperature=0, speculate=False))[-1].timings.drafted_tokens == 0


def test_a_slot_is_reused_after_guesses(byte_tokenizer: Tokenizer) -> None:
    fake = FakeModel(ctx=200)
    fake.script = [*b"yes, yes, yes", EOS]
    model = LanguageModel(fake, byte_tokenizer)  # pyright: ignore
    ids = [1, 2, 3]
    plain = [e.token for e in model.stream(ids, temperature=0, speculate=False)]
    model.forget()
    with guessing(ids + plain, 258):
        list(model.stream(ids, temperature=0))
        longer = [*ids, *plain, 4]
        last = list(model.stream(longer, temperature=0, max_tokens=3))[-1]
    assert last.timings.reused_tokens == len(ids + plain) - 1
    assert last.timings.prompt_tokens == len(longer)


def test_generations_that_take_turns_keep_what_is_ready() -> None:
    """Tokens that one step brought are given out one by one, whoever runs meanwhile in the same slot."""
    model = LanguageModel(FakeModel(ctx=100))  # pyright: ignore
    prompts = [1, 2, 3], [1, 2], [4]
    plain = [told(model.stream(ids, temperature=0, max_tokens=12, speculate=False)) for ids in prompts]
    with guessing([1, 2, 3, *(event[0] for event in plain[0])], 258):
        rows = zip(*(model.stream(ids, temperature=0, max_tokens=12) for ids in prompts), strict=True)
        assert [told(events) for events in zip(*rows, strict=True)] == plain


def test_an_interrupted_step_is_not_taken_for_read() -> None:
    fake = FakeModel(ctx=100)
    model = LanguageModel(fake)  # pyright: ignore
    plain = told(model.stream([1, 2, 3], temperature=0, max_tokens=30, speculate=False))
    model.forget()
    step = fake.step

    def interrupted(tokens: Any, *args: Any, **options: Any) -> Any:
        if len(tokens) > 4:
            raise KeyboardInterrupt
        return step(tokens, *args, **options)

    fake.step = interrupted
    events = []
    with guessing([1, 2, 3, *(event[0] for event in plain)], 258, share=1):
        with pytest.raises(KeyboardInterrupt):
            events += model.stream([1, 2, 3], temperature=0, max_tokens=30)
        fake.step = step
        assert told(model.stream([1, 2, 3], temperature=0, max_tokens=30)) == plain


def test_experts_of_wrong_guesses_are_not_counted() -> None:
    model = LanguageModel(FakeModel(ctx=100, experts=4))  # pyright: ignore
    with guessing([], 258), model.watch_experts() as routing:
        list(model.stream([1, 2, 3], temperature=0, max_tokens=20))
    assert routing.tokens == 22


def test_a_guess_that_fails_is_not_noticed() -> None:
    """What only a wrong guess brings about: that step is run again without guesses."""
    fake = FakeModel(ctx=100)
    model = LanguageModel(fake)  # pyright: ignore
    step = fake.step

    def failing(tokens: Any, *args: Any, guessed: bool = False, **more: Any) -> Any:
        if guessed and len(tokens) > 4:
            raise CheckpointError("not finite")
        return step(tokens, *args)

    fake.step = failing
    assert compared(model, [1, 2, 3], temperature=0, max_tokens=30).timings.kept_tokens < 12


def test_a_row_that_cannot_be_sampled_is_told_in_its_turn() -> None:
    fake = FakeModel(ctx=100)
    model = LanguageModel(fake)  # pyright: ignore
    plain = told(model.stream([1, 2, 3], temperature=0, max_tokens=30, speculate=False))
    model.forget()
    logits = fake._logits
    fake._logits = lambda ids, pos: logits(ids, pos) * (np.nan if pos >= 9 else 1)
    with guessing([1, 2, 3, *(event[0] for event in plain)], 258, share=1):
        events = model.stream([1, 2, 3], temperature=0, max_tokens=30)
        assert told(next(events) for _ in range(7)) == plain[:7]
        with pytest.raises(CheckpointError):
            next(events)


# Models


def model_of(spec: ModelSpec, fmt: str = "q4", change: Any = lambda values: None, notes: Any = None) -> Model:
    limits = Limits(160, slots=2, step=64, threads=2)
    return Model(spec, RandomWeights(spec, fmt, change=change), limits, name="m", notice=notes)


SPECS = {
    "dense": decoder(None), "window": decoder(20), "routed": routed_decoder(), "latent": routed_decoder(True),
    "trees": tree_decoder(),
}  # fmt: skip


@dataclasses.dataclass
class Foreseen:
    """Of a model's steps: their bytes, predicted of each when it has run; steps of several tokens; those of them that
    computed the best logits alone, and of these the ones that did not end with the whole head."""

    bytes: int = 0
    several: int = 0
    best: int = 0
    few_rows: int = 0


def foreseen(model: Model, patch: pytest.MonkeyPatch) -> Foreseen:
    """What is predicted from now on."""
    formats, step, found = dict(model.weights.formats), model.step, Foreseen()

    def counted(token: Any, slot: Any, pos: Any, want: Any, **options: Any) -> Any:
        logits = step(token, slot, pos, want, **options)
        read = model.distinct_experts, model.distinct_nodes, head_blocks(model)
        found.bytes += sum(predict_bytes(model.spec, formats, model.kv, slot, pos, int(sum(want)), *read).values())
        if len(token) > 1 and all(want):
            found.several += 1
            if model.best_blocks is not None:
                found.best += 1
                found.few_rows += not model.best_blocks[BEST_ROUNDS]
        return logits

    patch.setattr(model, "step", counted)
    return found


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_models_give_the_same_tokens_and_bytes_are_known(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(spec)
    found = foreseen(model, monkeypatch)
    with LanguageModel(model) as loaded:
        for seed, params in enumerate((SamplingParams(0), SamplingParams(1.5, seed=3, repetition_penalty=1.1))):
            ids = prompt(30, seed)
            last = compared(loaded, ids, seed, params=params, max_tokens=70)
            assert last.timings.kept_tokens > 20
            loaded.forget()
        assert found.several > 10
        assert model.usage.totals()["bytes"] == found.bytes


@pytest.mark.parametrize("most", [3, 15])
def test_guesses_are_checked_by_the_best_logits(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A model with a coarse head: steps of few guesses read it in two passes, others the whole head."""
    spec = coarse_decoder(vocab=20_000)
    limits = Limits(160, slots=2, step=64, threads=2, activations="q16")
    model = two_passes(lambda: Model(spec, WithCoarseHead(spec), limits))
    found = foreseen(model, monkeypatch)
    with LanguageModel(model) as loaded:
        loaded.speculation.most = most
        for seed, params in ((1, SamplingParams(0)), (3, SamplingParams(1.5, seed=3, repetition_penalty=1.1))):
            assert compared(loaded, prompt(30, seed), seed, params=params, max_tokens=70).timings.kept_tokens > 20
            loaded.forget()
        assert found.few_rows > 3
        assert found.best == found.several if most < TWICE else 0 < found.best < found.several
        assert model.usage.totals()["bytes"] == found.bytes


def test_windows_that_were_written_over_are_read_again() -> None:
    """A prompt that goes back into an answer, in a model whose rings guesses have overwritten."""
    with LanguageModel(model_of(decoder(20))) as model:
        ids = prompt(60)
        answer = [e.token for e in model.stream(ids, temperature=0, max_tokens=60, speculate=False)]
        other = [*ids, *answer[:30], 1, 2]
        model.forget()
        expected = told(model.stream(other, temperature=0, max_tokens=8, speculate=False))
        model.forget()
        with guessing(ids + answer, model.spec.vocab):
            list(model.stream(ids, temperature=0, max_tokens=60))
            assert told(model.stream(other, temperature=0, max_tokens=8)) == expected


@pytest.mark.parametrize("spec", [hybrid_decoder(), recurrent_decoder()], ids=["convolutions", "recurrences"])
def test_what_cannot_be_taken_back_is_not_guessed_over(spec: ModelSpec) -> None:
    with LanguageModel(model_of(spec)) as model:
        assert most_guesses(model.model) == 0
        last = list(model.stream([1, 2, 3] * 5, temperature=0, max_tokens=20))[-1]
        assert (last.timings.steps, last.timings.drafted_tokens) == (20, 0)


def test_a_wrong_guess_widens_no_cache_and_a_right_one_does_it_in_its_turn() -> None:
    """A token whose values float16 cannot hold, never chosen and guessed, or chosen."""
    spec, large = decoder(None), 7

    def change(values: dict[str, np.ndarray]) -> None:
        values["embed"][:, 0] = 0
        values["embed"][large, 0] = 1
        values["layers.0.qkv"][:, 0] = 1e6

    def language_model(notes: list[str]) -> LanguageModel:
        model = LanguageModel(model_of(spec, "f32", change, notes.append))
        model.recommended = dataclasses.replace(model.recommended, bans=Bans(always=(large,)))
        return model

    notes: list[str] = []
    with language_model(notes) as model:
        plain = told(model.stream([1, 2, 3], temperature=0, max_tokens=20, speculate=False))
        model.forget()
        wrong = [1, 2, 3, *(event[0] for event in plain)]
        wrong[10] = large
        with guessing(wrong, spec.vocab, share=1):
            assert told(model.stream([1, 2, 3], temperature=0, max_tokens=20)) == plain
        assert model.model.kv == ["f16", "f16"]
        assert not [note for note in notes if "from here on" in note]
        large = plain[9][0]
    assert [event[0] for event in plain].index(large) > 2
    results = []
    for speculate in (False, True):
        with language_model(notes) as model, guessing([1, 2, 3, *(e[0] for e in plain)], spec.vocab, share=1):
            model.recommended = dataclasses.replace(model.recommended, bans=Bans(always=(7,)))
            results.append(told(model.stream([1, 2, 3], temperature=0, max_tokens=20, speculate=speculate)))
            assert model.model.kv == ["f32", "f16"]
    assert results[0] == results[1]
    assert [event[0] for event in results[0]][:10] == [event[0] for event in plain][:10]


# A draft model


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick steps are, a draft is asked whenever it may be, and all that it guesses is checked."""
    monkeypatch.setattr("lapinfer.text.speculation.QUICK", 0.0)
    monkeypatch.setattr("lapinfer.text.draft_model.ModelGuesses.promise", lambda *asked: (1, np.inf))
    monkeypatch.setattr("lapinfer.text.draft_model.worth", lambda shares, seconds: (len(shares), 1.0))


@pytest.mark.parametrize("params", [SamplingParams(0), SamplingParams(1.2, seed=5, repetition_penalty=1.2)])
def test_a_draft_like_the_model_is_always_right(eager: None, params: SamplingParams) -> None:
    """It draws with the same random numbers; its keys and values follow what was kept."""
    model = LanguageModel(FakeModel(ctx=100))  # pyright: ignore
    model.use_draft(LanguageModel(FakeModel(ctx=100)))  # pyright: ignore
    for ids in ([1, 2, 3], [1, 2, 3, 4], [9]):
        plain = told(model.stream(ids, params=params, max_tokens=40, speculate=False))
        events = list(model.stream(ids, params=params, max_tokens=40))
        assert told(events) == plain
        last = events[-1].timings
        assert last.kept_tokens == last.drafted_tokens > 30
        assert last.steps < 10


@pytest.mark.parametrize("spec", [decoder(None), decoder(20)], ids=["dense", "window"])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_draft_that_is_often_wrong_changes_no_token(eager: None, spec: ModelSpec, temperature: float) -> None:
    def noise(values: dict[str, np.ndarray]) -> None:
        values["embed"] += 0.1 * np.random.default_rng(1).standard_normal(values["embed"].shape, dtype=np.float32)

    with LanguageModel(model_of(spec)) as model:
        model.use_draft(LanguageModel(model_of(spec, change=noise)))
        for seed in range(2):
            options = {"temperature": temperature, "seed": seed, "max_tokens": 60}
            plain = told(model.stream(prompt(20 + seed), speculate=False, **options))
            events = list(model.stream(prompt(20 + seed), **options))
            assert told(events) == plain
            assert events[-1].timings.kept_tokens < events[-1].timings.drafted_tokens
        turns = zip(*(model.stream(prompt(n), **options) for n in (20, 25)), strict=True)
        for n, events in zip((20, 25), zip(*turns, strict=True), strict=True):
            assert told(events) == told(model.stream(prompt(n), speculate=False, **options))


def test_a_draft_that_fails_is_not_asked_again(eager: None) -> None:
    model, fake = LanguageModel(FakeModel(ctx=100)), FakeModel(ctx=100)  # pyright: ignore
    plain = told(model.stream([1, 2, 3], temperature=0, max_tokens=20, speculate=False))
    model.use_draft(LanguageModel(fake))  # pyright: ignore
    fake._logits = lambda ids, pos: np.full(258, np.nan, np.float32)
    assert told(model.stream([1, 2, 3], temperature=0, max_tokens=20)) == plain
    assert len(fake.steps) == 1


def test_a_draft_with_a_shorter_context_stops_guessing(eager: None) -> None:
    model = LanguageModel(FakeModel(ctx=60))  # pyright: ignore
    model.use_draft(LanguageModel(FakeModel(ctx=30)))  # pyright: ignore
    plain = told(model.stream([1, 2, 3], temperature=0, speculate=False))
    events = list(model.stream([1, 2, 3], temperature=0))
    assert told(events) == plain
    assert 20 < events[-1].timings.kept_tokens < 30


def test_drafts_with_other_tokens_are_refused(byte_tokenizer: Tokenizer, tmp_path: Any) -> None:
    other = Tokenizer.from_folder(byte_tokenizer_folder(tmp_path))
    assert other is not None
    model = LanguageModel(FakeModel(), byte_tokenizer)  # pyright: ignore
    model.use_draft(LanguageModel(FakeModel(vocab=300), other))  # pyright: ignore
    other._backend.add_tokens(["fox"])
    with pytest.raises(InputError, match=r"draft: fake and fake have other tokens \(one of them has 'fox' as 258\)"):
        model.use_draft(LanguageModel(FakeModel(), other))  # pyright: ignore
    with pytest.raises(InputError, match="draft: fake has 300 tokens, fake has 258"):
        model.use_draft(LanguageModel(FakeModel(vocab=300)))  # pyright: ignore
    with pytest.raises(InputError, match="1 slots, expected at least 2"):
        model.use_draft(LanguageModel(FakeModel(slots=1)))  # pyright: ignore
    hybrid = model_of(hybrid_decoder())
    with pytest.raises(UnsupportedError, match="m has convolutions"):
        LanguageModel(model_of(decoder(None))).use_draft(LanguageModel(hybrid))
    with pytest.raises(InputError, match="--draft or --memory"):
        LoadOptions(draft="a", memory=1.0)
    with pytest.raises(InputError, match="draft: expected a name or a path"):
        LoadOptions(draft="")


def test_a_draft_must_fit_beside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two equal models would fit alone; the second is refused before it is built."""
    with load("austen-dense", threads=1, ctx=64) as model:
        needed = _needed_by(model.model)
    built: list[Any] = []
    monkeypatch.setattr("lapinfer.loading.available_memory", lambda: 3 * needed // 2)
    monkeypatch.setattr("lapinfer.loading.Model", lambda *given, **more: built.append(given) or Model(*given, **more))
    with pytest.raises(DoesNotFitError, match=r"needs . MB beside austen-dense, .* available: leave out --draft"):
        load("austen-dense", threads=1, ctx=64, draft="austen-dense")
    assert len(built) == 1
    monkeypatch.setattr("lapinfer.loading.available_memory", lambda: 3 * needed)
    load("austen-dense", threads=1, ctx=64, draft="austen-dense").close()


def test_what_was_loaded_is_closed_where_an_error_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    close = Model.close
    monkeypatch.setattr(Model, "close", lambda model: (closed.append(model.name), close(model)))

    def fails(model: LanguageModel, draft: LanguageModel) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageModel, "use_draft", fails)
    with pytest.raises(KeyboardInterrupt):
        load("austen-dense", threads=1, ctx=64, draft="austen-fff")
    assert closed == ["austen-fff", "austen-dense"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes in the steps of fake models alone, by their delays, however busy the machine is."""
    now = [0.0]
    monkeypatch.setattr("fake_model.time", SimpleNamespace(sleep=lambda seconds: now.append(now[-1] + seconds)))
    for module in ("speculation", "draft_model"):
        monkeypatch.setattr(f"lapinfer.text.{module}.perf_counter", lambda: now[-1])


@pytest.mark.usefixtures("clock")
def test_a_draft_is_asked_while_it_is_worth_its_time() -> None:
    fake, small = FakeModel(ctx=400), FakeModel(ctx=400)
    fake.delay, small.delay = 0.004, 0.0005
    model = LanguageModel(fake)  # pyright: ignore
    model.use_draft(LanguageModel(small))  # pyright: ignore
    fake.max_step = 64
    model.speculation.times = StepTimes(lambda tokens: 1 + tokens / 20, 16)
    last = list(model.stream([1, 2, 3], temperature=0, max_tokens=80))[-1].timings
    assert last.kept_tokens > 40
    small._logits = lambda ids, pos: np.eye(258, dtype=np.float32)[pos % 2] * 9
    last = list(model.stream([1, 2, 3], temperature=0, max_tokens=60))[-1].timings
    assert last.drafted_tokens < 30  # sure of itself, and wrong


# Guesses


def test_copies_go_on_as_the_text_did() -> None:
    copies = Copies([*b"the quick brown fox. the quick"])
    assert bytes(copies.guesses(11)) == b" brown fox."
    assert bytes(copies.guesses(40)) == b" brown fox. the quick brown fox. the qui"
    assert not Copies([1, 2, 3]).shares(5)
    assert not Copies([1]).shares(5)


def test_an_edited_copy_goes_on_after_the_edit() -> None:
    source = [*range(100, 140)]
    copies = Copies([*source, 0, *source[:10]])
    assert copies.guesses(1) == [110]
    copies.extend([*source, 0, *source[:10], 1, 112])  # 110, 111 became 1
    assert copies.guesses(3) == [113, 114, 115]
    copies.push(2)
    copies.push(3)
    copies.push(113)  # two were put in
    assert copies.guesses(2) == [114, 115]
    for other in range(NEAR + 1):
        copies.push(other)
    copies.push(116)
    assert not copies.shares(1)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=2, max_size=60), cut=st.integers(1, 59))
def test_a_text_may_come_at_once_or_in_pieces(ids: list[int], cut: int) -> None:
    copies = Copies(ids[:cut])
    copies.extend(ids)
    assert copies._ids == ids
    assert copies._last == Copies(ids)._last
    if any(ids[i : i + n] == ids[-n:] for n in RUNS for i in range(len(ids) - n)):
        assert copies.shares(1)
    if copies.shares(1):
        assert ids[copies._at] == ids[-1]
        assert copies.guesses(1) == [ids[copies._at + 1]]


def test_places_that_are_often_wrong_lose_their_share() -> None:
    rng = np.random.default_rng(0)
    copies = Copies(rng.integers(0, 4, 200).tolist())
    before = copies.odds[3]
    copies.extend([*copies._ids, *rng.integers(0, 4, 2000).tolist()])
    assert 0.1 < copies.odds[3] < min(before, 0.45)


def test_what_a_step_takes_is_learned() -> None:
    times = StepTimes(lambda tokens: 1 + 0.1 * (tokens - 1), 16)
    assert not times.known
    times.record(1, 1.0)
    assert times.seconds(16) == pytest.approx(2.5)
    for _ in range(40):
        times.record(8, 3.4)
    assert times.seconds(8) == pytest.approx(3.4, rel=0.01)
    assert times.seconds(16) == pytest.approx(5.0, rel=0.01)  # twice what was expected, too
    assert 1.4 < times.seconds(4) < 2.1
    times.record(8, 100.0)  # something else had the processor
    assert times.seconds(8) < 4.3
    for _ in range(16_000):
        times.record(1, 2.0)
    assert times.seconds(1) == pytest.approx(2.0)
    assert times.seconds(8) == pytest.approx(3.4, rel=0.05)  # as expected: it is time to try again


def test_a_text_whose_guesses_were_wrong_makes_few() -> None:
    """Whatever chances are thought to be: what is lost is bounded, and what was won may be spent."""
    balance, lost = Balance(), 0.0
    for _ in range(1000):
        count = worth([0.5, 0.5], lambda count: 1 + 0.2 * count, balance.gain)[0]
        lost += 0.2 * count
        balance.record(1 + 0.2 * count, 1)
    assert 5 < lost < 15
    sure = worth([0.9] * 8, lambda count: 1 + 0.2 * count, balance.gain)[0]
    assert sure > 1
    balance.record(1 + 0.2 * sure, 1 + sure)
    balance.record(2, 4)
    assert worth([0.5, 0.5], lambda count: 1 + 0.2 * count, balance.gain)[0]


def test_guesses_must_be_worth_their_time() -> None:
    def alike(count: int) -> float:
        return 1.0 if count == 0 else 1.5

    assert worth([], alike) == (0, 1.0)
    assert worth([0.5] * 15, alike)[0] == 5  # no more: nothing is gained by what is never reached
    assert worth([0.4], alike)[0] == 0
    assert worth([0.9] * 15, lambda count: 1 + count)[0] == 0
    count, rate = worth([0.9] * 15, lambda count: 1 + 0.1 * count)
    assert 5 < count < 15
    assert rate > 2


def test_a_mixture_expects_to_read_more_for_more_tokens() -> None:
    dense, routed = model_of(decoder(None)), model_of(routed_decoder())
    assert expected_time(dense, 8) < expected_time(routed, 8)
    dense.close()
    routed.close()


def test_whether_to_guess_is_yes_or_no() -> None:
    model = LanguageModel(FakeModel())  # pyright: ignore
    with pytest.raises(InputError, match="speculate: expected True or False, got 1"):
        model.stream([1], speculate=1)  # pyright: ignore
    assert list(stream(model.model, None, [1], max_tokens=2))[-1].timings.steps == 2
