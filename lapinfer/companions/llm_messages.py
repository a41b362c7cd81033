"""What `llm` calls messages, tools and events, in the words of `LanguageModel.chat`, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import llm
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart

from lapinfer.text.generation import Token


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as chat templates get it: one message for each of `llm`'s, and for each result of a tool."""
    return [made for message in messages for made in _messages(message)]


def _messages(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        for part in message.parts:
            if isinstance(part, ToolResultPart):
                yield {"role": "tool", "tool_call_id": part.tool_call_id, "name": part.name, "content": part.output}
        return
    calls = [
        {"type": "function", "id": part.tool_call_id, "function": {"name": part.name, "arguments": part.arguments}}
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    thinking = "".join(part.text for part in message.parts if isinstance(part, ReasoningPart))
    yield {
        "role": message.role,
        "content": text_of(message),
        **({"tool_calls": calls} if calls else {}),
        **({"reasoning_content": thinking} if thinking else {}),
    }


def text_of(message: Message) -> str:
    """What a message says, without thinking and calls."""
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def tool_schemas(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Tools as JSON schemas in OpenAI's form."""
    described = ((tool.name, tool.description or "", tool.input_schema or {"type": "object"}) for tool in tools)
    return [
        {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
        for name, description, schema in described
    ]


def stream_events(token: Token) -> Iterator[StreamEvent]:
    """What became certain with a token; its calls, too, for those who watch (`tool_calls`: for who runs them)."""
    if token.thinking:
        yield StreamEvent(type="reasoning", chunk=token.thinking)
    if token.text:
        yield StreamEvent(type="text", chunk=token.text)
    for call in token.tool_calls:
        yield StreamEvent(type="tool_call_name", chunk=call.name, tool_call_id=call.id)
        yield StreamEvent(type="tool_call_args", chunk=call.arguments, tool_call_id=call.id)


def tool_calls(token: Token) -> list[llm.ToolCall]:
    """Calls that became certain with a token."""
    return [llm.ToolCall(call.name, json.loads(call.arguments), call.id) for call in token.tool_calls]
