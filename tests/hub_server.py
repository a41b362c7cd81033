"""A stand-in for the Hugging Face hub: its answers about a repository, its files, and what goes wrong with them.

    with hub_server({"config.json": b"{}", "model.safetensors": weights}) as hub:
        hub.trouble["model.safetensors"] = ["cut", "429"]      # of the next requests, one each
        ...                                                    # hub.asked: (file, Range header) of all requests

Large files (all but .json and .txt) are led to another host, as the hub leads to its store, where no key may arrive.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str) -> bool:
    return not name.endswith((".json", ".txt"))


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files = dict(files)
        self.trouble: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.refused: tuple[int, str] | None = None
        self.keys: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are part of the tests."""


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.keys.append((path, self.headers.get("Authorization")))
        if self.server.refused is not None and not path.startswith("/store/"):
            code, said = self.server.refused
            return self._answer(code, b"{}", {"X-Error-Code": said, "X-Error-Message": said})
        if path.startswith("/api/models/org/name"):
            return self._answer(200, json.dumps(self._about()).encode(), {"Content-Type": "application/json"})
        if path.startswith(start := f"/org/name/resolve/{COMMIT}/"):
            name = path.removeprefix(start)
            if name not in self.server.files:
                return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            if is_large(name):
                to = f"http://localhost:{self.server.server_port}/store/{name}"
                return self._answer(302, b"", {"Location": to})
            return self._file(name)
        if path.startswith("/store/"):
            return self._file(path.removeprefix("/store/"))
        return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _about(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.server.files.items():
            about: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
            if is_large(name):
                about["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            siblings.append(about)
        numbers = {"downloads": 0, "likes": 0, "tags": [], "private": False}
        return {"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings, **numbers}

    def _file(self, name: str) -> None:
        content, range_ = self.server.files[name], self.headers.get("Range")
        self.server.asked.append((name, range_))
        trouble = self.server.trouble.get(name) or [""]
        what = trouble.pop(0)
        if what.isdigit():
            return self._answer(int(what), b"", {"Retry-After": "0"})
        status, headers, body = 200, {}, content
        if range_ is not None and what != "whole":
            start = int(range_.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._answer(416, b"", {})
            status, body = 206, content[start:]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if what == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        self._answer(status, body, headers, cut=what == "cut")

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said."""


@contextmanager
def hub_server(files: Mapping[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
