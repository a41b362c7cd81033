"""Typed reading of config.json, which anybody may have written: a wrong or absurd value becomes one clear line."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.spec import Activation

REQUIRED: Final[Any] = object()
"""As a default: the key must be there."""

LARGEST: Final = 1 << 24
"""No size in a model that fits a laptop is larger; products of two stay far inside 64 bits."""

MOST_LAYERS: Final = 1024

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Hugging Face names of activations, and ours."""


def shown(value: object) -> str:
    """A value of a file for a message, cut to a few words."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f"a very large {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class Config:
    """A JSON object and where it was read, for messages. A null counts as absent when a default is given.

    `asked` collects the paths of all keys that a reader asked for ("rope_scaling.factor"): what a file has beyond them
    is not known to the family (keys.py). `paths` are what paths of this object's keys begin with.
    """

    values: Mapping[str, Any]
    where: str
    asked: set[str] = field(default_factory=set)
    paths: tuple[str, ...] = ("",)

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is, null included."""
        self.know(key)
        return self.values.get(key, default)

    def know(self, *keys: str) -> None:
        """These keys are known, even where nothing depends on their values."""
        self.asked.update(path + key for path in self.paths for key in keys)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def with_defaults(self, **defaults: Any) -> Config:
        """The same, with these values where config.json has none or null."""
        return self.replaced(**{k: v for k, v in defaults.items() if k not in self})

    def with_absent(self, **defaults: Any) -> Config:
        """The same, with these values where config.json has none: a null stays, where it has a meaning of its own."""
        self.know(*defaults)
        return self.replaced(**{k: v for k, v in defaults.items() if k not in self.values})

    def replaced(self, **values: Any) -> Config:
        """The same, with these values instead of its own."""
        return replace(self, values={**self.values, **values})

    def under(self, other: Config) -> Config:
        """The values of both, where `other` wins; what is asked of them is asked of both."""
        return replace(self, values={**self.values, **other.values}, paths=self.paths + other.paths)

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """The error for a value that cannot be true."""
        if key not in self.values:
            return CheckpointError(f"{self.where}: {key!r} is missing, expected {expected}")
        return CheckpointError(f"{self.where}: {key!r} is {shown(self.values[key])}, expected {expected}")

    def unsupported(self, key: str, supported: str) -> UnsupportedError:
        """The error for an option that would be computed wrongly here."""
        return UnsupportedError(f"{self.where}: {key!r} is {shown(self.values.get(key))}; supported here: {supported}")

    def refuse(self, *keys: str) -> None:
        """Raise UnsupportedError when one of these options is on."""
        for key in keys:
            if self.get(key) not in (None, False, 0):
                raise self.unsupported(key, "leaving it off")

    def expect(self, **values: Any) -> None:
        """Raise UnsupportedError when one of these options is there and has another value."""
        for key, value in values.items():
            if key in self and self.values[key] != value:
                raise self.unsupported(key, f"{value} in this family")

    def integer(self, key: str, default: int = REQUIRED, least: int = 1, most: int = LARGEST) -> int:
        value = self.get(key)
        if value is None and default is not REQUIRED:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"an integer from {least} to {most}")
        return value

    def number(self, key: str, default: float = REQUIRED, least: float = 1e-9, most: float = 1e9) -> float:
        value = self.get(key)
        if value is None and default is not REQUIRED:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:  # NaN: false
            raise self.wrong(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def numbers(self, key: str, count: int, least: float = 1e-3, most: float = 1e6) -> tuple[float, ...]:
        value = self.get(key)
        inside = isinstance(value, list) and all(type(v) in (int, float) and least <= v <= most for v in value)
        if not inside or len(cast(list[float], value)) != count:
            raise self.wrong(key, f"{count} numbers from {least:g} to {most:g}")
        return tuple(float(v) for v in cast(list[float], value))

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str = REQUIRED) -> str:
        value = self.get(key)
        if value is None and default is not REQUIRED:
            return default
        if type(value) is not str:
            raise self.wrong(key, "a string")
        return value

    def section(self, key: str) -> Config:
        """The object under `key`; empty when absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        paths = tuple(f"{path}{key}." for path in self.paths)
        return Config(value or {}, f"{self.where}: {key}", self.asked, paths)

    def activation(self, key: str = "hidden_act", default: str = "silu") -> Activation:
        name = self.text(key, default)
        if name not in ACTIVATIONS:
            raise self.unsupported(key, ", ".join(ACTIVATIONS))
        return ACTIVATIONS[name]
