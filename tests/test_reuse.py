"""Beginnings of texts that are not read again, from a slot, memory or disk: tokens and logits stay what they are."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_weights import RandomWeights
from test_batches import SPECS
from test_determinism import CTX, prompt

from lapinfer.errors import InputError
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.slots import can_shorten
from lapinfer.text import prefix_files, prefixes
from lapinfer.text.decoding import Conversation
from lapinfer.text.generation import Token
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.prefixes import PrefixStore, open_prefixes
from lapinfer.text.reuse import slot_for
from lapinfer.text.shared_steps import SharedSteps

PLENTY = 1 << 30
SYSTEM = prompt(150, 11)
USERS = [prompt(20, seed) for seed in range(20, 25)]


@functools.cache
def weights(kind: str) -> RandomWeights:
    """One for all tests: they are packed once."""
    made = RandomWeights(SPECS[kind](), "q4")
    made.content = "0" * 32  # type: ignore[attr-defined]
    return made


def made(kind: str, slots: int = 3, threads: int = 1) -> Model:
    limits = Limits(ctx=CTX, kv="f16", slots=slots, step=64, threads=threads)
    return Model(SPECS[kind](), weights(kind), limits)


@pytest.fixture(scope="module", params=SPECS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> Iterator[LanguageModel]:
    model = LanguageModel(made(kind))
    yield model
    model.close()


def answer(model: LanguageModel, ids: list[int], slot: int = 0) -> tuple[Any, int]:
    """Tokens with their log-probabilities, and how many ids were not read."""
    found = model.generate(ids, max_tokens=6, temperature=0, logprobs=True, slot=slot, speculate=False)
    return (found.tokens, found.logprobs), found.timings.reused_tokens


def has_rings(model: LanguageModel) -> bool:
    return any(layer.window is not None for layer in model.spec.layers)


def alone(kind: str, texts: list[list[int]]) -> list[Any]:
    """The answers to texts that are read from their beginnings."""
    return [_alone(kind, tuple(ids)) for ids in texts]


@functools.cache
def _alone(kind: str, ids: tuple[int, ...]) -> Any:
    model = LanguageModel(made(kind))
    found = answer(model, [*ids])[0]
    model.close()
    return found


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_texts_with_a_common_beginning(kind: str, tmp_path: Path, where: str) -> None:
    """The second one that shares it keeps it, if it could not be cut from the first; the third one has it for nothing.

    Whatever else slots have held meanwhile; and, from disk, in another process.
    """
    texts = [[*SYSTEM, *user] for user in USERS]
    expected = alone(kind, texts)
    model = LanguageModel(made(kind, slots=1))
    folder = tmp_path if where == "disk" else None
    model.prefixes.store = PrefixStore(model.model, folder, PLENTY)
    reused = []
    for i, ids in enumerate(texts):
        if where == "disk" and i == 2:
            model.close()
            model = LanguageModel(made(kind, slots=1))
            model.prefixes.store = PrefixStore(model.model, folder, PLENTY, memory=0)
        found, count = answer(model, ids)
        assert found == expected[i]
        reused.append(count)
        model.forget()
    assert reused[2:] == [len(SYSTEM)] * 3
    assert reused[1] == (0 if has_rings(model) else len(SYSTEM))
    stats = model.prefixes.stats()
    tier = getattr(stats, where)
    assert (tier.hits, tier.tokens) == ((3, 450) if where == "disk" else (3, 450) if has_rings(model) else (4, 600))
    assert tier.nbytes > 0
    model.close()


def test_logits_after_what_was_restored_are_the_same_bits(kind: str, tmp_path: Path) -> None:
    ids = [*SYSTEM, *USERS[0]]
    model = made(kind)
    expected = model.prefill(ids).values.copy()
    stored = LanguageModel(model)
    stored.prefixes.store = PrefixStore(model, tmp_path, PLENTY)
    stored.generate(ids, max_tokens=1)
    stored.close()
    for memory in (0, PLENTY):
        other = LanguageModel(made(kind, threads=2))
        other.prefixes.store = PrefixStore(other.model, tmp_path, PLENTY, memory=memory)
        for slot in (1, 2):
            other.conversations[slot].beginnings.bring(slot, ids, len(ids) - 1)  # type: ignore[union-attr]
            count = len(other.conversations[slot].ids)
            assert count == len(ids) - 1
            np.testing.assert_array_equal(other.model.prefill(ids[count:], slot, count).values, expected)
            other.forget()
        stats = other.prefixes.stats()
        assert (stats.memory.hits, stats.disk.hits) == ((1, 1) if memory else (0, 2))
        other.close()


def test_another_slot_gives_what_it_holds(kind: str, model: LanguageModel) -> None:
    """Whole texts that go on; and, where it still has it, a common beginning."""
    texts = [[*SYSTEM, *USERS[0]], [*SYSTEM, *USERS[0], *USERS[1]], [*SYSTEM, *USERS[2]]]
    expected = alone(kind, texts)
    model.generate(SYSTEM, max_tokens=1, temperature=0)
    reused = []
    for slot, (ids, wanted) in enumerate(zip(texts, expected, strict=True)):
        found, count = answer(model, ids, slot)
        assert found == wanted
        reused.append(count)
    assert reused[0] == len(SYSTEM)
    assert reused[1] >= (0 if has_rings(model) else 170)
    assert model.prefixes.stats().slots.tokens == sum(reused)


def test_a_chat_that_was_overwritten_is_there_again(kind: str) -> None:
    first = prompt(90, 3)
    model = LanguageModel(made(kind, slots=1))
    model.prefixes.store = PrefixStore(model.model, None, PLENTY)
    said = model.generate(first, max_tokens=60, temperature=0, speculate=False)
    turn = [*first, *said.tokens, *USERS[0]]
    model.generate(prompt(100, 4), max_tokens=2)
    found, reused = answer(model, turn)
    assert found == alone(kind, [turn])[0]
    assert reused == len(first) + len(said.tokens) - 1
    model.close()


def test_the_same_prompt_again(kind: str, model: LanguageModel) -> None:
    model.prefixes.store = PrefixStore(model.model, None, PLENTY)
    found = [answer(model, SYSTEM), (model.forget(), answer(model, SYSTEM))[1]]
    assert found[0][0] == found[1][0]
    assert [count for _, count in found] == [0, len(SYSTEM) - 1]
    assert found[1][1] == len(SYSTEM) - 1
    assert answer(model, [*SYSTEM[:-1], 5])[0] == alone(kind, [[*SYSTEM[:-1], 5]])[0]


def test_only_what_is_new_is_kept() -> None:
    model = LanguageModel(made("plain", slots=1))
    store = model.prefixes.store = PrefixStore(model.model, None, PLENTY)
    sizes = []
    for ids in (SYSTEM[:20], SYSTEM, [*SYSTEM, *USERS[0][:10]], [*SYSTEM, *USERS[0], *USERS[1]]):
        model.generate(ids, max_tokens=1)
        sizes.append(store.nbytes()[0])
    assert sizes[0] == 0
    assert sizes[1] == sizes[2] > 0  # ten more are soon read
    assert sizes[3] == sizes[1] * 190 // 150  # it has the shorter one, which went
    model.close()


STEMS = [prompt(n, 40 + n) for n in (33, 70, 100)]


@pytest.fixture(scope="module", params=["windows", "convolutions", "recurrences", "plain"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[LanguageModel, LanguageModel]]:
    """Two models: one whose slots and store are used, and one that reads everything."""
    models = LanguageModel(made(request.param, slots=2)), LanguageModel(made(request.param, slots=1))
    yield models
    for model in models:
        model.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, 1), st.sampled_from(STEMS), st.integers(1, 100), st.lists(st.integers(0, 1), max_size=80),
            st.integers(1, 70),
        ),
        min_size=2, max_size=7,
    ),
    limit=st.sampled_from([30_000, 200_000, PLENTY]),
)  # fmt: skip
def test_whatever_was_asked_before_answers_are_the_same(
    pair: tuple[LanguageModel, LanguageModel], asked: list[tuple[int, list[int], int, list[int], int]], limit: int
) -> None:
    """Texts that go on, step back, part, and push each other out of slots and of memory."""
    model, fresh = pair
    model.forget()
    model.prefixes.store = PrefixStore(model.model, None, limit)
    for slot, stem, shared, rest, length in asked:
        ids = [*stem[:shared], *rest]
        answers = []
        fresh.forget()
        for each, at in ((model, slot), (fresh, 0)):
            found = each.generate(ids, max_tokens=length, temperature=0, slot=at)
            answers.append((found.tokens, answer(each, [*ids, *found.tokens[:-1], 3], at)[0]))
        assert answers[0] == answers[1]


STALLED = """
import sys, threading
from pathlib import Path
from test_reuse import PLENTY, SYSTEM, USERS, answer, made
from lapinfer.text import prefix_files
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.prefixes import PrefixStore

