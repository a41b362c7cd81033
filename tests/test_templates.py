"""Chat templates: what they are given, which file counts, and what happens to broken ones."""

import dataclasses
import enum
import json

import numpy as np
import pytest
from fake_model import CHAT

from lapinfer.errors import CheckpointError, InputError, TemplateError
from lapinfer.text.template import ChatTemplate

USER = [{"role": "user", "content": "hi"}]
SHOW = "{{ messages | tojson }}"


def rendered(source, messages=USER, **options):
    return ChatTemplate(source).render(messages, **options)


def shown(messages):
    return json.loads(rendered(SHOW, messages))


def test_renders_as_transformers_does():
    source = """\
    {{- bos_token }}
    {%- for m in messages %}
        {%- if m.role not in ['user', 'assistant', 'system'] %}{{ raise_exception('role?') }}{% endif %}
        {%- generation %}<{{ m.role }}>{{ m.content | trim }}{% endgeneration %}
        {%- if loop.last %}{% break %}{% endif %}
    {%- endfor %}
    {%- set ns = namespace(n=0) %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}
    {{- ns.n }}{{ {"ä": "<b>"} | tojson }}{{ '%s-%d' | replace('s', 'x') }}
    {%- if add_generation_prompt %}{{ '>' * 2 }}{% endif %}"""
    template = ChatTemplate(source, bos_token="<s>")
    assert template.render([{"role": "user", "content": " hi "}]) == '<s><user>hi3{"ä": "<b>"}%x-%d>>'
    assert template.render(USER, add_generation_prompt=False) == '<s><user>hi3{"ä": "<b>"}%x-%d'
    with pytest.raises(InputError, match=r"refuses these messages: role\?"):
        template.render([{"role": "judge", "content": ""}])
    assert len(rendered("{{ strftime_now('%Y') }}")) == 4


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ tools is none }} {{ documents is none }} {{ tools is defined }}", "True True True"),
        ("{{ bos_token is defined }}{{ eos_token }}", "False"),
        ("{% if tools is not none %}{{ tools | length }}{% endif %}x", "x"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}", "1"),
        ("{{ {'b': 1, 'a': 'ü'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
         '{"a":"\\u00fc","b":1}'),
        ("{{ '%s has %d' | format('it', 2) }} {{ '{:>4}'.format(7) }} {{ 2 ** -1 }}", "it has 2    7 0.5"),
    ],
)  # fmt: skip
def test_values_that_templates_ask_for(source, expected):
    assert rendered(source) == expected


def test_special_tokens_have_their_names():
    tokens = {"pad_token": "<pad>", "unk_token": "<unk>", "image_token": "<img>"}
    template = ChatTemplate(
        "{{ bos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}", bos_token="<s>", tokens=tokens
    )
    assert template.render(USER) == "<s><unk><pad><img>"
    assert template.render(USER, pad_token="<end>") == "<s><unk><end><img>"  # a variable overrules


# Messages


def test_text_alone_is_a_message_of_the_user():
    assert shown("Hi") == [{"role": "user", "content": "Hi"}]


def test_messages_are_plain_data():
    class Role(enum.StrEnum):
        USER = "user"

    @dataclasses.dataclass
    class Said:
        role: str
        content: list

    class Image:
        pass

    class OfAnAPI:
        def model_dump(self):
            return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}], "refusal": None}

    said = Said("user", [{"type": "image", "image": Image()}, {"type": "text", "text": np.str_("é")}])
    assert shown((said, OfAnAPI(), {"role": Role.USER, "content": "x", "n": np.int64(3)})) == [
        {"role": "user", "content": [{"type": "image", "image": "<Image>"}, {"type": "text", "text": "é"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "user", "content": "x", "n": 3},
    ]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_the_names_that_templates_read(name):
    message = shown([{"role": "assistant", "content": "4", name: "2 + 2"}])[0]
    assert (message["reasoning_content"], message["thinking"]) == ("2 + 2", "2 + 2")


LOOP = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], r"messages: expected at least one"),
        (None, r"messages: expected text or a list of messages, got NoneType"),
        (3, r"messages: .* got int"),
        (b"hi", r"messages: .* got bytes"),
        ({"role": "user", "content": "x"}, r"messages: .* got one message: put it into a list"),
        (iter(USER), r"messages: .* got list_iterator"),
        (["hi"], r"messages\[0\]: expected \{'role'.* got str"),
        ([USER], r"messages\[0\]: .* got list"),
        ([*USER, {"content": "x"}], r"messages\[1\]: expected a role .* got nothing"),
        ([{"role": "", "content": "x"}], r"messages\[0\]: expected a role .* got ''"),
        ([{"role": 3, "content": "x"}], r"messages\[0\]: expected a role .* got 3"),
        ([{"role": "user"}], r"messages\[0\]: the user's message has no content"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\['content'\]: expected text or a list of parts, got int"),
        ([{"role": "user", "content": b"x"}], r"messages\[0\]\[.content.\]: expected text .* got bytes"),
        ([{"role": "user", "content": [1]}], r"messages\[0\]\['content'\]\[0\]: expected a part .* got int"),
        ([{"role": "user", "content": LOOP}], r"messages\[0\]: is nested too deeply, or contains itself"),
    ],
)
def test_wrong_messages_are_named(messages, error):
    with pytest.raises(InputError, match=error):
        rendered(SHOW, messages)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tools": {"name": "f"}}, "tools: expected a list"),
        ({"tools": ["f"]}, r"tools\[0\]: expected a JSON schema or a function, got str"),
        ({"tools": [print]}, r"tools\[0\]: expected a JSON schema or a function, got builtin"),
        ({"tools": [lambda x: x]}, r"tools\[0\]: .*no docstring"),
        ({"documents": "text"}, "documents: expected a list"),
        ({"documents": ["text"]}, r"documents\[0\]: .* got str"),
        ({"template": "other"}, "template: expected one of default, got 'other'"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt"),
        ({"continue_final_message": "thinking"}, "the last message has no 'thinking'"),
    ],
)
def test_wrong_arguments_are_named(options, error):
    with pytest.raises(InputError, match=error):
        rendered(SHOW, **options)


def test_the_last_message_can_be_continued():
    talk = [*USER, {"role": "assistant", "content": "The answer is "}]
    assert rendered(CHAT, talk, continue_final_message=True).endswith("<|im_start|>assistant\nThe answer is ")
    trimmed = CHAT.replace("m['content']", "m['content'] | trim")
    assert rendered(trimmed, talk, continue_final_message=True).endswith("assistant\nThe answer is")
    with pytest.raises(InputError, match=r"continue_final_message: .* as it is"):
        rendered("{{ messages[0].content }}", talk, continue_final_message=True)


# Files


def test_one_of_several_templates_is_chosen(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    assert ChatTemplate.from_folder(tmp_path) is None
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    assert template.names == ("tool_use", "default")
    assert (template.render(USER), template.render(USER, tools=[]), template.render(USER, template="tool_use")) == (
        "d", "t", "t",
    )  # fmt: skip
    config.write_text(json.dumps({"chat_template": named[:1]}))
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    with pytest.raises(CheckpointError, match="templates for tool_use, none called default"):
        template.render(USER)
    assert template.render(USER, tools=[]) == "t"


def test_files_of_templates_come_before_configs(tmp_path):
    def text(**options):
        template = ChatTemplate.from_folder(tmp_path)
        assert template is not None
        return template.render(USER, **options)

    (tmp_path / "chat_template.json").write_text('{"chat_template": "of a processor"}')
    assert text() == "of a processor"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert text() == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert text() == "file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("file for tools")
    assert (text(), text(tools=[])) == ("file", "file for tools")


BROKEN = {
    "a tag": (b"{% for m in messages %}\n{% newtag %}{% endfor %}", r"chat_template\.jinja:2: .*'newtag'"),
    "a filter": (b"{{ messages | fancy }}", "'fancy'"),
    "an end": (b"{% if x %}", "broken"),
    "length": (b"x" * 1_000_000, "1,000,000 characters"),
    "encoding": (b"\xff\xfe\xff", "UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_told_when_it_is_needed(name, tmp_path):
    source, error = BROKEN[name]
    (tmp_path / "chat_template.jinja").write_bytes(source)
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    with pytest.raises(CheckpointError, match=error) as caught:
        template.render(USER)
    assert "\n" not in str(caught.value)
    assert "--raw" in str(caught.value)
    assert template.problem() == str(caught.value)


def test_a_template_that_is_no_text_is_told_when_it_is_needed(tmp_path):
    for value, kind in ((3, "int"), ([1], "list"), ({"default": None}, "NoneType")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        template = ChatTemplate.from_folder(tmp_path)
        assert template is not None
        with pytest.raises(CheckpointError, match=f"as text, got {kind}"):
            template.render(USER)
    with pytest.raises(InputError, match="source: expected the chat template as text, got int"):
        ChatTemplate(3)  # pyright: ignore[reportArgumentType]


def test_an_error_names_the_line():
    with pytest.raises(TemplateError, match=r"^where:3: the chat template failed: 'nothing' is undefined"):
        ChatTemplate("a\n{# b #}\n{{ nothing.at.all }}", "where").render(USER)
