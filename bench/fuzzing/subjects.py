"""What is fuzzed: each subject writes a mutant into a folder, and takes it as far as it goes."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fuzzing import bases, gguf_files, templates, tensor_files
from bench.fuzzing.mutate import change_json, change_numbers, change_sizes, extreme, to_text
from bench.fuzzing.tokenizers import BESIDE, GENERATION, change_tokenizer
from lapinfer.errors import InputError, LapinferError

TEXTS = [
    "Hello, world!\n  two  spaces",
    "é ü 日本語 🙂 \u202e \x00",
    "a" * 3000,
    " " * 500 + "ab" * 500,
    "<s></s><|im_start|>",
    "",
]
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}, {"role": "assistant",
                                                                                    "content": "yes"},
            {"role": "user", "content": "é\n" * 20}]  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
]


@dataclass(frozen=True, slots=True)
class Subject:
    """make: writes a mutant. run: raises nothing but LapinferErrors; what it returns says how far it came."""

    make: Callable[[Path, random.Random], Any]
    run: Callable[[Path, random.Random, Any], str]


def run_model(path: Path, rng: random.Random, quants: tuple[str, ...] = ("auto",)) -> str:
    """Load it, run a prompt, generate, ask for logits."""
    import lapinfer

    options: dict[str, Any] = {
        "quant": rng.choice(quants),
        "threads": rng.choice((1, 2)),
        "kv": rng.choice(("f16", "q8", "f32")),
    }
    if rng.random() < 0.9:
        options["ctx"] = rng.choice((16, 32, 40))
    with lapinfer.load(path, **options) as model:
        ids = [rng.randrange(model.spec.vocab) for _ in range(rng.choice((1, 2, 9)))]
        try:
            model.generate(ids, max_tokens=4, temperature=rng.choice((0.0, 1.0)), seed=1)
            model.forward(ids)
        except LapinferError:
            return "loaded, refused to run"
        if model.tokenizer is not None:
            _say(model, rng)
    return "ran"


def _say(model: Any, rng: random.Random) -> None:
    for text in rng.sample(TEXTS, 2):
        ids = model.encode(text)[:8]
        if ids and max(ids) < model.spec.vocab:
            model.generate(ids, max_tokens=3, seed=1)
    if model.template is not None:
        model.template.render(MESSAGES)


def _checkpoint(folder: Path, config: bytes, weights: bytes) -> Path:
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def make_safetensors(folder: Path, rng: random.Random) -> None:
    config, weights = bases.golden(rng.choice(bases.FAMILIES))
    _checkpoint(folder, config.encode(), tensor_files.mutant(weights, rng))


def make_config(folder: Path, rng: random.Random) -> None:
    config, weights = bases.golden(rng.choice(bases.FAMILIES))
    _checkpoint(folder, to_text(change_json(json.loads(config), rng, bases.donors()), rng), weights)


def make_packed(folder: Path, rng: random.Random) -> None:
    """A header that says something else, weights that are noise, or another config and what it promises."""
    config = bases.config(rng)
    way = rng.choice(("header", "numbers", "config", "config", "beside"))
    if way == "config":  # so that header, places and shapes agree with each other
        if rng.random() < 0.7:
            config = change_sizes(config, rng)
        else:
            config = change_json(config, rng, bases.donors() if rng.random() < 0.2 else None)
        if not isinstance(config, dict):
            raise InputError("no config")
    bases.packed(folder, config, rng, random_bytes=way == "config" and rng.random() < 0.5)
    path = folder / "model.safetensors"
    if way == "header":
        path.write_bytes(tensor_files.mutant(path.read_bytes(), rng, keep_length=True))
        _sign(path, rng)
    elif way == "numbers":
        data = bytearray(path.read_bytes())
        header, begin = tensor_files.split(bytes(data))[0], 8 + int.from_bytes(data[:8], "little")
        change_numbers(data, [(begin + start, begin + stop) for start, stop in tensor_files.spans(header)], rng)
        path.write_bytes(data)
        _sign(path, rng)
    elif way == "beside":
        (folder / "config.json").write_bytes(to_text(change_json(config, rng, bases.donors()), rng))


def _sign(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.9:
        path.write_bytes(tensor_files.signed(path.read_bytes()))


def make_gguf(folder: Path, rng: random.Random) -> None:
    (folder / "model.gguf").write_bytes(gguf_files.mutant(gguf(rng.choice(GGUFS)), rng))


GGUFS = (("llama", "F32"), ("gemma3", "Q4_0"), ("gpt2", "Q8_0"), ("qwen2", "F16"), ("phi3", "F32"), ("granite", "Q5_0"))


@functools.cache
def gguf(kind: tuple[str, str]) -> bytes:
    import tempfile

    import gguf_files as made

    with tempfile.TemporaryDirectory() as folder:
        return made.write(Path(folder) / "m.gguf", *kind).read_bytes()


def make_tokenizer(folder: Path, rng: random.Random) -> None:
    bases.tokenizer_folder(folder, rng)
    path = folder / "tokenizer.json"
    path.write_bytes(to_text(change_tokenizer(json.loads(path.read_text(encoding="utf-8")), rng), rng))


def make_tokenizer_config(folder: Path, rng: random.Random) -> None:
    bases.tokenizer_folder(folder, rng)
    path = folder / "tokenizer_config.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    for key in rng.sample(list(BESIDE), rng.randrange(5)):
        value[key] = deepcopy(rng.choice(BESIDE[key]))
    path.write_bytes(to_text(change_json(value, rng, BESIDE), rng))
    if rng.random() < 0.2:
        name = rng.choice(["special_tokens_map.json", "added_tokens.json", "chat_template.json", "chat_template.jinja"])
        (folder / name).write_bytes(to_text(rng.choice([extreme(rng), {"<s>": 5}, {"chat_template": "{{ 1 }}"}]), rng))


def make_template(folder: Path, rng: random.Random) -> None:
    bases.tokenizer_folder(folder, rng)
    text = templates.template(rng)
    (folder / "chat_template.jinja").write_bytes(text.encode("utf-8", "surrogatepass"))


def make_generation(folder: Path, rng: random.Random) -> None:
    bases.tokenizer_folder(folder, rng)
    value = {key: deepcopy(rng.choice(GENERATION[key])) for key in rng.sample(list(GENERATION), rng.randrange(1, 6))}
    (folder / "generation_config.json").write_bytes(
        to_text(change_json(value, rng) if rng.random() < 0.5 else value, rng)
    )


@functools.cache
def sound_model() -> Any:
    """One that texts of any folder can be put beside."""
    import tempfile

    from lapinfer.loading import load_model
    from lapinfer.options import LoadOptions

    folder = Path(tempfile.mkdtemp())
    bases.packed(folder, {**bases.LLAMA, "vocab_size": 300}, random.Random(1), random_bytes=False)
    model = load_model(folder, LoadOptions(ctx=64, threads=1))
    shutil.rmtree(folder)
    return model


def run_texts(folder: Path, rng: random.Random, _: Any) -> str:
    """The texts of a folder beside a sound model."""
    from lapinfer.text.language_model import from_model

    engine = sound_model()
    engine.texts = folder
    model = from_model(engine)
    came = "no tokenizer"
    tokenizer, template = model.tokenizer, model.template
    if tokenizer is not None:
        came = "loaded"
        for text in rng.sample(TEXTS, 3):
            ids = _allowed(lambda text=text: model.encode(text))
            _allowed(lambda ids=ids: tokenizer.decode(ids or [1]))
        ids = [rng.randrange(300) for _ in range(5)]
        if _allowed(lambda: model.generate(ids, max_tokens=8, seed=3)) is not None:
            came = "ran"
    if template is not None:
        rendered = _allowed(lambda: template.render(MESSAGES, tools=TOOLS if rng.random() < 0.3 else None))
        came += ", rendered" if rendered is not None else ", not rendered"
        _allowed(lambda: model.chat(MESSAGES[1:2], max_tokens=3, seed=1))
    return came


def _allowed(call: Callable[[], Any]) -> Any:
    """What the call returns; None if it is refused, as it may be."""
    try:
        return call()
    except LapinferError as error:
        if "\n" in str(error) or len(str(error)) > 3000:
            raise AssertionError(f"a message of {len(str(error))} characters: {str(error)[:200]!r}") from error
        return None


QUANTS = ("q8", "q8", "f32", "q4_1", "f16", "auto")
SUBJECTS: dict[str, Subject] = {
    "safetensors": Subject(make_safetensors, lambda folder, rng, _: run_model(folder, rng, QUANTS)),
    "packed": Subject(make_packed, lambda folder, rng, _: run_model(folder, rng)),
    "gguf": Subject(make_gguf, lambda folder, rng, _: run_model(folder / "model.gguf", rng, QUANTS)),
    "config": Subject(make_config, lambda folder, rng, _: run_model(folder, rng, QUANTS)),
    "tokenizer": Subject(make_tokenizer, run_texts),
    "tokenizer_config": Subject(make_tokenizer_config, run_texts),
    "template": Subject(make_template, run_texts),
    "generation_config": Subject(make_generation, run_texts),
}
"""By kind of file."""
SHARES = {"safetensors": 8000, "packed": 10000, "gguf": 10000, "config": 8000, "tokenizer": 5000,
          "tokenizer_config": 3000,
          "template": 4000, "generation_config": 2000}  # fmt: skip
"""Mutants of each of 50,000."""


def mutant_rng(seed: int, kind: str, index: int) -> random.Random:
    """All that decides about a mutant."""
    return random.Random(f"{seed} {kind} {index}")