model = LanguageModel(made("plain"))
store = model.prefixes.store = PrefixStore(model.model, Path(sys.argv[1]), PLENTY)
answer(model, SYSTEM)
assert store.flush()
begun = threading.Event()

def half(self, file, ids, state):
    file.write(b"half")
    file.flush()
    begun.set()
    threading.Event().wait()

prefix_files.PrefixFiles._write = half
print(answer(model, USERS[0] * 3)[0], flush=True)
begun.wait()
print("writing", flush=True)
threading.Event().wait()
"""


@pytest.mark.skipif(os.name == "nt", reason="no locks")
def test_a_process_that_is_killed_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers while it writes; others answer meanwhile, find what is whole, and write when it is gone."""
    monkeypatch.setattr(prefix_files, "PATIENCE", 0.0)
    monkeypatch.setattr(prefix_files, "LOOK", 0.0)
    texts = [[*SYSTEM, *USERS[0]], USERS[0] * 3]
    expected = alone("plain", texts)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", STALLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{expected[1]}\n"
        assert process.stdout.readline() == "writing\n"
        model = LanguageModel(made("plain", slots=1))
        store = model.prefixes.store = PrefixStore(model.model, tmp_path, PLENTY, memory=0, notice=pytest.fail)
        assert answer(model, texts[0]) == (expected[0], len(SYSTEM))
        assert answer(model, texts[1]) == (expected[1], 0)
        assert store.flush()
        assert store.known(texts[1]).disk == 0
        process.kill()
    assert len([*tmp_path.glob("*/.lapinfer-*.part")]) == 1
    model.forget()
    assert answer(model, texts[1])[0] == expected[1]
    assert store.flush()
    assert store.known(texts[1]).disk == len(texts[1])
    assert not [*tmp_path.glob("*/.lapinfer-*.part")]
    model.close()


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prefix_files.PrefixFiles, "_write", full)
    notes: list[str] = []
    model = LanguageModel(made("plain", slots=1))
    store = model.prefixes.store = PrefixStore(model.model, tmp_path, PLENTY, memory=0, notice=notes.append)
    for ids in (SYSTEM, USERS[0] * 3, SYSTEM):
        assert answer(model, ids)[1] == 0
        assert store.flush()
    assert len(notes) == 1
    assert "No space left on device" in notes[0]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]
    model.close()


