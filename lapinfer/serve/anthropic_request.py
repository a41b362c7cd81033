"""What Anthropic's clients send to /v1/messages, as our messages and options.

Source: Anthropic's Messages API, as the types of its Python client have it (anthropic.types.message_create_params).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lapinfer.arguments import described, flag, json_list, json_object, texts, whole
from lapinfer.errors import InputError, UnsupportedError
from lapinfer.serve.errors import ApiError
from lapinfer.serve.forced_calls import call_schema
from lapinfer.serve.limits import check_stops

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
"""Sampling parameters that go through as they are; the last two are ours."""
IGNORED = (
    "metadata", "service_tier", "cache_control", "inference_geo", "diagnostics", "speed", "user_profile_id",
    "workspace_id", "context_management", "compaction", "container", "betas", "billing_policy", "fallbacks",
    "fallback_credit_token",
)  # fmt: skip
"""What changes no answer here."""
KNOWN = (
    "model", "messages", "max_tokens", "system", "stop_sequences", "stream", "thinking", "tools", "tool_choice",
    "output_config", *SAMPLING, *IGNORED,
)  # fmt: skip
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""What templates that know efforts know, by Anthropic's."""
BETWEEN_TEXTS = "\n\n"
"""Between blocks of text that a user or the system gives: they are paragraphs of their own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the library takes it: `LanguageModel.chat_request(messages, **options)`.

    stop: the client's own stop sequences. max_tokens: None where none was given (counting tokens needs none).
    forced: a call must be made: the answer is an object that says it (`call_schema`), and nothing else. single: of
    several calls, the first alone.
    """

    model: str
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    stop: tuple[str, ...]
    max_tokens: int | None
    stream: bool
    forced: bool = False
    single: bool = False


