"""The application: routes, and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lapinfer.options import ServeOptions
from lapinfer.serve import anthropic, chat, completions, embeddings, responses, status, tokens
from lapinfer.serve.errors import handle
from lapinfer.serve.limits import Guard, is_local
from lapinfer.serve.page import page
from lapinfer.serve.state import Endpoint, State, route

ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/", page),
    ("GET", "/health", status.health),
    ("GET", "/metrics", status.metrics),
    ("GET", "/v1/models", status.models),
    ("GET", "/v1/models/{name:path}", status.model),
    ("POST", "/v1/messages", anthropic.messages),
    ("POST", "/v1/messages/count_tokens", anthropic.count_tokens),
    ("POST", "/v1/chat/completions", chat.completions),
    ("POST", "/v1/completions", completions.completions),
    ("POST", "/v1/embeddings", embeddings.embeddings),
    ("POST", "/v1/responses", responses.responses),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("GET", "/tokenizer_info", tokens.info),
)


def application(state: State, *, guarded: bool = True) -> Starlette:
    """What uvicorn runs; at its end, models are closed after the requests that they have.

    guarded: False where another process has checked requests as `guards` does.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await state.models.close()

    state.metrics.watch(state.models.counted)
    app = Starlette(
        routes=[route(state, *each) for each in ROUTES],
        middleware=guards(state.options) if guarded else [],
        exception_handlers={HTTPException: handle, Exception: handle},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # what it would tell has the Host that a client sent
    return app


def guards(options: ServeOptions) -> list[Middleware]:
    """What stands before an application: who may ask, and what browsers are told of that."""
    guard = Middleware(Guard, key=options.api_key, cors=options.cors, local=is_local(options.host))
    if not options.cors:
        return [guard]
    allowed = {"allow_origins": options.cors, "allow_methods": ["*"], "allow_headers": ["*"]}
    return [Middleware(CORSMiddleware, **allowed), guard]
