"""What an answer touched and how fast it came, for clients that know lapinfer: the field `lapinfer` of answers."""

from __future__ import annotations

from typing import Any

from lapinfer.text.generation import Token


def figures(last: Token) -> dict[str, Any]:
    """Of the last token of an answer.

    bytes: by part of the model, touched by all steps that the answer took part in, its prompt's included. A step is
    read once for all answers that share it, so it counts whole for each: sharing is how many did, on average, and 1
    where the bytes are this answer's alone.
    """
    timings, touched = last.timings, last.touched
    told: dict[str, Any] = {
        "ttft_ms": round(timings.ttft_ms, 3),
        "prompt_per_second": round(timings.prompt_per_second, 3),
        "tokens_per_second": round(timings.tokens_per_second, 3),
    }
    if touched is not None:
        told |= {"steps": touched.steps, "sharing": round(touched.sharing, 3), "bytes": touched.parts()}
    return told
