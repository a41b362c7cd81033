"""The models of `lapinfer ls` in simonw's `llm` (https://llm.datasette.io), without a server: `llm -m lapinfer/NAME`.

`llm` imports this module at every start, and has all models registered for most of its commands: neither imports Numba
or opens a model. A model is loaded at its first prompt, and kept for the next ones of the process.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

import llm
from pydantic import AfterValidator, Field, create_model

from lapinfer.errors import InputError, LapinferError
from lapinfer.options import LoadOptions, Option, SamplingParams, declared, whole
from lapinfer.shown import shown_line

if TYPE_CHECKING:
    from llm.parts import StreamEvent

    from lapinfer.text.generation import Token
    from lapinfer.text.language_model import LanguageModel

LOADING = {name: option for name, option in declared(LoadOptions).items() if name not in ("slots", "lora")}
"""How a model is loaded; prompts follow one another here, in one slot, and an option of llm has one value."""
MAX_TOKENS = whole("Longest answer.", 1, unset="as long as the context allows")
GENERATING = {"max_tokens": (int | None, MAX_TOKENS), **declared(SamplingParams)}


def _fields(options: dict[str, tuple[Any, Option]]) -> dict[str, Any]:
    """Fields of a pydantic model: none has a default, which is the model's own."""

    def checked(option: Option) -> Callable[[Any], Any]:
        def check(value: Any) -> Any:
            if not option.accepts(value) and value is not None:
                raise ValueError(f"expected {option.expected}, got {value}")
            return value

        return check

    return {
        name: (Annotated[kind | None, AfterValidator(checked(option))], Field(default=None, description=option.help))
        for name, (kind, option) in options.items()
    }


Options: type[llm.Options] = create_model("Options", __base__=llm.Options, **_fields(GENERATING | LOADING))


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """A model for each of `lapinfer ls`; none where these cannot be listed, which is no reason to stop `llm`."""
    from lapinfer.checkpoint.hub import list_local

    try:
        found = {model.name: model.path for model in reversed(list_local())}
    except (LapinferError, OSError):
        return
    for name in reversed(found):
        register(*_models(name, found[name]))


@cache
def _models(name: str, path: str) -> tuple[Lapinfer, AsyncLapinfer]:
    """Those of a name, for this process: `llm` has models registered again whenever it looks for one."""
    loaded = Loaded(path)
    return Lapinfer(name, loaded), AsyncLapinfer(name, loaded)


class Loaded:
    """A checkpoint that is loaded when it is first used, and again where it shall be loaded otherwise."""

    def __init__(self, path: str) -> None:
        self._path, self._lock = path, Lock()
        self._model: tuple[LoadOptions, LanguageModel] | None = None

    def model(self, options: LoadOptions) -> LanguageModel:
        from lapinfer.text.language_model import open_model

        with self._lock:
            if self._model is None or self._model[0] != options:
                self._model = None  # not closed: another thread may use it
                with _progress() as progress:
                    self._model = options, open_model(self._path, options, progress)
            return self._model[1]


def _progress() -> Any:
    """What shows a terminal that a model is packed or compiled."""
    if not sys.stderr.isatty():
        return nullcontext()
    from lapinfer.cli.bars import Progress

    return Progress()


class _Model:
    """What both kinds of models are, to `llm`."""

    can_stream = supports_schema = supports_tools = True
    Options = Options

    def __init__(self, name: str, loaded: Loaded) -> None:
        self.model_id, self._loaded = f"lapinfer/{name}", loaded

    def __str__(self) -> str:
        return self.model_id

    def _events(self, prompt: llm.Prompt, response: Any) -> Iterator[StreamEvent]:
        """The answer as it grows; llm.ModelError says in a line why there is none."""
        from lapinfer.companions.llm_messages import stream_events, tool_calls

        given = {name: value for name, value in prompt.options if value is not None}
        loading = {name: given.pop(name) for name in LOADING if name in given}
        last, count = None, 0
        try:
            with _told():
                for last in _answer(self._loaded.model(LoadOptions(**loading)), prompt, given):
                    count += 1
                    for call in tool_calls(last):
                        response.add_tool_call(call)
                    yield from stream_events(last)
        finally:
            if last is not None:
                _tell_usage(response, last, count)


class Lapinfer(_Model, llm.Model):
    """A model of `lapinfer ls`."""

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[StreamEvent]:
        return self._events(prompt, response)


class AsyncLapinfer(_Model, llm.AsyncModel):
    """The same for event loops: each token is computed in a thread."""

    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.AsyncResponse, conversation: Any
    ) -> AsyncGenerator[StreamEvent, None]:
        events = self._events(prompt, response)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except LapinferError as error:
        raise llm.ModelError(shown_line(str(error))) from error


def _answer(model: LanguageModel, prompt: llm.Prompt, options: dict[str, Any]) -> Iterator[Token]:
    """Tokens of the answer to all messages; a model without a chat template goes on from their texts."""
    from lapinfer.companions.llm_messages import chat_messages, text_of, tool_schemas

    messages, options = prompt.messages, options | {"schema": prompt.schema}
    if model.template is not None:
        return model.stream_chat(
            chat_messages(messages), tools=tool_schemas(prompt.tools) if prompt.tools else None, **options
        )
    wrong = "tools" if prompt.tools else "a system prompt" if any(m.role == "system" for m in messages) else None
    if wrong is not None:
        raise InputError(f"this model has no chat template, which {wrong} needs: use another model, or leave it out")
    return model.stream("".join(map(text_of, messages)), **options)


def _tell_usage(response: Any, last: Token, count: int) -> None:
    reused = last.timings.reused_tokens
    details = {"prompt_tokens_details": {"cached_tokens": reused}} if reused else None
    response.set_usage(input=last.timings.prompt_tokens, output=count, details=details)
    response.response_json = {"finish_reason": last.finish_reason, "timings": asdict(last.timings)}
