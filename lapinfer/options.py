"""What a caller may choose: how a model is loaded (`LoadOptions`), and how its next token is (`SamplingParams`).

Each option is declared once, as a field: type, default, line of help, and what it accepts. The library, the command
line and reports all take these. Nothing heavy is imported here, because `lapinfer --help` needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from math import inf
from numbers import Real
from typing import Annotated, Any, Final, Literal, TypedDict, get_args, get_type_hints

from lapinfer.arguments import is_whole
from lapinfer.errors import InputError
from lapinfer.quant.names import format_names

QUANTS = ("auto", *format_names())
KVName = Literal["f32", "f16", "q8"]
KVOption = Literal["auto", KVName]
ActivationsName = Literal["auto", "q8", "q16"]
Policy = Literal["lru", "lfu", "lrfu"]
"""Which experts leave a pool of them."""
POLICIES = get_args(Policy)
PolicyName = Literal[Policy, "system"]
SYSTEM: Final = "system"
"""The policy that leaves it to the system's page cache which experts are in memory."""
MOST_NODES = 1024
MOST_THREADS = 256
"""More than any laptop has: thousands would bring the computer to a halt."""
GIGABYTES = "a number of GB above 0"


@dataclass(frozen=True, slots=True)
class Option:
    """What an option says and accepts.

    help: its line in --help; expected: its values in words; is_valid: whether a value is one of them; unset: what None
    means, in words, where None is accepted; choices: its values when they are names.
    """

    help: str
    expected: str
    is_valid: Callable[[Any], bool]
    unset: str | None = None
    choices: tuple[str, ...] = ()

    def accepts(self, value: object) -> bool:
        return (value is None and self.unset is not None) or self.is_valid(value)

    def check(self, name: str, value: object) -> None:
        """InputError that names the option, what is expected, and what was given."""
        if not self.accepts(value):
            given = repr(value) if isinstance(value, str) and not self.choices else value
            raise InputError(f"{name}: expected {self.expected}, got {given}")


def choice(help: str, choices: tuple[str, ...]) -> Option:
    """One of some names."""
    return Option(help, f"one of {', '.join(choices)}", lambda value: value in choices, choices=choices)


def whole(help: str, least: int, unset: str | None = None, most: float = inf) -> Option:
    """A whole number from `least` to `most`."""
    expected = f"a whole number from {least}" + (f" to {most}" if most < inf else "")
    return Option(help, expected, lambda value: is_whole(value) and least <= int(value) <= most, unset)


def number(help: str, least: float, most: float = inf) -> Option:
    """A finite number from `least` to `most`."""
    expected = f"a number from {least:g}" + (f" to {most:g}" if most < inf else "")
    return Option(help, expected, lambda value: _is_number(value) and least <= value <= most and value < inf)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_name, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_above_0(value: Any) -> bool:
    return _is_number(value) and 0 < value < inf


@cache
def declared(options: type) -> dict[str, tuple[Any, Option]]:
    """(type, Option) of each field of a class of options."""
    hints = get_type_hints(options, include_extras=True)
    return {field.name: (hints[field.name].__origin__, hints[field.name].__metadata__[0]) for field in fields(options)}


def _check(options: Any) -> None:
    for name, (_, option) in declared(type(options)).items():
        option.check(name, getattr(options, name))


