"""Answers of a batch as they are written: a record for each line.

OpenAI's form: {"line", "id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}, with a response
for every line that was a request, and else an error; `line` is ours. Anthropic's, for lines in its form: {"line",
"custom_id", "result"}. Equal lines have equal records, to the byte: ids follow from the line, and times are 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from lapinfer.batch.lines import Line
from lapinfer.batch.requests import Asked, LineError, id_of
from lapinfer.serve.encoding import encoded
from lapinfer.serve.marks import Marks


@dataclass(frozen=True, slots=True)
class Answered:
    """A line that is done: its number and digest, its record (JSON on one line, without an end), and figures.

    read, made: tokens of prompts and of answers. failed: the record tells of an error. named: 64 bits of a digest of
    its custom_id; 0: it has none.
    """

    number: int
    digest: int
    record: bytes
    failed: bool
    read: int = 0
    made: int = 0
    named: int = 0


def marks(line: Line, asked: Asked) -> Marks:
    """What of an answer does not follow from what is asked, here of the line alone."""
    return Marks(id_of(line, asked.custom_id), created=0, tells_work=False)


def answered(line: Line, asked: Asked, status: int, body: bytes) -> Answered:
    """The record of what an endpoint has answered."""
    id, failed = id_of(line, asked.custom_id), status >= 400
    value = from_json(body)
    about: dict[str, Any] = {"line": line.number}
    if asked.anthropic:
        kind, name = ("errored", "error") if failed else ("succeeded", "message")
        about |= {"custom_id": asked.custom_id}
        record = _spliced(about, b'"result":', encoded({"type": kind}), name, body)
    else:
        about |= {"id": f"batch_req_{id}", "custom_id": asked.custom_id}
        response = encoded({"status_code": status, "request_id": f"req_{id}"})
        record = _spliced(about, b'"response":', response, "body", body)[:-1] + b',"error":null}'
    read, made = _tokens(value.get("usage"))
    return Answered(line.number, line.digest, record, failed, read, made, _named(asked.custom_id))


def refused(line: Line, error: LineError) -> Answered:
    """The record of a line that was no request."""
    if error.anthropic:
        body = {"type": "error", "error": {"type": "invalid_request_error", "message": error.message}}
        result = {"type": "errored", "error": body}
        record = encoded({"line": line.number, "custom_id": error.custom_id, "result": result})
        return Answered(line.number, line.digest, record, True, named=_named(error.custom_id))
    told = {"code": error.code, "message": error.message, "param": error.param, "line": line.number}
    about = {"line": line.number, "id": f"batch_req_{id_of(line, error.custom_id)}", "custom_id": error.custom_id}
    record = encoded(about | {"response": None, "error": told})
    return Answered(line.number, line.digest, record, True, named=_named(error.custom_id))


def _spliced(about: Mapping[str, Any], field: bytes, outer: bytes, name: str, body: bytes) -> bytes:
    """{about…, field: {outer…, name: body}}: a body is put in as it stands."""
    return encoded(about)[:-1] + b"," + field + outer[:-1] + b"," + encoded(name) + b":" + body + b"}}"


def _tokens(usage: Any) -> tuple[int, int]:
    """Those that were read and made, in the words of the protocols."""
    given = usage if isinstance(usage, dict) else {}
    read = given.get("prompt_tokens", given.get("input_tokens", 0))
    return read, given.get("completion_tokens", given.get("output_tokens", 0))


def _named(custom_id: str | int | None) -> int:
    if custom_id is None:
        return 0
    return int.from_bytes(hashlib.sha256(repr(custom_id).encode("utf-8", "surrogatepass")).digest()[:8], "big")
