"""The official anthropic client against a server that runs."""

import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

anthropic = pytest.importorskip("anthropic")
pydantic = pytest.importorskip("pydantic")
pytest.importorskip("uvicorn")
import serving  # noqa: E402
from serving import CITY, KEY, NAME, running, served, state_of  # noqa: E402
from talking_model import talking_model  # noqa: E402

WEATHER = {
    "name": "weather",
    "description": "Tells.",
    "input_schema": CITY,
}
SCRIPT = serving.SCRIPT | {"long": "word " * 500, "object": '{"name": "fox", "legs": 4}'}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served(tmp_path_factory.mktemp("model"), SCRIPT) as url:
        yield url


@pytest.fixture
def client(url):
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def ask(text, **options):
    return {"model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": text}]} | options


def test_a_message(client):
    message = client.messages.create(
        **ask("a fox", system="Be brief."), extra_body={"temperature": 0, "top_k": 3, "top_p": 0.9}
    )
    assert [block.model_dump(exclude_none=True) for block in message.content] == [
        {"type": "text", "text": SCRIPT["fox"]}
    ]
    assert (message.type, message.role, message.model, message.stop_reason) == (
        "message", "assistant", "fake", "end_turn",
    )  # fmt: skip
    counted = client.messages.count_tokens(
        model="fake", system="Be brief.", messages=[{"role": "user", "content": "a fox"}]
    )
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    assert usage.output_tokens == len(SCRIPT["fox"].encode()) + 1


def test_what_the_documentation_says(url, capsys):
    text = (Path(__file__).parent.parent / "docs" / "guides" / "companions.md").read_text(encoding="utf-8")
    lines = text.partition("## anthropic (Python)")[2].partition("```python\n")[2].partition("```")[0]
    for said, here in (("http://127.0.0.1:8080", url), ("none", KEY), ("smollm2", NAME)):
        assert said in lines
        lines = lines.replace(said, here)
    exec(lines, {})
    assert capsys.readouterr().out == "Hello.\n"


def test_models_are_listed(client):
    (model,) = client.models.list()
    assert (model.type, model.id, model.display_name, model.created_at.year > 2000) == ("model", NAME, NAME, True)
    assert client.models.retrieve(NAME) == client.models.list().data[0]


def test_events_of_a_stream_in_their_order(client):
    kinds, text = [], ""
    for event in client.messages.create(**ask("a fox", stream=True)):
        kinds += [event.type] if event.type not in kinds else []
        text += event.delta.text if event.type == "content_block_delta" else ""
    assert text == SCRIPT["fox"]
    assert [kind for kind in kinds if kind != "ping"] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip


def test_a_stream_has_names_and_a_ping(client):
    with client.messages.with_streaming_response.create(**ask("a fox", stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert [line.partition(": ")[0] for line in lines] == ["event", "data"] * (len(lines) // 2)
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert lines[0] == "event: message_start"
    assert "event: ping" in lines


def test_thinking_comes_in_blocks_of_its_own(client):
    with client.messages.stream(**ask("think", thinking={"type": "adaptive"})) as stream:
        message = stream.get_final_message()
    assert [(block.type, getattr(block, block.type)) for block in message.content] == [
        ("thinking", "Hm.\n"), ("text", "So."),
    ]  # fmt: skip
    off = client.messages.create(**ask("think", thinking={"type": "disabled"}))
    assert [block.type for block in off.content] == ["text"]


def test_a_tool_is_called_and_its_result_taken_back(client):
    question = ask("weather in Zürich?", tools=[WEATHER])
    with client.messages.stream(**question) as stream:
        partial = "".join(event.partial_json for event in stream if event.type == "input_json")
        message = stream.get_final_message()
    assert json.loads(partial) == {"city": "Zürich"}
    said, call = message.content
    assert (said.text, call.type, call.name, call.input) == ("I look.", "tool_use", "weather", {"city": "Zürich"})
    assert message.stop_reason == "tool_use"
    whole = client.messages.create(**question)
    assert [block.model_dump() for block in whole.content] == [block.model_dump() for block in message.content]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    talk = [*question["messages"], {"role": "assistant", "content": [block.model_dump(include={"type", "text", "id",
            "name", "input"}) for block in message.content]}, {"role": "user", "content": [result]}]  # fmt: skip
    answer = client.messages.create(model="fake", max_tokens=50, tools=[WEATHER], messages=talk)
    assert answer.content[0].text == SCRIPT["<tool_response>\nsunny"]


def test_a_runner_of_tools_gets_its_answer(client):
    """It asks the server to keep the conversation, and learns that it does not."""
    beta_tool = pytest.importorskip("anthropic", "0.70").beta_tool

    @beta_tool
    def weather(city: str) -> str:
        """Tells the weather."""
        return f"sunny in {city}"

    asked = {"betas": ["any"], "tools": [weather]}
    message = client.beta.messages.tool_runner(**ask("weather in Zürich?"), **asked).until_done()
    assert message.content[0].text == SCRIPT["<tool_response>\nsunny"]


def test_a_tool_that_must_be_called_is_called(client):
    pytest.importorskip("llguidance")
    choice = {"type": "tool", "name": "weather"}
    message = client.messages.create(**ask("a fox", max_tokens=400, tools=[WEATHER], tool_choice=choice))
    assert message.stop_reason in ("tool_use", "max_tokens")


@pytest.mark.parametrize(
    ("options", "text", "reason", "sequence"),
    [
        ({"stop_sequences": ["nine", "three"]}, "one two ", "stop_sequence", "three"),
        ({"max_tokens": 3}, "one", "max_tokens", None),
    ],
)
def test_why_it_ends(client, options, text, reason, sequence):
    message = client.messages.create(**ask("count", **options))
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == (text, reason, sequence)


def test_an_answer_that_was_begun_goes_on(client):
    talk = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one two"}]
    assert client.messages.create(model="fake", max_tokens=50, messages=talk).content[0].text == " three four"


@pytest.mark.parametrize(
    ("options", "error", "kind"),
    [
        ({"model": "other"}, "NotFoundError", "not_found_error"),
        ({"max_tokens": 0}, "BadRequestError", "invalid_request_error"),
        ({"messages": []}, "BadRequestError", "invalid_request_error"),
        ({"extra_body": {"temperature": -1.0}}, "BadRequestError", "invalid_request_error"),
        ({"extra_body": {"temprature": 1.0}}, "BadRequestError", "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_anthropics_body(client, options, error, kind, stream):
    with pytest.raises(getattr(anthropic, error)) as caught:
        client.messages.create(**ask("a fox", stream=stream) | options)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == kind


def test_the_key_is_asked_for(url):
    with (
        anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        client.messages.create(**ask("a fox"))
    assert caught.value.body["error"]["type"] == "authentication_error"


def test_several_streams_at_once(client):
    texts = {}

    def stream(word):
        with client.messages.stream(**ask(word)) as events:
            texts[word] = events.get_final_text()

    threads = [threading.Thread(target=stream, args=(word,)) for word in ("fox", "count", "think")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {"fox": SCRIPT["fox"], "count": SCRIPT["count"], "think": "So."}


class Animal(pydantic.BaseModel):
    name: str
    legs: int


def test_an_answer_keeps_to_a_schema(client):
    pytest.importorskip("llguidance")
    assert client.messages.parse(**ask("object"), output_format=Animal).parsed_output == Animal(name="fox", legs=4)


def test_what_the_answer_touched_comes_with_it(client):
    message = client.messages.create(**ask("a fox"))
    figures = message.lapinfer
    assert figures["bytes"] == {"head": 1000 * (message.usage.input_tokens + message.usage.output_tokens - 1)}
    assert (figures["sharing"], figures["ttft_ms"] > 0, figures["tokens_per_second"] > 0) == (1, True, True)
    *_, delta, _ = client.messages.create(**ask("a fox", stream=True))
    assert set(delta.lapinfer) == set(figures)


@pytest.fixture
def slow(tmp_path):
    """A client of a model that takes a while and has one slot, its scheduler, and the model."""
    state = state_of({NAME: lambda: talking_model(tmp_path, SCRIPT, delay=0.002, slots=1)}, queue=0)
    with (
        running(state) as (url, _),
        anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0, timeout=20) as client,
    ):
        client.messages.count_tokens(model=NAME, messages=ask("fox")["messages"])
        (loaded,) = state.models.loaded
        yield client, loaded.scheduler, loaded.model.model


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_who_leaves_a_stream_frees_the_model(slow):
    client, scheduler, _ = slow
    with client.messages.stream(**ask("long", max_tokens=4000)) as events:
        next(iter(events.text_stream))
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(**ask("a fox"))
        assert caught.value.body["error"]["type"] == "rate_limit_error"
        assert int(caught.value.response.headers["retry-after"]) > 0
    until(lambda: scheduler.stats().running == 0)
    assert scheduler.stats().cancelled == 1


def test_who_hangs_up_frees_the_model(slow):
    client, scheduler, _ = slow
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.2).messages.create(**ask("long", max_tokens=4000))
    until(lambda: scheduler.stats().running == 0)
    assert scheduler.stats().cancelled == 1


def test_pings_fill_a_silence(slow, monkeypatch):
    client, _, model = slow
    monkeypatch.setattr("lapinfer.serve.sse.SECONDS_OF_SILENCE", 0.02)
    monkeypatch.setattr("lapinfer.serve.sse.LEAST_SECONDS", 0.01)
    create = client.messages.with_streaming_response.create
    with ExitStack() as stack:
        with model.lock:
            response = stack.enter_context(create(**ask("a fox", stream=True)))
            lines = (line for line in response.iter_lines() if line.startswith("event"))
            kinds = [next(lines) for _ in range(4)]
        assert kinds == ["event: message_start", "event: ping", "event: ping", "event: ping"]
        assert list(lines)[-1] == "event: message_stop"


def test_what_fails_in_an_answer_is_told_in_its_stream(slow, monkeypatch):
    client, _, model = slow
    with client.messages.stream(**ask("long", max_tokens=4000)) as events:
        next(iter(events.text_stream))
        monkeypatch.setattr(model, "step", lambda *arguments, **options: 1 / 0)
        with pytest.raises(anthropic.APIStatusError) as caught:
            events.get_final_message()
    assert caught.value.body == {
        "type": "error", "error": {"type": "api_error", "message": "the server failed; its log says more"},
    }  # fmt: skip
