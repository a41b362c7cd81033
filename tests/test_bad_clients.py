"""Clients that do not keep to HTTP, dawdle, or leave: they end, and so does what they asked for; others are served."""

import contextlib
import json
import socket
import threading
import time

import pytest

pytest.importorskip("uvicorn")
import serving
from serving import KEY, running, state_of
from talking_model import talking_model

from lapinfer.serve import connections, limits
from lapinfer.serve import server as lapinfer_server

LONG = "word " * 600
SCRIPT = {"fox": "The fox is red.", "long": LONG}
SLOTS = 4
SOON = 0.2
"""Seconds that a head, or a body, may take here."""
BODY = 0.01
"""MB of a body."""


def request(text="a fox", **more):
    """Bytes of a request."""
    body = {"model": "fake", "messages": [{"role": "user", "content": text}], "max_tokens": 4000, "temperature": 0}
    return head(data := json.dumps(body | more).encode()) + data


def head(data=b"", *lines, path="/v1/chat/completions", method="POST", length=None):
    """The head of a request; `lines` instead of its length."""
    lines = lines or (f"Content-Length: {len(data) if length is None else length}",)
    return "\r\n".join(
        (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *lines, "", "")
    ).encode()


def listening(*address):
    """A socket whose connections hold little of what nobody reads."""
    listener = lapinfer_server.listening(*address)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "listening", listening)
        patch.setattr(limits, "SECONDS_OF_BODY", SOON)
        patch.setattr(connections, "SECONDS_OF_HEAD", SOON)
        model = talking_model(tmp_path_factory.mktemp("model"), SCRIPT, slots=SLOTS, delay=0.0005)
        state = state_of({"fake": lambda: model}, body=BODY)
        with running(state) as (url, _):
            host, port = url.removeprefix("http://").split(":")
            yield (host, int(port)), state


@pytest.fixture
def connect(server):
    """Makes connections, and closes them at the end."""
    with contextlib.ExitStack() as opened:

        def made(unread=None):
            """unread: bytes that it keeps of what is not read."""
            connection = opened.enter_context(socket.socket())
            connection.settimeout(10)
            if unread is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, unread)
            connection.connect(server[0])
            return connection

        yield made


def answer_of(connection):
    """All that comes until the server closes."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            got += piece
    return got


def status_of(got):
    return int(got.split(b" ", 2)[1]) if got.startswith(b"HTTP/1.1 ") else None


def one_answer(connection):
    """(status, body) of an answer with a length, of which nothing follows."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += (piece := connection.recv(1 << 16))
        assert piece, got
    top, _, body = got.partition(b"\r\n\r\n")
    (length,) = (int(line.split(b":")[1]) for line in top.lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += (piece := connection.recv(1 << 16))
        assert piece, got
    return status_of(got), body[:length], body[length:]


def well(connect):
    """Whether somebody else is told what they asked for."""
    connection = connect()
    connection.sendall(request())
    status, body, _ = one_answer(connection)
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, SCRIPT["fox"])


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def scheduler_of(state):
    (loaded,) = state.models.loaded
    return loaded.scheduler


def chunked(*chunks):
    return head(b"", "Transfer-Encoding: chunked") + b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks)


