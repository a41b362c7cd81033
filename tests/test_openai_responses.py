"""The official openai client's responses against a server that runs."""

import json

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
import serving  # noqa: E402
from serving import CITY, KEY, served  # noqa: E402

WEATHER = {"type": "function", "name": "weather", "description": "Tells.", "parameters": CITY, "strict": True}
SCRIPT = serving.SCRIPT | {"object": '{"legs": 4}'}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served(tmp_path_factory.mktemp("model"), SCRIPT) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def test_a_response(client):
    response = client.responses.create(model="fake", input="a fox", instructions="Be brief.", temperature=0)
    assert (response.output_text, response.status, response.object) == (SCRIPT["fox"], "completed", "response")
    assert (response.instructions, response.temperature, response.store) == ("Be brief.", 0, False)
    assert response.usage.output_tokens == len(SCRIPT["fox"].encode()) + 1
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "a fox"}]}]
    assert client.responses.create(model="fake", input=parts).output_text == SCRIPT["fox"]


def test_events_in_their_order(client):
    with client.responses.stream(model="fake", input="think") as stream:
        events = [*stream]
        response = stream.get_final_response()
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for i, kind in enumerate(kinds) if kind not in kinds[:i] or not kind.endswith("delta")] == [
        "created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done", "output_item.added", "content_part.added",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert (response.output[0].content[0].text, response.output_text) == ("Hm.\n", "So.")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "So."


def test_what_is_too_long_is_incomplete(client):
    response = client.responses.create(model="fake", input="count", max_output_tokens=3)
    assert (response.output_text, response.status) == ("one", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    *_, last = client.responses.create(model="fake", input="count", max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_taken_back(client, stream):
    question = {"model": "fake", "input": "weather in Zürich?", "tools": [WEATHER]}
    if stream:
        with client.responses.stream(**question) as events:
            deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
            response = events.get_final_response()
        assert json.loads("".join(deltas)) == {"city": "Zürich"}
    else:
        response = client.responses.create(**question)
    said, call = response.output
    assert (said.content[0].text, call.name, json.loads(call.arguments)) == ("I look.", "weather", {"city": "Zürich"})
    talk = [
        {"role": "user", "content": question["input"]},
        *(item.model_dump(exclude={"parsed_arguments"}) for item in response.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    assert client.responses.create(model="fake", input=talk, tools=[WEATHER]).output_text == "It is sunny."


def test_a_call_can_be_forced(client):
    pytest.importorskip("llguidance")
    for choice in ("required", {"type": "function", "name": "weather"}):
        response = client.responses.create(model="fake", input="forced", tools=[WEATHER], tool_choice=choice)
        (call,) = response.output
        assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city": "Bern"}')


def test_answers_keep_to_a_schema(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
    format = {"type": "json_schema", "name": "animal", "schema": schema, "strict": True}
    response = client.responses.create(model="fake", input="object", text={"format": format})
    assert json.loads(response.output_text) == {"legs": 4}


def test_log_probabilities(client):
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "temperature": 0}
    response = client.responses.create(model="fake", input="count", **wanted)
    entries = response.output[0].content[0].logprobs
    assert "".join(entry.token for entry in entries) == "one two three four"
    assert {len(entry.top_logprobs) for entry in entries} == {2}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, None),
        ({"input": [{"type": "item_reference", "id": "x"}]}, None),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, None),
        ({"input": []}, None),
        ({"input": 5}, "input"),
        ({"max_output_tokens": 0}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_refused_by_name(client, options, param, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "fake", "input": "a fox", "stream": stream} | options)
    assert caught.value.param == param
