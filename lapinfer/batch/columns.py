"""Columns that a table of answers has: what is wanted most of a record, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import from_json

from lapinfer.serve.encoding import encoded

VECTORS = b'"object":"embedding"'
"""What records of embeddings have, and texts of others cannot, whose quotes are escaped."""


class Columns:
    """What a table has of a batch: answer, finish_reason and the whole response where there are texts, embedding where
    there are vectors, and error. A response of one vector is not kept besides.
    """

    def __init__(self, records: Iterable[tuple[int, bytes]]) -> None:
        """records: those of the batch, to see what they have."""
        self._vectors = self._texts = False
        for _, record in records:
            has = VECTORS in record
            self._vectors, self._texts = self._vectors or has, self._texts or not has
            if self._vectors and self._texts:
                break

    def kinds(self) -> dict[str, str]:
        """Names, and what they hold: text, count or vector."""
        texts = {"answer": "text", "finish_reason": "text"} if self._texts or not self._vectors else {}
        vectors = {"embedding": "vector"} if self._vectors else {}
        return texts | vectors | {
            "prompt_tokens": "count", "completion_tokens": "count", "response": "text", "error": "text",
        }  # fmt: skip

    def about(self, record: bytes) -> tuple[int, str | None]:
        """The number of the line, and its custom_id."""
        value = from_json(record)
        named = value["custom_id"]
        return value["line"], None if named is None else str(named)

    def of(self, records: Sequence[bytes | None]) -> dict[str, list[Any]]:
        """Values by name, of some records; None: of a row that asked nothing."""
        rows = [{} if record is None else _row(from_json(record)) for record in records]
        return {name: [row.get(name) for row in rows] for name in self.kinds()}


def error_of(record: bytes) -> str:
    """What a record says of an error; nothing where it is an answer."""
    return _row(from_json(record)).get("error", "")


def _row(record: dict[str, Any]) -> dict[str, Any]:
    if "result" in record:
        result = record["result"]
        body = result.get("message") or result.get("error")
    elif record["response"] is None:
        return {"error": record["error"]["message"]}
    else:
        body = record["response"]["body"]
    if "error" in body and isinstance(body["error"], dict):
        return {"error": body["error"]["message"], "response": _json(body)}
    usage = body.get("usage") or {}
    row = {
        "prompt_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
        "completion_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
    }
    data = body.get("data")
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0]["embedding"], list):
        return row | {"embedding": data[0]["embedding"]}
    text, reason = _answer(body)
    return row | {"answer": text, "finish_reason": reason, "response": _json(body)}


def _json(value: Any) -> str:
    return encoded(value).decode()


def _answer(body: dict[str, Any]) -> tuple[str | None, str | None]:
    """The text, and why it ended, in the words of each protocol; of several choices, the first."""
    match body:
        case {"choices": [{"message": {"content": content}, "finish_reason": reason}, *_]}:
            return content, reason
        case {"choices": [{"text": content, "finish_reason": reason}, *_]}:
            return content, reason
        case {"output": [*items]}:
            parts = (part for item in items if item.get("type") == "message" for part in item["content"])
            reason = (body.get("incomplete_details") or {}).get("reason") or body.get("status")
            return "".join(part.get("text", "") for part in parts), reason
        case {"type": "message", "content": [*blocks]}:
            return "".join(block["text"] for block in blocks if block["type"] == "text"), body.get("stop_reason")
        case _:
            return None, None
