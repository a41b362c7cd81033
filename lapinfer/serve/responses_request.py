"""What OpenAI's clients send to /v1/responses, as messages and options of the library.

Source: openai.types.responses.response_create_params and response_input_item_param.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lapinfer.arguments import described, json_object
from lapinfer.errors import InputError, UnsupportedError
from lapinfer.serve.errors import ApiError
from lapinfer.serve.openai_fields import Sampling
from lapinfer.serve.openai_messages import answer_options, call_of, is_begun, schema_of, text_of, tools_of
from lapinfer.serve.state import Body, Texts

LOGPROBS = "message.output_text.logprobs"
"""What `include` has where log-probabilities are wanted."""
IGNORED = ("reasoning.encrypted_content",)
"""What else it may have: nothing here is encrypted."""
ROLES = ("user", "assistant", "system", "developer")


class Reasoning(Body):
    """effort: "none" asks for no thinking. Summaries are not made: what is thought is told as it is."""

    ignored = frozenset({"summary", "generate_summary"})
    effort: str | None = None


class ResponseBody(Sampling):
    """Nothing is stored here: a talk comes whole with each request."""

    ignored = Sampling.ignored | {"max_tool_calls", "stream_options", "context_management"}
    refused: ClassVar[Mapping[str, Sequence[Any]]] = {
        **Sampling.refused, "previous_response_id": (), "conversation": (), "background": (False,), "prompt": (),
        "truncation": ("disabled",), "access_programs": (), "image": (), "background_options": (),
    }  # fmt: skip

    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    include: Texts | None = None
    top_logprobs: int | None = None

    @property
    def tells_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def known_tools(self) -> list[dict[str, Any]]:
        """Tools in the words of chats, whose functions stand in an object of their own."""
        return tools_of([_nested(tool) for tool in self.tools or []])

    def asked(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Messages, and options of `LanguageModel.chat_request` but for the seed."""
        for name in self.include or ():
            if name not in (LOGPROBS, *IGNORED):
                raise ApiError(400, f"include: this server has no {name[:100]}", param="include")
        options = self.sampling()
        if self.max_output_tokens is not None:
            options["max_tokens"] = self.max_output_tokens
        if self.tells_logprobs:
            options["logprobs"] = self.top_logprobs or True
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        messages += _messages(self.input)
        return messages, options | answer_options(
            tools=self.known_tools(), choice=self.tool_choice, continues=is_begun(messages),
            schema=schema_of("text.format", (self.text or {}).get("format")),
            effort=None if self.reasoning is None else self.reasoning.effort,
        )  # fmt: skip


def _nested(tool: Any) -> Any:
    if isinstance(tool, dict) and tool.get("type") == "function" and "function" not in tool:
        function = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
        return {"type": "function", "function": function}
    return tool


def _messages(given: str | Sequence[Any]) -> list[dict[str, Any]]:
    """Items as messages: what an assistant thinks, says and calls in a row is one."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}

    def assistant() -> dict[str, Any]:
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        return messages[-1]

    for i, item in enumerate(given):
        where = f"input[{i}]"
        match json_object(where, item).get("type", "message"):
            case "message":
                role = item.get("role")
                if role not in ROLES:
                    raise InputError(f"{where}.role: expected one of {', '.join(ROLES)}, got {described(role)}")
                text = text_of(f"{where}.content", item.get("content"))
                if role == "assistant":
                    assistant()["content"] += text
                else:
                    messages.append({"role": "system" if role == "developer" else role, "content": text})
            case "reasoning":
                thought = "".join(
                    str(part.get("text", "")) for part in item.get("content") or () if isinstance(part, dict)
                )
                if thought:
                    assistant()["reasoning_content"] = thought
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = call_of(where, {"id": item.get("call_id"), "function": function}, names)
                assistant().setdefault("tool_calls", []).append(call)
            case "function_call_output":
                id = item.get("call_id")
                if id not in names:
                    raise InputError(f"{where}.call_id: no function_call before it has the id {described(id)}")
                text = text_of(f"{where}.output", item.get("output"))
                messages.append({"role": "tool", "tool_call_id": id, "name": names[id], "content": text})
            case other:
                raise UnsupportedError(f"{where}.type: this server cannot read items of type {described(other)}")
    return messages
