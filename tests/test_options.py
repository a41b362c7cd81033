"""The options that lapinfer.load, reports and the command line share: declared once, checked in one place."""

import math
from dataclasses import asdict, fields
from typing import get_type_hints

import numpy as np
import pytest

import lapinfer
from lapinfer.errors import InputError
from lapinfer.kernels.operands import KV_KINDS, POLICIES
from lapinfer.options import QUANTS, LoadKeywords, LoadOptions, SamplingParams, declared
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.kv import DTYPES
from lapinfer.text.keywords import GenerationKeywords


def test_keywords_of_load_are_the_fields():
    assert get_type_hints(LoadKeywords) == get_type_hints(LoadOptions)
    assert {name: kind for name, (kind, _) in declared(LoadOptions).items()} == get_type_hints(LoadKeywords)


def test_keywords_of_generate_have_the_sampling_parameters():
    keywords = get_type_hints(GenerationKeywords)
    assert get_type_hints(SamplingParams).items() <= keywords.items()


def test_choices_are_those_of_the_engine():
    assert set(QUANTS) == {"auto", *FORMATS}
    assert declared(LoadOptions)["kv"][1].choices == ("auto", *KV_KINDS)
    assert tuple(DTYPES) == KV_KINDS
    assert declared(LoadOptions)["policy"][1].choices == (*POLICIES, "system")


@pytest.mark.parametrize("kind", [LoadOptions, SamplingParams])
def test_defaults_are_accepted_and_explained(kind):
    for field in fields(kind):
        _, option = declared(kind)[field.name]
        assert option.accepts(field.default)
        assert option.help.endswith(".")
        assert (option.unset is not None) == (field.default is None)
    assert asdict(kind()) == {field.name: field.default for field in fields(kind)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant": "q7"}, f"quant: expected one of {', '.join(QUANTS)}, got q7"),
        ({"quant": None}, "quant: expected one of .*, got None"),
        ({"threads": 0}, "threads: expected a whole number from 1, got 0"),
        ({"threads": "2"}, "threads: expected a whole number from 1, got '2'"),
        ({"threads": 257}, "threads: expected at most 256, got 257"),
        ({"ctx": 2.5}, "ctx: expected a whole number from 1, got 2.5"),
        ({"slots": None}, "slots: expected a whole number from 1, got None"),
        ({"kv": "q4"}, "kv: expected one of .*, got q4"),
        ({"activations": "f32"}, "activations: expected one of auto, q8, q16, got f32"),
        ({"experts": 0}, "experts: expected a whole number from 1, got 0"),
        ({"memory": 0}, "memory: expected a number of GB above 0, got 0"),
        ({"memory": math.nan}, "memory: expected a number of GB above 0, got nan"),
        ({"memory": "4"}, "memory: expected a number of GB above 0, got '4'"),
        ({"policy": "best"}, "policy: expected one of lru, .*, got best"),
        ({"policy": "system", "memory": 2}, "contradicts --memory"),
    ],
)
def test_what_is_refused_before_a_model_is_looked_for(options, message):
    with pytest.raises(InputError, match=f"^.*{message}"):
        lapinfer.load("no/such-model", **options)


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="'thread'"):
        lapinfer.load("no/such-model", thread=2)  # pyright: ignore[reportCallIssue]


def test_numbers_of_numpy_are_numbers():
    assert LoadOptions(threads=np.int64(2), memory=np.float32(1.5)).threads == 2
    with pytest.raises(InputError, match="top_k: expected a whole number from 0"):
        SamplingParams(top_k=1.5)  # pyright: ignore[reportArgumentType]
