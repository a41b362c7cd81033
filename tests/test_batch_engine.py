"""Lines of a batch and what they are answered, in every form that a line may have."""

import json

import pytest

pytest.importorskip("uvicorn")
from serving import NAME, SCRIPT
from talking_model import talking_model

from lapinfer.batch.engine import Engine
from lapinfer.batch.lines import LONGEST, Line
from lapinfer.batch.requests import Defaults

CHAT = {"messages": [{"role": "user", "content": "fox"}], "temperature": 0}
TEXT = "The quick fox, über all."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return talking_model(tmp_path_factory.mktemp("batch") / "model", SCRIPT)


def answers(model, lines, **defaults):
    """Records of lines, by number."""
    engine = Engine(NAME, model, Defaults(**defaults))
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    found = [*engine.answers(Line(number, text) for number, text in enumerate(texts, 1))]
    assert sorted(each.number for each in found) == [*range(1, len(lines) + 1)]
    for served in engine._models.loaded:
        served.scheduler.close()
    return [json.loads(each.record) for each in sorted(found, key=lambda each: each.number)]


FORMS = [
    "fox",
    [{"role": "user", "content": "fox"}],
    {"prompt": "fox"},
    {"prompt": "fox", "temperature": 0.0, "custom_id": "a"},
    CHAT,
    {"custom_id": 7, "url": "/v1/chat/completions", **CHAT},
    {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": CHAT},
    {"body": {"model": NAME} | CHAT},
]


def test_chats_in_all_forms(model):
    for line, record in zip(FORMS, answers(model, FORMS), strict=True):
        assert record["response"]["status_code"] == 200
        assert record["error"] is None
        assert record["custom_id"] == (line.get("custom_id") if isinstance(line, dict) else None)
        assert record["response"]["body"]["choices"][0]["message"]["content"] == TEXT


def test_other_protocols(model):
    lines = [
        {"custom_id": "a", "params": {"model": NAME, "max_tokens": 99, "messages": CHAT["messages"]}},
        {"url": "/v1/messages", "body": {"model": NAME, "max_tokens": 99, "messages": CHAT["messages"]}},
        {"url": "/v1/responses", "input": "fox"},
        {"url": "/v1/completions", "prompt": "x", "max_tokens": 3},
        {"input": ["a", "b"]},
        {"text": "a", "encoding_format": "float"},
    ]
    anthropic, message, response, completion, two, one = answers(model, lines)
    assert anthropic["result"]["type"] == "succeeded"
    assert anthropic["custom_id"] == "a"
    assert anthropic["result"]["message"]["content"] == [{"type": "text", "text": TEXT}]
    assert message["response"]["body"]["content"] == anthropic["result"]["message"]["content"]
    assert response["response"]["body"]["output"][0]["content"][0]["text"] == TEXT
    assert completion["response"]["body"]["usage"]["completion_tokens"] == 3
    assert [len(record["response"]["body"]["data"]) for record in (two, one)] == [2, 1]


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        (b"fox", "invalid_json", "NAME.txt"),
        (b'{"prompt": "\xff"}', "invalid_json", "not JSON"),
        (b'{"prompt": NaN}', "invalid_json", "not JSON"),
        (b"7", "invalid_line", "7 (int)"),
        ({}, "invalid_line", "got nothing"),
        ({"prompt": "a", "input": "b"}, "invalid_line", "prompt and input"),
        ({"prompt": ["a"]}, "invalid_line", "expected a text"),
        ({"prompt": "a", "stream": True}, "invalid_line", "stream"),
        ({"custom_id": True, "prompt": "a"}, "invalid_line", "custom_id"),
        ({"body": CHAT, "url": "/v1/images"}, "invalid_url", "/v1/chat/completions"),
        ({"body": {"input": "a"}}, "invalid_url", "got none"),
        ({"body": CHAT, "method": "GET"}, "invalid_method", "POST"),
        ({"prompt": "a", "model": "gpt"}, "model_not_found", "this batch runs fake, not 'gpt' (str): leave it out"),
        ({"body": [], "url": "/v1/responses"}, "invalid_line", "body: expected an object"),
        ({"body": CHAT, "costum_id": "a"}, "invalid_line", "did you mean custom_id?"),
        (b'"' + b"a" * LONGEST + b'"', "line_too_long", "8,000,000"),
    ],
)
def test_lines_that_are_no_requests(model, line, code, told):
    (record,) = answers(model, [line])
    assert record["response"] is None
    assert record["error"]["code"] == code
    assert record["error"]["line"] == record["line"] == 1
    assert told in record["error"]["message"]


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ({"prompt": "a", "temprature": 1}, 400, "did you mean temperature?"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature"),
        ({"prompt": "a" * 5000}, 400, "context"),
        ({"prompt": "a", "schema": {"type": "nothing"}}, 400, "nothing"),
        ({"messages": "fox"}, 400, "messages"),
        ({"text": 7}, 400, "input"),
    ],
)
def test_requests_that_a_server_refuses(model, line, status, told):
    (record,) = answers(model, [line])
    assert record["response"]["status_code"] == status
    assert told in record["response"]["body"]["error"]["message"]


def test_what_the_batch_gives_to_all_lines(model):
    lines = [{"prompt": "fox"}, {"prompt": "fox", "max_tokens": 5}, {"url": "/v1/responses", "input": "fox"}]
    first, own, response = answers(model, lines, max_tokens=3, sampling={"temperature": 0.25})
    assert [record["response"]["body"]["usage"]["completion_tokens"] for record in (first, own)] == [3, 5]
    assert response["response"]["body"]["usage"]["output_tokens"] == 3
    assert response["response"]["body"]["temperature"] == 0.25


def test_other_names_of_the_model(model):
    anthropic = {"params": {"max_tokens": 9, "messages": CHAT["messages"]}}
    records = answers(model, [CHAT | {"model": "gpt"}, {"body": CHAT | {"model": NAME}}, anthropic], names=("gpt",))
    assert [record["response"]["body"]["model"] for record in records[:2]] == [NAME, NAME]
    assert records[2]["result"]["type"] == "succeeded"
    anthropic["params"]["model"] = "another"
    (record,) = answers(model, [anthropic])
    assert record["result"]["type"] == "errored"
    assert "not 'another'" in record["result"]["error"]["error"]["message"]
