"""Answers by a grammar: JSON schemas, regular expressions and Lark, as masks over tokens."""

from __future__ import annotations

import json
import re
import sys
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from fake_model import FakeModel, byte_tokenizer_folder, install, sentencepiece_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.random_schemas import random_schema
from lapinfer.cli import app
from lapinfer.errors import InputError
from lapinfer.options import SamplingParams
from lapinfer.text.grammar import JSON, Grammar, Grammars, grammar_of
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.sampling import Sampler
from lapinfer.text.tokenizer import Tokenizer

EOS = 257


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    found = Tokenizer.from_folder(byte_tokenizer_folder(tmp_path_factory.mktemp("bytes")))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    fake: Any = FakeModel(vocab=300, ctx=4096)
    return LanguageModel(fake, tokenizer)


def test_tokens_have_the_bytes_of_their_texts(tokenizer, tmp_path):
    text = 'hé  llo {"a": [1, "ü😀"]}\n'
    for each in (tokenizer, Tokenizer.from_folder(sentencepiece_folder(tmp_path))):
        ids = each.encode(text, special=False)
        assert b"".join(each.token_bytes[id] for id in ids).decode().removeprefix(" ") == text
        assert not any(each.token_bytes[id] for id in each.special_ids)


@given(number=st.integers(0, 1 << 30))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_finished_answers_are_valid_json_of_any_schema(model, number):
    schema = random_schema(Random(number))
    answer = model.generate("x", schema=schema, temperature=1.0, top_k=0, seed=number, max_tokens=400)
    if answer.finish_reason == "stop":
        jsonschema.validate(json.loads(answer.text), schema)
    else:
        assert answer.finish_reason == "length"
        assert len(answer.tokens) == 400


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (True, '[1.5e3, {"a": null}]'),
        ({"enum": ["é", 3]}, '"é"'),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "[ -1,\n 20 ]"),
        ({"type": "object", "properties": {"a": True, "b": True}, "required": ["b"]}, '{"b": "\\n", "c": {}}'),
        ({"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 2}]}, '"😀"'),
    ],
)
def test_what_a_schema_allows_can_be_said(grammars, tokenizer, schema, text):
    grammar = grammar_of(schema=schema)
    assert grammar is not None
    constraint, ids = grammars.constraint(grammar, 0), tokenizer.encode(text)
    for i, id in enumerate(ids):
        assert constraint.allowed(ids[:i])[id], text[:i]
    assert constraint.allowed(ids)[EOS]


@pytest.mark.parametrize("space", [" ", "\n" + 20 * " "])
def test_whitespace_comes_to_an_end(grammars, tokenizer, space):
    """Weak models write lines without an end where they may."""
    constraint = grammars.constraint(Grammar("schema", '{"type": "array"}'), 0)
    ids = tokenizer.encode("[" + space, special=False)
    assert not any(constraint.allowed(ids)[id] for id in tokenizer.encode(" \n\t\r", special=False))
    assert constraint.allowed(ids)[tokenizer.encode("]", special=False)[0]]


def test_regex_and_lark(model):
    for seed in range(5):
        answer = model.generate("x", regex=r"[a-c]{3}-\d{2,4}ü?", seed=seed, temperature=1.0)
        assert answer.finish_reason == "stop"
        assert re.fullmatch(r"[a-c]{3}-\d{2,4}ü?", answer.text)
    lark = 'start: "(" start ")" | NUMBER\nNUMBER: /[0-9]{1,3}/'
    answer = model.generate("x", lark=lark, seed=1, temperature=1.0, max_tokens=500)
    assert re.fullmatch(r"\(*\d{1,3}\)*", answer.text)
    assert answer.text.count("(") == answer.text.count(")")