class NoThreadsError(ApiError):
    """A conversation that the server shall keep: clients that are told so in these words send all of it instead."""

    def __init__(self) -> None:
        super().__init__(400, "thread: this server keeps no conversations: send all messages")

    def body(self, path: str) -> dict[str, Any]:
        told = super().body(path)
        told["error"]["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
        return told


def asked(body: Any, *, counting: bool = False) -> Asked:
    """A body of /v1/messages, or of /v1/messages/count_tokens, which has no max_tokens.

    InputError names the field that is wrong; UnsupportedError for images and whatever else no model here can take;
    ApiError for threads.
    """
    given = json_object("body", body)
    if given.get("thread") is not None:
        raise NoThreadsError
    for name, value in given.items():
        if name not in KNOWN and value not in (None, [], {}):
            raise InputError(f"{name}: this server knows no such field")
    model = _text("model", given.get("model"))
    messages = _system("system", given.get("system")) + _messages(given.get("messages"))
    options: dict[str, Any] = {name: given[name] for name in SAMPLING if given.get(name) is not None}
    max_tokens = given.get("max_tokens")
    if max_tokens is not None or not counting:
        options["max_tokens"] = max_tokens = whole("max_tokens", max_tokens, 1)
    stop = tuple(texts("stop_sequences", given.get("stop_sequences") or ()))
    check_stops("stop_sequences", stop)
    if stop:
        options["stop"] = stop
    output = {} if (output := given.get("output_config")) is None else json_object("output_config", output)
    options |= _template(given.get("thinking"), output.get("effort"))
    tools = [_tool(f"tools[{i}]", tool) for i, tool in enumerate(json_list("tools", given.get("tools") or []))]
    choice, single = _choice(given.get("tool_choice"), [tool["function"]["name"] for tool in tools])
    schema = _output_schema(output.get("format"))
    if tools and choice != ():
        options["tools"] = tools
    if choice:
        if schema is not None:
            raise InputError("tool_choice: a tool's call is forced, so output_config.format cannot be kept to as well")
        forced = frozenset(choice)
        schema = call_schema([tool for tool in tools if tool["function"]["name"] in forced])
    if schema is not None:
        options["schema"] = schema
    if messages[-1]["role"] == "assistant":
        if messages[-1].get("tool_calls"):
            raise InputError("messages: the last one has a tool_use block, and no tool_result follows")
        options["continue_final_message"] = True
    stream = flag("stream", given.get("stream", False))
    return Asked(model, messages, options, stop, max_tokens, stream, forced=bool(choice), single=single)


def _system(where: str, given: Any) -> list[dict[str, Any]]:
    text = "" if given is None else _plain_text(where, given)
    return [{"role": "system", "content": text}] if text else []


def _messages(given: Any) -> list[dict[str, Any]]:
    """Neighbours of one role are one turn, as Anthropic has it, so that templates that want turns to alternate do."""
    turns: list[tuple[str, list[tuple[str, Mapping[str, Any]]]]] = []
    for i, item in enumerate(json_list("messages", given)):
        where = f"messages[{i}]"
        message = json_object(where, item)
        role = message.get("role")
        if role not in ("user", "assistant", "system"):
            raise InputError(f"{where}.role: expected 'user' or 'assistant', got {described(role)}")
        blocks = _blocks(f"{where}.content", message.get("content"))
        if not blocks and role != "assistant":
            raise InputError(f"{where}.content: expected at least one block, got an empty list")
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if not turns:
        raise InputError("messages: expected at least one, got an empty list")
    names: dict[str, str] = {}
    messages: list[dict[str, Any]] = []
    for role, blocks in turns:
        if role == "assistant":
            messages.append(_said(blocks, names))
        elif role == "system":
            messages += [{"role": "system", "content": BETWEEN_TEXTS.join(_document(*block) for block in blocks)}]
        else:
            messages += _heard(blocks, names)
    return messages


def _blocks(where: str, content: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The content blocks of a message, each with its place."""
    if isinstance(content, str):
        return [(where, {"type": "text", "text": content})]
    if not isinstance(content, list):
        raise InputError(f"{where}: expected text or a list of blocks, got {described(content)}")
    return [(f"{where}[{i}]", json_object(f"{where}[{i}]", block)) for i, block in enumerate(content)]


def _said(blocks: Sequence[tuple[str, Mapping[str, Any]]], names: dict[str, str]) -> dict[str, Any]:
    """An assistant's turn; `names` learns the tools of its calls by their ids."""
    text, thinking, calls = "", "", []
    for where, block in blocks:
        match block.get("type"):
            case "text":
                text += _text(f"{where}.text", block.get("text"), empty=True)
            case "thinking":
                thinking += _text(f"{where}.thinking", block.get("thinking"), empty=True)
            case "redacted_thinking":
                pass  # only Anthropic's models can read it
            case "tool_use":
                id, name = _text(f"{where}.id", block.get("id")), _text(f"{where}.name", block.get("name"))
                names[id] = name
                function = {"name": name, "arguments": dict(json_object(f"{where}.input", block.get("input")))}
                calls.append({"id": id, "type": "function", "function": function})
            case other:
                raise _unknown(where, other, "an assistant's message")
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message


def _heard(blocks: Sequence[tuple[str, Mapping[str, Any]]], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A user's turn: results of tools are messages of their own."""
    spoken: list[str] = []
    for where, block in blocks:
        if block.get("type") != "tool_result":
            spoken.append(_document(where, block))
            continue
        id = _text(f"{where}.tool_use_id", block.get("tool_use_id"))
        if id not in names:
            raise InputError(f"{where}.tool_use_id: no tool_use block before it has the id {id[:80]!r}")
        result = "" if block.get("content") is None else _plain_text(f"{where}.content", block["content"])
        if block.get("is_error"):
            result = f"Error: {result}"
        yield {"role": "tool", "tool_call_id": id, "name": names[id], "content": result}
    if spoken:
        yield {"role": "user", "content": BETWEEN_TEXTS.join(spoken)}


def _plain_text(where: str, content: Any) -> str:
    return BETWEEN_TEXTS.join(_document(*block) for block in _blocks(where, content))


def _document(where: str, block: Mapping[str, Any]) -> str:
    """The text of a block of text, or of a document that is plain text."""
    kind = block.get("type")
    if kind == "text":
        return _text(f"{where}.text", block.get("text"), empty=True)
    source = block.get("source")
    if kind == "document" and isinstance(source, Mapping) and source.get("type") == "text":
        return _text(f"{where}.source.data", source.get("data"), empty=True)
    raise _unknown(where, kind, "this place")


def _unknown(where: str, kind: Any, place: str) -> Exception:
    if kind in ("image", "document", "search_result", "container_upload"):
        return UnsupportedError(f"{where}: models here read text alone, not a block of type {kind!r}")
    return InputError(f"{where}.type: {place} has no blocks of type {described(kind)}")


def _template(thinking: Any, effort: Any) -> dict[str, Any]:
    """What templates are told: nothing where nothing was asked for. A budget is not kept to."""
    variables: dict[str, Any] = {}
    if thinking is not None:
        kind = json_object("thinking", thinking).get("type")
        if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
            raise InputError(f"thinking.type: expected 'enabled', 'adaptive' or 'disabled', got {described(kind)}")
        variables["enable_thinking"] = kind != "disabled"
    if effort is not None:
        if not isinstance(effort, str) or effort not in EFFORTS:
            raise InputError(f"output_config.effort: expected one of {', '.join(EFFORTS)}, got {described(effort)}")
        variables["reasoning_effort"] = EFFORTS[effort]
    return {"template_kwargs": variables} if variables else {}


def _tool(where: str, given: Any) -> dict[str, Any]:
    tool = json_object(where, given)
    if tool.get("type") not in (None, "custom"):
        raise UnsupportedError(f"{where}: {described(tool['type'])} is a tool of Anthropic's own servers")
    function = {
        "name": _text(f"{where}.name", tool.get("name")),
        "description": _text(f"{where}.description", tool.get("description") or "", empty=True),
        "parameters": dict(json_object(f"{where}.input_schema", tool.get("input_schema"))),
    }
    return {"type": "function", "function": function}


def _choice(given: Any, names: Sequence[str]) -> tuple[tuple[str, ...] | None, bool]:
    """The tools of which one must be called, () where none may be, None where the model decides; whether only one."""
    if given is None:
        return None, False
    choice = json_object("tool_choice", given)
    single = flag("tool_choice.disable_parallel_tool_use", choice.get("disable_parallel_tool_use", False))
    match choice.get("type"):
        case "auto":
            return None, single
        case "none":
            return (), single
        case "any":
            if not names:
                raise InputError("tool_choice: a tool must be called, but tools has none")
            return tuple(names), single
        case "tool":
            if (name := choice.get("name")) not in names:
                raise InputError(f"tool_choice.name: no tool is called {described(name)}")
            return (str(name),), single
        case other:
            raise InputError(f"tool_choice.type: expected 'auto', 'any', 'tool' or 'none', got {described(other)}")


def _output_schema(format: Any) -> Any:
    if format is None:
        return None
    kind = json_object("output_config.format", format).get("type")
    if kind != "json_schema":
        raise InputError(f"output_config.format.type: expected 'json_schema', got {described(kind)}")
    return dict(json_object("output_config.format.schema", format.get("schema")))


def _text(where: str, value: Any, empty: bool = False) -> str:
    if isinstance(value, str) and (value or empty):
        return value
    raise InputError(f"{where}: expected text, got {described(value)}")
