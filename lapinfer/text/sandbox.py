"""The Jinja that chat templates run in: what transformers gives them, in a sandbox with a budget.

A template comes with a checkpoint, so it is untrusted. Jinja's immutable sandbox keeps it from Python's internals. The
rest is done here: all that makes values or repeats goes through the budget (budget.py), which is told beforehand of
what may grow (growth.py). Statements that reach for other templates, and `autoescape`, are refused.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lapinfer.text.budget import Budget
from lapinfer.text.growth import FILTERS, METHODS, OPERATORS, nothing

LONGEST_DATE_FORMAT = 1000
READ_FIRST = frozenset({"join", "sum", "pprint"})
"""Filters that read what an iterator gives more than once while they are estimated and applied."""
MOST_NAMES = 1000
"""Names that a template may set: Jinja's compiler compares all of them at each branch."""
REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.ScopedEvalContextModifier)


class RefusalError(Exception):
    """The template called raise_exception: it does not accept these messages."""


class _Dict:
    """`dict`, without what else the type has."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace`, with names that do not begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=…)` is possible, as in Jinja
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    __repr__ = object.__repr__  # nested namespaces would print exponentially much


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the name {name!r}, which begins with an underscore")


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks what the assistant says: a block with a scope of its own."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


def _through(filter: str, node: nodes.Node) -> nodes.Expr:
    return nodes.Filter(
        node,  # pyright: ignore[reportArgumentType]
        filter,
        [],
        [],
        None,
        None,
        lineno=node.lineno,
    )


class _Charged(NodeTransformer):
    """Route all that makes values, repeats or takes time through filters of the environment."""

    def _made(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return _through("made", node)

    visit_Call = visit_Concat = visit_List = visit_Compare = _made  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        return self._made(node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:  # noqa: N802
        for pair in node.items:
            pair.key = self._hashed(self.visit(pair.key))
            pair.value = self.visit(pair.value)
        return _through("made", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _through("made", node)
        node.arg = self._hashed(node.arg)
        return node

    @staticmethod
    def _hashed(node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else _through("hashed", node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node.call)  # the call itself must stay one
        for name in ("args", "defaults", "body"):
            setattr(node, name, [self.visit(child) for child in getattr(node, name)])
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _through("counted", node.iter)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:  # noqa: N802
        return nodes.Const(node.data, lineno=node.lineno)  # so that output passes through `finalize`

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, REFUSED) or (isinstance(node, nodes.Block) and node.scoped):
            kind = type(node).__name__.lower()
            raise jinja2.TemplateSyntaxError(f"{kind} has no place in a chat template", node.lineno)
        return super().generic_visit(node, *args, **kwargs)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One rendering at a time, on `budget`, which the caller sets before each."""

    intercepted_binops = frozenset(OPERATORS)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants must not be computed, unbounded, while compiling
            extensions=[_Generation, LoopControlExtension],
            finalize=_written,
        )
        self.budget = Budget()
        self.filters["tojson"] = _tojson
        self.filters = {name: self._charged(name, function) for name, function in self.filters.items()}
        self.filters |= {"made": _made, "counted": _counted, "hashed": _hashed}
        self.tests = {name: self._timed(function) for name, function in self.tests.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        estimate = FILTERS.get(name, nothing)
        first = int(hasattr(function, "jinja_pass_arg"))  # Jinja's own argument before the value

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            budget = self.budget
            budget.charge()
            if name in READ_FIRST:
                args = tuple(map(_listed, args))
            estimate(budget, *args[first:], **kwargs)
            return budget.made(function(*args, **kwargs))

        return charged

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.budget.charge()
            return function(*args, **kwargs)

        return timed

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        self.budget.charge()
        method = getattr(obj, "__wrapped__", obj)  # str.format comes wrapped
        owner = getattr(method, "__self__", method)
        for kind, allowed in METHODS:
            if isinstance(owner, kind):
                if (estimate := allowed.get(name := getattr(method, "__name__", ""))) is None:
                    raise SecurityError(f"{kind.__name__}.{name} cannot be called here")
                args = tuple(map(_listed, args))
                estimate(self.budget, owner, *args, **{k: v for k, v in kwargs.items() if not k.startswith("_")})
                return super().call(context, obj, *args, **kwargs)
        if not self._is_jinja(owner):
            raise SecurityError(f"{type(owner).__name__} cannot be called here")
        for value in (*args, *kwargs.values()):
            self.budget.size(value)
        return super().call(context, obj, *args, **kwargs)

    def _is_jinja(self, owner: Any) -> bool:
        """Whether what is called (or whose method) is Jinja's, or one of the functions that templates get."""
        known: tuple[Any, ...] = tuple(dict(self.globals).values())
        of_jinja = type(owner).__module__.startswith("jinja2.") or isinstance(owner, Extension)
        return of_jinja or any(owner is value for value in known)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        for value in (left, right):
            if isinstance(value, int):
                budget.size(value)
        OPERATORS[operator](budget, left, right)
        value = super().call_binop(context, operator, left, right)
        return budget.concatenated(value, left, right) if operator == "+" else budget.made(value)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if len({node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}) > MOST_NAMES:
            raise SecurityError(f"it sets more than {MOST_NAMES} names")
        return _Charged().visit(tree)


def _budget(context: Any) -> Budget:
    return context.environment.budget


# The four below ask for the context so that Jinja does not apply them while compiling.
@pass_context
def _made(context: jinja2.runtime.Context, value: Any) -> Any:
    return _budget(context).made(value)


@pass_context
def _hashed(context: jinja2.runtime.Context, value: Any) -> Any:
    if not isinstance(value, str):
        _budget(context).charge(_budget(context).size(value))
    return value


@pass_context
def _written(context: jinja2.runtime.Context, value: Any) -> str:
    _budget(context).size(value)
    return _budget(context).made(str(value))


@pass_context
def _counted(context: jinja2.runtime.Context, values: Iterable[Any]) -> Iterable[Any]:
    if isinstance(values, jinja2.Undefined):
        return values  # raises, or is empty, as Jinja has it
    return _rounds(_budget(context), values)


def _rounds(budget: Budget, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        budget.charge()
        yield value


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False) -> str:
    """JSON as transformers writes it: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise RefusalError(shortened(message))


def shortened(message: object) -> str:
    """The beginning of a message in one line."""
    return " ".join(str(message)[:1000].split())[:300]


def _strftime_now(format: str) -> str:
    if len(format) > LONGEST_DATE_FORMAT or any(c.isdigit() for c in format):  # %999999999d makes a gigabyte
        raise SecurityError("a date format is too wide")
    return datetime.now().strftime(format)