def test_a_mask_is_that_of_llguidance_wherever_it_is_asked(grammars, tokenizer):
    from llguidance import LLMatcher

    text = '{"a": [1, 2], "b": "xy"}'
    ids = [7, 8, *tokenizer.encode(text, special=False)]
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": True}}
    constraint = grammars.constraint(Grammar("schema", json.dumps(schema)), 2)

    def expected(answer):
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=JSON)
        matcher = LLMatcher(grammars._tokens, grammar, log_level=0)
        assert matcher.consume_tokens(answer)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[:300].astype(bool)

    rng = np.random.default_rng(0)
    for length in (0, 5, 5, 3, 20, *rng.integers(0, len(ids) - 1, 20), len(ids) - 2):
        np.testing.assert_array_equal(constraint.allowed(ids[: 2 + length]), expected(ids[2 : 2 + length]))
    assert np.flatnonzero(constraint.allowed(ids)).tolist() == [EOS]
    for wrong in ([7, 8, 99], [7, 8, *ids[2:6], EOS]):
        with pytest.raises(InputError, match="schema: "):
            constraint.allowed(wrong)
        np.testing.assert_array_equal(constraint.allowed(ids[:6]), expected(ids[2:6]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"schema": False}, "schema: Unsatisfiable schema"),
        ({"schema": {"type": "foo"}}, "schema: Invalid type: foo"),
        ({"schema": {"type": "array", "minItems": 3, "maxItems": 1}}, "schema: Unsatisfiable schema"),
        ({"schema": {"not": {}}}, r"schema: Unimplemented keys: \[.not"),
        ({"schema": "{"}, "schema: not JSON"),
        ({"schema": "fox.json"}, "schema: not JSON .the name of a file"),
        ({"schema": [1]}, "schema: expected a JSON schema"),
        ({"schema": {"const": float("nan")}}, "schema: not JSON"),
        ({"schema": {"const": {1}}}, "schema: not JSON"),
        ({"regex": "a("}, "regex: .*unclosed group"),
        ({"regex": 3}, "regex: expected text"),
        ({"lark": "start: foo"}, "lark: .*unknown name"),
        ({"regex": "a", "lark": "b"}, "regex and lark: expected one"),
    ],
)
def test_wrong_grammars_are_one_line_before_anything_is_computed(model, options, reason):
    before = len(model.model.steps)
    with pytest.raises(InputError, match=reason) as caught:
        model.stream("x", **options)
    assert "\n" not in str(caught.value)
    assert len(model.model.steps) == before


def test_in_a_batch_each_answer_keeps_to_the_grammar_as_alone(model):
    options = {"regex": r"[a-f]{4,9}", "temperature": 1.0, "seed": 3}
    batch = model.generate_batch(["x", "why", "z"], **options)
    assert [each.tokens for each in batch] == [model.generate(prompt, **options).tokens for prompt in ("x", "why", "z")]
    assert all(re.fullmatch(options["regex"], each.text) for each in batch)


def test_run_answers_by_the_schema_of_a_file(tmp_path, monkeypatch):
    folder = byte_tokenizer_folder(tmp_path / "model")
    install(monkeypatch, lambda: FakeModel(folder, ctx=4096))
    (path := tmp_path / "s.json").write_text('{"type": "array", "items": {"enum": ["yes", 3]}, "maxItems": 2}')
    result = CliRunner().invoke(app, ["run", "-m", "x", "--schema", str(path), "well?"])
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) <= {"yes", 3}
    result = CliRunner().invoke(app, ["run", "-m", "x", "-n", "1", "--schema", str(path), "well?"])
    assert "cut after 1 tokens, so this is not whole JSON" in result.stderr
    assert CliRunner().invoke(app, ["run", "-m", "x", "--schema", '{"type": "array"}', "well?"]).exit_code == 2
    path.write_text('{"type": "foo"}')
    result = CliRunner().invoke(app, ["run", "-m", "no/model", "--schema", str(path), "well?"])
    assert "s.json: schema: Invalid type: foo" in result.stderr + str(result.exception)
    path.write_text("{")
    result = CliRunner().invoke(app, ["run", "-m", "x", "--schema", str(path), "well?"])
    assert result.exit_code == 1
    assert str(result.exception).startswith(f"{path}: schema: not JSON") or "schema: not JSON" in result.stderr


def test_without_llguidance_the_extra_is_named(model, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r'pip install "lapinfer\[schema\]"'):
        LanguageModel(model.model, tokenizer).stream("x", schema=True)


def test_bans_yield_where_they_leave_nothing():
    logits = np.linspace(0, 1, 40, dtype=np.float32)
    allowed = np.zeros(40, bool)
    allowed[[3, 8]] = True
    masked = np.where(allowed, logits, np.float32(-np.inf))
    for params in (SamplingParams(temperature=0), SamplingParams(temperature=1, top_k=5, seed=0)):
        sample = Sampler(params).sample
        assert sample(logits, None, (), (8,), allowed)[0] == 3
        assert sample(logits, None, (), (3, 8), allowed)[0] in (3, 8)
        assert sample(masked, None, (), (8,), masked=True)[0] == 3
        assert sample(masked, None, (), (3, 8), masked=True)[0] in (3, 8)


@given(seed=st.integers(0, 999), top_k=st.sampled_from([0, 3]), top_p=st.sampled_from([1.0, 0.7]))
def test_only_allowed_tokens_are_drawn_with_the_numbers_of_masked_logits(seed, top_k, top_p):
    rng = np.random.default_rng(seed)
    logits, allowed = rng.standard_normal(50, np.float32), rng.random(50) < 0.2
    allowed[7] = True
    params = SamplingParams(temperature=1, top_k=top_k, top_p=top_p, seed=seed)
    masked, plain = Sampler(params), Sampler(params)
    for _ in range(3):
        token = masked.sample(logits, allowed=allowed)[0]
        assert allowed[token]
        assert token == plain.sample(np.where(allowed, logits, np.float32(-np.inf)))[0]
