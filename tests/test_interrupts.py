"""Ctrl-C: held where nothing may be half done, and what it does in a process of our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from lapinfer.interrupts import check, held

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def within(*steps: Callable[[], object]) -> int:
    """How many steps were done in a held block that ended with KeyboardInterrupt."""
    done = 0
    try:
        with held():
            for step in steps:
                step()
                done += 1
    except KeyboardInterrupt:
        return done
    pytest.fail("not raised")


def test_what_is_held_is_raised_at_the_end_or_at_a_check() -> None:
    assert within(press, int) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    check()  # once is enough
    assert within(press, check, int) == 1


def test_pressed_twice_it_is_raised_where_it_comes() -> None:
    assert within(press, press, int) == 1


def test_a_handler_of_the_program_stays() -> None:
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with held():
        press()
    assert heard


def test_other_threads_get_no_signals() -> None:
    """Nor what the main thread holds: a scheduler's would end by it, and the program go on without."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with held():
                check()
        except BaseException as error:
            errors.append(error)

    def beside() -> None:
        with held():
            press()
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    with pytest.raises(KeyboardInterrupt):
        beside()
    assert not errors


TWICE_FREED = """
import os, signal
import llvmlite.binding as llvm
from llvmlite.binding import ffi
from lapinfer.interrupts import held

free = ffi.lib.LLVMPY_DisposeString

def interrupted(pointer):
    free(pointer)
    ffi.lib._fntab["LLVMPY_DisposeString"] = free
    os.kill(os.getpid(), signal.SIGINT)  # before the binding has noted that the string is gone

ffi.lib._fntab["LLVMPY_DisposeString"] = interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with held():
        triple = llvm.get_default_triple()
except KeyboardInterrupt:
    print(triple == llvm.get_default_triple())
"""


def test_no_string_of_llvm_is_freed_twice() -> None:
    """Without `held` this process ends with free(): double free detected in tcache 2 (llvmlite 0.50)."""
    done = subprocess.run([sys.executable, "-c", TWICE_FREED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


KEYBOARD = """
import sys, time
from lapinfer.interrupts import Keyboard, check
with Keyboard() as keyboard:
    def wait(seconds=20):
        print("here", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
            if sys.argv[1] != "stops twice":
                check()
    try:
        if sys.argv[1] == "ends":
            wait()
        elif sys.argv[1] == "wakes":
            with keyboard.wakes():
                print("here", flush=True)
                sys.stdin.read()
        else:
            with keyboard.stops():
                wait()
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.parametrize(
    ("mode", "presses", "code", "said"),
    [("ends", 1, 130, ""), ("stops", 1, 0, "stopped\n"), ("stops twice", 2, 130, ""), ("wakes", 1, 0, "stopped\n")],
)
def test_what_ctrl_c_does_in_a_process_of_our_own(mode: str, presses: int, code: int, said: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KEYBOARD, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        if presses > 1:
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, said)
