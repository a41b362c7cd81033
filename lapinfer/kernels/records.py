"""Records of int64 (kernels/declare.py) as Numba types: kernels read and write their fields as attributes.

A value is the address of a record. `o.unit` loads, `entry.expert = e` stores, `o.sort` is a record within another one,
`o.active[i]` a row of a table, and `step[i]` the int64 at a place that only the plan knows.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types
from numba.core.imputils import lower_setattr_generic
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    lower_builtin,
    lower_getattr_generic,
    models,
    register_model,
    type_callable,
)

from lapinfer.kernels.codegen import I64, load, pointer
from lapinfer.kernels.declare import Field, Record

KINDS = {"int64": types.int64, "float32": types.float32, "address": types.int64}


class _Address(types.Type):
    """What is an int64 in machine code."""

    def __init__(self, name: str, record: Record):
        self.record = record
        super().__init__(name)


class RecordType(_Address):
    """A record whose fields begin `first` int64 after its address."""

    def __init__(self, record: Record, first: int = 0):
        self.first = first
        self.members = {name: (8 * (first + index), _type_of(member)) for name, index, member in record.places()}
        super().__init__(f"Record({record.name}, {first})", record)


class TableType(_Address):
    """Records side by side."""

    def __init__(self, record: Record):
        super().__init__(f"Table({record.name})", record)


def _type_of(member: Field | Record) -> types.Type:
    if isinstance(member, Record):
        return RecordType(member)
    return KINDS[member.kind] if member.table is None else TableType(member.table)


@register_model(RecordType)
@register_model(TableType)
class _AddressModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.IntType(64))


@infer_getattr
class _Attributes(AttributeTemplate):
    key = RecordType

    def generic_resolve(self, record, name):
        return record.members[name][1] if name in record.members else None


@lower_getattr_generic(RecordType)
def _get(context, b, record, address, name):
    offset, kind = record.members[name]
    if isinstance(kind, RecordType):
        return b.add(address, I64(offset))
    return load(b, address, context.get_data_type(kind), offset)


@lower_setattr_generic(RecordType)
def _set(context, b, sig, args, name):
    address, value = args
    offset, kind = sig.args[0].members[name]
    b.store(value, pointer(b, address, context.get_data_type(kind), offset), align=1)


@type_callable(operator.getitem)
def _type_of_item(context):
    def typer(value, index):
        if isinstance(index, types.Integer):
            if isinstance(value, TableType):
                return RecordType(value.record)
            if isinstance(value, RecordType):
                return types.int64
        return None

    return typer


@lower_builtin(operator.getitem, TableType, types.Integer)
def _row(context, b, sig, args):
    table, index = args
    index = context.cast(b, index, sig.args[1], types.int64)
    return b.add(table, b.mul(index, I64(8 * len(sig.args[0].record))))


@lower_builtin(operator.getitem, RecordType, types.Integer)
def _field(context, b, sig, args):
    record, index = args
    index = context.cast(b, index, sig.args[1], types.int64)
    return load(b, b.add(record, b.mul(index, I64(8))), I64, 8 * sig.args[0].first)
