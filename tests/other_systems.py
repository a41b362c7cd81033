"""This process as Python on Windows or macOS would have it: what the system lacks is gone, and sys.platform says so.

Only lapinfer is under test: libraries are imported before, since they bring other files for other systems.

    python tests/other_systems.py SYSTEM    imports every module, then prints what a shipped model says, as JSON
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import hashlib
import importlib
import importlib.util
import io
import json
import mmap
import os
import pkgutil
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline")
OS = (
    *("fork", "forkpty", "fchmod", "fchown", "chown", "lchown", "geteuid", "getuid", "getegid", "getgid", "getpgid"),
    *("killpg", "setsid", "sysconf", "major", "minor", "mkfifo", "uname", "nice", "getloadavg", "set_blocking"),
    *("pread", "preadv", "pwrite", "pwritev", "posix_fadvise", "posix_fallocate", "sendfile", "copy_file_range"),
    *("sched_getaffinity", "sched_setaffinity", "sched_yield", "memfd_create", "sync", "wait4"),
    *("O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK", "O_NOCTTY", "O_DIRECT", "O_SYNC", "O_DSYNC", "O_PATH"),
)
SIGNALS = ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGTSTP", "SIGWINCH")
LACKS = {
    "win32": {
        os: OS, signal: SIGNALS, socket: ("AF_UNIX", "TCP_USER_TIMEOUT", "SO_REUSEPORT"),
        mmap: tuple(name for name in vars(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))),
    },
    "darwin": {
        os: (
            *("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "copy_file_range"),
            *("preadv", "pwritev", "memfd_create", "O_DIRECT", "O_PATH"),
        ),
        socket: ("TCP_USER_TIMEOUT",), mmap: ("MADV_HUGEPAGE", "MADV_POPULATE_READ", "MAP_NORESERVE", "MAP_POPULATE"),
    },
}  # fmt: skip
"""What this Python has and that of another system does not."""
_open, _list, _leads = open, os.listdir, os.readlink
"""As they are: what has been taken away from lapinfer is still there for these tests."""
LINUX_ONLY = ("malloc_trim", "getauxval")
"""Functions of Linux's C libraries."""
FOLDERS = ("/proc/", "/sys/")
LIBRARIES = (
    *("asyncio", "hashlib", "importlib.metadata", "logging", "multiprocessing", "platform", "subprocess", "tempfile"),
    *("numpy", "llvmlite.binding", "safetensors", "tokenizers", "jinja2.sandbox", "platformdirs", "typer.testing"),
    *("rich.progress", "prompt_toolkit", "prompt_toolkit.shortcuts", "prompt_toolkit.history", "gguf", "llguidance"),
    *("starlette.applications", "uvicorn", "pydantic", "prometheus_client", "llm"),
)
"""What lapinfer's modules import, in as far as it is installed; Numba only with lapinfer's own settings."""


def import_libraries() -> None:
    for name in LIBRARIES:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    import lapinfer.kernels.settings  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "lapinfer"]:
        del sys.modules[name]


