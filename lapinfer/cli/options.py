"""Options that several commands have, made from what the library declares (lapinfer/options.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from lapinfer.cli import complete
from lapinfer.cli.failures import UsageError
from lapinfer.errors import InputError
from lapinfer.options import LoadOptions, Option, SamplingParams, ServeOptions, choice, declared
from lapinfer.report.sizes import SIZES

MODEL_NAMES = "Folder, .gguf file, org/name on the hub, smollm2, or the name of a model that lapinfer ls shows."
SHIPPED_MODELS = "those that come with lapinfer"

FLAGS = {
    "threads": ("-t", "--threads"),
    "ctx": ("-c", "--ctx-size"),
    "prefix_cache": ("--prefix-cache",),
    "expert_nodes": ("--expert-nodes",),
    "temperature": ("--temp",),
    "repetition_penalty": ("--repeat-penalty",),
}
"""Of fields that have another name on the command line, or a short one."""
SERVE_KEY = "LAPINFER_API_KEY"
"""The variable that has a server's key, which a command line would show to all who use the computer."""


def option(declaration: Option, *flags: str, **more: Any) -> Any:
    """Typer's option for a declared one: its help, and what it accepts, which is otherwise wrong usage (exit 2)."""

    def check(param: typer.CallbackParam, value: Any) -> Any:
        if isinstance(value, list | tuple):
            if declaration.accepts(tuple(value)):
                return value
            return [check(param, each) for each in value]
        if declaration.choices and isinstance(value, str):
            value = value.lower()
        if value is not None:
            check_usage(declaration, max(param.opts, key=len), value)
        return value

    metavar = f"[{'|'.join(declaration.choices)}]" if declaration.choices else None
    given = {"help": declaration.help, "show_default": declaration.unset or True, "metavar": metavar} | more
    if declaration.choices:
        given["autocompletion"] = complete.one_of(declaration.choices)
    return typer.Option(*flags, callback=check, **given)


def check_usage(declaration: Option, name: str, value: object) -> None:
    """UsageError for a value that is not accepted."""
    try:
        declaration.check(name, value)
    except InputError as error:
        raise UsageError(str(error)) from None


def load_declaration(field: str) -> Option:
    """How a field of LoadOptions is declared, for an option that is much like it."""
    return declared(LoadOptions)[field][1]


def load_option(field: str, *flags: str, **more: Any) -> Any:
    """Typer's option for a field of LoadOptions."""
    return option(load_declaration(field), *(flags or FLAGS.get(field, (f"--{field}",))), **more)


@dataclass(frozen=True, slots=True)
class Group:
    """Metadata of a command's parameter that is made from several options."""

    parameters: tuple[Parameter, ...]
    make: Callable[[dict[str, Any]], Any]


def _parameter(name: str, kind: Any, typer_option: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, typer_option])


def load_group(*names: str, **defaults: Any) -> Group:
    """LoadOptions from options for these fields; defaults: of those that have another one than elsewhere."""
    usual, parameters = LoadOptions(**defaults), []
    for name in names:
        kind, declaration = declared(LoadOptions)[name]
        kind, default = str if declaration.choices else kind, getattr(usual, name)  # Typer would check names itself
        more = {}
        if isinstance(default, tuple):
            kind, default, more = list[str] | None, None, {"show_default": "none"}
        made = load_option(name, rich_help_panel="Loading", **more)
        parameters.append(_parameter(name, kind, made, default))
    return Group(tuple(parameters), lambda values: LoadOptions(**_tuples(values)))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """What Typer gives for options that may be repeated, None or a list, as tuples."""
    repeated = {name for name, (kind, _) in declared(LoadOptions).items() if kind == tuple[str, ...]}
    return {name: tuple(value or ()) if name in repeated else value for name, value in values.items()}


def sampling_group(**unset: str) -> Group:
    """Those sampling parameters that are given, by name; checked before a model is loaded for them.

    unset: what the lack of some means, in words, where that is something else than in the library.
    """
    defaults = SamplingParams()
    parameters = []
    for name, (kind, declaration) in declared(SamplingParams).items():
        flags = FLAGS.get(name, (f"--{name.replace('_', '-')}",))
        default = getattr(defaults, name)
        shown = unset.get(name) or (declaration.unset or True if default is None else f"{default:g}")
        made = typer.Option(*flags, help=declaration.help, show_default=shown, rich_help_panel="Sampling")
        parameters.append(_parameter(name, kind | None, made, None))
    return Group(tuple(parameters), _given_sampling)


