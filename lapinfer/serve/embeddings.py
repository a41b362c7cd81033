"""OpenAI's /v1/embeddings."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Literal

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lapinfer.serve.answers import answer_of, whole
from lapinfer.serve.encoding import encoded
from lapinfer.serve.errors import ApiError
from lapinfer.serve.models import Served
from lapinfer.serve.openai_fields import Prompts, prompts_of
from lapinfer.serve.state import Body, State
from lapinfer.text.embedding import Embedding, EmbeddingRequest, Pooling

AT_ONCE = 64
"""Texts of one request that wait at the same time: others may have as many."""
MOST = 2048
"""Texts of a request, as OpenAI has it."""


class EmbeddingBody(Body):
    """dimensions: those that the model has. pooling is ours: as in `LanguageModel.embed`."""

    ignored = frozenset({"user"})

    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    pooling: Pooling = "mean"


async def embeddings(state: State, http: HttpRequest) -> Response:
    """POST /v1/embeddings: vectors of length 1."""
    body = await state.body(http, EmbeddingBody)
    texts = prompts_of(body.input)
    if not 0 < len(texts) <= MOST:
        raise ApiError(400, f"input: expected 1 to {MOST:,} texts, got {len(texts):,}", param="input")
    tokens, parts = 0, list[bytes]()  # of two thousand vectors: made as they come, so that nobody waits for all of them
    for at in range(0, len(texts), AT_ONCE):
        for each in await _embedded(state, http, body, texts[at : at + AT_ONCE]):
            vector = _told(each.vector, body.encoding_format)
            parts.append(encoded({"object": "embedding", "index": len(parts), "embedding": vector}))
            tokens += each.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    about = encoded({"object": "list", "model": state.models.known(body.model), "usage": usage})
    return Response(about[:-1] + b',"data":[' + b",".join(parts) + b"]}", media_type="application/json")


async def _embedded(
    state: State, http: HttpRequest, body: EmbeddingBody, texts: list[str | list[int]]
) -> list[Embedding]:  # fmt: skip
    def make(served: Served) -> list[EmbeddingRequest]:
        model = served.model
        if body.dimensions not in (None, model.spec.hidden):
            message = f"dimensions: this model's vectors have {model.spec.hidden}"
            raise ApiError(400, message, param="dimensions", code="unsupported_parameter")
        return [model.embedding_request(text, pooling=body.pooling) for text in texts]

    answer = await answer_of(state, http, body.model, make, count=len(texts))
    return [embedding for (embedding,) in await whole(answer, http)]


def _told(vector: np.ndarray, format: str) -> Any:
    """Numbers, or the bytes of float32 in the order of little-endian machines."""
    return b64encode(vector.astype("<f4").tobytes()).decode() if format == "base64" else vector.tolist()
