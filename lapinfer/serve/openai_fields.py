"""Fields that OpenAI's chats and completions have in common, and those of llama-server and vLLM beside them.

Source: the types of OpenAI's Python client (openai.types); tools/server/README.md of llama.cpp; vLLM's protocol.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lapinfer.serve.answers import CHOICES
from lapinfer.serve.errors import ApiError
from lapinfer.serve.limits import check_stops
from lapinfer.serve.state import Body, Ids, Texts

OF_BOTH_SIDES = ("temperature", "top_p", "top_k", "min_p")
"""Sampling parameters that are called alike here and there."""
Prompts = str | Ids | Texts | Annotated[list[Ids], Field(fail_fast=True)]
"""A text, or token ids, or a list of these."""


def prompts_of(given: Prompts) -> list[str | list[int]]:
    """Each of them."""
    match given:
        case [] | [str() | list(), *_]:
            return list(given)  # pyright: ignore[reportReturnType]
        case one:
            return [one]  # pyright: ignore[reportReturnType]


class StreamOptions(Body):
    """include_usage: a last chunk tells the numbers of tokens."""

    ignored = frozenset({"include_obfuscation"})
    include_usage: bool = False


class Sampling(Body):
    """How every kind of answer is made.

    min_p, top_k, repetition_penalty (vLLM), repeat_penalty (llama-server: the same): as in `SamplingParams`.
    """

    ignored: ClassVar[frozenset[str]] = frozenset({
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "moderation", "cache_prompt", "id_slot", "timings_per_token", "priority",
    })  # fmt: skip
    refused: ClassVar[Mapping[str, Sequence[Any]]] = {
        "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "best_of": (1,), "suffix": ("",),
        "typical_p": (1,), "mirostat": (0,), "dry_multiplier": (0,), "xtc_probability": (0,), "grammar": ("",),
        "use_beam_search": (False,), "min_tokens": (0,), "ignore_eos": (False,), "n_probs": (0,), "samplers": (),
        "stop_token_ids": ([],), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
        "structured_outputs": (), "json_schema": (), "lora": ([],), "logits_processors": ([],), "dynatemp_range": (0,),
        "n_predict": (),
    }  # fmt: skip

    model: str | None = None
    stream: bool = False
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None

    def sampling(self) -> dict[str, Any]:
        """Options of the library for what is given; of the seed, see `seed_of`."""
        options = {name: getattr(self, name) for name in OF_BOTH_SIDES}
        options["repetition_penalty"] = (
            self.repeat_penalty if self.repetition_penalty is None else self.repetition_penalty
        )
        return {name: value for name, value in options.items() if value is not None}

    def seed_of(self, choice: int) -> int | None:
        """Each answer has a seed of its own; a negative one is none, as llama-server has it."""
        return None if self.seed is None or self.seed < 0 else self.seed + choice


class Sampled(Sampling):
    """What is asked of completions."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    stop: str | Texts | None = None
    max_tokens: int | None = None

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        count = 1 if self.n is None else self.n
        if not 1 <= count <= CHOICES:
            raise ApiError(400, f"n: expected a whole number from 1 to {CHOICES}, got {count}", param="n")
        return count

    def sampling(self) -> dict[str, Any]:
        if self.stop is None:
            return super().sampling()
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        check_stops("stop", stop)
        return super().sampling() | {"stop": stop}

    @property
    def tells_usage(self) -> bool:
        """Whether a last chunk has the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage
