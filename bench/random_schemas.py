"""Random JSON schemas: types, bounds, choices, lists, objects, references."""

from __future__ import annotations

from random import Random
from typing import Any

LETTERS = 'abé"\\ 😀'


def random_schema(random: Random, depth: int = 3) -> Any:
    """A schema that can be met, nested at most `depth` deep."""
    made = [_integer, _number, _string, _pattern, _choice, _anything]
    if depth > 0:
        made += [_array, _object, _object, _either, _reference]
    return random.choice(made)(random, depth - 1)


def _text(random: Random) -> str:
    return "".join(random.choices(LETTERS, k=random.randint(0, 4)))


def _integer(random: Random, depth: int) -> Any:
    least = random.randint(-1000, 1000)
    return random.choice([{"type": "integer", "minimum": least, "maximum": least + random.randint(0, 500)},
                          {"type": ["integer", "null"]}])  # fmt: skip


def _number(random: Random, depth: int) -> Any:
    least = random.uniform(-10, 10)
    return {"type": "number", "minimum": round(least, 2), "exclusiveMaximum": round(least + random.uniform(1, 5), 1)}


def _string(random: Random, depth: int) -> Any:
    least = random.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + random.randint(0, 6)}


def _pattern(random: Random, depth: int) -> Any:
    return random.choice([
        {"type": "string", "pattern": r"^[a-c]{2,4}(-\d+)?$"},
        {"type": "string", "format": random.choice(["date", "uuid", "ipv4"])},
    ])  # fmt: skip


def _choice(random: Random, depth: int) -> Any:
    values = [_text(random), random.randint(-99, 99), None, True, [1, "b"], {"é": 0.5}]
    return random.choice([{"enum": random.sample(values, random.randint(1, 4))}, {"const": random.choice(values)}])


def _anything(random: Random, depth: int) -> Any:
    return random.choice([True, {}, {"type": "null"}, {"type": "boolean"}])


def _array(random: Random, depth: int) -> Any:
    least = random.randint(0, 2)
    array = {"type": "array", "items": random_schema(random, depth), "minItems": least,
             "maxItems": least + random.randint(0, 2)}  # fmt: skip
    if random.random() < 0.2:
        array["prefixItems"] = [random_schema(random, depth)]
        array["maxItems"] += 1
    return array


def _object(random: Random, depth: int) -> Any:
    names = {_text(random) for _ in range(random.randint(0, 4))}
    properties = {name: random_schema(random, depth) for name in sorted(names)}
    required = random.sample(sorted(properties), random.randint(0, len(properties)))
    others = random.choice([False, False, random_schema(random, 0)])
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": others}


def _either(random: Random, depth: int) -> Any:
    return {"anyOf": [random_schema(random, depth) for _ in range(random.randint(1, 3))]}


def _reference(random: Random, depth: int) -> Any:
    """A list that is linked, so that the schema refers to itself where it stands alone; else a plain object."""
    if depth < 2:
        return _object(random, depth)
    inner = {"type": "object", "properties": {"v": random_schema(random, 0), "next": {"$ref": "#"}},
             "required": ["v"], "additionalProperties": False}  # fmt: skip
    return inner
