"""What a line asks: a request of a protocol that lapinfer/serve/ has, with what the batch gives to all lines.

Sources: OpenAI's batch format (https://platform.openai.com/docs/guides/batch) and Anthropic's
(https://docs.anthropic.com/en/docs/build-with-claude/batch-processing). Besides, there are short forms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic_core import from_json

from lapinfer.arguments import described
from lapinfer.batch.lines import LONGEST, Line

CHAT, COMPLETION, EMBEDDING, RESPONSE, MESSAGE = URLS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
)  # fmt: skip
"""What a line may ask for."""
ENVELOPE = ("custom_id", "method", "url", "body")
MOST_TOKENS = {
    CHAT: ("max_tokens", "max_completion_tokens"), COMPLETION: ("max_tokens",), RESPONSE: ("max_output_tokens",),
    MESSAGE: ("max_tokens",),
}  # fmt: skip
"""What protocols call the most tokens of an answer; those that make texts."""
ALIKE = {"repetition_penalty": ("repetition_penalty", "repeat_penalty")}
"""Names that a field has besides."""
CONTENTS = ("prompt", "messages", "input", "text")
"""Of short forms: what one of them has, and only one."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What lines get that say nothing else: sampling by the names of `SamplingParams`, most tokens, a system message, a
    JSON schema of chats' answers. raw: prompts are continued as they stand, else they are what a user says, where the
    model can chat. seed: what seeds of lines without one are made of. names: others of the model that lines may use.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    system: str | None = None
    schema: Any = None
    raw: bool = False
    seed: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line asks. anthropic: its answer is told as Anthropic's batches have it."""

    custom_id: str | int | None
    url: str
    body: dict[str, Any]
    anthropic: bool = False


class LineError(Exception):
    """A line that is no request. code: in a word; param: the field."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param
        self.custom_id: str | int | None = None
        self.anthropic = False


def read(line: Line, defaults: Defaults, *, model: str, chats: bool, ctx: int) -> Asked:
    """The request of a line; LineError for one that has none. model: its name; chats, ctx: whether it can chat, and its
    positions.
    """
    if line.is_too_long:
        raise LineError("line_too_long", f"the line is longer than {LONGEST:,} bytes")
    try:
        given = from_json(line.text, allow_inf_nan=False)
    except ValueError as error:
        hint = "; a file of plain prompts is called NAME.txt" if not line.text.startswith(b"{") else ""
        raise LineError("invalid_json", f"the line is not JSON: {error}{hint}") from None
    if isinstance(given, str):
        given = {"prompt": given}
    elif isinstance(given, list):
        given = {"messages": given}
    if not isinstance(given, dict):
        raise LineError("invalid_line", f"expected an object or a text, got {described(given)}")
    custom_id = given.get("custom_id")
    if isinstance(custom_id, bool) or not isinstance(custom_id, str | int | None):
        raise LineError("invalid_line", f"custom_id: expected a text, got {described(custom_id)}", "custom_id")
    try:
        asked = _asked(given, custom_id, defaults, chats, ctx)
        if asked.body.get("stream") is True:
            raise LineError("invalid_line", "stream: a batch has whole answers; leave it out", "stream")
        _name(asked.body, model, defaults.names)
        return Asked(custom_id, asked.url, _filled(asked, line, defaults), asked.anthropic)
    except LineError as error:
        error.custom_id, error.anthropic = custom_id, "params" in given
        raise


def _asked(given: dict[str, Any], custom_id: str | int | None, defaults: Defaults, chats: bool, ctx: int) -> Asked:
    if "params" in given:
        _check_names(given, ("custom_id", "params"))
        return Asked(custom_id, MESSAGE, _object("params", given["params"]), anthropic=True)
    if given.get("method", "POST") != "POST":
        raise LineError("invalid_method", f"method: expected POST, got {described(given['method'])}", "method")
    url = given.get("url")
    if url is not None and url not in URLS:
        raise LineError("invalid_url", f"url: expected {', '.join(URLS)}, got {described(url)}", "url")
    if "body" in given:
        _check_names(given, ENVELOPE)
        body = _object("body", given["body"])
        return Asked(custom_id, url or _url_of(body), body)
    body = {name: value for name, value in given.items() if name not in ENVELOPE}
    if url is not None:
        return Asked(custom_id, url, body)
    return _short(custom_id, body, defaults, chats, ctx)


def _short(custom_id: str | int | None, body: dict[str, Any], defaults: Defaults, chats: bool, ctx: int) -> Asked:
    """A line without an envelope: what it has says what is asked."""
    if len(found := [name for name in CONTENTS if name in body]) != 1:
        got = f"got {' and '.join(found)}" if found else f"got {', '.join(list(body)[:5])[:100] or 'nothing'}"
        expected = "expected body (and url), params, or one of prompt, messages, input and text"
        raise LineError("invalid_line", f"{expected}; {got}")
    (kind,) = found
    if kind in ("input", "text"):
        return Asked(custom_id, EMBEDDING, {"input": body.pop(kind)} | body)
    if kind == "prompt" and (defaults.raw or not chats):
        return Asked(custom_id, COMPLETION, {"max_tokens": ctx if defaults.max_tokens is None else None} | body)
    if kind == "prompt":
        if not isinstance(prompt := body.pop("prompt"), str):
            raise LineError("invalid_line", f"prompt: expected a text, got {described(prompt)}", "prompt")
        body = {"messages": [{"role": "user", "content": prompt}]} | body
    if (schema := body.pop("schema", None)) is not None:
        body["response_format"] = _format(schema)
    if (system := body.pop("system", None)) is not None:
        body["messages"] = _with_system(body["messages"], system)
    return Asked(custom_id, CHAT, body)


def _url_of(body: Mapping[str, Any]) -> str:
    """Of a body whose line does not say."""
    if "messages" in body:
        return CHAT
    if "prompt" in body:
        return COMPLETION
    raise LineError("invalid_url", f"url: expected {', '.join(URLS)}, got none", "url")


def _object(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise LineError("invalid_line", f"{name}: expected an object, got {described(given)}", name)
    return given


def _check_names(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            close = get_close_matches(name[:100], known, 1)
            hint = f"; did you mean {close[0]}?" if close else f": a line has {', '.join(known)}"
            raise LineError("invalid_line", f"{name[:100]}: no such field{hint}", name[:100])


def _name(body: dict[str, Any], model: str, names: tuple[str, ...]) -> None:
    """Let a body have the name of the batch's model; LineError where it asks for another one."""
    given = body.get("model")
    if given is not None and given not in (model, *names):
        told = f"model: this batch runs {model}, not {described(given)}: leave it out, or give that name with --as"
        raise LineError("model_not_found", told, "model")
    body["model"] = model


