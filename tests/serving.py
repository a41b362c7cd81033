"""A server that runs for tests: a model that says what its script has, on a port of its own, in a thread."""

import threading
from contextlib import contextmanager

import uvicorn
from talking_model import talking_model

from lapinfer.options import LoadOptions, ServeOptions
from lapinfer.serve.app import application
from lapinfer.serve.models import Models
from lapinfer.serve.server import Server, address_of, listening, server_of
from lapinfer.serve.state import State

KEY = "secret-of-tests"
NAME = "fake"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
SCRIPT = {
    "fox": "The quick fox, über all.",
    "think": "<think>\nHm.\n</think>\n\nSo.",
    "weather in": "I look.\n" + CALL,
    "<tool_response>\nsunny": "It is sunny.",
    "forced": '{"name": "weather", "arguments": {"city": "Bern"}}',
    "count": "one two three four",
}
"""What models of these tests say, to what their last message has in it."""


def state_of(models, *, memory=None, size=lambda path, options: 1, **options):
    """models: functions that make them, by name."""
    options = ServeOptions(**{"port": 0, "api_key": KEY} | options)
    names = {name: name for name in models}
    opened = Models(names, LoadOptions(), open=lambda path, given: models[path](), size=size, memory=memory,
                    queue=options.queue, seconds=options.timeout)  # fmt: skip
    return State(options, opened)


@contextmanager
def running(state):
    """(url, uvicorn's server) of a state."""
    listener, server = listening("127.0.0.1", 0), server_of(state, application(state))
    assert isinstance(server, uvicorn.Server)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield address_of(listener), server
    finally:
        ended(server, thread)


def ended(server: Server, thread: threading.Thread) -> None:
    server.drain()
    thread.join(20)
    assert not thread.is_alive()


@contextmanager
def served(folder, script, *, model=None, **options):
    """The address of a server with one model, which says what `script` has (tests/talking_model.py)."""
    made = model or talking_model(folder, script)
    with running(state_of({NAME: lambda: made}, **options)) as (url, _):
        yield url
