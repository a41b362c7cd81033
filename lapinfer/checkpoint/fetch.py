"""Fetching a file over HTTP: goes on where it was broken off, and counts only when it is what was promised.

What has come lies beside the final name, under that with `.incomplete` after it, whatever ends the process; whoever
writes there holds its lock. The final name is given when size and digest are right. What came wrong is fetched once
more from its beginning. Standard library alone: its proxies and certificates are those of the environment.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from lapinfer.digits import size
from lapinfer.errors import CheckpointError, DoesNotFitError
from lapinfer.locks import wait_for_lock
from lapinfer.outputs import KEPT_WHILE_OPEN, NOT_FOLLOWED

HALF: Final = ".incomplete"
"""Added to the names of files that are not whole yet."""
CHUNK = 1 << 18
SILENCE = 30.0
"""Seconds without a byte after which a connection counts as lost."""
TRIES = 5
"""In a row that bring nothing. A try that brings bytes begins the count anew."""
PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds after the first try that failed, twice as many after the next; and what a server may ask for."""
SPARE = 64 << 20
"""Bytes of a disk that are left free."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""


class RefusedError(CheckpointError):
    """A server does not give a file. `status`: its answer; `kind`: the hub's own word for it, if it has one."""

    def __init__(self, message: str, status: int, kind: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file: where it is, where it goes, and what its publisher says of it.

    digest: hexadecimal; of what, `algorithm` says: git is SHA-1 of the content with git's header before it.
    """

    name: str
    url: str
    target: Path
    bytes: int
    digest: str
    algorithm: Literal["sha256", "git"] = "sha256"
    headers: Mapping[str, str] = field(default_factory=dict)

    def new_digest(self) -> Any:
        return hashlib.sha256() if self.algorithm == "sha256" else git_sha1(self.bytes)

    @property
    def half(self) -> Path:
        return half_of(self.target)

    @property
    def missing(self) -> int:
        """Bytes that are still to come."""
        if self.target.is_file():
            return 0
        with suppress(OSError):
            return max(self.bytes - self.half.stat().st_size, 0)
        return self.bytes


def half_of(target: Path) -> Path:
    """Where a file is until it is whole."""
    return target.with_name(target.name + HALF)


def git_sha1(count: int) -> Any:
    """A new digest for a file of so many bytes, as git has it."""
    return hashlib.sha1(b"blob %d\0" % count, usedforsecurity=False)


def fetch_all(
    files: Iterable[Wanted],
    progress: Callable[[int, int], object],
    told: Callable[[str], object],
    *,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Fetch what is missing of these files. told: hears of tries that failed, and whom this waits for.

    DoesNotFitError, before the first byte, where the disk is too small; RefusedError, CheckpointError otherwise.
    """
    files = list(files)
    total, missing = sum(file.bytes for file in files), sum(file.missing for file in files)
    if missing:
        check_room(files[0].target.parent, missing)
    done = 0
    for file in files:
        _Fetching(file, lambda here, before=done: progress(before + here, total), told, pause).run()
        done += file.bytes
    progress(total, total)


def check_room(folder: Path, needed: int) -> None:
    """DoesNotFitError where a disk has no room for so many bytes more."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise DoesNotFitError(
            f"{folder}: {size(needed)} are still to be fetched, {size(free)} are free there; free some "
            f"(lapinfer prune, lapinfer ls --sizes), or set HF_HOME and LAPINFER_HOME to folders on a larger disk"
        )


class Rate:
    """Bytes per second of the last second or more, in words; nothing at first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._words = clock, ""
        self._since, self._before = clock(), 0.0

    def told(self, done: float) -> str:
        if (seconds := self._clock() - self._since) >= 1.0:
            self._words = f"{size(max(done - self._before, 0.0) / seconds)}/s"
            self._since, self._before = self._clock(), done
        return self._words


class _Fetching:
    """One file on its way."""

    def __init__(
        self, file: Wanted, progress: Callable[[int], object], told: Callable[[str], object],
        pause: Callable[[float], object],
    ) -> None:  # fmt: skip
        self._file, self._progress, self._told, self._pause = file, progress, told, pause
        self._digest, self._done, self._descriptor = file.new_digest(), 0, -1

    def run(self) -> None:
        file = self._file
        if file.target.is_file():
            return
        try:
            file.target.parent.mkdir(parents=True, exist_ok=True)
            if not self._open():
                return  # another process has fetched it meanwhile
            try:
                self._fetch()
                os.fsync(self._descriptor)
                if KEPT_WHILE_OPEN:
                    self._close()
                os.replace(file.half, file.target)
            finally:
                self._close()
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or file.target}: cannot be written: {error.strerror or error}; free some of "
                f"the disk, or set HF_HOME and LAPINFER_HOME to folders that can be written"
            ) from error

    def _open(self) -> bool:
        """Open what there is of the file, alone; False where the whole file is there by now."""
        half = self._file.half
        while True:
            self._descriptor = os.open(half, os.O_RDWR | os.O_CREAT | NOT_FOLLOWED, 0o666)
            try:
                wait_for_lock(self._descriptor, lambda who: self._told(f"{self._file.name}: waiting for {who}"))
                if self._file.target.is_file():
                    is_mine = os.path.samestat(os.stat(half), os.fstat(self._descriptor))
                    self._close()  # Windows removes no open file
                    if is_mine:
                        half.unlink()
                    return False
                if os.path.samestat(os.stat(half), os.fstat(self._descriptor)):
                    return True
            except FileNotFoundError:  # renamed or removed by whom this waited for
                pass
            except BaseException:
                self._close()
                raise
            self._close()
            if self._file.target.is_file():
                return False

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fetch(self) -> None:
        """Have all bytes in the half file, checked; what is wrong is fetched anew, once."""
        for again in (False, True):
            self._digest_what_is_there()
            self._receive()
            found = self._digest.hexdigest()
            if self._done == self._file.bytes and found == self._file.digest:
                return
            os.ftruncate(self._descriptor, 0)
            what = f"{self._file.name}: came damaged (its digest is {found[:16]}…, expected {self._file.digest[:16]}…)"
            if again:
                raise CheckpointError(f"{what} twice; nothing is kept of it; try again later, or another network")
            self._told(f"note: {what}; fetching it again")

    def _digest_what_is_there(self) -> None:
        """Count and digest what an earlier try has left."""
        self._digest, self._done = self._file.new_digest(), 0
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        while piece := os.read(self._descriptor, CHUNK):
            self._digest.update(piece)
            self._done += len(piece)
        if self._done > self._file.bytes:
            self._restart()
        self._progress(self._done)

    def _restart(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._digest, self._done = self._file.new_digest(), 0

    def _receive(self) -> None:
        """Ask for what is missing until it is there."""
        failed = 0
        while self._done < self._file.bytes:
            before = self._done
            try:
                self._ask()
                why, wait = "the connection ended early", 0.0
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 416:  # what is here is not of this file
                        self._restart()
                    elif error.code not in PASSING:
                        raise _refused(self._file, error) from error
                    why, wait = f"HTTP {error.code} {error.reason}", _wanted_pause(error.headers)
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                why, wait = f"{getattr(error, 'reason', None) or error or type(error).__name__}", 0.0
            if self._done >= self._file.bytes:
                return
            failed = 1 if self._done > before else failed + 1
            if failed >= TRIES:
                raise CheckpointError(
                    f"{self._file.name}: cannot be fetched, {why} ({size(self._done)} of {size(self._file.bytes)} are "
                    f"here, and the same command goes on with them)"
                )
            wait = min(max(wait, PAUSE * 2 ** (failed - 1)), LONGEST_PAUSE)
            self._told(f"note: {self._file.name}: {why}; trying again in {wait:.0f} s")
            self._pause(wait)

    def _ask(self) -> None:
        """One request for the rest of the file, and what comes of it."""
        headers = {"Accept-Encoding": "identity", **self._file.headers}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
        with _OPENER.open(urllib.request.Request(self._file.url, headers=headers), timeout=SILENCE) as answer:
            begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
            if self._done and (answer.status != 206 or begins is None or int(begins[1]) != self._done):
                self._restart()
                if answer.status == 206:
                    return
            while self._done < self._file.bytes and (piece := answer.read1(CHUNK)):
                piece = piece[: self._file.bytes - self._done]
                left = memoryview(piece)
                while left:
                    left = left[os.write(self._descriptor, left) :]
                self._digest.update(piece)
                self._done += len(piece)
                self._progress(self._done)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A key is for the host that it was given for, and what was asked safely is not answered otherwise."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new is not None and before.scheme == "https" != after.scheme:
            raise urllib.error.URLError(f"leads from https to {after.scheme}")
        if new is not None and before.netloc != after.netloc:
            new.remove_header("Authorization")
            new.remove_header("Cookie")
        return new


_OPENER = urllib.request.build_opener(_Redirects)


def _refused(file: Wanted, error: urllib.error.HTTPError) -> RefusedError:
    kind = error.headers.get("X-Error-Code") or ""
    return RefusedError(f"{file.name}: HTTP {error.code} {error.reason}", error.code, kind)


def _wanted_pause(headers: Any) -> float:
    """Seconds of Retry-After, where it is a number and no date."""
    said = (headers or {}).get("Retry-After") or ""
    return float(said) if re.fullmatch(r"[0-9]{1,6}", said) else 0.0
