"""What goes wrong becomes a status and a body in the words of the protocol that was asked.

No body has a path, a host or a traceback: what a client cannot help is told on the server's stderr alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lapinfer.errors import (
    CheckpointError,
    ContextError,
    DoesNotFitError,
    InputError,
    QueueFullError,
    TemplateError,
    UnsupportedError,
)
from lapinfer.serve.encoding import Json

LOG = logging.getLogger("lapinfer.serve")
LEFT = 499
"""The status of an answer that nobody waits for any more (nginx's number); it is never sent."""
PATHS = re.compile(r"(?:(?<=[\s'\"(])|^)(?:[A-Za-z]:)?[\\/](?:[^\s'\":,()]+[\\/])+")
"""Folders that an error of the library may begin a file's name with."""
PLAIN = ("str", "int", "float", "bool")
"""Types that pydantic names in a place; no protocol here has a field that is called so."""
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
ANTHROPIC = "/v1/messages"
ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class ApiError(Exception):
    """What a client is told: an HTTP status and a message; OpenAI's `param` (the field) and `code`, where there are
    such. `headers` go with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self, path: str) -> dict[str, Any]:
        """As the protocol has it that `path` belongs to."""
        if path.startswith(ANTHROPIC):
            kind = ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = OPENAI_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def api_error(error: BaseException) -> ApiError:
    """What a client may know of an error; what it may not is logged."""
    match error:
        case ApiError():
            return error
        case ValidationError():
            return _of_fields(error)
        case QueueFullError():
            after = {"Retry-After": str(max(1, round(error.retry_after)))}
            return ApiError(429, "the server is busy: try again later", code="rate_limit_exceeded", headers=after)
        case ContextError():
            return ApiError(400, str(error), code="context_length_exceeded")
        case InputError() | UnsupportedError() | TemplateError():  # which others' messages may suit
            return ApiError(400, PATHS.sub("", str(error)))
        case HTTPException() if error.status_code == 404:
            return ApiError(404, "not found: no such path; chats are POST /v1/chat/completions, models GET /v1/models")
        case HTTPException():
            return ApiError(error.status_code, error.detail.lower(), headers=error.headers)
        case CheckpointError():
            LOG.error("%s", error)
            return ApiError(500, PATHS.sub("", str(error)))
        case DoesNotFitError() | MemoryError():
            LOG.error("%s", error)
            return ApiError(503, "there is not enough memory for this model now", headers={"Retry-After": "30"})
        case _:
            LOG.error("a request failed", exc_info=error)
            return ApiError(500, "the server failed; its log says more")


def _of_fields(error: ValidationError) -> ApiError:
    """The first field that is wrong, named as OpenAI does: messages[0].content."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    place = ""
    for part in first["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier() and part not in PLAIN:  # else the name of one of the types that a field may have
            place += f".{part}" if place else part
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{place}: {message}" if place else message, param=place or None)


def response_to(error: BaseException, path: str) -> Response:
    """The answer to a request for `path` that failed."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=LEFT)
    told = api_error(error)
    return Json(told.body(path), status_code=told.status, headers=told.headers)


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's hook for what no route has caught: pages that do not exist, methods that are not allowed."""
    return response_to(error, request.url.path)