QUANT = choice("Format of the weights.", QUANTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is loaded; InputError names the option that is out of range.

    quant: the packed format; auto keeps what is stored in 8 or 4 bits, and else takes q8 for small models and q4 for
    others. ctx: positions that a slot holds. slots: sequences that are kept at once. kv: format of the KV cache; auto
    is f32 for weights in f32 and else f16. A layer whose keys or values it cannot hold goes over to a wider one.
    activations: what quantized weights are multiplied with: q8 (int8), or q16 (two int8 per number: no loss to
    speak of, and prompts take up to twice as long); auto is q16 for small models, which are quick anyway and lose
    most. experts: how many a token gets. memory: GB (10^9 bytes) that this process may take, all included, for a
    mixture of experts that is larger: some experts are kept, the others are read when they are chosen. policy: which
    are kept; `system` leaves that to the system's page cache, which bounds nothing, so it contradicts `memory`. draft:
    a smaller model with the same tokens, which guesses what comes next; the text is the same without it. prefix_cache:
    GB of beginnings of texts that are kept on disk, for all models together, and at most as many in memory: a prompt
    that begins like one before is read from there on. lora: folders of adapters that are merged into the weights when
    they are packed, each with a scale after a colon, if it is not 1. expert_nodes: processes, on this computer or on a
    cluster of Ray, that have the experts; logits are the same bits.
    """

    quant: Annotated[str, QUANT] = "auto"
    threads: Annotated[int | None, whole("Threads.", 1, unset="all cores")] = None
    ctx: Annotated[
        int | None, whole("Positions that the context holds.", 1, unset="the model's own, at most 4,096")
    ] = None
    slots: Annotated[int, whole("Sequences that are kept at once.", 1)] = 1
    kv: Annotated[
        KVOption, choice("Format of the KV cache; auto: f16, or f32 for weights in f32.", get_args(KVOption))
    ] = "auto"
    activations: Annotated[
        ActivationsName,
        choice("Multiply quantized weights with q8 or q16 (more exact, slower) numbers.", get_args(ActivationsName)),
    ] = "auto"
    experts: Annotated[int | None, whole("Experts per token.", 1, unset="the model's own number")] = None
    memory: Annotated[
        float | None,
        Option(
            "GB that the process may take; experts that do not fit are read when they are chosen.",
            GIGABYTES,
            _is_number,
            unset="no bound",
        ),
    ] = None
    policy: Annotated[
        PolicyName,
        choice(
            "Which experts stay in memory: lru, lfu, lrfu (both); or, without --memory, as the system likes: system.",
            get_args(PolicyName),
        ),
    ] = "lrfu"
    draft: Annotated[
        str | None,
        Option("A smaller model with the same tokens, to guess what comes next.", "a name or a path", _is_name, "none"),
    ] = None
    prefix_cache: Annotated[
        float | None,
        Option("GB of beginnings of prompts to keep, so that none is read twice.", GIGABYTES, _is_number, "none"),
    ] = None
    lora: Annotated[
        tuple[str, ...],
        Option(
            "Adapter (a PEFT folder), PATH or PATH:SCALE, that is merged into the weights (repeatable).",
            "names of folders, PATH or PATH:SCALE",
            _are_names,
        ),
    ] = ()
    expert_nodes: Annotated[
        int | None,
        whole("Nodes that have the experts: processes of a cluster of Ray.", 1, unset="none", most=MOST_NODES),
    ] = None

    def __post_init__(self) -> None:
        _check(self)
        if self.threads is not None and self.threads > MOST_THREADS:
            raise InputError(f"threads: expected at most {MOST_THREADS}, got {self.threads}")
        for name, value in (("memory", self.memory), ("prefix_cache", self.prefix_cache)):
            if value is not None and not 0 < value < 1e6:
                raise InputError(f"{name}: expected {GIGABYTES}, got {value:g}")
        if self.draft is not None and self.memory is not None:
            raise InputError("draft: a second model goes with no bound of memory: leave out --draft or --memory")
        if self.prefix_cache is not None and self.memory is not None:
            raise InputError(
                "prefix_cache: what is kept takes memory, which the bound does not count: leave out --prefix-cache or "
                "--memory"
            )
        if self.expert_nodes is not None and (self.memory is not None or self.policy == SYSTEM):
            raise InputError(
                "expert_nodes: experts on nodes are in memory there: leave out --expert-nodes, or --memory and --policy"
            )
        if self.policy == SYSTEM and self.memory is not None:
            raise InputError(
                f"policy {SYSTEM} bounds nothing, which contradicts --memory: leave out --memory, or choose the policy "
                f"{', '.join(POLICIES[:-1])} or {POLICIES[-1]}"
            )


class LoadKeywords(TypedDict, total=False):
    """The fields of `LoadOptions`, for type checkers: the keywords of `lapinfer.load`."""

    quant: str
    threads: int | None
    ctx: int | None
    slots: int
    kv: KVOption
    activations: ActivationsName
    experts: int | None
    memory: float | None
    policy: PolicyName
    draft: str | None
    prefix_cache: float | None
    lora: tuple[str, ...]
    expert_nodes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How models are served; InputError names the option that is out of range.

    api_key: what clients must send, as a bearer token or x-api-key. cors: origins whose pages may ask from a browser;
    "*" is all of them. memory: GB (10^9 bytes) that models may take together; what was used longest ago leaves first.
    queue: requests that wait, of each model. body: MB of a request. timeout: seconds that an answer may take, and
    those of reading a request.
    """

    host: Annotated[str, Option("Address to listen at; 0.0.0.0: all of this computer's.", "an address", _is_name)] = (
        "127.0.0.1"
    )
    port: Annotated[int, whole("Port; 0: any free one.", 0, most=65535)] = 8080
    api_key: Annotated[
        str | None, Option("Key that clients must send.", "a text that is not empty", _is_name, unset="none")
    ] = None
    cors: Annotated[
        tuple[str, ...],
        Option("Origin whose pages may ask (repeatable); *: all.", "origins, https://example.org", _are_names),
    ] = ()
    memory: Annotated[
        float | None, Option("GB that models may take together.", GIGABYTES, _is_above_0, unset="what is free")
    ] = None
    queue: Annotated[int, whole("Requests that may wait, of each model.", 0)] = 256
    body: Annotated[float, number("MB that a request may have.", 0.001, 1000)] = 8.0
    timeout: Annotated[float, number("Seconds that an answer may take.", 0.1)] = 600.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the defaults are llama.cpp's.

    temperature: 0 takes the most likely token, and nothing below matters but the penalty.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the fewest most likely tokens that have this share of what top-k left; 1 keeps all.
    min_p: keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    repetition_penalty: divides positive and multiplies negative logits of all tokens before, the prompt's too, as
    transformers has it; 1 is none.
    seed: the same one gives the same tokens on every machine; None differs each time.
    """

    temperature: Annotated[float, number("Temperature; 0: the most likely token.", 0)] = 0.8
    top_k: Annotated[int, whole("Keep the k most likely tokens; 0: all.", 0)] = 40
    top_p: Annotated[float, number("Keep this share of probability.", 0, 1)] = 0.95
    min_p: Annotated[float, number("Keep this fraction of the best token's probability.", 0, 1)] = 0.05
    repetition_penalty: Annotated[float, number("Penalty on repetition; 1: none.", 0.01, 100)] = 1.0
    seed: Annotated[int | None, whole("The same seed gives the same answer.", 0, unset="another one each time")] = None

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingParams:
        """What a model's makers recommend in generation_config.json; our defaults where that says nothing.

        `do_sample` false means the most likely token each time. Values that would be refused here are ignored: they
        are no reason not to run the model (`text/generation_config.py` says so).
        """
        recommended = {
            name: config[name]
            for name, (_, option) in declared(cls).items()
            if name != "seed" and not isinstance(config.get(name), bool) and option.accepts(config.get(name))
        }
        if config.get("do_sample") is False:
            recommended["temperature"] = 0.0
        return cls(**recommended)
