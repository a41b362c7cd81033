"""Continuations as OpenAI's clients read them: texts with log-probabilities in lists, whole or in chunks.

Source: openai.types.completion, openai.types.completion_choice.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from lapinfer.serve.openai_usage import Usage
from lapinfer.serve.token_texts import TokenTexts, finite
from lapinfer.text.generation import Token
from lapinfer.text.likelihood import Chosen


class Continuation:
    """One answer. echo: the text of its prompt, where that is told, too; None where it is not.

    texts: where log-probabilities are told. made: whether what is generated is told; else the prompt alone.
    """

    def __init__(self, index: int, *, echo: str | None, texts: TokenTexts | None, made: bool) -> None:
        self.index, self.text = index, ""
        self.finish_reason: str | None = None
        self._echo, self._texts, self.made = echo, texts, made
        self.logprobs: dict[str, list[Any]] = _lists()
        self.last: Token | None = None
        self._length = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def has_logprobs(self) -> bool:
        return self._texts is not None

    def push(self, token: Token) -> tuple[str, dict[str, list[Any]] | None, str | None] | None:
        """(text, log-probabilities, finish_reason) that are told now; None for nothing."""
        text, told = "", _lists()
        if self.last is None and self._echo is not None:
            text += self._echo
            for chosen in token.prompt:
                self._judge(told, chosen)
        self.last = token
        if self.made:
            text += token.text
            # The one that ended the answer, too: clients that ask for one token look for one behind the prompt's.
            self._judge(told, Chosen(token.token, token.logprob, token.top))
        finish = None
        if token.finish_reason is not None:
            finish = "length" if token.finish_reason == "length" else "stop"
        if not (text or finish or (told["tokens"] and self._texts is not None)):
            return None
        self.text, self.finish_reason = self.text + text, finish
        for name, values in told.items():
            self.logprobs[name] += values
        return text, None if self._texts is None else told, finish

    def _judge(self, told: dict[str, list[Any]], chosen: Chosen) -> None:
        texts = self._texts
        if texts is None:
            return
        told["tokens"].append(texts.name(chosen.token))
        told["token_logprobs"].append(finite(chosen.logprob))
        told["text_offset"].append(self._length)
        likely = None if chosen.logprob is None else dict(((chosen.token, chosen.logprob), *chosen.top))
        told["top_logprobs"].append(
            None if likely is None else {texts.name(id): finite(value) for id, value in likely.items()}
        )
        self._length += len(self._decoder.decode(texts.plain(chosen.token)))


def _lists() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


class CompletionAnswer:
    """All that a request is answered: `push` for each token, then `last` or `whole`."""

    def __init__(self, id: str, created: int, model: str, choices: Sequence[Continuation], usage: Usage) -> None:
        self._about = {"id": id, "object": "text_completion", "created": created, "model": model}
        self._choices, self.usage = choices, usage

    def start(self) -> Iterator[dict[str, Any]]:
        """Chunks before the first token: none."""
        yield from ()

    def push(self, index: int, token: Token) -> Iterator[dict[str, Any]]:
        """Chunks."""
        choice = self._choices[index]
        self.usage.push(index, token, made=choice.made)
        if (told := choice.push(token)) is not None:
            text, logprobs, finish = told
            body = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
            yield self._about | {"choices": [body]}

    def last(self) -> dict[str, Any]:
        """The chunk that has the numbers of tokens, and no choice."""
        return self._about | {"choices": []} | self.usage.numbers()

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": each.index,
                "text": each.text,
                "logprobs": each.logprobs if each.has_logprobs else None,
                "finish_reason": each.finish_reason,
            }
            for each in self._choices
        ]
        return self._about | {"choices": choices} | self.usage.numbers()
