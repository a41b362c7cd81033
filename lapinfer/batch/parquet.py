"""Batches in Parquet: rows as lines, and rows with their answers. The only module that knows pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

from lapinfer.batch.columns import Columns
from lapinfer.batch.lines import Line
from lapinfer.batch.requests import ENVELOPE
from lapinfer.errors import InputError

SUFFIX = ".parquet"
ROWS = 256
"""That are read at once."""
ROW_GROUP = 1000
"""Rows that are written at once."""
ASKED = ("body", "params", "messages", "prompt", "input", "text")
"""Columns that say what is asked: the first of these that a file has."""
BESIDE = {"body": ENVELOPE, "params": ("custom_id", "params")}
"""Which columns belong to it; else a custom_id, a url, and options."""


class ParquetFile:
    """Rows of a file: `Source`. Other columns than those that ask are carried through to an output in Parquet.

    `options` has a row's sampling options, as a struct or as JSON. Columns of JSON are read as such, but of prompts and
    texts. A row without what is asked is an empty line. InputError where the file is no Parquet, or asks nothing.
    """

    again = True

    def __init__(self, path: str) -> None:
        self.name = path
        with self._opened() as file:
            self.schema = file.schema_arrow
        names = self.schema.names
        found = next((name for name in ASKED if name in names), None)
        if found is None:
            raise InputError(
                f"{path}: expected a column {', '.join(ASKED[:-1])} or {ASKED[-1]}, got {', '.join(names[:20])}"
            )
        self._asked = found
        self._columns = [each for each in BESIDE.get(found, ("custom_id", "url", "options", found)) if each in names]

    def lines(self) -> Iterator[Line]:
        """A line for each row that asks something."""
        from pydantic_core import to_json

        number = 0
        for batch in self.batches(ROWS, self._columns):
            for row in batch.to_pylist():
                number += 1
                if row[self._asked] is not None:
                    yield Line(number, to_json(self._request(row), inf_nan_mode="null", fallback=str))

    def _request(self, row: dict[str, Any]) -> dict[str, Any]:
        given = {name: _plain(value) for name, value in row.items() if value is not None}
        for name in given.keys() - {"prompt", "text", "input", "custom_id", "url", "method"}:
            given[name] = _read(given[name])
        options = given.pop("options", {})
        return given | options if isinstance(options, dict) else given | {"options": options}

    def batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Record batches of some columns, or of all."""
        with self._opened() as file:
            yield from file.iter_batches(batch_size=rows, columns=None if columns is None else list(columns))

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        parquet = _parquet()
        from pyarrow import ArrowException

        try:
            with parquet.ParquetFile(self.name) as file:
                yield file
        except ArrowException as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{self.name}: cannot be read as Parquet: {reason}") from error
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read: {error.strerror or error}") from error


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError('Parquet needs pyarrow: pip install "lapinfer[batch]"') from error
    return pyarrow.parquet


def check_installed() -> None:
    """InputError where pyarrow is missing."""
    _parquet()


def _plain(value: Any) -> Any:
    """Without fields that a row's struct does not have, which Arrow gives as None; maps, which are lists, as such."""
    if isinstance(value, list) and value and all(isinstance(each, tuple) for each in value):
        value = dict(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def _read(value: Any) -> Any:
    """The value of JSON, where a text is some."""
    from pydantic_core import from_json

    if not isinstance(value, str):
        return value
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:
        return value


def write(part: Path, records: Iterator[tuple[int, bytes]], columns: Columns, source: object) -> None:
    """A file of all records: after the columns of a source in Parquet, else after numbers of lines and custom_ids."""
    import pyarrow as pa

    parquet = _parquet()
    given = source if isinstance(source, ParquetFile) else None
    before = pa.schema([("line", pa.int64()), ("custom_id", pa.string())]) if given is None else given.schema
    schema = before
    for name, kind in columns.kinds().items():
        schema = schema.append(pa.field(_free(name, schema.names), _types(pa)[kind]))
    made = [*schema][len(before.names) :]
    try:
        with parquet.ParquetWriter(part, schema) as writer:
            for rows, answers in _joined(pa, records, columns, given):
                values = [pa.array(each, field.type) for each, field in zip(answers.values(), made, strict=True)]
                writer.write_table(pa.Table.from_arrays([*rows, *values], schema=schema))
    except pa.ArrowException as error:
        raise InputError(f"{part}: cannot be written as Parquet: {' '.join(str(error).split())[:300]}") from error


def _types(pa: Any) -> dict[str, Any]:
    return {"text": pa.string(), "count": pa.int64(), "vector": pa.list_(pa.float32())}


def _free(name: str, taken: Sequence[str]) -> str:
    """The name of a column that is not taken: answer, answer_2 …"""
    names = (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
    return next(each for each in names if each not in taken)


def _joined(
    pa: Any, records: Iterator[tuple[int, bytes]], columns: Columns, given: ParquetFile | None
) -> Iterator[tuple[list[Any], dict[str, list[Any]]]]:  # fmt: skip
    """(arrays of the columns before, values of ours by name) of some rows at a time."""
    if given is None:
        while some := [record for _, record in islice(records, ROW_GROUP)]:
            numbers, names = zip(*map(columns.about, some), strict=True)
            yield [pa.array(numbers, pa.int64()), pa.array(names, pa.string())], columns.of(some)
        return
    rows = count(1)
    number, record = next(records, (0, b""))
    for batch in given.batches(ROW_GROUP):
        found: list[bytes | None] = []
        for row in islice(rows, batch.num_rows):
            found.append(record if row == number else None)
            if row == number:
                number, record = next(records, (0, b""))
        yield batch.columns, columns.of(found)
