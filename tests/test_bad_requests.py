"""Wrong requests get an error in the words of their protocol; who asks beside them notices nothing."""

import http.client
import json
import platform
import random
import re
import threading

import pytest

pytest.importorskip("uvicorn")
from serving import KEY, served
from talking_model import talking_model

from lapinfer.serve.app import ROUTES

SCRIPT = {"fox": "The fox is red.", "hen": "A hen."}
TURN = {"role": "user", "content": "a fox"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
LIMITS = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "stream": False}
ENDPOINTS = {
    "/v1/chat/completions": LIMITS
    | {
        "model": "fake",
        "messages": [{"role": "system", "content": "Be brief."}, TURN],
        "n": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "stream_options": None,
        "user": "me",
    },
    "/v1/completions": LIMITS
    | {"model": "fake", "prompt": ["a fox", "hen"], "n": 1, "logprobs": 2, "echo": True, "suffix": None},
    "/v1/embeddings": {"model": "fake", "input": ["a fox", "hen"], "encoding_format": "float"},
    "/v1/responses": {"model": "fake", "input": "a fox", "max_output_tokens": 3, "temperature": 0.5, "stream": False},
    "/v1/messages": {
        "model": "fake",
        "messages": [TURN],
        "max_tokens": 3,
        "system": "Be brief.",
        "stop_sequences": ["x"],
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
    },
    "/tokenize": {"content": "a fox", "add_special": True},
    "/detokenize": {"tokens": [65, 66]},
}
PATHS = [path for path in ENDPOINTS if path in {each for _, each, _ in ROUTES}]
REQUESTS = 200
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
SECRETS = re.compile(
    r"Traceback|site-packages|\.py\b|File \"|lapinfer[./]|pydantic|0x[0-9a-f]{6}|/(?:root|home|usr|tmp|var)/"
    r"|127\.0\.0\.1|uvicorn"
)
DEEP = 3000
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**70),
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "x" * 70_000,
    "\0",
    "\ud800",
    "e\u0301\u202e",
    "NaN",
    "../../etc/passwd",
    [],
    {},
    [[]],
    [{}],
    {"": {}},
    [None],
    ["x"] * 3000,
    [-1],
    [10**9],
    [1.5],
    [[65, 10**9]],
    {"type": "function"},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
    {"65": float("nan")},
    {"x": "y"},
    {"role": "user"},
    [{"role": "x", "content": []}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": 1, "arguments": "{"}}]}],
    [{"role": "tool", "content": "x"}],
)


def places(value, path=()):
    """All places in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated(rng, value):
    """A copy in which one place is another value, is not there, or has a name that nobody knows."""
    value = json.loads(json.dumps(value))
    if not value or not isinstance(value, dict | list):
        return rng.choice(VALUES)
    path = rng.choice([path for path in places(value) if path])
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    match rng.randrange(8):
        case 0:
            del inside[path[-1]]
        case 1 if isinstance(inside, dict):
            inside[f"{path[-1]}\0 \u202e"] = inside.pop(path[-1])
        case _:
            inside[path[-1]] = rng.choice(VALUES)
    return value


def broken(rng, data):
    """Bytes that are no JSON, or no text, or not what they should be."""
    place = rng.randrange(len(data))
    return rng.choice(
        (
            b"",
            data[:place],
            data[:place] + b"\xff\xfe" + data[place:],
            data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
            b"[" * DEEP,
            b'{"a":' * DEEP,
            b"[" * DEEP + b"]" * DEEP,
            data + data,
            b"\xef\xbb\xbf" + data,
            data.decode().encode("utf-16"),
            b"null",
            b"1" * 5000,
            b'"x"',
            b"[]",
            b"{}",
            b"\0" * 64,
            b"NaN",
            data.replace(b'"model"', b'"model\\ud800"'),
            b"model=fake",
            data[:-1] + b', "model": 7}',
            data[:-1] + b', "temperature": 1e999}',
            data[:-1] + b', "max_tokens": ' + b"9" * 5000 + b"}",
        )
    )


def wrong(rng, body):
    """(method, path's end, headers, body) of a request that is wrong, or nearly."""
    method, end, headers, data = "POST", "", {}, json.dumps(body).encode()
    match rng.randrange(10):
        case 0:
            method = rng.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"))
        case 1:
            end = rng.choice(("/", "/x", "//", "?x=%00", "%00", "/../../etc/passwd", "%2e%2e%2f", "x" * 3000, "%ff"))
        case 2:
            headers = rng.choice(
                (
                    {"Content-Type": "text/plain"},
                    {"Content-Type": "multipart/form-data"},
                    {"Content-Type": "a/b; charset=utf-16"},
                    {"Content-Encoding": "gzip"},
                    {"Accept": "x"},
                    {"Authorization": "Bearer \xff"},
                    {"Authorization": ""},
                    {"Authorization": "Bearer " + "x" * 9000},
                    {"x-api-key": "\xe9", "Authorization": "Basic"},
                    {"Range": "bytes=0-"},
                    {"Origin": "null"},
                    {"Origin": "http://["},
                    {"Host": "["},
                    {"Host": "a:b:c"},
                    {"Upgrade": "websocket", "Connection": "upgrade"},
                )
            )
        case 3 | 4 | 5:
            data = broken(rng, data)
        case _:
            for _ in range(rng.randrange(1, 4)):
                body = mutated(rng, body)
            data = json.dumps(body).encode()
    return method, end, headers, data


def asked(connection, method, path, headers, data):
    """(status, headers, body) of an answer; the connection is made anew where the server has closed it."""
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in (HEADERS | headers | {"Content-Length": str(len(data))}).items():
        connection.putheader(name, value.encode("latin-1"))
    connection.endheaders(data)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def connected(url):
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    model = talking_model(tmp_path_factory.mktemp("model"), SCRIPT, ctx=512)
    with served(None, SCRIPT, model=model, body=0.2) as url:
        yield url


@pytest.fixture
def neighbour(url):
    """Somebody who asks all the while, and must always be told the same."""
    ended, answers = threading.Event(), []

    def ask():
        connection = connected(url)
        body = json.dumps({"model": "fake", "messages": [TURN], "temperature": 0, "max_tokens": 30}).encode()
        while not ended.wait(0.01) or not answers:
            status, _, data = asked(connection, "POST", "/v1/chat/completions", {}, body)
            answers.append((status, json.loads(data)["choices"][0]["message"]["content"]))
        connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    ended.set()
    thread.join(20)
    assert set(answers) == {(200, SCRIPT["fox"])}


@pytest.mark.parametrize("path", PATHS)
def test_the_right_request_is_answered(url, path):
    status, headers, data = asked(connected(url), "POST", path, {}, json.dumps(ENDPOINTS[path]).encode())
    assert status == 200, data
    assert "server" not in headers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.usefixtures("neighbour")
def test_wrong_requests_are_refused(url, path, caplog):
    rng, connection, statuses = random.Random(path), connected(url), []
    for index in range(REQUESTS):
        method, end, headers, data = wrong(rng, ENDPOINTS[path])
        told = f"{index}: {method} {path}{end[:50]} {headers} {data[:300]!r}"
        try:
            status, found, answer = asked(connection, method, path + end, headers, data)
        except http.client.HTTPException as error:
            pytest.fail(f"{told}: {error!r}")
        statuses.append(status)
        assert status == 200 or 400 <= status < 500, (told, status, answer)
        text = answer.decode()
        assert not SECRETS.search(text) or SECRETS.search(data.decode(errors="replace")), (told, text)
        assert platform.node() not in text, (told, text)
        if status != 200 and method != "HEAD":
            assert_error(text, path, told)
        if found.get("connection") == "close":
            connection.close()
    assert sum(status >= 400 for status in statuses) > REQUESTS / 2
    assert not [record for record in caplog.records if record.exc_info], "the log has a traceback"


def assert_error(text, path, told):
    body = json.loads(text)
    if path == "/v1/messages":
        assert body["type"] == "error", (told, text)
        assert set(body["error"]) == {"type", "message"}, (told, text)
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}, (told, text)
    assert body["error"]["message"], told
    assert len(text) < 2000, (told, text)
