"""Answers that keep to a grammar: after each token, llguidance says which ones may come next.

A grammar is a JSON schema, a regular expression, or a grammar in llguidance's form of Lark. It holds from the first
token of an answer, so a model does not think before it. Where the grammar is complete, only tokens that end an answer
are left. Method: https://github.com/guidance-ai/llguidance (an Earley parser over a lexer of derivatives of regular
expressions, walked along a trie of the tokens' bytes).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from lapinfer.arguments import described
from lapinfer.errors import InputError
from lapinfer.text.tokenizer import Tokenizer

Kind = Literal["schema", "regex", "lark"]
JSON: Any = {"whitespace_pattern": r" |\n[ \t]{0,20}"}
"""Between its parts JSON may have any whitespace: a weak model would write nothing else, without an end."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be: `text` is a JSON schema as JSON, a regular expression, or a Lark grammar."""

    kind: Kind
    text: str


def grammar_of(*, schema: Any = None, regex: str | None = None, lark: str | None = None) -> Grammar | None:
    """The grammar that was given; None where none was. InputError for two of them, or one of a wrong type."""
    given = {kind: value for kind, value in (("schema", schema), ("regex", regex), ("lark", lark)) if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: expected one of them, for an answer keeps to one grammar")
    if schema is not None:
        return Grammar("schema", _json_of(schema))
    ((kind, text),) = given.items()
    if not isinstance(text, str):
        raise InputError(f"{kind}: expected text, got {described(text)}")
    return Grammar("regex" if kind == "regex" else "lark", text)


def _json_of(schema: Any) -> str:
    """A JSON schema as JSON; text is JSON already."""
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(value, Mapping | bool):
            raise InputError(f"schema: expected a JSON schema (an object, true or false), got {described(value)}")
        if not isinstance(value, Mapping):
            value = {"anyOf": [value]}  # llguidance takes options for objects alone
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        file = isinstance(schema, str) and schema.endswith(".json")
        reason = "the name of a file? Give what is in it" if file else error
        raise InputError(f"schema: not JSON ({reason})") from error


def check_installed() -> None:
    """InputError where llguidance is missing."""
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise InputError('schema, regex and lark need llguidance: pip install "lapinfer[schema]"') from error


def check(grammar: Grammar) -> None:
    """InputError for a grammar that is wrong for every model; one may be met by none of a model's tokens besides."""
    from llguidance import LLMatcher

    if reason := _guarded(grammar.kind, lambda: LLMatcher.validate_grammar(_as_read(grammar))):
        raise InputError(f"{grammar.kind}: {_line(reason)}")


def _as_read(grammar: Grammar) -> str:
    """A grammar in llguidance's own form."""
    from llguidance import LLMatcher

    read = {
        "schema": lambda schema: LLMatcher.grammar_from_json_schema(schema, defaults=JSON),
        "regex": LLMatcher.grammar_from_regex,
        "lark": LLMatcher.grammar_from_lark,
    }[grammar.kind]
    return read(grammar.text)


class Grammars:
    """Grammars over the tokens of one model, of which llguidance keeps a trie (made once: 0.1 to 1 s).

    vocab: how many ids the model has; its tokenizer may know fewer or more. InputError where llguidance is missing or
    no token ends an answer, UnsupportedError for tokens without bytes of their own.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        check_installed()
        from llguidance import LLTokenizer

        ends = sorted(id for id in tokenizer.eos_ids if id < vocab)
        if not ends:
            raise InputError("schema, regex and lark need a token that ends an answer, and this tokenizer has none")
        self.vocab, self.token_bytes = vocab, tokenizer.token_bytes
        tokens: Any = _Tokens(tokenizer, vocab, ends)
        self._tokens = _guarded("the tokenizer", lambda: LLTokenizer(tokens, n_vocab=vocab, eos_token=ends))

    def constraint(self, grammar: Grammar, prompt: int) -> Constraint:
        """What a grammar asks of an answer after so many ids of a prompt.

        InputError with llguidance's reason for a grammar that is wrong, beyond its bounds, or met by no answer.
        """
        from llguidance import LLMatcher

        made = _guarded(grammar.kind, lambda: LLMatcher(self._tokens, _as_read(grammar), log_level=0))
        _check(made, grammar.kind)
        constraint = Constraint(made, grammar.kind, prompt, self.vocab)
        constraint.allowed([0] * prompt)  # a grammar that nothing meets is told before anything is computed
        return constraint


class _Tokens:
    """A tokenizer as llguidance takes it (`TokenizerWrapper` of its Python package)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab: int, ends: Sequence[int]) -> None:
        known = tokenizer.token_bytes[:vocab]
        self.tokens = [*known, *[b""] * (vocab - len(known))]
        self.eos_token_id = ends[0]
        self.special_token_ids = sorted(id for id in tokenizer.special_ids | tokenizer.eos_ids if id < vocab)
        for id in ends:
            self.tokens[id] = b""
        self._one = {text[0]: id for id, text in reversed([*enumerate(self.tokens)]) if len(text) == 1}

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text, which llguidance takes for a hint: bytes do, and depend on nothing that came before."""
        return [self._one[byte] for byte in text.encode() if byte in self._one]


class Constraint:
    """Which ids may come next in one answer.

    It is asked with all ids so far, so tokens may be taken back, and the same ids may be asked again.
    """

    def __init__(self, matcher: Any, kind: Kind, prompt: int, vocab: int) -> None:
        self._matcher, self._kind, self._prompt, self._vocab = matcher, kind, prompt, vocab
        self._first = matcher.deep_copy()
        self._taken: list[int] = []
        self._mask: np.ndarray | None = None

    def allowed(self, ids: Sequence[int]) -> np.ndarray:
        """[V] bool: `bits` one by one."""
        return np.unpackbits(self.bits(ids).view(np.uint8), count=self._vocab, bitorder="little").view(bool)

    def bits(self, ids: Sequence[int]) -> np.ndarray:
        """What may follow prompt and answer, `ids`, at least one id: bit i of uint16 [b] is that of 16·b + i.

        InputError for an answer that is none of the grammar's, or where llguidance meets its bounds.
        """
        answer = list(ids[self._prompt :])
        if self._mask is None or answer != self._taken:
            self._go_to(answer)
            mask = np.frombuffer(_guarded(self._kind, self._matcher.compute_bitmask), np.uint16)
            _check(self._matcher, self._kind)
            if not mask.any():
                raise InputError(f"{self._kind}: no token of this model can go on an answer that began so")
            self._mask = mask
        return self._mask

    def _go_to(self, answer: list[int]) -> None:
        taken, self._mask = self._taken, None
        common = len(taken)
        if answer[:common] != taken:
            common = next(i for i, id in enumerate(taken) if i >= len(answer) or answer[i] != id)
            self._taken = []
            if not self._matcher.rollback(len(taken) - common):
                self._matcher, common = self._first.deep_copy(), 0
        self._taken = []
        _guarded(self._kind, lambda: self._matcher.consume_tokens(answer[common:]))
        if self._matcher.is_error():
            reason = self._matcher.get_error()
            self._matcher = self._first.deep_copy()
            raise InputError(f"{self._kind}: {_line(reason)}")
        self._taken = answer


class BytesDecoder:
    """Text of tokens as the grammar has read them: nothing is tidied, or stripped at the beginning."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._bytes, self._decoder = token_bytes, codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Add a token; the text that is certain now."""
        return self._decoder.decode(self._bytes[id] if id < len(self._bytes) else b"")

    def flush(self) -> str:
        """What was held back, at the end; an incomplete character as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _check(matcher: Any, kind: str) -> None:
    if matcher.is_error():
        raise InputError(f"{kind}: {_line(matcher.get_error())}")


def _line(reason: str) -> str:
    return " ".join(reason.split())[:300]


def _guarded(what: str, call: Callable[[], T]) -> T:
    """call(), with every failure of the Rust library as an InputError of one line."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        raise InputError(f"{what}: {_line(str(error))}") from error
