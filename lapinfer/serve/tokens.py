"""/tokenize and /detokenize, as llama-server has them (`content`) and as vLLM has them (`prompt`), and vLLM's
/tokenizer_info: lm-eval asks for these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lapinfer.errors import UnsupportedError
from lapinfer.serve.answers import prepared
from lapinfer.serve.encoding import Json
from lapinfer.serve.errors import ApiError
from lapinfer.serve.models import Served
from lapinfer.serve.state import Body, Ids, State
from lapinfer.text.generation import checked_ids
from lapinfer.text.tokenizer import Tokenizer, why_none


class TokenizeBody(Body):
    """add_special: what the model expects around a text. with_pieces: tell what each token is.

    prompt, add_special_tokens: vLLM's names for the first two; what is expected around a text is there unless it is
    refused.
    """

    refused: ClassVar[Mapping[str, Sequence[Any]]] = {"parse_special": (True,)}

    content: str | None = None
    prompt: str | None = None
    model: str | None = None
    add_special: bool = False
    add_special_tokens: bool = True
    with_pieces: bool = False

    def asked(self) -> tuple[str, bool]:
        """The text, and whether it gets what the model expects around it."""
        if (self.content is None) == (self.prompt is None):
            raise ApiError(400, "content: expected a text, in this field or as prompt", param="content")
        if self.content is not None:
            return self.content, self.add_special
        return self.prompt or "", self.add_special_tokens


class DetokenizeBody(Body):
    tokens: Ids
    model: str | None = None


async def tokenize(state: State, http: HttpRequest) -> Response:
    """POST /tokenize: {"content": text} → {"tokens": ids}; with_pieces: [{"id": …, "piece": text, or bytes}]."""
    body = await state.body(http, TokenizeBody)
    asked = body.asked()
    with await state.models.lease(body.model) as served:
        return await prepared(lambda: _tokens(served, body, *asked))


def _tokens(served: Served, body: TokenizeBody, text: str, special: bool) -> Response:
    ids = _tokenizer(served).encode(text, special)
    about = {} if body.prompt is None else {"count": len(ids), "max_model_len": served.model.model.ctx}
    told = [{"id": id, "piece": _piece(served, id)} for id in ids] if body.with_pieces else ids
    return Json({"tokens": told} | about)


async def detokenize(state: State, http: HttpRequest) -> Response:
    """POST /detokenize: {"tokens": ids} → {"content": text}, and the same as prompt."""
    body = await state.body(http, DetokenizeBody)
    with await state.models.lease(body.model) as served:
        text = await prepared(lambda: _text(served, body.tokens))
    return Json({"content": text, "prompt": text})


def _text(served: Served, ids: Sequence[int]) -> str:
    if ids:
        checked_ids(ids, served.model.spec.vocab)
    return _tokenizer(served).decode(ids)


async def info(state: State, http: HttpRequest) -> Response:
    """GET /tokenizer_info (?model=…): texts of special tokens by their names, and the chat template."""
    with await state.models.lease(http.query_params.get("model")) as served:
        template = served.model.template
        told = {"bos_token": None, "eos_token": None, "pad_token": None} | _tokenizer(served).special_tokens
        told["chat_template"] = None if template is None else template.source()
    return Json(told)


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
