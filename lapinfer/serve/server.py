"""A server that runs: its socket, its signals and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from lapinfer.errors import InputError
from lapinfer.options import ServeOptions
from lapinfer.serve.connections import Connection

STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if sys.platform == "win32" else []))
"""What asks for an end; SIGBREAK is Ctrl-Break, which programs on Windows can send each other."""
SECONDS_UNREAD = 60
"""After which a connection ends whose other side takes nothing any more, or has left without a word."""


class Server(uvicorn.Server):
    """uvicorn's, which leaves signals to who runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def drain(self) -> None:
        """Take nothing new, and end after the answers that run."""
        self.should_exit = True


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; InputError where that cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host}: {error.strerror or error}; try 127.0.0.1") from error
    try:
        # The port of a server that has just ended is free. On Windows the same word would share that of one that runs.
        alone = socket.SO_EXCLUSIVEADDRUSE if sys.platform == "win32" else socket.SO_REUSEADDR
        listener.setsockopt(socket.SOL_SOCKET, alone, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have what their listener has
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SECONDS_UNREAD * 1000)
        listener.bind(address)
        listener.listen()  # who comes before the server waits
    except OSError as error:
        listener.close()
        raise InputError(
            f"{host}:{port}: {error.strerror or error}; choose another --port, or 0 for a free one"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """http://HOST:PORT"""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Serving(Protocol):
    """What a server is run for: its options, and whether it ends, which the first signal sets."""

    options: ServeOptions
    draining: bool


def server_of(state: Serving, app: ASGIApp) -> Server:
    """A server of an application that is not running yet."""
    config = uvicorn.Config(
        app, http=Connection, log_config=None, access_log=False, server_header=False, date_header=False,
        ws="none", timeout_graceful_shutdown=int(state.options.timeout) + 1,
    )  # fmt: skip
    return Server(config)


def run(state: Serving, app: ASGIApp, listener: socket.socket, *, told: Callable[[int, int], object]) -> int | None:
    """Serve until a signal comes, and then until all is answered; the first signal, None where there was none.

    told: called with each signal and how many came before it, in the main thread.
    """
    return asyncio.run(_run(state, app, listener, told))


async def _run(state: Serving, app: ASGIApp, listener: socket.socket, told: Callable[[int, int], object]) -> int | None:
    server = server_of(state, app)
    signals: list[int] = []

    def stop(number: int) -> None:
        signals.append(number)
        state.draining = True
        server.drain()
        told(number, len(signals) - 1)

    loop = asyncio.get_running_loop()
    for number in STOPPING:
        try:
            loop.add_signal_handler(number, stop, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(stop, number))
    await server.serve([listener])
    return signals[0] if signals else None
