"""Operands are what was declared, before their addresses leave Python; every kind of op has them, and a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lapinfer.kernels import cache, library
from lapinfer.kernels.declare import Record, address, f32, i64, rows
from lapinfer.kernels.operands import ACTIVE_EXPERT, FIRST, OPERANDS, ROW, KernelId
from lapinfer.runtime.plan import Op, encode

REQUEST: dict[str, Any] = {
    "active": np.zeros((3, len(ACTIVE_EXPERT)), np.int64), "bank": 4096, "stride": 64, "bytes": 64, "advise": 1 << 40,
}  # fmt: skip


def encoded(**operands: Any) -> np.ndarray:
    return encode(Op(KernelId("request"), "request", "test", 3, 0, 1, operands), 17)


def test_every_op_fits_its_row_and_has_a_kernel() -> None:
    assert library
    kinds = {name.rsplit("_f32", 1)[0] for name in cache._functions}
    assert kinds >= OPERANDS.keys()
    assert all(FIRST + len(record) <= ROW for record in OPERANDS.values())


def test_a_row_holds_addresses_numbers_and_the_bits_of_floats() -> None:
    active = REQUEST["active"]
    row = encoded(**REQUEST)
    assert row[FIRST : FIRST + 5].tolist() == [active.ctypes.data, 4096, 64, 64, 1 << 40]
    for value in (-0.5, 3, np.float32(1e-3)):
        assert np.int32(f32("").encode(value, "x")).view(np.float32) == np.float32(value)
    assert i64("").encode(np.int32(-3), "x") == -3


@pytest.mark.parametrize(
    ("operand", "value", "message"),
    [
        ("active", np.zeros((3, len(ACTIVE_EXPERT)), np.int32), "has type int32, expected int64"),
        ("active", np.zeros((3, len(ACTIVE_EXPERT) + 1), np.int64), "expected rows of 3"),
        ("active", np.zeros((3, 2 * len(ACTIVE_EXPERT)), np.int64)[:, ::2], "contiguous"),
        ("bank", np.zeros(65, np.uint8)[1:].view(np.int64), "contiguous, aligned"),
        ("bank", -1, "expected address"),
        ("bank", 1.0, "expected address"),
        ("stride", np.zeros(1, np.int64), "is an array, expected int64"),
        ("stride", 0.5, "is 0.5, expected int64"),
    ],
)
def test_what_was_not_declared_is_refused(operand: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^op 3\.request: operand {operand}.* {message}"):
        encoded(**REQUEST | {operand: value})


def test_missing_and_unknown_operands_are_named() -> None:
    with pytest.raises(ValueError, match="'bank'"):
        encoded(**{name: value for name, value in REQUEST.items() if name != "bank"})
    with pytest.raises(ValueError, match="'hints'"):
        encoded(**REQUEST, hints=1)


def test_records_within_records_lie_side_by_side() -> None:
    inner = Record("inner", "", a=i64(""), b=f32(""))
    outer = Record("outer", "", first=address("", np.float32), inside=inner, last=rows(inner, ""))
    assert [*outer.fields] == ["first", "a", "b", "last"]
    assert [(name, index) for name, index, _ in outer.places()] == [("first", 0), ("inside", 1), ("last", 3)]
    assert (len(outer), outer.index("b")) == (4, 2)
    with pytest.raises(ValueError, match="two fields called a"):
        Record("twice", "", a=i64(""), inside=inner)
