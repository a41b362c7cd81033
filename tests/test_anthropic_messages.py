"""Anthropic's messages: requests to our messages and options, tokens to blocks and events."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapinfer.errors import InputError, UnsupportedError
from lapinfer.serve.anthropic_answer import Reply
from lapinfer.serve.anthropic_request import Asked, asked
from lapinfer.serve.errors import ApiError
from lapinfer.text.generation import Timings, Token
from lapinfer.text.tool_calls import ToolCall

USER = {"role": "user", "content": "Hi"}
WEATHER = {"name": "weather", "description": "Tells.", "input_schema": {"type": "object", "properties": {"city": {}}}}
OURS = {"name": "weather", "description": "Tells.", "parameters": WEATHER["input_schema"]}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Zürich"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]}


def body(**fields):
    return {"model": "m", "max_tokens": 9, "messages": [USER]} | fields


def test_what_is_asked_reaches_the_library():
    read = asked(
        body(system="Be brief.", temperature=0, top_k=3, top_p=0.5, min_p=0.1, seed=4, stop_sequences=["a", "b"],
             stream=True, metadata={"user_id": "u"}, thinking={"type": "enabled", "budget_tokens": 2000},
             output_config={"effort": "max"})
    )  # fmt: skip
    assert read.messages == [{"role": "system", "content": "Be brief."}, USER]
    assert read.options == {
        "temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 4, "max_tokens": 9, "stop": ("a", "b"),
        "template_kwargs": {"enable_thinking": True, "reasoning_effort": "high"},
    }  # fmt: skip
    assert (read.model, read.stream, read.stop, read.max_tokens) == ("m", True, ("a", "b"), 9)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, {"role": "user", "content": [{"type": "text", "text": "there", "cache_control": {}}]}],
         [{"role": "user", "content": "Hi\n\nthere"}]),
        ([USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""},
          {"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "I look."}, CALL]},
          {"role": "user", "content": [RESULT, {"type": "text", "text": "And?"}]}],
         [USER, {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [
          {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}]},
          {"role": "tool", "tool_call_id": "t1", "name": "weather", "content": "sun"},
          {"role": "user", "content": "And?"}]),
        ([USER, {"role": "assistant", "content": [CALL]},
          {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True}]}],
         [USER, {"role": "assistant", "content": "", "tool_calls": [
          {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}]},
          {"role": "tool", "tool_call_id": "t1", "name": "weather", "content": "Error: "}]),
        ([{"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "Page."}}]}],
         [{"role": "user", "content": "Page."}]),
        ([{"role": "system", "content": "S"}, USER], [{"role": "system", "content": "S"}, USER]),
    ],
)  # fmt: skip
def test_blocks_become_messages(messages, expected):
    assert asked(body(messages=messages)).messages == expected


def test_an_answer_that_is_begun_goes_on():
    assert asked(body(messages=[USER, {"role": "assistant", "content": "Well"}])).options["continue_final_message"]


@pytest.mark.parametrize(
    ("choice", "forced", "schema"),
    [
        (None, False, None),
        ({"type": "auto"}, False, None),
        ({"type": "any"}, True, {"const": "weather"}),
        ({"type": "tool", "name": "weather"}, True, {"const": "weather"}),
    ],
)
def test_tools_are_given_and_forced(choice, forced, schema):
    read = asked(body(tools=[WEATHER], **({} if choice is None else {"tool_choice": choice})))
    assert read.options["tools"] == [{"type": "function", "function": OURS}]
    assert read.forced == forced
    assert read.options.get("schema", {}).get("properties", {}).get("name") == schema


def test_many_tools_are_chosen_in_one_look():
    tools = [{"name": f"f{i}", "input_schema": {}} for i in range(30_000)]  # each beside each: half a minute
    schema = asked(body(tools=tools, tool_choice={"type": "any"})).options["schema"]
    assert len(schema["anyOf"]) == len(tools)


def test_names_of_a_tools_parameters_are_no_keywords():
    properties = {"definitions": {"type": "array"}, "$ref": {"$ref": "#/$defs/x"}, "kind": {"const": {"$defs": {}}}}
    tool = {"name": "look", "input_schema": {"properties": properties, "$defs": {"x": {"type": "string"}}}}
    schema = asked(body(tools=[tool], tool_choice={"type": "any"})).options["schema"]
    assert schema["$defs"] == {"tool0.x": {"type": "string"}}
    moved = schema["properties"]["arguments"]["properties"]
    assert moved == properties | {"$ref": {"$ref": "#/$defs/tool0.x"}}


def test_a_choice_of_no_tool_gives_none_and_several_are_alternatives():
    assert "tools" not in asked(body(tools=[WEATHER], tool_choice={"type": "none"})).options
    both = [WEATHER, {**WEATHER, "name": "time"}]
    schema = asked(body(tools=both, tool_choice={"type": "any"})).options["schema"]
    assert [each["properties"]["name"]["const"] for each in schema["anyOf"]] == ["weather", "time"]
    schema = {"type": "object"}
    assert asked(body(output_config={"format": {"type": "json_schema", "schema": schema}})).options["schema"] == schema


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"stop_sequences": ["x"] * 65}, ApiError, "stop_sequences: expected at most 64, got 65"),
        ({"max_tokens": None}, InputError, "max_tokens: expected a whole number from 1, got None"),
        ({"max_tokens": 0}, InputError, "max_tokens"),
        ({"model": 3}, InputError, "model: expected text"),
        ({"messages": []}, InputError, "messages: expected at least one"),
        ({"messages": "Hi"}, InputError, "messages: expected a list"),
        ({"messages": ["Hi"]}, InputError, r"messages\[0\]: expected an object"),
        ({"messages": [{"role": "tool", "content": ""}]}, InputError, r"messages\[0\].role: expected 'user'"),
        ({"messages": [{"role": "user"}]}, InputError, r"messages\[0\].content: expected text"),
        ({"messages": [{"role": "user", "content": []}]}, InputError, "expected at least one block"),
        ({"thread": {"type": "create"}}, ApiError, "thread: this server keeps no conversations"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, InputError, "no tool_use block before it has the id"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, UnsupportedError,
         r"messages\[0\].content\[0\]: models here read text alone"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, InputError, "has no blocks of type 'x'"),
        ({"messages": [USER, {"role": "assistant", "content": [CALL]}]}, InputError, "no tool_result follows"),
        ({"stop_sequences": "a"}, InputError, "stop_sequences"),
        ({"stream": "yes"}, InputError, "stream"),
        ({"tools": [{"name": "a"}]}, InputError, r"tools\[0\].input_schema: expected an object"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, UnsupportedError, "Anthropic's own servers"),
        ({"tool_choice": {"type": "any"}}, InputError, "tools has none"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, InputError, "no tool is called 'x'"),
        ({"thinking": {"type": "x"}}, InputError, "thinking.type"),
        ({"thinking": {"type": []}}, InputError, "thinking.type"),
        ({"output_config": {"effort": []}}, InputError, "expected one of low, medium, high, xhigh, max"),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}, InputError, "disable_parallel_tool_use"),
        ({"temprature": 1}, InputError, "temprature: this server knows no such field"),
        ({"output_config": {"format": {"type": "x"}}}, InputError, "expected 'json_schema'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(wrong, error, words):
    with pytest.raises(error, match=words):
        asked(body(**wrong))


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)
                    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "id", "name", "input"]), x,
                                      max_size=4), max_leaves=8)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(body(tools=0, system=0, tool_choice=0, thinking=0, thread=0))), JSON))
def test_a_body_is_read_or_refused(given_body):
    with suppress(InputError, UnsupportedError, ApiError):
        asked(given_body)


BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "tool_use", "tool_result", "image"])},
    optional={
        "text": JSON, "thinking": JSON, "id": st.just("t"), "name": st.just("n"), "input": st.just({}), "content": JSON,
        "tool_use_id": st.just("t"),
    },
)  # fmt: skip
TURN = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.text(max_size=3) | st.lists(BLOCK, max_size=3),
    }
)


@settings(max_examples=100, deadline=None)
@given(st.lists(TURN, max_size=4))
def test_messages_are_read_or_refused(messages):
    with suppress(InputError, UnsupportedError):
        assert asked(body(messages=messages)).messages


def tokens(*said, finish="stop", stop_string=None):
    """(kind, text or call) as tokens, and the one that ends them."""
    timings = Timings(prompt_tokens=7, reused_tokens=3, ttft_ms=1, prompt_per_second=1, tokens_per_second=1)
    for kind, what in said:
        given = {"text": "", "thinking": "", "tool_calls": ()} | {kind: what}
        yield Token(token=1, logprob=None, finish_reason=None, timings=timings, **given)
    yield Token("", 2, None, finish, timings, stop_string=stop_string)


def told(said, **fields):
    """All events of an answer, and the message."""
    options = {"stop": ("END",), "max_tokens": 9, "stream": True} | fields
    end = {name: options.pop(name) for name in ("finish", "stop_string") if name in options}
    answer = Reply("msg_1", Asked("m", [], {}, **options), prompt=7)
    events = list(answer.start())
    for token in tokens(*said, **end):
        events += answer.push(0, token)
    return events, answer.message()


def test_events_come_in_anthropics_order():
    call = ToolCall("abcdefghi", "weather", '{"city": "Zürich"}')
    events, message = told(
        [("thinking", "Hm"), ("thinking", "."), ("text", "I "), ("text", "look."), ("tool_calls", (call,))]
    )
    assert [event["type"].removeprefix("content_block_") for event in events] == [
        "message_start", "ping", "start", "delta", "delta", "delta", "stop", "start", "delta", "delta", "stop",
        "start", "delta", "stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert [event["index"] for event in events if "index" in event] == [0] * 5 + [1] * 4 + [2] * 3
    assert [event["delta"].get("type") for event in events if "delta" in event] == [
        "thinking_delta", "thinking_delta", "signature_delta", "text_delta", "text_delta", "input_json_delta", None,
    ]  # fmt: skip
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "abcdefghi", "name": "weather", "input": {"city": "Zürich"}},
    ]
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["usage"] == {
        "input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3, "output_tokens": 6,
    }  # fmt: skip
    json.dumps(events)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("end_turn", None)),
        ({"finish": "stop_string", "stop_string": "END"}, ("stop_sequence", "END")),
        ({"finish": "stop_string", "stop_string": "the makers'"}, ("end_turn", None)),
        ({"finish": "length", "max_tokens": 2}, ("max_tokens", None)),
        ({"finish": "length", "max_tokens": 3}, ("model_context_window_exceeded", None)),
    ],
)
def test_why_it_ended(fields, expected):
    _, message = told([("text", "a")], **fields)
    assert (message["stop_reason"], message["stop_sequence"]) == expected


def test_a_forced_call_is_a_call_and_what_is_cut_is_text():
    said = [("text", '{"name": "weather", '), ("text", '"arguments": {"city": 1}}')]
    _, message = told(said, forced=True)
    assert [(block["name"], block["input"]) for block in message["content"]] == [("weather", {"city": 1})]
    assert message["stop_reason"] == "tool_use"
    _, message = told(said[:1], forced=True, finish="length", max_tokens=2)
    assert message["content"] == [{"type": "text", "text": said[0][1]}]
    assert message["stop_reason"] == "max_tokens"


def test_of_several_calls_the_first_where_one_is_wanted():
    assert asked(body(tools=[WEATHER], tool_choice={"type": "auto", "disable_parallel_tool_use": True})).single
    calls = tuple(ToolCall(id, "weather", "{}") for id in ("one", "two"))
    events, message = told([("tool_calls", calls)], single=True)
    assert [block["id"] for block in message["content"]] == ["one"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


SAID = st.lists(
    st.tuples(st.sampled_from(["text", "thinking"]), st.text(max_size=3))
    | st.tuples(st.just("tool_calls"), st.just((ToolCall("i", "weather", '{"a": [1]}'),)))
)


@settings(max_examples=40, deadline=None)
@given(SAID)
def test_the_official_client_makes_the_same_message_of_the_events(said):
    pytest.importorskip("anthropic")
    from anthropic.lib.streaming._messages import accumulate_event
    from anthropic.types import RawMessageStreamEvent
    from pydantic import TypeAdapter

    adapter, snapshot, buffers = TypeAdapter(RawMessageStreamEvent), None, {}
    events, message = told(said)
    for event in events:
        if event["type"] != "ping":
            snapshot = accumulate_event(
                event=adapter.validate_python(event), current_snapshot=snapshot, json_bufs=buffers
            )
    assert snapshot is not None
    made = json.loads(snapshot.model_dump_json(exclude_none=True, warnings=False))
    assert made["content"] == message["content"]
    assert (made["stop_reason"], made["usage"]) == (message["stop_reason"], message["usage"])