def _filled(asked: Asked, line: Line, defaults: Defaults) -> dict[str, Any]:
    """The body with what the batch gives to all lines, where it says nothing else."""
    url, body = asked.url, asked.body
    if url not in MOST_TOKENS:
        return body
    given = {name: value for name, value in defaults.sampling.items() if name != "seed"}
    for name, value in given.items():
        if all(body.get(each) is None for each in ALIKE.get(name, (name,))):
            body[name] = value
    if defaults.max_tokens is not None and all(body.get(name) is None for name in MOST_TOKENS[url]):
        body[MOST_TOKENS[url][0]] = defaults.max_tokens
    seed = body.get("seed")
    if seed is None or (isinstance(seed, int) and seed < 0):
        body["seed"] = seed_of(line, asked.custom_id, defaults.seed)
    return _with_texts(url, body, defaults)


def _with_texts(url: str, body: dict[str, Any], defaults: Defaults) -> dict[str, Any]:
    """With the system message and the schema of the batch."""
    system, schema = defaults.system, defaults.schema
    if url == CHAT:
        if system is not None:
            body["messages"] = _with_system(body.get("messages"), system)
        if schema is not None and body.get("response_format") is None:
            body["response_format"] = _format(schema)
    elif url == RESPONSE:
        if system is not None and body.get("instructions") is None:
            body["instructions"] = system
        if schema is not None and body.get("text") is None:
            body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    elif url == MESSAGE:
        if system is not None and body.get("system") is None:
            body["system"] = system
        if schema is not None and body.get("output_config") is None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return body


def _with_system(messages: Any, system: Any) -> Any:
    """Messages that begin with one of the system: theirs, or this one."""
    if not isinstance(messages, list):
        return messages
    first = messages[0] if messages else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def seed_of(line: Line, custom_id: str | int | None, base: int) -> int:
    """What a line without a seed gets: it depends on its custom_id, or else its number, and on the batch's seed."""
    named = ("number", line.number) if custom_id is None else ("custom_id", custom_id)
    return int(_digest("seed", base, *named)[:12], 16)


def id_of(line: Line, custom_id: str | int | None) -> str:
    """24 hexadecimal digits that ids of its answer are made of."""
    return _digest("id", line.number, custom_id)[:24]


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
