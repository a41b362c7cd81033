"""Records of int64: declared once, filled by the plan builder, and read by kernels as attributes. No numba here.

An op's operands are such a record, and so are the rows of the small tables that kernels share, and the step's header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Field:
    """One int64 of a record.

    kind: a number; a float32, whose bits are the lower half; or the address of an array, 0 where there is none. dtype:
    of the array, where it is always the same one; table: what the rows of an int64 array are.
    """

    kind: Literal["int64", "float32", "address"]
    meaning: str
    dtype: Any = None
    table: Record | None = None

    def encode(self, value: np.ndarray | float, what: str) -> int:
        """The int64 that kernels read. ValueError, which begins with `what`, for a value of another kind.

        Of an array only its address leaves Python: it must be contiguous and aligned, and of the declared type.
        """
        if isinstance(value, np.ndarray):
            return self._address(value, what)
        if self.kind == "float32":
            return int(np.float32(value).view(np.int32))
        if isinstance(value, float | np.floating):
            raise ValueError(f"{what} is {value!r}, expected {self.kind}")
        if self.kind == "address" and value < 0:
            raise ValueError(f"{what} is {value}, expected address")
        return int(value)

    def _address(self, array: np.ndarray, what: str) -> int:
        if self.kind != "address":
            raise ValueError(f"{what} is an array, expected {self.kind}")
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ValueError(f"{what}: an operand of an op must be a contiguous, aligned array")
        dtype = np.int64 if self.table is not None else self.dtype
        if dtype is not None and array.dtype != dtype:
            raise ValueError(f"{what} has type {array.dtype}, expected {np.dtype(dtype)}")
        if self.table is not None and array.shape[1:] != (len(self.table),):
            raise ValueError(f"{what} has shape {array.shape}, expected rows of {len(self.table)}")
        return array.ctypes.data


def i64(meaning: str) -> Field:
    """A whole number."""
    return Field("int64", meaning)


def f32(meaning: str) -> Field:
    """A float32."""
    return Field("float32", meaning)


def address(meaning: str, dtype: Any = None) -> Field:
    """Where an array begins, which has this type (None: one of several)."""
    return Field("address", meaning, dtype)


def rows(table: Record, meaning: str) -> Field:
    """Where a table begins."""
    return Field("address", meaning, None, table)


class Record:
    """Fields side by side, each under a name, and other records between them.

    len() is how many int64 it takes.
    """

    def __init__(self, name: str, meaning: str, **members: Field | Record):
        self.name, self.meaning, self.members = name, meaning, members
        self.fields: dict[str, Field] = {}
        """All fields in order, those of records within this one included: their names are all different."""
        for member_name, member in members.items():
            more = {member_name: member} if isinstance(member, Field) else member.fields
            if twice := self.fields.keys() & more.keys():
                raise ValueError(f"{name} has two fields called {', '.join(sorted(twice))}")
            self.fields |= more

    def __len__(self) -> int:
        return len(self.fields)

    def index(self, field: str) -> int:
        """Which of the int64 a field is: the column of a table."""
        return [*self.fields].index(field)

    def places(self) -> Iterator[tuple[str, int, Field | Record]]:
        """(name, index of its first int64, member) of each member."""
        index = 0
        for name, member in self.members.items():
            yield name, index, member
            index += 1 if isinstance(member, Field) else len(member)
