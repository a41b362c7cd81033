"""Whoever calls the library wrongly gets an InputError that names the argument, what is expected, and what came."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from fake_model import CHAT, FakeModel, byte_tokenizer_folder

import lapinfer
from lapinfer.arguments import described, flags, float_array, row, whole, whole_numbers
from lapinfer.errors import CheckpointError, InputError, UnknownOptionError
from lapinfer.layers import FFF, Dense, MoE
from lapinfer.loading import convert
from lapinfer.options import LoadOptions, SamplingParams
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizer = Tokenizer.from_folder(byte_tokenizer_folder(tmp_path_factory.mktemp("bytes")))
    assert tokenizer is not None
    return tokenizer


@pytest.fixture
def model(tokenizer):
    return LanguageModel(FakeModel(script=[*b"ok", 257]), tokenizer, ChatTemplate(CHAT))  # pyright: ignore


# Prompts, ids and messages


WRONG_IDS = {
    "None": (None, "got None"),
    "a number": (5, r"got 5 \(int\)"),
    "bytes": (b"hi", r"got b'hi' \(bytes\)"),
    "floats": ([1.0, 2.0], r"\[0\]: expected a whole number, got 1\.0 \(float\)"),
    "NaN": ([1, float("nan")], r"\[1\]: .* got nan"),
    "booleans": ([True], r"\[0\]: .* got True \(bool\)"),
    "texts": (["1"], r"\[0\]: .* got '1' \(str\)"),
    "an array of floats": (np.ones(3), r"\[0\]: .* got 1\.0"),
    "two dimensions": (np.ones((2, 3), int), r"got an array of shape \(2, 3\)"),
    "no dimension": (np.int64(3), "expected a list of whole numbers"),
    "nested lists": ([[1, 2]], r"\[0\]: .* got list"),
    "a dictionary": ({1: 2}, "got dict"),
    "a set": ({1, 2}, "got set"),
    "a huge number": ([2**70], "1180591620717411303424"),
    "a negative number": ([-1], "-1"),
    "too large a number": ([258], "ids go from 0 to 257"),
}


@pytest.mark.parametrize("name", WRONG_IDS)
@pytest.mark.parametrize("call", ["generate", "stream", "forward"])
def test_wrong_ids_are_named(model, call, name):
    ids, error = WRONG_IDS[name]
    with pytest.raises(InputError, match=error) as caught:
        getattr(model, call)(ids)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [(1, 2), range(1, 3), np.array([1, 2], np.uint8), [np.int32(1), 2], iter([1, 2])])
def test_what_gives_whole_numbers_is_a_prompt(model, ids):
    assert model.generate(ids, temperature=0).text == "ok"


def test_no_ids(model):
    with pytest.raises(InputError, match="prompt is empty"):
        model.forward([])
    assert model.generate([], temperature=0).tokens  # begins with BOS


def test_text_alone_can_be_said(model):
    assert model.chat("Hi", temperature=0).text == "ok"
    assert model.chat("Hi", temperature=0, template_kwargs={"enable_thinking": False}, tools=None).text == "ok"


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ({"role": "user", "content": "x"}, "messages: .* one message: put it into a list"),
        ([], "messages: expected at least one"),
        (None, "messages: .* got NoneType"),
        ([{"role": "user"}], r"messages\[0\]: the user's message has no content"),
        ([{"role": "user", "text": "x"}], r"messages\[0\]: the user's message has no content, only 'text'"),
        (["x", "y"], r"messages\[0\]: .* several chats at once: chat_batch"),
        ([{"content": "x"}], r"messages\[0\]: expected a role"),
    ],
)
def test_wrong_messages_are_named(model, messages, error):
    with pytest.raises(InputError, match=error):
        model.chat(messages)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"temprature": 1}, "generation has no option 'temprature': did you mean temperature?"),
        ({"max_token": 1}, "did you mean max_tokens?"),
        ({"max_new_tokens": 1}, "did you mean max_tokens?"),
        ({"temp": 1}, "did you mean temperature?"),
        ({"system": "x"}, "expected one of"),
        ({"zzz": 1}, "expected one of"),
        ({"max_tokens": "5"}, r"max_tokens: expected a whole number from 1, got '5' \(str\)"),
        ({"max_tokens": 0}, "max_tokens: .* got 0"),
        ({"max_tokens": 1.5}, "max_tokens: .* got 1.5"),
        ({"max_tokens": True}, "max_tokens: .* got True"),
        ({"slot": "0"}, "slot: expected a whole number from 0 to 1, got '0'"),
        ({"slot": -1}, "slot: .* got -1"),
        ({"slot": 2**70}, "slot: .* got 1180591620717411303424"),
        ({"stop": "x"}, "stop: expected a list of non-empty strings, got 'x'"),
        ({"stop": [""]}, r"stop: expected a list of non-empty strings, got '' \(str\) among them"),
        ({"stop": [1]}, r"stop: .* got 1 \(int\) among them"),
        ({"stop": 3}, "stop: .* got 3"),
        ({"logprobs": 21}, r"logprobs: expected True, False or a whole number from 0 to 20, got 21 \(int\)"),
        ({"logprobs": -1}, "logprobs: .* got -1"),
        ({"logprobs": 2.0}, "logprobs: .* got 2.0"),
        ({"logprobs": None}, "logprobs: .* got None"),
        ({"params": {"top_k": 1}}, "params: expected SamplingParams, got dict"),
        ({"temperature": float("nan")}, "temperature: expected a number from 0, got nan"),
        ({"temperature": float("inf")}, "temperature: .* got inf"),
        ({"temperature": "hot"}, "temperature: .* got 'hot'"),
        ({"temperature": True}, "temperature: .* got True"),
        ({"temperature": None}, "temperature: .* got None"),
        ({"top_k": 1.5}, "top_k: .* got 1.5"),
        ({"top_k": True}, "top_k: .* got True"),
        ({"top_p": float("nan")}, "top_p: .* got nan"),
        ({"seed": -1}, "seed: .* got -1"),
        ({"seed": "x"}, "seed: .* got 'x'"),
    ],
)
def test_wrong_options_are_named(model, options, error):
    with pytest.raises(InputError, match=error.replace("?", r"\?")):
        model.generate("hi", **options)


def test_an_unknown_option_is_a_type_error_too(model):
    with pytest.raises(TypeError, match="chat has no option 'tool': did you mean tools"):
        model.chat("hi", tool=[])
    with pytest.raises(InputError, match=r"template_kwargs: expected names and values, .* got list"):
        model.chat("hi", template_kwargs=[1])
    with pytest.raises(InputError, match="template_kwargs: the messages are given already"):
        model.chat("hi", template_kwargs={"messages": []})


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e308},
        {"temperature": 5e-324},
        {"top_k": 2**70},
        {"seed": 2**70},
        {"top_k": np.int64(3), "temperature": np.float32(0.5), "max_tokens": np.int16(3)},
        {"repetition_penalty": 100, "temperature": 1e-300},
        {"max_tokens": 2**70},
    ],
)
def test_odd_options_work_without_a_warning(model, options):
    assert model.generate("hi", **options).tokens


def test_wrong_texts_of_a_tokenizer(tokenizer):
    for text in (None, 3, b"hi", ["hi"]):
        with pytest.raises(InputError, match="text: expected text, got"):
            tokenizer.encode(text)
    for ids in ("12", [1.5], [True], None, np.ones((1, 1), int)):
        with pytest.raises(InputError, match="ids"):
            tokenizer.decode(ids)
    assert tokenizer.decode([2**70, -3, 104]) == "h"


def test_ids_become_text_again(model):
    assert model.decode(model.encode("A fox.")) == "A fox."


# Loading


def test_an_unknown_option_of_load_is_named():
    with pytest.raises(UnknownOptionError, match=r"load has no option 'quantt': did you mean quant\?"):
        lapinfer.load("anything", quantt="q4")  # pyright: ignore
    with pytest.raises(UnknownOptionError, match=r"load has no option 'ctx_size': did you mean ctx\?"):
        lapinfer.load("anything", ctx_size=64)  # pyright: ignore


@pytest.mark.parametrize("name", [None, 3, b"x", ["x"], ""])
def test_a_wrong_name_of_a_model(name, tmp_path):
    for call in (lapinfer.load, lambda name: convert(name, tmp_path / "out")):
        with pytest.raises(InputError, match="model: expected a name or a path, got"):
            call(name)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-here/x", "/", "a\nb", "\udcff"])
def test_an_odd_name_of_a_model(name):
    with pytest.raises((CheckpointError, InputError)) as caught:
        lapinfer.load(name)
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"quant": 4}, "quant: expected one of"),
        ({"quant": ["q4"]}, "quant: expected one of"),
        ({"threads": True}, "threads: expected a whole number from 1, got True"),
        ({"threads": 2**70}, "threads: expected at most 256"),
        ({"ctx": "4096"}, "ctx: .* got '4096'"),
        ({"ctx": 0}, "ctx: .* got 0"),
        ({"slots": None}, "slots: .* got None"),
        ({"memory": float("nan")}, "memory: .* got nan"),
        ({"memory": True}, "memory: .* got True"),
        ({"policy": 1}, "policy: expected one of"),
    ],
)
def test_wrong_options_of_load_are_named(options, error):
    with pytest.raises(InputError, match=error):
        LoadOptions(**options)
    with pytest.raises(InputError, match=error):
        lapinfer.load("anything", **options)


def test_progress_must_be_a_function():
    with pytest.raises(InputError, match=r"progress: expected a function, got 5 \(int\)"):
        lapinfer.load("anything", progress=5)  # pyright: ignore


# Layers


def arrays(**changed):
    r = np.random.default_rng(0)
    return {"up": r.standard_normal((32, 8)), "down": r.standard_normal((8, 32))} | changed


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"up": None}, "up: expected an array of numbers"),
        ({"up": "x"}, "up: expected an array of numbers, got one of str"),
        ({"up": [[1, 2], [3]]}, "up: expected an array of numbers, got list"),
        ({"up": np.ones((32, 8), complex)}, "up: .* got one of complex128"),
        ({"up": np.ones(8)}, r"up has shape \(8,\), expected 2 dimensions"),
        ({"up": np.full((32, 8), 1e300)}, "up has numbers that are not finite"),
        ({"down": np.ones((8, 31))}, r"down has shape \(8, 31\)"),
        ({"gate": np.ones((32, 9))}, r"gate has shape \(32, 9\), up \(32, 8\)"),
        ({"up_bias": np.ones(31)}, r"up_bias has shape \(31,\), expected \(32,\)"),
        ({"quant": 4}, "quant 4 is not known"),
        ({"quant": ["q4"]}, "quant .* is not known"),
        ({"batch": "5"}, "batch: expected a whole number from 1, got '5'"),
        ({"threads": 0}, "threads: .* from 1 to 256, got 0"),
        ({"thread": 2}, "a layer has no option 'thread': did you mean threads"),
        ({"activation": 3}, "activation 3 is not known"),
    ],
)
def test_wrong_arrays_of_a_layer_are_named(changed, error):
    with pytest.raises(InputError, match=error):
        Dense(**arrays(**changed))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (None, "x: expected an array of numbers"),
        ("x", "x: expected an array of numbers"),
        (np.ones(8), r"shape \(8,\), expected \[T, 8\]"),
        (np.ones((2, 7)), r"shape \(2, 7\)"),
        (np.full((1, 8), np.nan), "not finite"),
        (np.full((1, 8), 1e300), "not finite"),
        ([[1] * 8, [2]], "x: expected an array of numbers"),
    ],
)
def test_wrong_inputs_of_a_layer_are_named(x, error):
    with pytest.raises(InputError, match=error):
        Dense(**arrays())(x)


def test_wrong_arguments_of_mixtures_and_trees():
    r = np.random.default_rng(0)
    up, down = r.standard_normal((4, 32, 8)), r.standard_normal((4, 8, 32))
    router, nodes = r.standard_normal((4, 8)), r.standard_normal((3, 8))
    with pytest.raises(InputError, match="top_k: expected a whole number from 1 to 4, got '2'"):
        MoE(router, up, down, top_k="2")  # pyright: ignore
    with pytest.raises(InputError, match=r"top_k: .* got 5"):
        MoE(router, up, down, top_k=5)
    with pytest.raises(InputError, match=r"trees: .* got 1.5"):
        FFF(nodes, up, down, trees=1.5)  # pyright: ignore
    with pytest.raises(InputError, match="master: down is missing"):
        FFF(nodes, up, down, master={"up": np.ones((32, 8))})
    with pytest.raises(InputError, match="master: its arrays do not fit"):
        FFF(nodes, up, down, master={"up": np.ones((32, 9)), "down": np.ones((8, 32))})
    with pytest.raises(InputError, match="mix: expected an array of numbers"):
        FFF(nodes, up, down, mix="x")  # pyright: ignore
    with pytest.raises(InputError, match="state: expected tensors by their names, got list"):
        FFF.from_state_dict([up])  # pyright: ignore


def test_a_closed_layer_says_so():
    layer = Dense(**arrays())
    layer.close()
    layer.close()
    with pytest.raises(InputError, match="this layer is closed"):
        layer(np.ones((1, 8)))


# The checks themselves


def test_values_are_described_shortly():
    assert described("x" * 1000) == "'" + "x" * 36 + "… (str)"
    assert described(np.zeros((2, 3))) == "an array of shape (2, 3)"
    assert described(Path("a")) == "PosixPath" or described(Path("a")) == "WindowsPath"


def test_numbers_of_numpy_are_numbers():
    assert whole("n", np.uint8(3), 1) == 3
    assert whole_numbers("n", np.arange(3)) == [0, 1, 2]
    given = np.arange(3)
    assert row("n", given) is given
    assert flags("want", np.array([True, False])) == [True, False]
    assert flags("want", [np.True_, 0]) == [True, 0]
    with pytest.raises(InputError, match="want: expected a list of booleans, got 'ab'"):
        flags("want", "ab")
    assert np.isinf(float_array("x", [1e300])).all()
    assert SamplingParams(top_k=np.int32(3)).top_k == 3