def _given_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in values.items() if value is not None}
    try:
        SamplingParams(**given)
    except InputError as error:
        raise UsageError(str(error)) from None
    return given


def serve_group() -> Group:
    """ServeOptions."""
    usual, parameters = ServeOptions(), []
    for name, (kind, declaration) in declared(ServeOptions).items():
        default = getattr(usual, name)
        more: dict[str, Any] = {"envvar": SERVE_KEY} if name == "api_key" else {}
        if isinstance(default, tuple):
            kind, default = list[str] | None, None
        shown = declaration.unset or (True if default is not None else "none")
        flag = f"--{name.replace('_', '-')}"
        made = typer.Option(flag, help=declaration.help, show_default=shown, rich_help_panel="Serving", **more)
        parameters.append(_parameter(name, kind, made, default))
    return Group(tuple(parameters), _serve_options)


def _serve_options(values: Mapping[str, Any]) -> ServeOptions:
    try:
        return ServeOptions(**{**values, "cors": tuple(values["cors"] or ())})
    except InputError as error:
        raise UsageError(str(error)) from None


Loading = Annotated[
    LoadOptions,
    load_group(
        "quant", "threads", "ctx", "kv", "activations", "experts", "memory", "policy", "draft", "prefix_cache", "lora",
        "expert_nodes",
    ),
]  # fmt: skip
LoadingInMemory = Annotated[LoadOptions, load_group("quant", "threads", "ctx", "kv", "activations", "experts", "lora")]
LoadingChunks = Annotated[
    LoadOptions, load_group("quant", "threads", "kv", "activations", "experts", "lora", "expert_nodes")
]
"""Of commands whose -c is the length of a chunk."""
LoadingGrid = Annotated[
    LoadOptions, load_group("quant", "kv", "activations", "experts", "memory", "policy", "expert_nodes")
]
"""Of bench, whose -t is a list, and whose context follows from its tests."""
LoadingFit = Annotated[LoadOptions, load_group("threads", "ctx", "kv")]
"""Of info, whose --quant and --memory ask for something else."""
LoadingServed = Annotated[
    LoadOptions,
    load_group(
        "quant", "threads", "ctx", "slots", "kv", "activations", "experts", "policy", "prefix_cache", "expert_nodes",
        slots=4,
    ),
]  # fmt: skip
"""Of serve, whose --memory is that of all models."""
LoadingBatch = Annotated[
    LoadOptions,
    load_group(
        "quant", "threads", "ctx", "slots", "kv", "activations", "experts", "memory", "policy", "draft", "prefix_cache",
        "lora", slots=8,
    ),
]  # fmt: skip
Serving = Annotated[ServeOptions, serve_group()]
LoadingPage = Annotated[LoadOptions, load_group("quant", "threads")]
Sampling = Annotated[dict[str, Any], sampling_group()]
SamplingSeeded = Annotated[dict[str, Any], sampling_group(seed="0: the same lines have the same answers")]
"""Of batch, where each line has a seed of its own."""

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_NAMES, autocompletion=complete.models)]
DefaultModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_NAMES, autocompletion=complete.models)]
KnownModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=MODEL_NAMES, autocompletion=complete.known_models)
]
"""Of info, which knows more models by their sizes."""
Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODELS", help=MODEL_NAMES, show_default=SHIPPED_MODELS, autocompletion=complete.models),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what lapinfer did not write, too; says what goes.")]
SIZE = choice("Random weights.", tuple(SIZES))


def _remember_verbose(ctx: typer.Context, verbose: bool) -> bool:
    ctx.meta["verbose"] = verbose
    return verbose


Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", callback=_remember_verbose, help="Say more; show tracebacks.")
]


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer reads it: a parameter that is made from a group of options is replaced by these."""
    groups: dict[str, Group] = {}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        metadata = getattr(parameter.annotation, "__metadata__", ())
        if group := next((each for each in metadata if isinstance(each, Group)), None):
            groups[parameter.name] = group
            parameters += group.parameters
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: group.make({each.name: values.pop(each.name) for each in group.parameters})
            for name, group in groups.items()
        }
        command(**values, **made)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
