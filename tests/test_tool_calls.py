"""Calls of tools, told from answers in all formats, however the text is cut; and as templates render them."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_channels import chat_model

from lapinfer.text.channels import HARMONY, calls_of, of_kind
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tool_formats import EVIDENCE, FUNCTION_GEMMA, GEMMA_4, HERMES, LFM_2, Llama, Mistral, call_format
from lapinfer.text.tool_splitter import splitter

PROPERTIES = {
    "city": {"type": "string"},
    "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "deep": {"type": "object", "properties": {"a": {"type": "array"}}},
}
TOOL = {"name": "get_weather", "description": "Tells.", "parameters": {"type": "object", "properties": PROPERTIES}}
TOOLS = [{"type": "function", "function": TOOL}]
FORMATS = {
    "hermes": HERMES, "llama": Llama(), "mistral": Mistral(), "gemma 4": GEMMA_4, "function gemma": FUNCTION_GEMMA,
    "lfm 2": LFM_2, "tool_code": EVIDENCE[-1][1], "harmony": None,
}  # fmt: skip
CITY, DEEP = {"city": "Zürich"}, {"city": '</tool_call> ] } "', "n": -2, "deep": {"a": [1, {"b": None}, True, 0.5]}}
CASES = [
    # format, text, answer, thinking, arguments of get_weather
    ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>', "", "", [CITY]),
    ("hermes", 'Well,\n<tool_call>{"name": "get_weather", "arguments": ' + json.dumps(DEEP) + "}</tool_call>\n"
     '<tool_call>{"name": "get_weather"}</tool_call>\n', "Well,", "", [DEEP, {}]),
    ("hermes", '<think>\nHm.\n</think>\n\n<tool_call>{"name": "get_weather", "arguments": "{\\"n\\": 1}"}', "", "Hm.\n",
     [{"n": 1}]),
    ("hermes", 'A <tool_call> is a <tool_call>{"name": 1}</tool_call> b', 'A <tool_call> is a <tool_call>{"name": 1}'
     "</tool_call> b", "", []),
    ("hermes",
     "<tool_call>\n<function=get_weather>\n<parameter=city>\na\n</tool_call>\n b\n</parameter>\n<parameter=n>\n"
     "2\n</parameter>\n</function>\n</tool_call>", "", "", [{"city": "a\n</tool_call>\n b", "n": 2}]),
    ("hermes", "<tool_call>{", "<tool_call>{", "", []),
    ("llama", '{"name": "get_weather", "parameters": {"city": "Zürich"}}; {"type": "function", "function": '
     '"get_weather", "parameters": {}}', "", "", [CITY, {}]),
    ("llama", '<|python_tag|>{"name": "get_weather", "parameters": {"n": 1e3}}', "", "", [{"n": 1000.0}]),
    ("llama", '<|python_tag|>get_weather.call(city="Zürich")', "", "", [CITY]),
    ("llama", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', "", []),
    ("llama",
     'In JSON: {"name": "get_weather", "parameters": {}}', 'In JSON: {"name": "get_weather", "parameters": {}}',
     "", []),
    ("llama", "{x} <|python_tag|>print(1) ", "{x} <|python_tag|>print(1) ", "", []),
    ("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Zürich"}, "id": "abcdefghi"}, '
     '{"name": "get_weather", "arguments": {}}]', "", "", [CITY, {}]),
    ("mistral",
     'I look.[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich"}[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{}',
     "I look.", "", [CITY, {}]),
    ("mistral", '[THINK]Hm.[/THINK][TOOL_CALLS]get_weather{"n": 1}', "", "Hm.", [{"n": 1}]),
    ("mistral",
     '[TOOL_CALLS][{"name": "get_weather"}, 1] and [TOOL_CALLS] so on', '[TOOL_CALLS][{"name": "get_weather"}'
     ", 1] and [TOOL_CALLS] so on", "", []),
    ("gemma 4", '<|tool_call>call:get_weather{city:<|"|>a, {b}: <tool_call|><|"|>,deep:{a:[1,<|"|>x<|"|>,true],b:null}}'
     "<tool_call|>", "", "", [{"city": "a, {b}: <tool_call|>", "deep": {"a": [1, "x", True], "b": None}}]),
    ("function gemma", "<start_function_call>call:get_weather{city:<escape>Zürich<escape>,n:-1.5}<end_function_call>"
     "<start_function_call>call:get_weather{}<end_function_call>", "", "", [{"city": "Zürich", "n": -1.5}, {}]),
    ("lfm 2",
     "<|tool_call_start|>[get_weather(city='Zürich', deep={'a': [None]}), get_weather()]<|tool_call_end|>Soon.",
     "Soon.", "", [{"city": "Zürich", "deep": {"a": [None]}}, {}]),
    ("tool_code", "I look.\n```tool_code\nprint(get_weather('Zürich', n=2))\n```\n", "I look.", "",
     [{"city": "Zürich", "n": 2}]),
    ("tool_code", "```tool_code\nimport os\n```", "```tool_code\nimport os\n```", "", []),
    ("harmony",
     "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
     '<|constrain|>json<|message|>{"city": "Zürich"}<|call|>', "", "Hm.", [CITY]),
    ("harmony", ' to=functions.get_weather<|channel|>commentary json<|message|>{"n": 1}', "", "", [{"n": 1}]),
    ("harmony", ' to=functions.get_weather<|channel|>commentary json<|message|>{"n": 1', '{"n": 1', "", []),
]  # fmt: skip


def split(name, prompt="", tools=TOOLS):
    prompt = prompt or ("<|start|>assistant" if name == "harmony" else "")
    return splitter(prompt, name == "harmony", FORMATS[name], tools)


def said(parts):
    return {kind: of_kind(parts, kind) for kind in ("answer", "thinking", "call", "markup")}, calls_of(parts)


@pytest.mark.parametrize(("name", "text", "answer", "thinking", "arguments"), CASES)
def test_calls_are_told_from_the_answer_wherever_it_is_cut(name, text, answer, thinking, arguments):
    for size in (1, 2, 3, 7, len(text)):
        told = split(name)
        parts = [part for i in range(0, len(text), size) for part in told.push(text[i : i + size])] + told.flush()
        assert "".join(part.text for part in parts) == text
        assert (of_kind(parts, "answer"), of_kind(parts, "thinking")) == (answer, thinking)
        calls = calls_of(parts)
        assert [(call.name, json.loads(call.arguments)) for call in calls] == [("get_weather", a) for a in arguments]
        assert len({call.id for call in calls}) == len(calls)
        assert all(len(call.id) == 9 for call in calls)


PIECES = {name: [text for other, text, *_ in CASES if other == name] for name in FORMATS}
SCRAPS = [
    *HERMES.markers, *FORMATS["llama"].markers, *FORMATS["mistral"].markers, *GEMMA_4.markers, *LFM_2.markers,
    "```tool_code", "```", *HARMONY, *'{}[]":,;\n\\', " ", "name", "a", "1", "call:", "get_weather", "(", ")",
    "<function=",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(FORMATS)))
def test_parts_do_not_depend_on_cuts(data, name):
    pieces = st.sampled_from(PIECES[name]) | st.sampled_from(SCRAPS) | st.sampled_from(SCRAPS)
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    at_once = split(name)
    whole = at_once.push(text) + at_once.flush()
    told, at, parts = split(name), 0, []
    while at < len(text):
        end = at + data.draw(st.integers(1, 20))
        parts += told.push(text[at:end])
        at = end
    parts += told.flush()
    assert "".join(part.text for part in parts) == "".join(part.text for part in whole) == text
    assert said(parts) == said(whole)


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
TEMPLATES = Path(__file__).parent / "templates"
ENDS = ("</s>", "<|im_end|>\n", "<|call|>")


@pytest.mark.parametrize(
    ("template", "most"), [("qwen-3", 3), ("mistral", 3), ("llama-3-with-tools", 1), ("gpt-oss", 1)]
)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_what_templates_render_is_read_back(template, most, data):
    source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    chat = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    arguments = data.draw(st.lists(st.dictionaries(KEYS, VALUES, max_size=3), min_size=1, max_size=most))
    calls = [
        {"id": f"call{i:05}", "type": "function", "function": {"name": "get_weather", "arguments": a}}
        for i, a in enumerate(arguments)
    ]
    talk = [{"role": "user", "content": "How is it?"}]
    prompt = chat.render(talk, tools=TOOLS)
    whole = chat.render([*talk, {"role": "assistant", "tool_calls": calls}], False, tools=TOOLS)
    text = whole[next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt)) :]
    for end in ENDS:
        text = text.removesuffix(end)
    told = splitter(prompt, template == "gpt-oss", call_format(chat.source(TOOLS)), TOOLS)
    parts = told.push(text) + told.flush()
    found = [(call.name, json.loads(call.arguments)) for call in calls_of(parts)]
    assert found == [("get_weather", a) for a in arguments]
    assert of_kind(parts, "answer") == ""


def test_the_template_tells_the_format():
    known = {path.stem: call_format(path.read_text(encoding="utf-8")) for path in TEMPLATES.glob("*.jinja")}
    assert known["qwen-3"] is HERMES
    assert isinstance(known["mistral"], Mistral)
    assert isinstance(known["llama-3-with-tools"], Llama)
    assert {known[name] for name in ("chatml", "command-r", "deepseek", "llama-2", "phi", "gemma-3")} == {None}


TEMPLATE = "{% for t in tools or [] %}<tool_call>{{ t }}{% endfor %}{{ messages[0].content }}"
SAID = 'Yes.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "é"}}\n</tool_call>'


def test_a_chat_has_calls_where_tools_were_given(tmp_path):
    model = chat_model(tmp_path, SAID, TEMPLATE, tokens=["<tool_call>", "</tool_call>"], ctx=512)
    answer = model.chat("Well", tools=TOOLS, max_tokens=200)
    (call,) = answer.tool_calls
    assert (answer.text, call.name, call.arguments) == ("Yes.", "get_weather", '{"city": "é"}')
    tokens = list(model.stream_chat("Well", tools=TOOLS, max_tokens=200))
    assert [token.tool_calls for token in tokens if token.tool_calls] == [(call,)]
    assert "".join(token.text for token in tokens) == "Yes."
    for tools in (None, []):
        without = model.chat("Well", tools=tools, max_tokens=200)
        assert (without.tool_calls, without.text) == ((), SAID.replace("<tool_call>", "").replace("</tool_call>", ""))
