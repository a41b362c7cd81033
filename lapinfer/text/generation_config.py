"""What a model's makers recommend for generating: generation_config.json, and what of it is done.

A file without generation_config.json may have the same keys in its config.json, as older ones do. What is neither done
nor harmless is said (`notes`), and so is what cannot be read. What keys mean is transformers' matter
(generation/configuration_utils.py); where the files say nothing, our own defaults stand (`SamplingParams`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lapinfer.options import SamplingParams, declared
from lapinfer.text.tokenizer_files import optional_json

FILE = "generation_config.json"

DEFAULTS: dict[str, Any] = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0, "max_length": 20,
    "min_length": 0, "no_repeat_ngram_size": 0,
}  # fmt: skip
"""Of transformers. A config.json that has these was dumped whole: nobody chose them."""

NOT_DONE: dict[str, Any] = {
    "typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "num_beams": 1, "num_beam_groups": 1,
    "diversity_penalty": 0.0, "penalty_alpha": None, "dola_layers": None, "guidance_scale": 1.0,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "exponential_decay_length_penalty": None, "sequence_bias": None,
    "constraints": None, "force_words_ids": None, "watermarking_config": None, "token_healing": False,
    "max_time": None, "num_return_sequences": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""Keys that would change a text and that are not done, with the values that change nothing."""

DONE = ("max_new_tokens", "min_new_tokens", "stop_strings", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Keys that are done, beside those of `DEFAULTS` and the fields of SamplingParams."""


@dataclass(frozen=True, slots=True)
class Bans:
    """Tokens that are not chosen, whatever their logits.

    always, first: ids that are never chosen, and not as the first token of an answer. sequences: runs of ids that are
    not completed. ngram: no run of as many tokens comes twice, the prompt included; 0 is no ban. least, least_in_all:
    tokens before which an answer does not end, of the answer and with the prompt.
    """

    always: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()
    ngram: int = 0
    least: int = 0
    least_in_all: int = 0

    def after(self, ids: Sequence[int], prompt: int, ends: frozenset[int]) -> list[int]:
        """The ids that may not follow `ids`, whose first `prompt` are the prompt's; `ends` end an answer."""
        banned = [*self.always]
        if len(ids) == prompt:
            banned += self.first
        if len(ids) - prompt < self.least or len(ids) < self.least_in_all:
            banned += ends
        for *before, last in self.sequences:
            if not before or [*ids[-len(before) :]] == before:
                banned.append(last)
        if 0 < self.ngram <= len(ids):
            n = self.ngram - 1
            end = [*ids[len(ids) - n :]]
            banned += [ids[i + n] for i in range(len(ids) - n) if [*ids[i : i + n]] == end]
        return banned


@dataclass(frozen=True, slots=True)
class Generation:
    """How a model's makers would have it generate.

    params: how tokens are chosen. max_tokens: the longest answer, max_length: with its prompt; None is no bound.
    stop: texts that end an answer. eos_ids: ids that do; bos_id: the one that a text begins with.
    notes: lines about what is not done or cannot be read.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    max_length: int | None = None
    stop: tuple[str, ...] = ()
    bans: Bans = field(default_factory=Bans)
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    notes: tuple[str, ...] = ()


def read_generation(folder: Path, vocab: int | None = None) -> Generation:
    """What a folder recommends; `vocab` tells ids that the model has from those that it has not."""
    config = optional_json(folder / "config.json")
    nested = config.get("text_config")
    config = (nested if isinstance(nested, dict) else {}) | {k: v for k, v in config.items() if v is not None}
    if (folder / FILE).exists():
        values, where = dict(optional_json(folder / FILE)), FILE
    else:
        known = {*DEFAULTS, *NOT_DONE, *DONE, *declared(SamplingParams)} - {"seed"}
        values = {k: v for k, v in config.items() if k in known and v != DEFAULTS.get(k)}
        where = "config.json"
    for key in ("eos_token_id", "bos_token_id"):
        if values.get(key) is None:
            values[key] = config.get(key)
    return generation(values, where, vocab)


def generation(values: Mapping[str, Any], where: str = FILE, vocab: int | None = None) -> Generation:
    """What the keys of a file mean."""
    read = _Reader(values, where, vocab)
    for name, (_, option) in declared(SamplingParams).items():
        if name != "seed" and (value := values.get(name)) is not None:
            read.usable(name, not isinstance(value, bool) and option.accepts(value), option.expected)
    read.usable("do_sample", isinstance(values.get("do_sample"), bool | None), "true or false")
    max_length = read.whole("max_length")
    stop = values.get("stop_strings")
    stop = [stop] if isinstance(stop, str) else stop
    if not read.usable("stop_strings", stop is None or _all(stop, str), "a list of texts"):
        stop = None
    result = Generation(
        params=SamplingParams.from_generation_config(values),
        max_tokens=read.whole("max_new_tokens") or None,
        max_length=None if max_length == DEFAULTS["max_length"] else max_length or None,
        stop=tuple(text for text in stop or () if text),
        bans=Bans(
            always=read.ids("suppress_tokens"),
            first=read.ids("begin_suppress_tokens"),
            sequences=read.sequences("bad_words_ids"),
            ngram=read.whole("no_repeat_ngram_size"),
            least=read.whole("min_new_tokens"),
            least_in_all=read.whole("min_length"),
        ),
        eos_ids=read.ids("eos_token_id"),
        bos_id=next(iter(read.ids("bos_token_id")), None),
    )
    for key, neutral in NOT_DONE.items():
        value = values.get(key)
        if value is not None and value is not False and value != neutral:
            read.notes.append(f"{where}: {key} {_shown(value)} is not done here")
    return replace(result, notes=tuple(read.notes))


@dataclass(slots=True)
class _Reader:
    values: Mapping[str, Any]
    where: str
    vocab: int | None
    notes: list[str] = field(default_factory=list)

    def usable(self, key: str, is_so: bool, expected: str) -> bool:
        if not is_so:
            self.notes.append(f"{self.where}: {key} is {_shown(self.values[key])}, expected {expected}; it is left out")
        return is_so

    def whole(self, key: str) -> int:
        value = self.values.get(key)
        good = self.usable(key, value is None or (type(value) is int and value >= 0), "a whole number from 0")
        return value or 0 if good else 0

    def ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; those that cannot be are left out."""
        value = self.values.get(key)
        found = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
        good = [v for v in found if type(v) is int and 0 <= v < (self.vocab or v + 1)]
        if len(good) < len(found):
            bad = next(v for v in found if v not in good or type(v) is not int)
            there = "" if self.vocab is None else f" to {self.vocab - 1}"
            self.notes.append(f"{self.where}: {key} has {_shown(bad)}, expected ids from 0{there}; it is left out")
        return tuple(good)

    def sequences(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self.values.get(key)
        good = value is None or (_all(value, list) and all(run and _all(run, int) and min(run) >= 0 for run in value))
        return tuple(map(tuple, value or ())) if self.usable(key, good, "a list of lists of ids") else ()


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(v) is kind for v in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
