"""Writing a packed file: tensor by tensor, so that an interrupted packing goes on where it was."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np

from lapinfer.checkpoint.home import in_home, is_packed
from lapinfer.checkpoint.safetensors import layout
from lapinfer.errors import CheckpointError, DoesNotFitError
from lapinfer.locks import LOCK, wait_for_lock
from lapinfer.outputs import KEPT_WHILE_OPEN, NOT_FOLLOWED, append, begins_with, check_place, write_whole
from lapinfer.packing.entries import ALIGN, DIGESTS, VERSION, BankEntry, PackedEntry, parts_of

PARTIAL, JOURNAL = ".partial", ".journal"
"""Added to the name of a file that is being written, and of the list of its complete tensors."""
BEGINNING = 4096
DIGEST_BYTES = hashlib.sha256().digest_size


def is_begun(path: Path) -> bool:
    """Whether a partial file or a journal is one of ours: nothing yet, or with our header, or its digest."""
    head = begins_with(path, BEGINNING)
    if path.name.endswith(JOURNAL):
        return re.match(rb"[0-9a-f]{64}\n", head) is not None
    return not head or b'"format":"lapinfer"' in head


class PackedWriter:
    """Writes a packed file tensor by tensor beside its final name, and renames it when it is complete.

        with PackedWriter(path, entries, metadata) as writer:
            for name in writer.remaining():
                writer.write(name, blocks)      # once, or slice after slice of bands, or expert after expert
            writer.finish()

    An interrupted writer with the same header goes on after the last complete tensor. A second process waits for
    the first; `remaining()` is empty then. DoesNotFitError when the disk is too small, seen before the first byte.
    """

    def __init__(
        self, path: str | Path, entries: Sequence[PackedEntry | BankEntry], metadata: Mapping[str, str],
        *, force: bool = False, notice: Callable[[str], object] = lambda line: None,
    ) -> None:  # fmt: skip
        """force: what others have begun or put there goes. notice: is told whom this waits for."""
        self.path, self._force, self._notice = Path(path), force, notice
        parts = chain.from_iterable(map(parts_of, entries))
        formats = {e.name: {"format": e.format, "shape": list(e.shape)} for e in parts if e.format is not None}
        header = {"format": "lapinfer", "version": VERSION, "tensors": json.dumps(formats, separators=(",", ":"))}
        stored = [*((e.name, *e.stored) for e in entries), (DIGESTS, "U8", (1 + len(entries), DIGEST_BYTES))]
        self._header, self._places = layout(stored, {**metadata, **header}, ALIGN)
        self.total_bytes = self._places[DIGESTS].stop
        self._digests_at = self._places.pop(DIGESTS).start
        self._partial = self.path.with_name(self.path.name + PARTIAL)
        self._journal = self.path.with_name(self.path.name + JOURNAL)
        self._written = dict.fromkeys(self._places, 0)
        self._hashes = {name: hashlib.sha256() for name in self._places}
        self._done: dict[str, bytes] = {}  # with their digests
        self._fd = self._lock = -1
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._fd = self._locked_partial()
                self.finished = self._already_there()
                if self.finished:
                    self._done = dict.fromkeys(self._places, b"")
                    self._let_go()
                    self._partial.unlink()
                else:
                    check_place(self._partial, is_begun, force=self._force, otherwise="not begun by lapinfer")
                    self._resume_or_start()
            except BaseException:
                self.close()
                raise

    def remaining(self) -> list[str]:
        """Names still to be written, in file order."""
        return [name for name in self._places if name not in self._done]

    def write(self, name: str, data: np.ndarray) -> None:
        """Append to a tensor; after its last byte it counts as done, also for a later process."""
        place = self._places[name]
        dtype, row = ("<f4", place.shape) if place.dtype == "F32" else ("u1", place.shape[1:])
        flat = np.ascontiguousarray(data, dtype)
        start = place.start + self._written[name]
        if (place.dtype == "U8" and flat.shape[-1:] != row[-1:]) or start + flat.nbytes > place.stop:
            raise ValueError(f"{name}: got {flat.shape} after {self._written[name]} bytes, expected {place.shape}")
        with self._errors():
            view = flat.reshape(-1).view(np.uint8).data
            self._hashes[name].update(view)
            self._write_at(start, view)
            self._written[name] += flat.nbytes
            if start + flat.nbytes == place.stop:
                # Data first, then the note that it is there: after a power cut, the other order would be wrong.
                os.fsync(self._fd)
                self._done[name] = self._hashes[name].digest()
                append(self._journal, self._line(name))

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows of a tensor of bytes that is written already, uint8 [last − first, …]."""
        place = self._places[name]
        size = place.shape[-1]
        with self._errors():
            os.lseek(self._fd, place.start + first * size, os.SEEK_SET)
            data = bytearray((last - first) * size)
            view = memoryview(data)
            while view:
                piece = os.read(self._fd, len(view))
                if not piece:
                    raise OSError(errno.EIO, "it ends too early")
                view[: len(piece)] = piece
                view = view[len(piece) :]
        return np.frombuffer(data, np.uint8).reshape(last - first, size)

    def _write_at(self, start: int, data: bytes | memoryview) -> None:
        os.lseek(self._fd, start, os.SEEK_SET)
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]

    def _line(self, name: str) -> str:
        """The journal's line about a complete tensor."""
        return f"{self._done[name].hex()} {json.dumps(name)}\n"

    def _from_line(self, line: str) -> tuple[str, bytes] | None:
        """The tensor that a line of the journal is about, and its digest; None for a line that is none of this file."""
        digest, _, name = line.partition(" ")
        with suppress(ValueError, TypeError):
            if (name := json.loads(name)) in self._places and len(digest) == 2 * DIGEST_BYTES:
                return name, bytes.fromhex(digest)
        return None

    def finish(self) -> None:
        """Give the complete file its name. Nothing to do when another process has."""
        if self.finished:
            return
        if missing := self.remaining():
            raise ValueError(f"{self.path}: {len(missing)} tensors are not written, the first is {missing[0]!r}")
        with self._errors():
            digests = [hashlib.sha256(self._header).digest(), *(self._done[name] for name in self._places)]
            self._write_at(self._digests_at, b"".join(digests))
            os.fsync(self._fd)
            check_place(self.path, is_packed, force=self._force)
            self._let_go()
            os.replace(self._partial, self.path)
            self._journal.unlink(missing_ok=True)
        self.finished = True
        self.close()

    def discard(self) -> None:
        """Forget what was written so far: no later writer goes on with it."""
        if self.finished:
            return
        with self._errors():
            self._let_go()
            self._journal.unlink(missing_ok=True)
            self._partial.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the file and its lock; what is done stays for the next writer."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
            with suppress(OSError):  # another process waits for it, and removes it in turn
                self.path.with_name(LOCK).unlink()

    def _let_go(self) -> None:
        """Close the file, and keep the lock, where the system would not rename or remove it else."""
        if KEPT_WHILE_OPEN:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _locked_partial(self) -> int:
        """Open and lock the partial file. A waiter may get the lock on a file that has its final name by then."""
        if KEPT_WHILE_OPEN:  # nobody could rename the file that another process waits for
            self._lock = os.open(self.path.with_name(LOCK), os.O_RDWR | os.O_CREAT | NOT_FOLLOWED, 0o666)
            self._wait_for(self._lock)
            return self._open_partial()
        while True:
            fd = self._open_partial()
            try:
                self._wait_for(fd)
                try:
                    if os.path.samestat(os.stat(self._partial), os.fstat(fd)):
                        return fd
                except FileNotFoundError:
                    pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _wait_for(self, descriptor: int) -> None:
        wait_for_lock(descriptor, lambda who: self._notice(f"{self.path.parent}: waiting for {who}: it packs here"))

    def _open_partial(self) -> int:
        """Open or make the partial file: of this name alone, and no link."""
        for file in (self._partial, self._journal):
            with suppress(FileNotFoundError):
                found = os.lstat(file)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                    check_place(file, force=self._force, otherwise="not begun by lapinfer")
                    file.unlink()
        return os.open(self._partial, os.O_RDWR | os.O_CREAT | NOT_FOLLOWED, 0o666)

    def _already_there(self) -> bool:
        """Whether the final file is there with the very same header and size."""
        try:
            with self.path.open("rb") as file:
                same = file.read(len(self._header)) == self._header
                return same and os.fstat(file.fileno()).st_size == self.total_bytes
        except FileNotFoundError:
            return False

    def _resume_or_start(self) -> None:
        first_line = hashlib.sha256(self._header).hexdigest()
        lines = self._journal.read_text(encoding="utf-8").split("\n") if self._journal.exists() else []
        # The last piece has no newline after it: empty, or a name that was cut off.
        if lines[:-1] and lines[0] == first_line and os.fstat(self._fd).st_size == self.total_bytes:
            self._done = dict(filter(None, map(self._from_line, lines[1:-1])))
            self._written.update({name: self._places[name].stop - self._places[name].start for name in self._done})
        self._journal.unlink(missing_ok=True)
        if not self._done:
            os.truncate(self._fd, 0)
        self._check_space()
        self._write_at(0, self._header)  # first, so that the file is known as ours
        os.truncate(self._fd, self.total_bytes)
        for name in self._places:  # a tensor without elements has no last byte to write
            if self._places[name].start == self._places[name].stop:
                self._done[name] = self._hashes[name].digest()
        write_whole(self._journal, f"{first_line}\n" + "".join(map(self._line, self._done)))

    def _check_space(self) -> None:
        need = sum(t.stop - t.start for n, t in self._places.items() if n not in self._done)
        need += len(self._header)
        free = shutil.disk_usage(self.path.parent).free
        if need > free:
            raise self._does_not_fit(need, free)

    def _does_not_fit(self, need: int, free: int) -> DoesNotFitError:
        return DoesNotFitError(
            f"{self.path.parent}: packing needs {need:,} bytes there, {free:,} are free; "
            f"free some, or {self._elsewhere('on a larger disk')}"
        )

    def _elsewhere(self, where: str) -> str:
        """What to do where the file cannot be written."""
        return f"set LAPINFER_HOME to a folder {where}" if in_home(self.path) else f"name a folder {where}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the operating system refuses, in the words of this program."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise DoesNotFitError(
                    f"{self.path}: takes {self.total_bytes:,} bytes, which is more than a file may have there; raise "
                    f"the limit (ulimit -f), or choose another disk"
                ) from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                left = sum(t.stop - t.start - self._written[n] for n, t in self._places.items())
                raise self._does_not_fit(left, shutil.disk_usage(self.path.parent).free) from error
            raise CheckpointError(
                f"{self.path}: cannot be written: {error.strerror or error}; {self._elsewhere('that can be written')}"
            ) from error
