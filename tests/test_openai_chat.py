"""The official openai client's chats against a server that runs."""

import json
import threading

import numpy as np
import pytest
from fake_model import FakeModel, byte_tokenizer_folder

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
import serving  # noqa: E402
from serving import CALL, CITY, KEY, served  # noqa: E402
from talking_model import talking_model  # noqa: E402

from lapinfer.text.language_model import from_model  # noqa: E402

WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": CITY}}
SCRIPT = serving.SCRIPT | {"weather in": "I look.\n" + CALL + "\n" + CALL, "object": '{"legs": 4}'}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return talking_model(tmp_path_factory.mktemp("model"), SCRIPT)


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with served(tmp_path_factory.mktemp("none"), SCRIPT, model=model, queue=64) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def ask(text, **options):
    return {"model": "fake", "messages": [{"role": "user", "content": text}]} | options


def test_a_completion(client):
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "fox"}]
    talk = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = client.chat.completions.create(
        model="fake", messages=talk, temperature=0, top_p=0.9, max_completion_tokens=90, user="me",
        extra_body={"top_k": 3, "min_p": 0.1, "repeat_penalty": 1.0},
    )  # fmt: skip
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (SCRIPT["fox"], "assistant", "stop")
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", "fake", "chatcmpl-")
    usage = answer.usage
    assert usage.completion_tokens == len(SCRIPT["fox"].encode()) + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.lapinfer["bytes"]["head"] > 0
    again = client.chat.completions.create(model="fake", messages=talk, temperature=0)
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_a_stream(client):
    text, usages = "", []
    chunks = [*client.chat.completions.create(**ask("a fox", stream=True, stream_options={"include_usage": True}))]
    for chunk in chunks:
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usages += [chunk.usage] if chunk.usage else []
    assert text == SCRIPT["fox"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, len(usages)) == ([], 1)
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("options", "text", "reason"),
    [
        ({"stop": ["nine", "three"]}, "one two ", "stop"),
        ({"stop": " two"}, "one", "stop"),
        ({"max_tokens": 3}, "one", "length"),
        ({"max_tokens": 100, "max_completion_tokens": 5}, "one t", "length"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_why_it_ends(client, options, text, reason, stream):
    answer = client.chat.completions.create(**ask("count", stream=stream, **options))
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        assert ("".join(c.delta.content or "" for c in choices), choices[-1].finish_reason) == (text, reason)
    else:
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text, reason)


@pytest.fixture
def wild(model, monkeypatch):
    """Every token is about as likely as another, which sampling shows."""
    monkeypatch.setattr(
        model.model, "_logits", lambda ids, pos: np.random.default_rng([*ids]).standard_normal(258).astype(np.float32)
    )


def test_several_answers_have_seeds_of_their_own(client, wild):
    options = ask("x", n=3, seed=7, max_tokens=12, temperature=1, logprobs=True)
    ids = [
        [entry.bytes for entry in choice.logprobs.content]
        for choice in client.chat.completions.create(**options).choices
    ]
    assert len(ids) == 3
    assert ids[0] != ids[1] != ids[2]
    streamed = [[], [], []]
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += [entry.bytes for entry in (choice.logprobs.content if choice.logprobs else ())]
    assert streamed == ids
    alone = client.chat.completions.create(**options | {"n": 1, "seed": 8})
    assert [entry.bytes for entry in alone.choices[0].logprobs.content] == ids[1]


def test_log_probabilities(client, model):
    answer = client.chat.completions.create(**ask("a fox", logprobs=True, top_logprobs=3, temperature=0))
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == SCRIPT["fox"]
    assert [entry.token for entry in content][:3] == ["T", "h", "e"]
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
        assert entry.logprob <= 0


def test_thinking_is_told_apart(client):
    message = client.chat.completions.create(**ask("think")).choices[0].message
    assert (message.content, message.reasoning_content) == ("So.", "Hm.\n")
    answer = client.chat.completions.create(**ask("think", reasoning_effort="none"))
    assert answer.choices[0].message.content == "So."
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    thought = "".join(
        getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
        for chunk in client.chat.completions.create(**ask("think", stream=True))
    )
    assert thought == "Hm.\n"


@pytest.mark.parametrize("parallel", [True, False])
def test_tools_are_called_and_their_results_taken_back(client, parallel):
    question = ask("weather in Zürich?", tools=[WEATHER], parallel_tool_calls=parallel)
    choice = client.chat.completions.create(**question).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert len(choice.message.tool_calls) == 1 + parallel
    call = choice.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Zürich"})
    calls = []
    for chunk in client.chat.completions.create(**question, stream=True):
        calls += chunk.choices[0].delta.tool_calls or []
    assert [each.index for each in calls] == [*range(1 + parallel)]
    assert (calls[0].id, calls[0].function) == (
        call.id,
        calls[0].function.model_copy(update=call.function.model_dump()),
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    talk = [*question["messages"], choice.message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(model="fake", messages=talk, tools=[WEATHER])
    assert answer.choices[0].message.content == SCRIPT["<tool_response>\nsunny"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_can_be_forced(client, choice, stream):
    pytest.importorskip("llguidance")
    answer = client.chat.completions.create(**ask("forced", tools=[WEATHER], tool_choice=choice, stream=stream))
    if stream:
        deltas = [chunk.choices[0] for chunk in answer]
        (call,) = (call for each in deltas for call in each.delta.tool_calls or [])
        reason = deltas[-1].finish_reason
    else:
        (call,), reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
    assert (call.function.name, call.function.arguments, reason) == ("weather", '{"city": "Bern"}', "tool_calls")


def test_a_model_that_is_not_told_of_tools_is_not_asked_for_calls(tmp_path):
    model = from_model(FakeModel(byte_tokenizer_folder(tmp_path), ctx=4096, slots=2, script=[97, 257]))
    with served(None, {}, model=model) as url:
        flat = {"input": "x", "tools": [{"type": "function", **WEATHER["function"]}]}
        for path, body in (("chat/completions", ask("x", tools=[WEATHER])), ("responses", flat)):
            answer = httpx.post(f"{url}/v1/{path}", json=body, headers={"x-api-key": KEY})
            assert (answer.status_code, "does not tell it of tools" in answer.text) == (400, True)
            body |= {"tool_choice": "none"}
            assert httpx.post(f"{url}/v1/{path}", json=body, headers={"x-api-key": KEY}).status_code == 200


def test_no_tool_is_called_where_none_may_be(client):
    answer = client.chat.completions.create(**ask("weather in", tools=[WEATHER], tool_choice="none"))
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    "format",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": {
            "type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}}},
    ],
)  # fmt: skip
def test_answers_keep_to_a_schema(client, format):
    pytest.importorskip("llguidance")
    answer = client.chat.completions.create(**ask("object", response_format=format))
    assert json.loads(answer.choices[0].message.content) == {"legs": 4}


@pytest.mark.parametrize("explicit", [{}, {"continue_final_message": True, "add_generation_prompt": False}])
def test_an_answer_that_was_begun_goes_on(client, explicit):
    talk = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one two"}]
    answer = client.chat.completions.create(model="fake", messages=talk, extra_body=explicit)
    assert answer.choices[0].message.content == " three four"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, None),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, None),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, None),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"stop": [""]}, None),
        ({"messages": []}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"messages": [{"content": "x"}]}, None),
        ({"messages": "x"}, "messages"),
        ({"response_format": {"type": "xml"}}, None),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}}, None),
        ({"tool_choice": "required"}, None),
        ({"tools": [{"type": "function", "function": {}}]}, None),
        ({"tools": [{"type": "web_search"}]}, None),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_refused_by_name(client, options, param, stream):
    pytest.importorskip("llguidance")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask("a fox", stream=stream) | options)
    assert caught.value.param == param
    assert caught.value.body["type"] == "invalid_request_error"
    assert "/" not in caught.value.body["message"].replace("llama-server", "")