NO_HTTP = {
    "noise": bytes(range(256)) * 4 + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two lengths": head(b"", "Content-Length: 4", "Content-Length: 5") + b"12345",
    "no length": head(b"", "Content-Length: x"),
    "negative length": head(b"", "Content-Length: -5"),
    "space in a name": head(b"", "X y: 1"),
    "no name": head(b"", ": 1"),
    "zero byte": head(b"", "X: a\0b"),
    "folded": head(b"", "X: 1", " 2: 3", "\x01"),
    "large head": head(b"", "X: " + "x" * 200_000),
    "many lines": head(b"", "Connection: close", *(f"X-{index}: {index}" for index in range(9000))),
    "bad chunk": head(b"", "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
    "endless chunk size": head(b"", "Transfer-Encoding: chunked") + b"f" * 3000 + b"\r\n",
    "unknown coding": head(b"", "Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http_is_refused(connect, data):
    connection = connect()
    with contextlib.suppress(ConnectionError):  # it may be refused before all of it is sent
        connection.sendall(data)
    got = answer_of(connection)
    assert status_of(got) in (None, 400, 401), got
    assert b"Traceback" not in got
    well(connect)


SLOW = {
    "nothing": (b"",),
    "half a line": (b"POST /v1/cha",),
    "half a head": (head()[:60],),
    "no body": (head(length=20),),
    "half a body": (head(length=20), b'{"model":'),
    "no chunk": (head(b"", "Transfer-Encoding: chunked"),),
    "half a chunk": (head(b"", "Transfer-Encoding: chunked"), b"20\r\n{"),
}


@pytest.mark.parametrize("parts", SLOW.values(), ids=SLOW)
def test_who_does_not_finish_a_request_is_sent_away(connect, parts):
    connection, began = connect(), time.monotonic()
    for part in parts:
        connection.sendall(part)
    got = answer_of(connection)
    assert SOON / 2 < time.monotonic() - began < 5
    assert status_of(got) in (None, 408), got
    well(connect)


def test_bytes_that_trickle_do_not_count_as_a_request(connect):
    """A head of which a byte comes now and then never ends by itself."""
    connection, sent, began = connect(), 0, time.monotonic()
    connection.setblocking(False)
    data = head(length=5000)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 5:
            sent += connection.send(data[sent % len(data) :][:1])
            with contextlib.suppress(BlockingIOError):
                if not connection.recv(100):
                    break
            time.sleep(0.01)
    assert SOON / 2 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    "data",
    [
        head(length=10**12) + b"{",
        head(length=int(BODY * 1e6) + 1) + b" " * (int(BODY * 1e6) + 1),
        chunked(*[b" " * 1000] * 30),
        chunked(b" " * 100_000),
        head(b"", "Expect: 100-continue", "Content-Length: 99999999"),
    ],
    ids=["told", "sent", "chunks", "one chunk", "asked before"],
)
def test_large_bodies_are_refused(connect, data):
    connection = connect()
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)
    got = answer_of(connection)
    assert status_of(got) == 413, got
    assert b'"error"' in got
    well(connect)


PHASES = {
    "connected": (b"", 0),
    "in the head": (request()[:50], 0),
    "in the body": (request()[:-20], 0),
    "asked": (request("long"), 0),
    "asked for a stream": (request("long", stream=True), 0),
    "first bytes": (request("long", stream=True), 1),
    "in the middle": (request("long", stream=True), 5000),
    "several answers": (request("long", stream=True, n=3), 3000),
    "at the end": (request(), 1),
}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("phase", PHASES)
def test_who_leaves_is_let_go(server, connect, phase, reset):
    data, wanted = PHASES[phase]
    well(connect)
    scheduler = scheduler_of(server[1])
    before, got = scheduler.stats(), 0
    leaver = socket.create_connection(server[0], timeout=10)
    leaver.sendall(data)
    if "asked" in phase:
        until(lambda: scheduler.stats().running)
    while got < wanted:
        got += len(leaver.recv(1 << 16))
    if reset:
        leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    leaver.close()
    until(lambda: not scheduler.stats().running and not scheduler.stats().waiting)
    assert scheduler.stats().tokens - before.tokens < len(LONG) / 2, "it was not cancelled"
    assert all(not each.users for each in server[1].models.loaded)
    well(connect)


def test_who_says_that_no_more_comes_hangs_nobody(server, connect):
    """A connection of which one half is closed: an answer, or an end."""
    connection = connect()
    connection.sendall(request())
    connection.shutdown(socket.SHUT_WR)
    got = answer_of(connection)
    assert not got or SCRIPT["fox"].encode() in got
    until(lambda: not scheduler_of(server[1]).stats().running)
    well(connect)


def test_who_does_not_read_keeps_nobody_waiting(server, connect):
    """All slots, and a queue behind them, have asked for long streams that nobody takes: they end all the same."""
    well(connect)
    scheduler, sleepers = scheduler_of(server[1]), []
    for _ in range(SLOTS + 2):
        sleeper = connect(4096)
        sleeper.sendall(request("long", stream=True, max_tokens=300, logprobs=True, top_logprobs=9))
        sleepers.append(sleeper)
    well(connect)
    until(lambda: not scheduler.stats().running and not scheduler.stats().waiting)
    (loaded,) = server[1].models.loaded
    assert loaded.users == len(sleepers)  # nobody has taken all
    for each in sleepers:
        each.close()
    until(lambda: not loaded.users)
    well(connect)


def test_requests_in_one_go_are_answered_in_their_order(connect):
    connection = connect()
    health = head(method="GET", path="/health", length=0)
    connection.sendall(request() + health + request("nothing known") + head(method="GET", path="/none", length=0))
    rest, statuses = b"", []
    for _ in range(4):
        status, body, rest = more_answers(connection, rest)
        statuses.append((status, body[:12]))
    assert [status for status, _ in statuses] == [200, 200, 200, 404]
    assert statuses[1][1] == b'{"status":"o'


def more_answers(connection, rest):
    """The next answer, of which `rest` may be a beginning, and what followed it."""

    class Rest:
        def __init__(self):
            self.first = rest

        def recv(self, size):
            piece, self.first = self.first, b""
            return piece or connection.recv(size)

    return one_answer(Rest())


def test_a_crowd_that_says_nothing_is_no_hindrance(connect):
    crowd = [connect() for _ in range(100)]
    for each in crowd[::2]:
        each.sendall(head()[:30])
    well(connect)
    began = time.monotonic()
    assert all(status_of(answer_of(each)) in (None, 408) for each in crowd)
    assert time.monotonic() - began < 5


def test_all_of_them_at_once(server, connect):
    """What goes wrong for some is nothing to those who are beside them."""
    ended, answers = threading.Event(), []

    def good():
        while not ended.is_set():
            with socket.create_connection(server[0], timeout=10) as connection:
                connection.sendall(request())
                status, body, _ = one_answer(connection)
                answers.append((status, json.loads(body)["choices"][0]["message"]["content"]))

    thread = threading.Thread(target=good)
    thread.start()
    kinds = [*NO_HTTP.values(), *(data for data, _ in PHASES.values())]
    for index in range(60):
        until(lambda: len(answers) >= index // 10, 20)  # noqa: B023
        bad = connect()
        with contextlib.suppress(ConnectionError):
            bad.sendall(kinds[index % len(kinds)])
        if index % 3 or index % len(kinds) >= len(NO_HTTP):
            bad.close()
    ended.set()
    thread.join(20)
    assert set(answers) == {(200, SCRIPT["fox"])}
    until(lambda: not scheduler_of(server[1]).stats().waiting)
