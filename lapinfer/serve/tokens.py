"""/tokenize and /detokenize, as llama-server has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lapinfer.errors import UnsupportedError
from lapinfer.serve.answers import prepared
from lapinfer.serve.models import Served
from lapinfer.serve.state import Body, State
from lapinfer.text.generation import checked_ids
from lapinfer.text.tokenizer import Tokenizer, why_none


class TokenizeBody(Body):
    """add_special: what the model expects around a text. with_pieces: tell what each token is."""

    refused: ClassVar[Mapping[str, Sequence[Any]]] = {"parse_special": (True,)}

    content: str
    model: str | None = None
    add_special: bool = False
    with_pieces: bool = False


class DetokenizeBody(Body):
    tokens: list[int]
    model: str | None = None


async def tokenize(state: State, http: HttpRequest) -> Response:
    """POST /tokenize: {"content": text} → {"tokens": ids}; with_pieces: [{"id": …, "piece": text, or bytes}]."""
    body = await state.body(http, TokenizeBody)
    with await state.models.lease(body.model) as served:
        ids = await prepared(lambda: _tokenizer(served).encode(body.content, body.add_special))
        told = [{"id": id, "piece": _piece(served, id)} for id in ids] if body.with_pieces else ids
    return JSONResponse({"tokens": told})


async def detokenize(state: State, http: HttpRequest) -> Response:
    """POST /detokenize: {"tokens": ids} → {"content": text}."""
    body = await state.body(http, DetokenizeBody)
    with await state.models.lease(body.model) as served:
        if body.tokens:
            checked_ids(body.tokens, served.model.spec.vocab)
        text = await prepared(lambda: _tokenizer(served).decode(body.tokens))
    return JSONResponse({"content": text})


def _tokenizer(served: Served) -> Tokenizer:
    if served.model.tokenizer is None:
        raise UnsupportedError(f"this checkpoint {why_none(None)}")
    return served.model.tokenizer


def _piece(served: Served, id: int) -> Any:
    data = served.texts.bytes(id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return [*data]