def test_a_damaged_file_is_not_taken_for_the_next_best_one(kind: str, tmp_path: Path) -> None:
    """A slot never counts as holding more, or other positions, than what was put into it."""
    ids = [*SYSTEM, *USERS[0]]
    (expected,) = alone(kind, [ids])
    model = LanguageModel(made(kind, slots=1))
    store = PrefixStore(model.model, tmp_path, PLENTY)
    shorter = [*SYSTEM[:60], *USERS[1]] if can_shorten(model.spec, 80, 60) else SYSTEM[:60]
    for text in (shorter, SYSTEM):
        model.model.prefill(text)
        assert store.add(text, model.model.save_slot(0, len(text)))
    store.close()
    model.model.prefill(prompt(170, 99))  # the slot holds nothing of them
    shorter_file, path = sorted(tmp_path.glob(f"*/*{prefix_files.SUFFIX}"), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    model.forget()
    model.prefixes.store = PrefixStore(model.model, tmp_path, PLENTY, memory=0)
    assert answer(model, ids)[0] == expected
    assert shorter_file.exists()
    model.close()


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, word in (({"prefix_cache": 0}, "prefix_cache: expected"), ({"prefix_cache": "1"}, "prefix_cache"),
                          ({"prefix_cache": 1, "memory": 1}, "leave out --prefix-cache or --memory")):  # fmt: skip
        with pytest.raises(InputError, match=word):
            LoadOptions(**options)
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path))
    monkeypatch.setattr(prefixes, "available_memory", lambda: 4000)
    notes: list[str] = []
    model = made("plain")
    store = open_prefixes(model, 1.0, notes.append)
    assert store.has_files
    assert not notes
    model.prefill(SYSTEM)
    assert store.add(SYSTEM, model.save_slot(0, len(SYSTEM)))
    store.close()
    memory, disk = store.nbytes()
    assert memory == 0
    assert disk > 0
    assert len([*tmp_path.glob("prefixes/*/*.prefix")]) == 1
    monkeypatch.setattr(model.weights, "content", None)
    assert not open_prefixes(model, 1.0, notes.append).has_files
    assert len(notes) == 1
    model.close()


