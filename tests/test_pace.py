"""How much of prompts is read beside others: as much as measured times allow."""

from __future__ import annotations

import random

import pytest

from lapinfer.text.pace import AGAIN, GAP, LEAST, LONGEST, MANY, Pace


def run(pace: Pace, decoding: int, steps: int, one: float, token: float, noise: float = 0.0) -> list[tuple[int, float]]:
    """Steps that take `one` for each that decodes and `token` for each of a prompt: (tokens of prompts, seconds)."""
    drawn, found = random.Random(1), list[tuple[int, float]]()
    for _ in range(steps):
        prompt = pace.room(decoding)
        seconds = (one * decoding + token * prompt) * drawn.lognormvariate(0, noise)
        pace.record(decoding, prompt, seconds)
        found.append((prompt, seconds))
    return found


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("token", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("decoding", [1, 8])
def test_those_that_decode_wait_as_long_as_they_may(decoding: int, token: float, noise: float) -> None:
    found = run(Pace(), decoding, 400, 1.0, token, noise)[100:]
    assert max(prompt for prompt, _ in found) <= max(LEAST, 1.8 * (GAP - 1) * decoding / token)
    expected = max(LEAST, (GAP - 1) * decoding / token)
    mean = sum(prompt for prompt, _ in found) / len(found)
    assert 0.6 * expected <= mean <= 1.3 * expected


def test_what_a_token_takes_is_learned_again_as_it_changes() -> None:
    pace = Pace()
    run(pace, 4, 50, 1.0, 1.0)
    dear = pace.room(4)
    run(pace, 4, 100, 1.0, 0.1)
    cheap = max(prompt for prompt, _ in run(pace, 4, 5, 1.0, 0.1))
    run(pace, 4, 100, 1.0, 1.0)
    assert cheap > 5 * dear
    assert max(prompt for prompt, _ in run(pace, 4, 5, 1.0, 1.0)) <= dear + 1


def test_steps_without_prompts_are_measured_again() -> None:
    found = run(Pace(), 2, 200, 1.0, 0.2)
    assert sum(prompt == 0 for prompt, _ in found) == 1 + (200 - 1) // (AGAIN + 1)
    assert found[0][0] == 0


def test_a_prompt_alone_tells_what_its_tokens_take() -> None:
    pace = Pace()
    pace.record(0, 512, 51.2)
    pace.record(1, 0, 1.0)
    assert pace.room(1) == (GAP - 1) / 0.1


def test_a_step_of_prompts_alone_is_not_long() -> None:
    pace = Pace()
    for _ in range(20):
        pace.record(0, pace.room(0), pace.room(0) * 1e-3)
    assert pace.room(0) == pytest.approx(LONGEST / 1e-3, abs=1)
    for _ in range(40):
        pace.record(0, pace.room(0), pace.room(0) * 1.0)
    assert pace.room(0) == MANY
