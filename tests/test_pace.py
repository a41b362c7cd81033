"""The number of threads that is learned from step times, on simulated machines of two cores."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lapinfer.runtime.pace import Pace

STEP = 8e6
"""Nanoseconds of a step of one thread on a core of its own."""

Machine = Callable[[int, random.Random], float]


def quiet(threads: int, rng: random.Random) -> float:
    """Two threads are 1.6 times as fast; a spike now and then."""
    return STEP / (1 + 0.6 * (threads - 1)) * rng.gauss(1, 0.03) + (rng.random() < 0.01) * rng.uniform(0, STEP)


def one_busy(threads: int, rng: random.Random) -> float:
    """One thread has a core; the second shares its core, and holds chunks while it is off it."""
    return STEP * rng.gauss(1, 0.03) if threads == 1 else 0.75 * STEP + rng.uniform(0, 1.1) * STEP


def two_busy(threads: int, rng: random.Random) -> float:
    """Every thread shares its core."""
    waits = rng.choice([0, 0.4, 0.8, 1.2]) if threads == 1 else rng.uniform(0.2, 2)
    return STEP * (rng.gauss(1, 0.03) + waits)


def shared_core(threads: int, rng: random.Random) -> float:
    """Two threads are no faster than one."""
    return STEP * rng.gauss(1, 0.03)


def run(pace: Pace, machine: Machine, steps: int, rng: random.Random) -> tuple[float, float]:
    """(nanoseconds a step, mean number of threads)."""
    total, threads = 0.0, 0
    for _ in range(steps):
        active = pace.choose(1)
        ns = machine(active, rng)
        pace.record(1, active, round(ns))
        total, threads = total + ns, threads + active
    return total / steps, threads / steps


def alone(machine: Machine, threads: int) -> float:
    rng = random.Random(7)
    return sum(machine(threads, rng) for _ in range(20_000)) / 20_000


@pytest.mark.parametrize("steps", [64, 1000, 20_000])
def test_a_quiet_machine_pays_less_than_one_percent(steps: int) -> None:
    rng = random.Random(1)
    repeats = max(20_000 // steps, 1)
    mean = sum(run(Pace(2), quiet, steps, rng)[0] for _ in range(repeats)) / repeats
    assert mean < 1.01 * alone(quiet, 2)


@pytest.mark.parametrize("machine", [one_busy, two_busy, shared_core])
def test_beside_busy_programs_it_is_as_fast_as_one_thread(machine: Machine) -> None:
    rng = random.Random(2)
    pace = Pace(2)
    run(pace, machine, 100, rng)
    assert run(pace, machine, 3000, rng)[0] < alone(machine, 1) / 0.97


def test_it_notices_when_others_come_and_go() -> None:
    rng, pace = random.Random(3), Pace(2)
    assert run(pace, quiet, 500, rng)[1] > 1.98
    run(pace, one_busy, 100, rng)
    assert run(pace, one_busy, 300, rng)[1] < 1.1
    run(pace, quiet, 1500, rng)
    assert run(pace, quiet, 500, rng)[1] > 1.98


def test_a_sleep_of_the_computer_teaches_nothing() -> None:
    """Also one in a trial."""
    rng, pace = random.Random(6), Pace(2)
    for sleeps in range(5):
        run(pace, quiet, 50 + 300 * sleeps, rng)
        for _ in range(1 + sleeps % 2):
            pace.record(1, pace.choose(1), 3600 * 10**9)
        run(pace, quiet, 200, rng)
        assert run(pace, quiet, 100, rng)[1] > 1.9


def test_one_of_eight_threads_too_many() -> None:
    """Seven cores are free: the eighth thread slows all down, and seven are found."""

    def machine(threads: int, rng: random.Random) -> float:
        return STEP / min(threads, 7) * rng.gauss(1, 0.02) + (threads == 8) * rng.uniform(0, STEP / 2)

    rng, pace = random.Random(4), Pace(8)
    run(pace, machine, 2000, rng)
    assert 6.8 < run(pace, machine, 500, rng)[1] < 7.2


def test_it_climbs_back_to_many_threads() -> None:
    rng, pace = random.Random(5), Pace(8)
    pace.best = 1
    run(pace, lambda threads, rng: STEP / threads * rng.gauss(1, 0.01), 400, rng)
    assert pace.best == 8


def test_prompts_use_every_thread_and_teach_nothing() -> None:
    pace = Pace(4)
    for _ in range(100):
        assert pace.choose(512) == 4
        pace.record(512, 4, 10**9)
    assert pace.best == pace.choose(1) == 4


def test_one_thread_has_no_choice() -> None:
    pace = Pace(1)
    for _ in range(100):
        pace.record(1, pace.choose(1), 1000)
    assert pace.choose(1) == 1
