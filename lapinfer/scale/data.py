"""A study as a file, and subjects from it: what was measured once is simulated again with another network or price."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np

from lapinfer import __version__
from lapinfer.errors import InputError
from lapinfer.report.measured import Kind
from lapinfer.scale.study import Study, crossings
from lapinfer.scale.subject import Subject
from lapinfer.scale.tape import Tape
from lapinfer.scale.times import Asking, Rates, Step, Times

MOST_CHOSEN = 1 << 26
"""Bytes of a tape that is read from a file."""
KINDS = get_args(Kind)
SIDES = ("home", "node")


def to_json(study: Study) -> str:
    value = {
        "lapinfer": __version__,
        "created": study.created,
        "machine": study.machine,
        "options": asdict(study.options),
        "subjects": [_subject(subject) for subject in study.subjects],
        "rows": [asdict(row) for row in study.rows],
        "crossings": [asdict(crossing) for crossing in crossings(study)],
    }
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _subject(subject: Subject) -> dict[str, Any]:
    chosen = subject.tape.chosen
    tape = {
        "experts": subject.tape.experts,
        "source": subject.tape.source,
        "shared": subject.tape.shared,
        "shape": chosen.shape,
        "chosen": b64encode(zlib.compress(chosen.astype("<i2").tobytes(), 9)).decode(),
    }
    return {**asdict(subject, dict_factory=_without_arrays), "tape": tape}


def _without_arrays(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if not isinstance(value, np.ndarray)}


def subjects_of(path: Path) -> tuple[Subject, ...]:
    """Those of an earlier study's file; InputError in one line for any other."""
    try:
        value = json.loads(path.read_bytes())
        return tuple(_read_subject(each) for each in value["subjects"])
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise InputError(f"{path}: expected the file that `lapinfer scale --json` writes; {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0][:200] or "it is not"


def _read_subject(value: dict[str, Any]) -> Subject:
    times = value["times"]
    counts = ("parameters", "active", "weight_bytes", "cache_bytes", "sent", "returned")
    if value["kind"] not in KINDS:
        _wrong("kind", value["kind"])
    return Subject(
        name=_text(value["name"]),
        kind=value["kind"],
        **{name: _count(name, value[name]) for name in counts},
        times=Times(
            steps=_steps(times["steps"]),
            head=_steps(times["head"]),
            position=_figure("position", times["position"]),
            experts=Rates(*(_figure(name, times["experts"][name]) for name in ("begin", "byte", "mac"))),
            expert_bytes=_count("expert_bytes", times["expert_bytes"]),
            expert_macs=_count("expert_macs", times["expert_macs"]),
            **{side: Asking(*(_figure(side, times[side][name]) for name in ("begin", "pair"))) for side in SIDES},
        ),
        tape=_tape(value["tape"]),
        source=_text(value["source"]),
        separable=bool(value["separable"]),
    )


def _steps(values: list[dict[str, Any]]) -> tuple[Step, ...]:
    steps = tuple(
        Step(_count("tokens", v["tokens"]), *(_figure(name, v[name]) for name in ("seconds", "waiting")))
        for v in values
    )
    tokens = [step.tokens for step in steps]
    if not steps or tokens != sorted(set(tokens)):
        _wrong("steps of tokens", tokens)
    return steps


def _tape(value: dict[str, Any]) -> Tape:
    experts = tuple(_count("experts", n) for n in value["experts"])
    tokens, layers, most = shape = tuple(_count("shape", n) for n in value["shape"])
    size = 2 * tokens * layers * most
    if layers != len(experts) or not tokens or size > MOST_CHOSEN:
        _wrong("shape", shape)
    raw = zlib.decompressobj().decompress(b64decode(value["chosen"], validate=True), size + 1)
    if len(raw) != size:
        _wrong("chosen", f"{len(raw)} bytes")
    chosen = np.frombuffer(raw, "<i2").astype(np.int16).reshape(shape)
    for layer, count in enumerate(experts):
        own = chosen[:, layer]
        if own.min() < -1 or own.max() >= count or (own < 0).all(axis=1).any():
            _wrong(f"experts of layer {layer}", f"{own.min()} to {own.max()}")
    shared = _count("shared", value["shared"])
    if shared and shared >= min(most, *experts):
        _wrong("shared", shared)
    return Tape(chosen, experts, _text(value["source"]), shared)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 60:
        _wrong(name, value)
    return value


def _figure(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
        _wrong(name, value)
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        _wrong("a text", value)
    return value[:1000]


def _wrong(name: str, value: Any) -> NoReturn:
    raise ValueError(f"{name}: got {str(value)[:80]}")
