"""Generation: a prompt's token ids in, one event per token out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from lapinfer.arguments import texts, whole, whole_numbers
from lapinfer.errors import ContextError, InputError
from lapinfer.text.channels import Part, Splitter, calls_of, of_kind
from lapinfer.text.decoding import Conversation, Decoding, Piece
from lapinfer.text.generation_config import Bans
from lapinfer.text.grammar import BytesDecoder, Constraint, Grammar, Grammars
from lapinfer.text.likelihood import Chosen, Top, alternatives
from lapinfer.text.sampling import Sampler, SamplingParams
from lapinfer.text.scoring import PromptScores
from lapinfer.text.speculation import Speculating, Speculation
from lapinfer.text.tokenizer import StreamDecoder, Tokenizer
from lapinfer.text.tool_calls import ToolCall
from lapinfer.text.touched import Touched

if TYPE_CHECKING:
    from lapinfer.model import Logits, Model

FinishReason = Literal["stop", "length", "stop_string"]


@dataclass(frozen=True, slots=True)
class Timings:
    """How long it took up to this token; all from one clock, the sampling of tokens included.

    prompt_tokens: tokens of the prompt, of which `reused_tokens` were not read: a slot, memory or a file had them.
    ttft_ms: from the call to the first token. prompt_per_second: newly read prompt tokens over that time.
    tokens_per_second: tokens after the first, over the time since it; 0 at the first.
    steps: how many the model has run, all of the prompt's as one. drafted_tokens: those that were guessed and checked
    in steps with others (text/speculation.py), of which `kept_tokens` were right: as many steps were spared.
    """

    prompt_tokens: int
    reused_tokens: int
    ttft_ms: float
    prompt_per_second: float
    tokens_per_second: float
    steps: int = 0
    drafted_tokens: int = 0
    kept_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    text: what became certain with it: maybe nothing (half a character, or what may begin a stop string),
    maybe more than its own text; the texts of all events make the whole answer.
    logprob: its log-probability under the model's own logits (temperature 1, nothing filtered), where it was asked for.
    top: the most likely tokens by the same logits, as many as were asked for: (id, log-probability), most likely first,
    equal ones by id. The token itself may be none of them.
    finish_reason: None, but at the last token "stop" (it ends the answer; it has no text of its own),
    "length" (max_tokens, or the context is full) or "stop_string" (which is not part of the text).
    thinking: what became certain with it of what the model says before its answer, in a chat; it is not part of `text`.
    tool_calls: those that became certain with it, in a chat with tools; nor are they part of `text`.
    stop_string: the one that was met, where finish_reason is "stop_string".
    prompt: with the first token, the prompt's own, where they were asked for (`prompt_logprobs`); else nothing.
    touched: what its steps read, at the last token of an answer whose steps may be shared with others.
    """

    text: str
    token: int
    logprob: float | None
    finish_reason: FinishReason | None
    timings: Timings
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop_string: str | None = None
    top: Top = ()
    prompt: tuple[Chosen, ...] = ()
    touched: Touched | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be generated, checked: see `request`."""

    model: Model
    tokenizer: Tokenizer | None
    prompt: list[int]
    params: SamplingParams
    limit: int
    stop: list[str]
    bans: Bans | None
    thinks: Splitter | None
    logprobs: int | None
    constraint: Constraint | None = None
    prompt_logprobs: int | None = None

    def begin(self, slot: int, conversation: Conversation, speculation: Speculation | None = None) -> Generation:
        """A generation in a slot, with a sampler of its own.

        `conversation` lets a prompt that begins like the last one in this slot reuse its KV cache; it must be the same
        object for every generation in this slot. `speculation` lets steps run tokens that are guessed, too; no token
        depends on it.
        """
        ends = frozenset() if self.tokenizer is None else self.tokenizer.eos_ids

        def banned(so_far: Sequence[int]) -> Sequence[int]:
            return () if self.bans is None else self.bans.after(so_far, len(self.prompt), ends)

        sampler = Sampler(self.params, self.logprobs)
        scores = None if self.prompt_logprobs is None else PromptScores(self.prompt, self.prompt_logprobs)
        asked = self.model, slot, conversation, self.prompt, sampler, banned
        if self.tokenizer is not None and self.constraint is not None:
            # Nothing is guessed: guesses know nothing of the grammar, and most of them would be forbidden.
            decoding = Decoding(*asked, self.constraint, scores)
            told = _Told(BytesDecoder(self.tokenizer.token_bytes))
        else:
            if speculation is None or scores is not None:
                decoding = Decoding(*asked, scores=scores)
            else:
                decoding = Speculating(speculation, *asked, ends=ends, limit=self.limit)
            told = _Told.by_tokenizer(self.tokenizer, self.prompt, deepcopy(self.thinks))
        return Generation(decoding, ends, self.limit, told, _HeldText(self.stop))


def request(
    model: Model,
    tokenizer: Tokenizer | None,
    ids: Sequence[int],
    params: SamplingParams | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    bans: Bans | None = None,
    thinks: Splitter | None = None,
    logprobs: bool | int = False,
    grammar: tuple[Grammars, Grammar] | None = None,
    prompt_logprobs: bool | int = False,
) -> Request:
    """Generate after the prompt `ids`; an empty one becomes BOS where the tokenizer has it.

    Ends at an end-of-answer token, a stop string, after max_tokens, or when the context is full. `bans` are tokens that
    are not chosen. `thinks` tells thinking and calls from the answer, in which alone stop strings are looked for.
    `logprobs`: tell log-probabilities, which takes all logits; a number: those of so many of the most likely tokens,
    too, at most 20. `prompt_logprobs`: the same of the prompt's tokens. `grammar`: what the answer keeps to, over this
    model's tokens: all of it is answer, no thinking and no calls. Without a tokenizer the texts are empty and only
    max_tokens or the context ends the generation. InputError for what cannot be generated.
    """
    ids = whole_numbers("ids", ids)
    if not ids and tokenizer is not None and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id]
    prompt = checked_ids(ids, model.spec.vocab)
    if len(prompt) > model.ctx:
        raise ContextError(
            f"the prompt has {len(prompt)} tokens, but the context holds {model.ctx}: "
            f"give it at least {len(prompt) + 1} with -c (or ctx=), or shorten the prompt"
        )
    if max_tokens is not None:
        whole("max_tokens", max_tokens, 1)
    stop = texts("stop", stop)
    if stop and tokenizer is None:
        raise InputError("stop strings need a tokenizer, and this checkpoint has none")
    limit = model.ctx - len(prompt) + 1
    limit = limit if max_tokens is None else min(limit, max_tokens)
    constraint = None if grammar is None else grammar[0].constraint(grammar[1], len(prompt))
    params = params or SamplingParams()
    told, of_prompt = alternatives("logprobs", logprobs), alternatives("prompt_logprobs", prompt_logprobs)
    return Request(model, tokenizer, prompt, params, limit, stop, bans, thinks, told, constraint, of_prompt)


def stream(
    model: Model,
    tokenizer: Tokenizer | None,
    ids: Sequence[int],
    params: SamplingParams | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    slot: int = 0,
    conversation: Conversation | None = None,
    bans: Bans | None = None,
    thinks: Splitter | None = None,
    speculation: Speculation | None = None,
    logprobs: bool | int = False,
) -> Iterator[Token]:
    """The events of one request (`request`, `Request.begin`), run by itself.

    Two generations that take turns in one slot stay right, but read their tokens again at every turn.
    """
    asked = request(model, tokenizer, ids, params, max_tokens, stop, bans, thinks, logprobs)
    slot = whole("slot", slot, 0, model.slots - 1)
    return asked.begin(slot, conversation or Conversation(), speculation).events()


def checked_ids(ids: Sequence[int], vocab: int) -> list[int]:
    """Token ids as plain integers; InputError when there are none, or one the model does not have."""
    checked = whole_numbers("ids", ids)
    if not checked:
        raise InputError("the prompt is empty, and this model has no token to begin with (BOS)")
    for index, id in enumerate(checked):
        if not 0 <= id < vocab:
            raise InputError(f"token {index} of the prompt is {id}, but the model's ids go from 0 to {vocab - 1}")
    return checked


class Generation:
    """Tokens that `decoding` chooses become events, until one says that it is the last. started: when it was asked for,
    from which the first one's time is told.
    """

    def __init__(self, decoding: Decoding, ends: frozenset[int], limit: int, told: _Told, held_back: _HeldText) -> None:
        self.decoding, self.finished = decoding, False
        self._ends, self._limit, self._told, self._held_back = ends, limit, told, held_back
        self._prompt, self._count = len(decoding.ids), 0
        self.started, self._first, self._ttft = time.perf_counter(), 0.0, 0.0

    def events(self) -> Iterator[Token]:
        """All events, each after the step of the model that it needs."""
        self.started = time.perf_counter()
        while not self.finished:
            yield self.push(self.decoding.next())

    # ---- in steps that are shared with others (text/shared_steps.py) ----

    @property
    def decodes(self) -> bool:
        """Whether its prompt was read."""
        return self.decoding.steps > 0

    @property
    def reused(self) -> int:
        """How many of its prompt's tokens were not read, as they were in the cache."""
        return self.decoding.reused

    def due(self, most: int, most_wanted: int) -> Piece:
        """What it reads next."""
        return self.decoding.due(most, most_wanted)

    @property
    def guesser(self) -> Speculating | None:
        """What guesses its tokens, if anything does."""
        return self.decoding if isinstance(self.decoding, Speculating) else None

    def needed(self, piece: Piece) -> int | None:
        """How many of the largest logits are needed after it; None: all."""
        return self.decoding.needed(piece.guesses)

    def bits(self) -> np.ndarray | None:
        """Which ids may come next, as in `model.Allowed`."""
        return self.decoding.bits()

    def ran(self, piece: Piece, logits: Logits, row: int) -> list[Token]:
        """The events after a step that read what was due; the logits that it wanted are those from `row` on."""
        self.decoding.ran(piece, logits, row)
        if not piece.complete:
            return []
        return self._pushed(self.decoding.checked(logits, row + piece.wanted - 1, piece.guesses))

    @property
    def can_guess(self) -> bool:
        """Whether `several` may bring more than a token: its slot has all that is to be read but the last one."""
        return self.guesser is not None and self.decodes and self.guesser.position == len(self.guesser.ids) - 1

    def several(self) -> list[Token]:
        """The events of a step with guesses that is shared with nobody; the model's lock is held."""
        return [] if self.guesser is None else self._pushed(self.guesser.several())

    def _pushed(self, chosen: Sequence[Chosen]) -> list[Token]:
        """The events of tokens, up to the one that is the last."""
        events: list[Token] = []
        for each in chosen:
            if not self.finished:
                events.append(self.push(each))
        return events

    def push(self, chosen: Chosen) -> Token:
        """The event of the token that was chosen."""
        token = chosen.token
        decoding, now, count = self.decoding, time.perf_counter(), self._count + 1
        self._count = count
        if count == 1:
            self._first, self._ttft = now, now - self.started
        text, finish, hit, parts = "", None, None, []
        if token in self._ends:
            finish = "stop"
        else:
            parts = self._told.push(token)
            text, hit = self._held_back.push(of_kind(parts, "answer"))
            finish = "stop_string" if hit else "length" if count == self._limit else None
        if finish in ("stop", "length"):
            last = self._told.flush()
            rest, hit = self._held_back.push(of_kind(last, "answer"))
            text += rest if hit else rest + self._held_back.text
            parts = [*parts, *last]
            finish = "stop_string" if hit else finish
        self.finished = finish is not None
        since = now - self._first
        timings = Timings(
            prompt_tokens=self._prompt,
            reused_tokens=decoding.reused,
            ttft_ms=self._ttft * 1e3,
            prompt_per_second=(self._prompt - decoding.reused) / max(self._ttft, 1e-9),
            tokens_per_second=(count - 1) / since if count > 1 and since > 0 else 0.0,
            steps=decoding.steps,
            drafted_tokens=decoding.drafted,
            kept_tokens=decoding.kept,
        )
        thinking, calls = of_kind(parts, "thinking"), calls_of(parts)
        scores = decoding.scores
        prompt = tuple(scores.found) if scores is not None and count == 1 else ()
        return Token(text, token, chosen.logprob, finish, timings, thinking, calls, hit, chosen.top, prompt)


