"""What watches the server: whether it runs, which models it has, and what it has counted."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from lapinfer.serve.encoding import Json
from lapinfer.serve.errors import ApiError
from lapinfer.serve.state import State


async def health(state: State, http: Request) -> Response:
    """GET /health: as llama-server has it; 503 while the server ends."""
    if state.draining:
        raise ApiError(503, "the server ends")
    return Json({"status": "ok"})


async def metrics(state: State, http: Request) -> Response:
    """GET /metrics, for Prometheus."""
    text = await asyncio.to_thread(state.metrics.exposition)  # meters wait for the end of a step
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def models(state: State, http: Request) -> Response:
    """GET /v1/models: all that can be asked for, loaded or not; a list of OpenAI's, and a page of Anthropic's."""
    names = list(state.models.paths)
    page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
    return Json({"object": "list", "data": [_entry(state, name) for name in names]} | page)


async def model(state: State, http: Request) -> Response:
    """GET /v1/models/NAME."""
    return Json(_entry(state, state.models.known(http.path_params["name"])))


def _entry(state: State, name: str) -> dict[str, Any]:
    loaded = {each.name: each.model for each in state.models.loaded}.get(name)
    more = {} if loaded is None else {"max_model_len": loaded.model.ctx}  # vLLM's name for it
    created = state.models.created
    openai = {"id": name, "object": "model", "created": created, "owned_by": "lapinfer"}
    moment = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    anthropic = {"type": "model", "display_name": name, "created_at": moment, "lifecycle": "active"}
    return openai | anthropic | {"loaded": loaded is not None} | more
