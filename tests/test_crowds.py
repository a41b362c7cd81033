"""Many threads, processes and models: fewer threads than wanted, forks, and what is closed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lapinfer
from lapinfer.errors import InputError
from lapinfer.locks import holder, locked
from lapinfer.text.language_model import LanguageModel

OPTIONS = {"max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPINFER_HOME", str(home))


def load(threads: int = 2, **options) -> LanguageModel:
    return lapinfer.load("austen-fff", threads=threads, **options)


def text(model: LanguageModel, slot: int = 0) -> str:
    return model.generate("It is", slot=slot, **OPTIONS).text


@pytest.mark.parametrize("allowed", [0, 1])
def test_fewer_threads_than_wanted_are_said(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker --pids-limit, ulimit -u: the system refuses a new thread."""
    with load() as model:
        expected = text(model)
    start, left, told = threading.Thread.start, allowed, []

    def limited(self: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with load(3, progress=lambda what, *counts: told.append(what)) as model:
        assert 1 <= model.model.threads <= 1 + allowed  # others may have had the one that was left
        assert text(model) == expected
        assert any(f"refuses more than {model.model.threads} of 3 threads" in line for line in told)


def test_a_closed_model_says_so_and_closes_again() -> None:
    model = load(slots=2)
    events = model.stream("It is", max_tokens=50)
    next(events)
    model.close()
    model.close()
    with pytest.raises(InputError, match="the model is closed"):
        next(events)
    with pytest.raises(InputError, match="the model is closed"):
        model.forward([1])


def test_a_model_that_is_closed_while_a_thread_generates() -> None:
    model, began, ended = load(), threading.Event(), []

    def generate() -> None:
        try:
            for _ in model.stream("It is"):
                began.set()
        except InputError as error:
            ended.append(str(error))

    thread = threading.Thread(target=generate)
    thread.start()
    assert began.wait(60)
    model.close()
    thread.join(60)
    assert not thread.is_alive()
    assert not ended or "the model is closed" in ended[0]  # or it had come to its end


def test_models_leave_neither_threads_nor_files() -> None:
    def counts() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0

    others = set(threading.enumerate())

    def run() -> None:
        with load() as model:
            text(model)

    def join() -> None:
        for helper in set(threading.enumerate()) - others:
            if helper.name.startswith("lapinfer-"):
                helper.join(20)

    run()
    join()
    before = counts()
    for _ in range(5):
        run()
    join()
    after = counts()
    assert after[0] <= before[0]
    assert after[1] <= before[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_another_threads_step() -> None:
    """The lock is the parent's: nobody in the child would release it."""
    with load() as model:
        expected = text(model)
        taken, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with model.model.lock:
                taken.set()
                leave.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        assert taken.wait(60)
        if (child := os.fork()) == 0:
            os._exit(int(text(model) != expected))
        assert os.waitpid(child, 0)[1] == 0
        leave.set()
        thread.join()
        assert text(model) == expected


def _text_of_a_process(folder: str) -> str:
    os.environ["LAPINFER_HOME"] = folder
    with load(1) as model:
        return text(model)


@pytest.mark.parametrize("method", ["spawn"])
def test_processes_of_multiprocessing(method: str, home: Path) -> None:
    with load() as model:
        expected = text(model)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_text_of_a_process, (str(home),)) == expected


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="only Linux tells who holds a lock")
def test_who_is_waited_for_is_named_with_what_lets_it_go_on(tmp_path: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with (tmp_path / "lock").open() as file:
            assert not locked(file.fileno())
            assert holder(file.fileno()) == f"process {process.pid}"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert f"process {process.pid}, which is stopped (kill -CONT" in holder(file.fileno())
        process.kill()
