"""Chat templates are rendered as transformers renders them, byte for byte (needs transformers)."""

import enum
import itertools
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from lapinfer.errors import InputError, LapinferError
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tool_schema import tool_schema

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
utils = pytest.importorskip("transformers.utils.chat_template_utils")

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
"""Each uses the kinds of expressions that published ones of its family use."""

USER = {"role": "user", "content": "  What is it like?\n"}
FUNCTION = {"name": "get_weather", "arguments": {"city": "Zürich", "n": 2}}
CALL = {"type": "function", "id": "abcdefghi", "function": FUNCTION}
TALKS = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be <brief> /no_think"}, USER],
    "turns": [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGood. "},
        {"role": "user", "content": "é 😀"},
    ],
    "an answer": [USER, {"role": "assistant", "content": "\nFine.", "reasoning": "I think", "extra": None}],
    "parts": [{"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": " see? "}]}],
    "tools": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "22 °C"},
        {"role": "assistant", "content": "It is warm."},
        {"role": "user", "content": "Thanks"},
    ],
    "two calls": [USER, {"role": "assistant", "tool_calls": [CALL, CALL], "thinking": "both"}],
    "a result of many kinds": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": {"content": [1, 2.5, True, None, "é"]}},
    ],
}


def weather(city: str, days: int = 3, unit: Literal["C", "F"] | None = None) -> list[float]:
    """
    Tells the weather.

    Args:
        city: A town,
            or a village
        days: How many days
        unit: Celsius or Fahrenheit (choices: ["C", "F"])

    Returns:
        Temperatures
    """
    return [float(days)] if city else []


SCHEMA = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": 'Looks "up"\nthings',
        "parameters": {
            "type": "object",
            "properties": {
                "q": {"type": "string", "enum": ["a", "b"]},
                "n": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["q"],
        },
    },
}
OPTIONS = [
    {},
    {"tools": [weather, SCHEMA]},
    {"tools": []},
    {"documents": [{"title": "A", "text": "first"}, {"title": "B", "text": "second", "n": 1}]},
    {"add_generation_prompt": False},
    {"enable_thinking": False, "reasoning_effort": "high", "builtin_tools": ["python"], "controls": {"citations": 1}},
    {"tools": [SCHEMA], "documents": [{"text": "x"}], "tools_in_user_message": False},
    {"continue_final_message": True, "add_generation_prompt": False},
]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "image_token": "<img>"}


@pytest.fixture(scope="module")
def theirs():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_kind_of_template_renders_as_in_transformers(path, theirs):
    source = path.read_text(encoding="utf-8")
    template = ChatTemplate(source, tokens=theirs.special_tokens_map)
    compared = 0
    for talk, options in itertools.product(TALKS, OPTIONS):
        asked = {"add_generation_prompt": True} | options
        try:
            expected = theirs.apply_chat_template(TALKS[talk], chat_template=source, tokenize=False, **asked)
        except Exception:  # the template refuses, or fails: then ours must do so, too
            with pytest.raises(LapinferError):
                template.render(TALKS[talk], **options)
            continue
        assert template.render(TALKS[talk], **options) == expected, (talk, options)
        compared += 1
    assert compared >= 8, compared


def test_special_tokens_of_a_folder(tmp_path, theirs):
    from lapinfer.text.language_model import ChatTemplate as OfFolder
    from lapinfer.text.tokenizer import Tokenizer

    source = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}{{ sep_token }}"
    theirs.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(source)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer is not None
    template = OfFolder.from_folder(tmp_path, tokenizer.special_tokens)
    assert template is not None
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert template.render([USER]) == again.apply_chat_template([USER], tokenize=False)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": "c"},
        {"tokenizer_config.json": "c", "chat_template.jinja": "j\n"},
        {"tokenizer_config.json": "c", "chat_template.jinja": "j", "additional_chat_templates/tool_use.jinja": "t"},
        {"tokenizer_config.json": "c", "additional_chat_templates/tool_use.jinja": "t"},
        {"tokenizer_config.json": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "u"}]},
        {"tokenizer_config.json": [{"name": "rag", "template": "r"}]},
    ],
)
def test_the_file_that_counts(files, tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".json"):
            text = json.dumps(json.loads(path.read_text()) | {"chat_template": text})
        path.write_text(text)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    for tools in (None, [SCHEMA]):
        try:
            expected = again.apply_chat_template([USER], tools=tools, tokenize=False)
        except ValueError:
            with pytest.raises(LapinferError):
                template.render([USER], tools=tools)
        else:
            assert template.render([USER], tools=tools) == expected


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Caller:
    def method(self, x: int) -> None:
        """Does it.

        Args:
            x: a number
        """


def many(
    a: list[dict[str, int]], b: tuple[int, str], c: Colour, d: int | float | None, e: list[int] | str, f: Any,
    g: dict, h: "bool" = True, i: list | None = None, j: str | int = 3,
) -> Colour:  # fmt: skip
    """Does
    many things.

    Args:
        a (list): first: of all
            goes on

            and on
        b: second
        c: third
        d: fourth
        e: fifth
        f: sixth
        g: 7
        h: 8
        i: 9
        j: 10 (choices: [" x ", 3])

    Returns:
        a colour
        of two
    """
    return c


def nothing() -> object:
    """No arguments.

    Returns:
        Something
    """


def undescribed(x: int):
    """No description of x."""


def without_hint(x):
    """Args:
    x: y
    """


def of_a_class(x: Caller):
    """Args:
    x: y
    """


def undocumented(x: int): ...


def one_tuple(x: tuple[int]):
    """D.

    Args:
        x: y
    """


FUNCTIONS = [weather, many, nothing, Caller().method, undescribed, without_hint, of_a_class, undocumented, one_tuple]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_schemas_of_functions(function):
    try:
        expected = utils.get_json_schema(function)
    except (utils.DocstringParsingException, utils.TypeHintParsingException, TypeError):
        with pytest.raises(InputError, match=r"tools\[0\]: no schema can be made of"):
            tool_schema("tools[0]", function)
    else:
        assert tool_schema("tools[0]", function) == expected
