"""The page at /: one file to chat on, that fetches nothing but this server's own answers."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from lapinfer.serve.state import State


async def page(state: State, http: Request) -> Response:
    """GET /: the same for everybody; it asks for the API key itself."""
    text, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(text, headers=headers)


@cache
def _page() -> tuple[str, str]:
    text = (files("lapinfer.serve") / "page.html").read_text(encoding="utf-8")
    return text, policy_of(text)


def policy_of(text: str) -> str:
    """The content security policy of a page: its own styles and scripts, by their digests, and this server's answers.

    Whatever a model writes, no other script can run, and no other host can be asked for anything.
    """

    def digests(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return " ".join(f"'sha256-{b64encode(sha256(each.encode()).digest()).decode()}'" for each in found)

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