def test_what_changes_no_answer_is_ignored(client):
    answer = client.chat.completions.create(
        **ask("count", store=False, metadata={"a": "b"}, frequency_penalty=0, logit_bias={}, service_tier="auto")
    )
    assert answer.choices[0].message.content == "one two three four"


def test_other_models_are_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**ask("x") | {"model": "other"})
    assert caught.value.code == "model_not_found"


def test_who_asks_for_too_much_is_told_by_code(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask("x" * 5000))
    assert caught.value.code == "context_length_exceeded"


def test_silence_is_broken(url, model, monkeypatch):
    monkeypatch.setattr("lapinfer.serve.sse.SECONDS_OF_SILENCE", 0.05)
    monkeypatch.setattr("lapinfer.serve.sse.LEAST_SECONDS", 0.01)
    monkeypatch.setattr(model.model, "delay", 0.15)
    body = ask("fox", stream=True, max_tokens=2)
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-api-key": KEY})
    lines = answer.text.splitlines()
    assert lines.count(":") >= 2
    assert lines[-2] == "data: [DONE]"


def test_several_streams_at_once(client):
    texts = {}

    def stream(word):
        chunks = client.chat.completions.create(**ask(word, stream=True))
        texts[word] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    threads = [threading.Thread(target=stream, args=(word,)) for word in ("fox", "count", "think")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {"fox": SCRIPT["fox"], "count": SCRIPT["count"], "think": "So."}