class Library:
    """The C library as ctypes finds it on macOS."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name in LINUX_ONLY:
            raise AttributeError(name)
        return getattr(self._real, name)


def windows_library(real: Any) -> Callable[..., Any]:
    """ctypes.CDLL of Windows, which has no library of the process itself."""

    def cdll(name: str | None, *arguments: Any, **options: Any) -> Any:
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        return real(name, *arguments, **options)

    return cdll


def become(system: str) -> None:
    """Take from this process what `system` lacks, for good."""
    real = ctypes.CDLL
    itself = real(None)
    set_blocking = os.set_blocking
    sys.platform = system
    for module, names in LACKS[system].items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    if system == "win32":
        import fcntl

        pipe = os.pipe

        def waking() -> tuple[int, int]:
            """A pipe that `signal.set_wakeup_fd` takes: on Windows it takes any."""
            reader, writer = pipe()
            set_blocking(writer, False)
            return reader, writer

        def locking(descriptor: int, mode: int, count: int) -> None:
            fcntl.flock(descriptor, mode)

        for name in MODULES:
            sys.modules[name] = None  # type: ignore[assignment]
        os.pipe = waking
        utime = os.utime
        os.utime = lambda path, *rest, **more: utime(os.fspath(path), *rest, **more)  # of no descriptor
        os.supports_fd -= {utime}
        has = SimpleNamespace(LK_NBLCK=fcntl.LOCK_EX | fcntl.LOCK_NB, locking=locking)
        sys.modules["msvcrt"] = has  # type: ignore[assignment]
        signal.SIGBREAK = signal.SIGTERM  # type: ignore[attr-defined]
        socket.SO_EXCLUSIVEADDRUSE = socket.SO_KEEPALIVE  # type: ignore[attr-defined]
        kernel32 = SimpleNamespace(SwitchToThread=itself.sched_yield, IsProcessorFeaturePresent=lambda number: 0)
        ctypes.windll = SimpleNamespace(kernel32=kernel32)  # type: ignore[attr-defined]
        ctypes.CDLL = windows_library(real)
        keep_open_files(setattr)
    else:
        ctypes.CDLL = lambda name, *rest, **more: Library(itself) if name is None else real(name, *rest, **more)
    hide_folders()


def open_files() -> list[str]:
    """What this process has open or mapped, by the words of Linux."""
    found = []
    for descriptor in _list("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(_leads(f"/proc/self/fd/{descriptor}"))
    with _open("/proc/self/maps", encoding="utf-8") as file:
        return found + [line.split(maxsplit=5)[5].rstrip("\n") for line in file if line.count("/")]


def keep_open_files(put: Callable[[Any, str, Any], None]) -> None:
    """As on Windows, no file can be renamed, replaced or removed that this process has open or mapped."""

    def check(path: Any, folder: int | None = None) -> None:
        place = os.path.join("" if folder is None else _leads(f"/proc/self/fd/{folder}"), os.fspath(path))
        place = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
        if any(name == place or name.startswith(place + "/") for name in open_files()):
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is in use", str(path))

    def removing(real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *, dir_fd: int | None = None) -> None:
            check(path, dir_fd)
            real(path, dir_fd=dir_fd)

        return call

    def renaming(real: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any) -> None:
            check(source)
            check(target)
            real(source, target)

        return call

    for name in ("unlink", "remove"):
        put(os, name, removing(getattr(os, name)))
    for name in ("rename", "replace"):
        put(os, name, renaming(getattr(os, name)))
    put(shutil, "_use_fd_functions", False)  # which Windows has not: they hold the folder open


def hide_folders() -> None:
    """No /proc and no /sys."""
    for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "lstat"), (os, "scandir")):
        setattr(module, name, _without_folders(getattr(module, name)))


def _without_folders(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
        if not isinstance(path, int) and str(path).startswith(FOLDERS):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return real(path, *arguments, **options)

    return call


def modules() -> Iterator[ModuleType]:
    """Every module of lapinfer, imported; without what needs PyTorch, or Ray, which would believe in the system."""
    import lapinfer

    sys.modules["ray"] = None  # type: ignore[assignment]
    for found in pkgutil.walk_packages(lapinfer.__path__, "lapinfer.", onerror=lambda name: None):
        if found.name.startswith(("lapinfer.train", "lapinfer.__main__")):
            continue
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "ray":
                raise


def answer() -> dict[str, Any]:
    """What a shipped model says, and its logits' bits."""
    import lapinfer

    with lapinfer.load("austen-fff", threads=2, ctx=64) as model:
        text = model.generate("It is a truth", max_tokens=8, temperature=0).text
        ids = model.tokenizer.encode("It is a truth universally acknowledged")
        logits = model.model.forward(ids)
        return {"text": text, "logits": hashlib.sha256(logits.tobytes()).hexdigest()}


def commands() -> str:
    """What the command line prints of this system, from a process with a keyboard."""
    from typer.testing import CliRunner

    from lapinfer.cli import app
    from lapinfer.interrupts import KEYBOARD
    from lapinfer.serve.server import listening

    with KEYBOARD:
        done = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    with listening("127.0.0.1", 0):
        return done.output


if __name__ == "__main__":
    import_libraries()
    become(sys.argv[1])
    told = {"modules": [module.__name__ for module in modules()], "answer": answer(), "doctor": commands()}
    print(json.dumps(told))
