"""What is done of a batch, in a file that is only appended to: OUT.part, beside the output that it becomes.

Its first line says what the batch is; each other one has figures, a tab, and the record of a line of the input, as it
was done. A process that is killed may leave a torn last line, which is cut. Lines that are done are told by number
and digest, so an input that has changed is noticed. Who has the file locked is the one who answers.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lapinfer.batch.lines import Line
from lapinfer.batch.records import Answered
from lapinfer.batch.sums import Sums
from lapinfer.errors import InputError
from lapinfer.locks import holder, locked
from lapinfer.outputs import NEW, NOT_FOLLOWED, cannot_write, check_place

KEY = "lapinfer-batch"
"""What the first line of a journal begins with, as a key of its object; its value is the version of the form."""
VERSION = 1
BEGINS = f'{{"{KEY}":'.encode()


def journal_of(target: Path) -> Path:
    """Where what is done of a batch is kept until its output is written."""
    return target.with_name(f"{target.name}.part")


class Journal:
    """What is done of one batch; a context manager, which closes it. It is removed by `remove` alone.

    about: what decides the answers; a journal of a batch with others is refused. Takes 40 bytes of memory a line.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """InputError where the file is somebody else's, of another batch, in use, or cannot be written."""
        self.path, self.sums = path, Sums()
        self._numbers, self._digests = array("Q"), array("Q")
        self._places, self._lengths = array("Q"), array("Q")
        try:
            self._file = _locked_file(path)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            self._end = self._read(json.loads(json.dumps(about)))
        except BaseException:
            self._file.close()
            raise

    def _read(self, about: dict[str, Any]) -> int:
        """Take up what is there; where the next line goes."""
        reader = io.BufferedReader(self._file, 1 << 20)  # pyright: ignore[reportArgumentType]
        try:
            reader.seek(0)
            head = reader.readline()
            if not head.endswith(b"\n") and (BEGINS.startswith(head) or head.startswith(BEGINS)):  # killed at once
                self._file.truncate(0)
                head = json.dumps({KEY: VERSION, "about": about}, separators=(",", ":")).encode() + b"\n"
                return self._written(0, head)
            self._check_head(head, about)
            end = len(head)
            while (line := reader.readline()).endswith(b"\n") and (found := _parsed(line)) is not None:
                self._note(found, end + len(line) - 1 - len(found.record))
                end += len(line)
            self._file.truncate(end)  # a line that was torn
            return end
        except OSError as error:
            raise cannot_write(self.path, error) from error
        finally:
            reader.detach()

    def _check_head(self, head: bytes, about: dict[str, Any]) -> None:
        try:
            found = json.loads(head)
            version, before = found[KEY], dict(found["about"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{self.path}: not written by lapinfer batch; name another output, or remove it") from None
        if version != VERSION:
            raise InputError(f"{self.path}: begun by another version of lapinfer; remove it to begin anew")
        changed = [name for name in {**about, **before} if before.get(name) != about.get(name)]
        if changed:
            name = changed[0]
            was, now = (json.dumps(each.get(name), ensure_ascii=False)[:100] for each in (before, about))
            raise InputError(
                f"{self.path}: begun with another {name} ({was}, now {now}): go on with the same, "
                "or remove it to begin anew"
            )

    def pending(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Of all lines of the input, in their order, those that were not done when this was called.

        InputError where one that was done is another one now, or no longer there.
        """
        order = np.argsort(np.array(self._numbers, np.uint64), kind="stable").tolist()
        done = iter(order)
        index = next(done, None)
        for line in lines:
            if index is None or self._numbers[index] > line.number:
                yield line
                continue
            if self._numbers[index] < line.number:
                raise self._changed(self._numbers[index])
            if self._digests[index] != line.digest:
                raise self._changed(line.number)
            index = next(done, None)
        if index is not None:
            raise self._changed(self._numbers[index])

    def _changed(self, number: int) -> InputError:
        return InputError(
            f"line {number} of the input is no longer the one that was answered: go on with the input as it was, or "
            f"remove {self.path} to begin anew"
        )

    def add(self, done: Answered) -> None:
        """Keep the record of a line. InputError where that cannot be written; then the file is as it was before."""
        text = _told(done)
        end = self._written(self._end, text)
        self._note(done, end - 1 - len(done.record))
        self._end = end

    def _note(self, done: Answered, place: int) -> None:
        self._numbers.append(done.number)
        self._digests.append(done.digest)
        self._places.append(place)
        self._lengths.append(len(done.record))
        self.sums.add(done)

    def _written(self, place: int, text: bytes) -> int:
        """Write at a place, which is the end from then on; where the next text goes."""
        try:
            self._file.seek(place)
            left = memoryview(text)
            while left:
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(place)
            raise cannot_write(self.path, error) from error
        return place + len(text)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """(number of its line, record) of all, in the order of the input."""
        reader = io.BufferedReader(self._file, 1 << 18)  # pyright: ignore[reportArgumentType]
        try:
            for index in np.argsort(np.array(self._numbers, np.uint64), kind="stable").tolist():
                reader.seek(self._places[index])
                yield self._numbers[index], reader.read(self._lengths[index])
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        finally:
            reader.detach()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Close it, and let it go: its output is written."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def begun(target: Path, about: Mapping[str, Any], *, force: bool = False) -> Journal:
    """The journal of a batch that is begun, or gone on with. InputError where something else is in the way; force: an
    output that is there is replaced at the end.
    """
    path = journal_of(target)
    if not os.path.lexists(path):
        check_place(target, force=force, otherwise="maybe answers that you want to keep")
    check_place(path, lambda path: True)
    return Journal(path, about)


def _locked_file(path: Path) -> io.FileIO:
    """The file, which is made where it is missing, with its lock. Raises OSError."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | NOT_FOLLOWED)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, NEW | NOT_FOLLOWED, 0o666)
            except FileExistsError:  # another process was quicker
                continue
        file = io.FileIO(descriptor, "r+")
        if not locked(descriptor):
            who = holder(descriptor)
            file.close()
            raise InputError(f"{path}: {who} answers this batch now: wait for it, or name another output")
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return file
        except FileNotFoundError:  # another process was at its end
            pass
        file.close()


def _told(done: Answered) -> bytes:
    """A line of the journal."""
    figures = [done.number, done.digest, done.named, int(done.failed), done.read, done.made, zlib.crc32(done.record)]
    return json.dumps(figures, separators=(",", ":")).encode() + b"\t" + done.record + b"\n"


def _parsed(line: bytes) -> Answered | None:
    """What a line of the journal says; None where it is damaged."""
    figures, _, record = line[:-1].partition(b"\t")
    try:
        values = json.loads(figures)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or len(values) != 7 or not all(type(n) is int and 0 <= n < 1 << 64 for n in values):
        return None
    number, digest, named, failed, read, made, check = values
    return Answered(number, digest, record, bool(failed), read, made, named) if zlib.crc32(record) == check else None
