"""A client of any server that has OpenAI's /v1/chat/completions: asks, notes when what came, and reads it afterwards.

While answers come, their bytes are only kept: load and measured server share the cores.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

SECONDS = 600.0
"""Beyond that without a byte, an answer is lost."""
TOGETHER = 0.001
"""Seconds between texts that count as one arrival: several tokens of one step of the server."""


@dataclass(frozen=True, slots=True)
class Question:
    """kind: how results are grouped. tokens: most of the answer. leave: go away after so many pieces of it."""

    kind: str
    text: str
    tokens: int
    leave: int | None = None

    def body(self, model: str) -> dict[str, Any]:
        return {
            "model": model, "messages": [{"role": "user", "content": self.text}], "max_tokens": self.tokens,
            "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip


@dataclass(slots=True)
class Heard:
    """What came: bytes with their times (seconds of time.perf_counter), and what went wrong."""

    question: Question
    sent: float
    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None
    left: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the bytes said. arrivals: when text came, TOGETHER or more apart. lost: it ended without saying so.

    tokens, prompt_tokens: by the server's own usage, 0 where it said none.
    """

    kind: str
    text: str
    sent: float
    arrivals: Sequence[float]
    prompt_tokens: int
    tokens: int
    error: str | None
    lost: bool
    left: bool

    @property
    def first(self) -> float | None:
        """Seconds to the first text."""
        return self.arrivals[0] - self.sent if self.arrivals else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between texts."""
        return [b - a for a, b in pairwise(self.arrivals)]


class Client:
    """Asks one server. url: without /v1. Use it as an async context manager."""

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None, connections: int = 64) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # A kept connection may be closed by the server just when it is used again, which would count as its error.
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, limits=limits, timeout=SECONDS, trust_env=False
        )  # fmt: skip
        self._model = model

    async def __aenter__(self) -> Client:
        if self._model is None:
            found = await self._http.get("/v1/models")
            self._model = str(found.raise_for_status().json()["data"][0]["id"])
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    @property
    def model(self) -> str:
        assert self._model is not None, "enter the client first"
        return self._model

    async def ask(self, question: Question) -> Heard:
        """Never raises for what the server does: that is told in what it gives."""
        heard = Heard(question, time.perf_counter())
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=question.body(self.model)) as response:
                heard.status = response.status_code
                async for piece in response.aiter_raw():
                    heard.pieces.append((time.perf_counter(), piece))
                    if question.leave is not None and len(heard.pieces) >= question.leave:
                        heard.left = True
                        break
        except httpx.HTTPError as error:
            heard.error = f"{type(error).__name__}: {error}"
        return heard

    async def ask_all(self, questions: Iterable[Question], clients: int) -> list[Heard]:
        """All of them, in their order, by so many clients, each of whom asks when its last answer has ended."""
        left, heard = iter(questions), []

        async def one() -> None:
            for question in left:
                heard.append(await self.ask(question))

        await asyncio.gather(*(one() for _ in range(clients)))
        return heard

    async def prompt_tokens(self, text: str) -> int:
        """How many tokens the server counts in a prompt of this text."""
        answer = read(await self.ask(Question("count", text, 1)))
        if answer.error or not answer.prompt_tokens:
            raise SystemExit(f"{self._http.base_url}: no usage for a prompt of {len(text)} characters: {answer.error}")
        return answer.prompt_tokens


def read(heard: Heard) -> Answer:
    """The events of an answer, and whether it was whole."""
    text, arrivals, usage, finished, done, last = "", [], {}, False, False, 0.0
    error = heard.error
    for when, data in _events(heard.pieces):
        if data == "[DONE]":
            done = True
            continue
        event = json.loads(data)
        if "error" in event:
            error = error or json.dumps(event["error"])
        for choice in event.get("choices", []):
            part = choice.get("delta", {}).get("content")
            if part:
                text += part
                if not arrivals or when - last >= TOGETHER:
                    arrivals.append(when)
                last = when
            finished = finished or choice.get("finish_reason") is not None
        usage = event.get("usage") or usage
    if heard.status != 200 and error is None:
        error = f"{heard.status}: {b''.join(piece for _, piece in heard.pieces)[:300]!r}"
    tokens = usage.get("completion_tokens", 0)
    lost = error is None and not heard.left and not (finished and done and tokens)
    return Answer(
        heard.question.kind, text, heard.sent, arrivals, usage.get("prompt_tokens", 0), tokens, error, lost, heard.left
    )


def _events(pieces: Sequence[tuple[float, bytes]]) -> Iterable[tuple[float, str]]:
    """(when its end came, data) of the events in a stream."""
    rest = b""
    for when, piece in pieces:
        *whole, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield when, b"\n".join(lines).decode()