def test_slots_are_chosen_by_what_is_lost() -> None:
    slots = [Conversation(ids) for ids in ([1, 2, 3, 4, 5], [1, 2], [], [9, 9, 9])]
    assert slot_for(slots, range(4), [1, 2, 3, 4, 5, 6]) == 0
    assert slot_for(slots, range(4), [1, 2, 3]) == 1
    assert slot_for(slots, range(4), [1, 7, 7]) == 2
    assert slot_for(slots, (0, 1, 3), [9, 8]) == 3
    assert slot_for(slots, (0, 3), [7]) == 3


@pytest.mark.parametrize("stored", [False, True])
def test_prompts_that_come_together_read_a_common_beginning_once(kind: str, stored: bool) -> None:
    texts = [[*SYSTEM, *user] for user in USERS]
    expected = alone(kind, texts)
    model = LanguageModel(made(kind, slots=5))
    if stored:
        model.prefixes.store = PrefixStore(model.model, None, PLENTY)
    model.generate(prompt(30, 1), max_tokens=2, slot=3)
    options: Any = {"max_tokens": 6, "temperature": 0, "logprobs": True}
    answers = model.generate_batch(texts, **options)
    assert [(found.tokens, found.logprobs) for found in answers] == expected
    assert [found.timings.reused_tokens for found in answers] == [0, *[len(SYSTEM)] * 4]
    [again] = model.generate_batch([[*SYSTEM, 1]], **options)
    if stored or not has_rings(model):
        assert again.timings.reused_tokens == len(SYSTEM)
    model.close()


def test_a_leader_that_leaves_is_followed_by_another(kind: str) -> None:
    texts = [[*SYSTEM, *user] for user in USERS[:3]]
    expected = alone(kind, texts)
    model = LanguageModel(made(kind, slots=3))
    steps = SharedSteps(model.model, model.conversations)
    running = [steps.begin(model.request(ids, max_tokens=6, temperature=0, logprobs=True), 0.0) for ids in texts]
    steps.step()
    assert model.usage.steps == 1
    steps.drop(running[0])
    tokens: list[list[Any]] = [[], [], []]
    while steps.running:
        for each, event in steps.step():
            assert isinstance(event, Token)
            tokens[running.index(each)].append((event.token, event.logprob))
    for found, (ids, logprobs) in zip(tokens[1:], expected[1:], strict=True):
        assert found == [*zip(ids, logprobs, strict=True)]
    assert steps.prompt_tokens <= len(SYSTEM) + 64 + 20 * 2
    model.close()
