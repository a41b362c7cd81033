"""What a report knows of one model and of all: plain data that JSON holds, and from which the page is made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lapinfer import __version__
from lapinfer.report.roofline import Roofline
from lapinfer.report.whatif import Term

Kind = Literal["dense", "moe", "fff"]


@dataclass(frozen=True, slots=True)
class Step:
    """Steps of one kind, measured: bytes, macs and tokens of one step, and the median of its seconds.

    predicted: bytes by part from the spec alone, for as many experts as the steps have read. spread: half the distance
    between the quartiles of the seconds, by their median. turns: the median of each turn, which other models' turns
    lay between.
    """

    tokens: int
    position: int
    bytes: int
    predicted: dict[str, int]
    macs: int
    seconds: float
    spread: float = 0.0
    turns: list[float] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """Tokens per second in each turn."""
        return [self.tokens / seconds for seconds in self.turns]

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def intensity(self) -> float:
        """Multiply-adds per byte."""
        return self.macs / self.bytes

    @property
    def rate(self) -> float:
        """Multiply-adds per second."""
        return self.macs / self.seconds


@dataclass(frozen=True, slots=True)
class Batch:
    """Steps of one token of each of so many sequences: bytes and seconds of a token, distinct experts of a layer."""

    tokens: int
    bytes: float
    seconds: float
    distinct: float | None


@dataclass(frozen=True, slots=True)
class Routed:
    """Routing of a text, and different experts by the size of a step.

    layers, experts, top_k by layer; load [L][cells]: tokens that experts got, of `merged` neighbours together where
    there are too many for a picture. uniform, by_load: [tokens, expected different experts], of equal loads and of
    these; prompts: [tokens, measured], steps of neighbouring tokens. summary: `Routing.summary()`.
    """

    layers: list[int]
    experts: list[int]
    top_k: list[int]
    merged: int
    load: list[list[int]]
    uniform: list[list[float]]
    by_load: list[list[float]]
    prompts: list[list[float]]
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """One model. Sizes in bytes; resident: memory that the process gave back when the model was closed, 0 where Ctrl-C
    came before. paired: its turns lay between those of others.

    ppl: perplexity, its standard error, and how many tokens of the report's text were scored (0: it is from the model's
    card, and of another text); or None, and then unscored says why. text: what ran, "real" or "random".
    contexts: [positions, bytes per token], predicted.
    """

    name: str
    kind: Kind
    family: str
    format: str
    parameters: int
    active: int
    weight_bytes: int
    cache_bytes: int
    resident: int
    bits: float
    arithmetic: str
    context: int
    text: str
    decode: Step
    prompt: Step
    ppl: list[float] | None
    unscored: str
    terms: list[Term]
    contexts: list[list[int]]
    batches: list[Batch] = field(default_factory=list)
    routed: Routed | None = None
    paired: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """bandwidth: bytes per second; peaks: multiply-adds per second by arithmetic; measured with so many threads.

    bandwidth is the best of all measurements, before and after each turn; slowest the least of them. caches: bytes of
    the largest cache.
    """

    about: dict[str, Any]
    threads: int
    bandwidth: float
    peaks: dict[str, float]
    slowest: float = 0.0
    caches: int = 0

    def also(self, bandwidth: float) -> Machine:
        """With another measurement of the bandwidth."""
        return replace(self, bandwidth=max(self.bandwidth, bandwidth), slowest=min(self.slowest, bandwidth))

    def share(self, step: Step, arithmetic: str) -> float:
        """The least time that the step's bytes and multiply-adds can take, by the time that it took."""
        roof = Roofline(self.threads, {self.threads: self.bandwidth}, self.peaks)
        return roof.seconds(step.bytes, step.macs, arithmetic) / step.seconds


@dataclass(slots=True)
class Report:
    """failures: (name, message) of models that could not be measured."""

    machine: Machine
    text: str
    created: str
    models: list[Measured] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False


def to_json(report: Report) -> str:
    return json.dumps({"lapinfer": __version__, **asdict(report)}, ensure_ascii=False, allow_nan=False)
