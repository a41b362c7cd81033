"""Which format a matrix gets: what is asked for, changed by what it is, how it is stored and how large its model is."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from statistics import NormalDist
from typing import Final

from lapinfer.quant import ROWS
from lapinfer.quant.format import Format, ModelSize
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.groups import FeedbackFormat

AUTO: Final = "auto"

SMALL: Final = 400_000_000
"""Models of fewer weights are small: they are fast anyway, and 4 bits cost them more."""

ROUTERS: Final = tuple(name for name, form in FORMATS.items() if form.for_routers)
"""Formats of routers and nodes, the first for those that are stored in any other way."""

MODELS: Final = {form.models: name for name, form in FORMATS.items() if form.models}
"""Size of model -> what `--quant auto` packs it as."""

HEADS: Final = {form.heads: name for name, form in FORMATS.items() if form.heads}
"""Size of model -> what embedding and head become where their model's own format is too coarse."""

COARSE: Final = tuple(name for name, form in FORMATS.items() if form.coarse)
"""Formats of coarse copies of heads, for a first pass that finds the rows with the best logits (kernels/best.py)."""

TYPICAL_BEST: Final = 40
"""How many of the best logits samplers look at."""
MARGIN: Final = 6.0
"""Deviations of a coarse logit's error that the first pass allows for."""
WORTH: Final = 0.75
"""Most bytes of the two passes, in parts of the head's, for which a copy is made."""
LEAST_SAVED: Final = 4_000_000
"""Bytes that a token must be spared: in memory's time they are some ten times what the ops of two passes take."""

SCATTERED: Final = 4
"""Times as long as in their order it takes to read row blocks from a list."""
ARITHMETIC: Final = {"q8": 1 / 8, "q16": 1 / 4}
"""Bytes a weight whose reading takes as long as multiplying it with a token, by activations (Zen 4; bench/LOG.md)."""
MOST_TWICE: Final = 8
"""Tokens of a step for which a head may be read in two passes, whatever it costs."""

FED_BACK: Final = tuple(name for name, form in FORMATS.items() if isinstance(form, FeedbackFormat))
"""Formats that a calibration text is for."""

Stored = AbstractSet[str | None]
"""The formats that the parts of a matrix are stored in; None: something else."""


def model_size(weights: int) -> ModelSize:
    """What kind of model one of so many weights is."""
    return "small" if weights < SMALL else "large"


def matrix_format(quant: str, stored: Stored, size: ModelSize, *, head: bool = False) -> str:
    """The format of a matrix that is no router. head: whether it is the embedding or the head of its model."""
    kept = _kept(stored) if quant == AUTO else None
    name = kept or (MODELS[size] if quant == AUTO else quant)
    if head and not kept:
        return head_format(name, stored, size)
    variant = FORMATS[name].exact_variant
    return variant if variant is not None and variant in stored else name


def head_format(name: str, stored: Stored, size: ModelSize) -> str:
    """The format of embedding and head where other matrices have the format `name`."""
    if not FORMATS[name].finer_head:
        return name
    return HEADS["small"] if stored == {HEADS["small"]} else HEADS[size]


def router_format(stored: Stored) -> str:
    """The format of a router: that which it is stored in, if routers may be so."""
    return next((name for name in ROUTERS if stored == {name}), ROUTERS[0])


def coarse_format(head: str, rows: int, columns: int) -> str | None:
    """The format of the coarse copy with which a head [rows, columns] is read fastest; None where none is worth it."""
    if not FORMATS[head].grouped:  # it multiplies other activations than a copy would
        return None
    whole = rows * FORMATS[head].bits / 8 * columns
    costs = {name: FORMATS[name].bits / FORMATS[head].bits + expected_share(name, rows) for name in COARSE}
    best = min(costs, key=lambda name: costs[name])
    return best if costs[best] <= WORTH and (1 - costs[best]) * whole >= LEAST_SAVED else None


def expected_share(coarse: str, rows: int, best: int = TYPICAL_BEST) -> float:
    """The share of a head's row blocks that the second pass is expected to read, before anything is known of inputs.

    Logits are taken to be normal, and a row to be read if its coarse logit is within the margin of the k-th best of
    all rows: 1 of 14 row blocks for SmolLM2 in q4 (measured: 1 of 14), 1 of 80 for Gemma 3 270M (1 of 107).
    """
    normal, error = NormalDist(), FORMATS[coarse].coarse or 0.0
    if rows <= best * ROWS:
        return 1.0
    bound = normal.inv_cdf(1 - best / rows)
    return min((1 - normal.cdf(bound - MARGIN * error)) * ROWS, 1.0)


def two_pass_tokens(coarse: str, head: str, rows: int, columns: int, activations: str) -> int:
    """Up to how many tokens of a step it is quicker to read a head in two passes; at least 1.

    A pass takes as long as its bytes (the first one's with a norm a row) or its arithmetic, whichever is more; what the
    second one reads grows with the tokens, as each has best rows of its own.
    """
    whole, copy, share = FORMATS[head].bits / 8, FORMATS[coarse].bits / 8 + 4 / columns, expected_share(coarse, rows)

    def pays(tokens: int) -> bool:
        multiplied = tokens * ARITHMETIC[activations]
        second = SCATTERED * (1 - (1 - share) ** tokens) * whole
        return max(copy, multiplied) + second < max(whole, multiplied)

    return next((tokens - 1 for tokens in range(2, MOST_TWICE + 1) if not pays(tokens)), MOST_TWICE)


def narrow_format(name: str) -> str:
    """What a format becomes where matrices are stored row by row."""
    return FORMATS[name].narrow or name


def _kept(stored: Stored) -> str | None:
    """The most exact of the formats that a matrix is stored in, if all are kept by `auto`."""
    formats: list[Format] = [FORMATS[name] for name in stored if name is not None]
    if len(formats) < len(stored) or not formats or not all(form.kept_by_auto for form in formats):
        return None
    return max(formats, key=lambda form: form.bits).name
