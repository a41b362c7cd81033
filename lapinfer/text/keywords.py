"""The keywords of generations, chats and batches, for type checkers and for messages about unknown ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from lapinfer.options import SamplingParams


class BatchKeywords(TypedDict, total=False):
    """What every kind of generation accepts; sampling parameters as in `SamplingParams`, instead of `params`.

    logprobs: tell the log-probability of each token (True), and those of so many of the most likely tokens in its place
    (0 to 20): all logits are computed for that, not only the best.
    prompt_logprobs: the same of the prompt's tokens, which come with the first token (`Token.prompt`, an entry for each
    token of the prompt; the first one's log-probability is None). All of the prompt is read for that, whatever is
    remembered of it.
    schema, regex, lark: what the answer keeps to, one of them (text/grammar.py): a JSON schema (a dict, its JSON, or a
    bool), a regular expression, or a Lark grammar. Only an answer that `max_tokens`, the context or a stop string cuts
    is not whole. It begins without thinking.
    """

    max_tokens: int | None
    stop: Sequence[str]
    logprobs: bool | int
    prompt_logprobs: bool | int
    params: SamplingParams
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    schema: Mapping[str, Any] | str | bool | None
    regex: str | None
    lark: str | None


class GenerationKeywords(BatchKeywords, total=False):
    """What one generation accepts besides.

    speculate: guess tokens, and check several in a step, where that is faster; they are the same without it.
    """

    slot: int
    speculate: bool


class TemplateKeywords(TypedDict, total=False):
    """What a chat's template is given."""

    tools: Sequence[Any] | None
    documents: Sequence[Mapping[str, Any]] | None
    continue_final_message: bool | str
    template_kwargs: Mapping[str, Any] | None


class ChatKeywords(GenerationKeywords, TemplateKeywords, total=False):
    """What a chat accepts."""


class ChatBatchKeywords(BatchKeywords, TemplateKeywords, total=False):
    """What each of several chats accepts, which share the model's steps."""
