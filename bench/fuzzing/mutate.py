"""Changes to bytes, to JSON values, and to the text of JSON: what files may say that they should not."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

COUNTS = [0, 1, 2, 3, 7, 8, 16, 31, 32, 63, 64, 65, 255, 256, 257, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40,
          (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip
NUMBERS: list[Any] = [
    *COUNTS, -1, -2, -64, -(1 << 63), 10**30, 0.5, 1.5, -0.0, 1e-45, 1e-300, 1e300, -1e300,
    float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
TEXTS = [
    "", " ", "a", "é", "\x00", "\x1b]0;t\x07", "\ud800", "\u202e", "-1", "1e9", "null", "../../x", "/etc/passwd",
    "a" * 5000,
    "float32", "bfloat16", "silu", "gelu", "gelu_pytorch_tanh", "relu2", "swish", "default", "linear", "dynamic",
    "yarn",
    "llama3", "longrope", "su", "mrope", "full_attention", "sliding_attention", "softmax", "sigmoid", "llama", "gpt2",
    "mixtral", "deepseek_v2", "gemma3_text", "lfm2_moe", "qwen3_moe", "<s>", "</s>", "<|im_end|>", "▁", "Ġ",
]  # fmt: skip
"""Words that configs and tokenizers use among them: a wrong one in the right place goes further than noise."""
PATHOLOGICAL = ["(a+)+$", "(?=(a+))\\1", "(", "[", "\\p{L}+", "", ".*?", "a{1,9999}", "(?i)ſ", "\\s+(?!\\S)", "(.|a)*b"]


def extreme(rng: random.Random) -> Any:
    """A value that is at an edge of what is written there, or of another type."""
    match rng.randrange(8):
        case 0 | 1 | 2:
            return rng.choice(NUMBERS)
        case 3 | 4:
            return rng.choice(TEXTS)
        case 5:
            return rng.choice([None, True, False, [], {}, [[]], [None], {"": None}])
        case 6:
            return [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 16, 64)))]
        case _:
            return nested(rng.choice((3, 60, 400)), rng.choice(("list", "dict")))


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything within; of long lists some."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        container = stack.pop()
        if isinstance(container, dict):
            keys: Sequence[Any] = list(container)
        elif isinstance(container, list):
            keys = range(len(container)) if len(container) <= 40 else [*range(20), *range(-20, 0)]
        else:
            continue
        found += [(container, key) for key in keys]
        stack += [container[key] for key in keys]
    return found


def change_json(value: Any, rng: random.Random, donors: Mapping[str, Sequence[Any]] | None = None) -> Any:
    """The value with a few changes, in place where it can be. donors: keys, and values they have elsewhere."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        found = places(value)
        if not found or rng.random() < 0.01:
            return extreme(rng)
        container, key = rng.choice(found)
        _change_at(container, key, rng, found)
        if donors and isinstance(value, dict) and rng.random() < 0.3:
            name = rng.choice(list(donors))
            value[name] = deepcopy(rng.choice(donors[name]))
    return value


def _change_at(container: Any, key: Any, rng: random.Random, found: Sequence[tuple[Any, Any]]) -> None:
    old = container[key]
    match rng.randrange(9):
        case 0 | 1:
            container[key] = extreme(rng)
        case 2 | 3 if isinstance(old, int | float) and not isinstance(old, bool):
            container[key] = rng.choice([old + 1, old - 1, old * 2, old // 2 if old == old else 0, -old, float(old)])
        case 2 | 3 if isinstance(old, str) and old:
            at = rng.randrange(len(old))
            container[key] = old[:at] + rng.choice([*TEXTS[:12], old, ""]) + old[at + rng.randrange(2) :]
        case 4:
            del container[key]
        case 5:
            other, place = rng.choice(found)
            try:
                container[key] = deepcopy(other[place])
            except (IndexError, KeyError, RecursionError):
                container[key] = None
        case 6 if isinstance(container, dict):
            container[rng.choice([*TEXTS, str(key) + "s"])] = container.pop(key)
        case 6 | 7 if isinstance(container, list):
            container[:] = container * rng.choice((0, 2, 3)) if len(container) < 5000 else container[::2]
        case _:
            container[key] = rng.choice([[old], {"value": old}, str(type(old)), [old, old], not old])


def to_text(value: Any, rng: random.Random) -> bytes:
    """JSON, or what is nearly JSON."""
    try:
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    except (ValueError, RecursionError):
        text = "[" * 3000 + "]" * 3000
    data = text.encode("utf-8", "surrogatepass")
    return spoil(data, rng) if rng.random() < 0.15 else data


def spoil(data: bytes, rng: random.Random) -> bytes:
    """A text file as encodings, editors and bad luck leave it."""
    changes: list[Callable[[], bytes]] = [
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("utf-8", "replace").encode("utf-16"),
        lambda: data[: rng.randrange(len(data) + 1)],
        lambda: data + data,
        lambda: data + b"\x00" * 100,
        lambda: b"",
        lambda: data.replace(b":", b": NaN, ", 1),
        lambda: data.replace(b"{", b'{"vocab_size": 7, "vocab_size": 9, ', 1),
        lambda: change_bytes(data, len(data), rng),
        lambda: b"[" * 100_000,
        lambda: data.replace(b"1", b"1" * 5000, 1),
    ]
    return rng.choice(changes)()


def change_bytes(data: bytes, header: int, rng: random.Random) -> bytes:
    """A few changes, most of them in the first `header` bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        end = max(min(header, len(changed)) if rng.random() < 0.9 else len(changed), 1)
        at = rng.randrange(end)
        match rng.randrange(7):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[rng.randrange(len(changed) + 1) :]
            case 3:
                size = rng.choice((1, 4, 8))
                changed[at : at + size] = struct.pack("<Q", rng.choice(COUNTS))[:size]
            case 4:
                text = rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:64]
                changed[at : at + rng.choice((0, 1, len(text)))] = text
            case 5:
                del changed[at : at + rng.randrange(1, 9)]
            case _:
                other = rng.randrange(end)
                changed[at:at] = changed[other : other + rng.randrange(1, 64)]
    return bytes(changed)


SIZES = [1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 128, 200, 257]


def change_sizes(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A config of another model, which may well exist: numbers stay what they are, of another size."""
    found = [(c, key) for c, key in places(config) if type(c[key]) in (int, float)]
    for container, key in rng.sample(found, min(len(found), rng.choice((1, 1, 2, 3)))):
        old = container[key]
        if isinstance(old, float):
            container[key] = old * rng.choice((0.5, 2.0, 1e-3, 1e3, -1.0, 0.0))
        else:
            container[key] = rng.choice([rng.choice(SIZES), 2 * old, old // 2, old + 1, max(old - 1, 0)])
    return config


def change_numbers(data: bytearray, spans: Sequence[tuple[int, int]], rng: random.Random) -> None:
    """Weights that are no numbers, infinite, huge or noise, in place, within spans of bytes."""
    spans = [(start, stop) for start, stop in spans if start < stop]
    for _ in range(rng.choice((1, 4, 64)) if spans else 0):
        start, stop = rng.choice(spans)
        at = rng.randrange(start, stop)
        pattern = rng.choice([
            b"\xff\xff\xff\xff", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x00\x7c", b"\x00\xfe", b"\x80\x7f",
            b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00", rng.randbytes(16), bytes(64), bytes([rng.randrange(256)]),
            bytes(4),
        ])[: stop - at]  # fmt: skip
        data[at : at + len(pattern)] = pattern
