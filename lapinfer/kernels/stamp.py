"""Kernels that there are several of, stamped out of one function: for every format of weights, or of keys.

    @stamped(BLOCKS)
    def matmul(W, o, step, chunk, thread): ...

registers matmul_f32, matmul_q8, matmul_q8_q16, …, in which W is one of BLOCKS. In machine code nothing is left of W:
its numbers are constants, and its functions are inlined.

Numba's cache knows a function by its name and its byte code. A closure over W would be another function in every
process; so each kernel is a copy of `_kernel` under its own name, in which W is a global.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType

import numpy as np
from numba.core import types
from numba.core.imputils import lower_constant
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
)

from lapinfer.kernels import cache
from lapinfer.kernels.operands import KernelId


class Constant:
    """What kernels of one format are stamped with: numbers (int), and functions that kernels can call, by name.

    Two constants with the same kind, format and activations must be the same: machine code is known by these names.
    """

    def __init__(self, kind: str, format: str, activations: str = "", **members: int | Callable):
        self.kind, self.format, self.activations, self.members = kind, format, activations, members

    def __getattr__(self, name: str) -> int | Callable:
        members = self.__dict__.get("members", {})
        if name not in members:
            raise AttributeError(name)
        return members[name]


class _ConstantType(types.Type):
    def __init__(self, constant: Constant):
        self.constant = constant
        super().__init__(f"{constant.kind}({constant.format}, {constant.activations})")


@typeof_impl.register(Constant)
def _typeof(constant, context):
    return _ConstantType(constant)


@register_model(_ConstantType)
class _ConstantModel(models.OpaqueModel):
    pass


@lower_constant(_ConstantType)
def _value(context, b, kind, constant):
    return context.get_dummy_value()


@infer_getattr
class _Members(AttributeTemplate):
    key = _ConstantType

    def generic_resolve(self, value, name):
        member = value.constant.members.get(name)
        if isinstance(member, int):
            return types.int64
        return None if member is None else self.context.resolve_value_type(member)


@lower_getattr_generic(_ConstantType)
def _member(context, b, kind, value, name):
    member = kind.constant.members[name]
    return context.get_constant(types.int64, member) if isinstance(member, int) else context.get_dummy_value()


_body: Callable = print
_constant: Constant | None = None


def _kernel(o, step, chunk, thread):
    _body(_constant, o, step, chunk, thread)


def _copy(function: Callable, name: str, names: dict) -> FunctionType:
    """The function under another name, which finds these global names."""
    return FunctionType(function.__code__.replace(co_name=name, co_qualname=name), names, name)


def stamped(constants: Iterable[Constant]) -> Callable[[Callable], Callable]:
    """Register a kernel for each constant: the decorated function with it as first argument."""

    def stamp(function: Callable) -> Callable:
        body = cache.jit(function)
        for constant in constants:
            name = KernelId(function.__name__, constant.format, constant.activations).name
            names = {"_body": body, "_constant": constant, "__name__": function.__module__}
            cache.kernel(_copy(_kernel, name, names), function.__name__)
        return body

    return stamp


_choose: Callable = print


def _link(*operands):
    return _choose(_constant, *operands)


def _none(*operands):
    return np.float32(np.nan)


def chained(constants: Iterable[Constant]) -> Callable[[Callable], Callable]:
    """A jitted function that chooses the constant by its operands, as there is only one kernel for all of them.

        @chained(NODES)
        def node_row(W, tree, row, x, groups): ...

    is called as node_row(tree, row, x, groups), with the first of the constants as W. W.otherwise is the same with the
    next one, and gives NaN after the last.
    """

    def chain(function: Callable) -> Callable:
        link = cache.jit(_none)
        for constant in reversed([*constants]):
            # Its own copy: Numba would take one function that calls itself by way of others for a recursion.
            own = cache.jit(_copy(function, f"{function.__name__}_{constant.format}", function.__globals__))
            members = {**constant.members, "otherwise": link}
            linked = Constant(function.__name__, constant.format, constant.activations, **members)
            names = {"_choose": own, "_constant": linked, "__name__": function.__module__}
            link = cache.jit(_copy(_link, f"{function.__name__}_from_{constant.format}", names))
        return link

    return chain
