"""Who may ask, and how much: keys, origins of pages, sizes of bodies and the time that they take."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection, Sized
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lapinfer.serve.errors import ApiError, response_to

OPEN = frozenset({"/", "/health"})
"""What needs no key: the page, which asks for it, and what watches whether the server runs."""
OTHER_SITES = ("cross-site", "same-site")
"""Whose pages ask, where browsers send no Origin: for images, scripts, frames and links."""
UNKNOWN_KEY = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
SECONDS_OF_BODY = 30.0
STOPS = 64
"""Stop strings of a request, each of which is looked for after every token."""


class Guard:
    """Refuses requests without the key, and those that pages of other origins send.

    A page of any site may post to a server on this computer without being asked, as browsers only keep the answer from
    it. So a request with an Origin must come from the server's own page or from one of `cors`. Nor may a site call this
    computer by a name of its own (DNS rebinding): without a key, a server that only this computer reaches (`local`)
    answers to addresses and localhost alone.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, cors: Collection[str], local: bool) -> None:
        self._app, self._cors, self._local = app, cors, local
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except ApiError as error:
                await response_to(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        origin = headers.get("origin")
        host = headers.get("host", "")
        if origin is None:
            foreign = headers.get("sec-fetch-site") in OTHER_SITES and path not in OPEN and "*" not in self._cors
        else:
            foreign = not {"*", origin} & set(self._cors) and origin.partition("://")[2] != host
        if foreign:
            raise ApiError(403, "pages of this origin may not ask here: allow it with --cors")
        if self._local and self._key is None and not _is_own(host):
            raise ApiError(403, "without --api-key, this server answers to localhost and 127.0.0.1 alone")
        if self._key is None or path in OPEN:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("latin-1"), self._key):
            raise ApiError(401, UNKNOWN_KEY, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _is_own(host: str) -> bool:
    """Whether a Host header names this computer in a way that no other site's name can."""
    try:
        name = urlsplit(f"//{host}").hostname or "localhost"  # programs need not send one, browsers always do
        return name == "localhost" or name.endswith(".localhost") or bool(ip_address(name))
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Whether an address to listen at is reached from this computer alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_stops(field: str, stops: Sized) -> None:
    """ApiError for more than are looked for."""
    if len(stops) > STOPS:
        raise ApiError(400, f"{field}: expected at most {STOPS}, got {len(stops):,}", param=field)


async def read_body(request: Request, most: int) -> bytes:
    """The body, of at most so many bytes; ApiError for a larger one (413), or one that comes too slowly (408)."""
    large = ApiError(413, f"the body is larger than {most:,} bytes", headers={"Connection": "close"})
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS_OF_BODY):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise large
    except TimeoutError:
        late = {"Connection": "close"}
        raise ApiError(408, f"the body did not come within {SECONDS_OF_BODY:g} s", headers=late) from None
    return bytes(body)