class _Told:
    """Tokens to parts of the answer, each what has become certain."""

    def __init__(self, decoder: StreamDecoder | BytesDecoder | None, thinks: Splitter | None = None) -> None:
        self._decoder, self._thinks = decoder, thinks

    @classmethod
    def by_tokenizer(cls, tokenizer: Tokenizer | None, prompt: Sequence[int], thinks: Splitter | None) -> _Told:
        shown = {} if tokenizer is None or thinks is None else tokenizer.special_among(thinks.markers)
        return cls(None if tokenizer is None else StreamDecoder(tokenizer, prompt, shown), thinks)

    def push(self, token: int) -> list[Part]:
        text = "" if self._decoder is None else self._decoder.push(token)
        return [Part("answer", text)] if self._thinks is None else self._thinks.push(text)

    def flush(self) -> list[Part]:
        text = "" if self._decoder is None else self._decoder.flush()
        return [Part("answer", text)] if self._thinks is None else self._thinks.push(text) + self._thinks.flush()


class _HeldText:
    """Text that may be the beginning of a stop string is held back until that is decided."""

    def __init__(self, stop: list[str]) -> None:
        self._stop = stop
        self.text = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is certain, the stop string that was met, before which it ends, or None)."""
        text = self.text + text
        matches = [(start, s) for s in self._stop if (start := text.find(s)) >= 0]
        if matches:
            self.text = ""
            start, hit = min(matches, key=lambda match: match[0])
            return text[:start], hit
        ends = ((s, n) for s in self._stop for n in range(1, min(len(s), len(text) + 1)))
        undecided = max((n for s, n in ends if text.endswith(s[:n])), default=0)
        self.text = text[len(text) - undecided :]
        return text[: len(text) - undecided], None
