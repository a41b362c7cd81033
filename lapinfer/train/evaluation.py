"""Perplexity as `lapinfer perplexity` defines it, of a model that is being trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lapinfer.report.perplexity import Perplexity, estimate
from lapinfer.train.decoder import Decoder
from lapinfer.train.fff import soft_forward, trees_of
from lapinfer.train.routed import Balance, add_records

CHUNKS = 16
"""Computed at once."""


@torch.no_grad()
def perplexity(model: Decoder, ids: np.ndarray, ctx: int, balances: Sequence[Balance] = ()) -> Perplexity:
    """Of ids cut into chunks of ctx tokens, whose second halves are scored (report/perplexity.py), in float32.

    balances: one per routed layer, to which all tokens are added.
    """
    training = model.training
    model.eval()
    try:
        chunks = torch.from_numpy(ids[: len(ids) // ctx * ctx].reshape(-1, ctx))
        first = ctx // 2
        nll = []
        for part in chunks.split(CHUNKS):
            logits = model(part)[:, first:-1]
            nll.append(cross_entropy(logits.flatten(0, 1), part[:, first + 1 :].flatten(), reduction="none"))
            add_records(balances, model)
    finally:
        model.train(training)
    scored = torch.cat(nll).double().numpy()
    ppl, error = estimate(scored)
    return Perplexity(ppl, error, len(scored), len(chunks), ctx)


def validate(model: Decoder, ids: np.ndarray, n_bytes: int, balances: Sequence[Balance] = ()) -> dict[str, Any]:
    """Figures of a text of n_bytes: ppl (trees: of the chosen leaves), error, bits_per_byte; of trees soft_ppl."""
    result = perplexity(model, ids, model.spec.context, balances)
    bits = math.log2(result.ppl) * len(ids) / n_bytes
    figures = {"ppl": result.ppl, "error": result.error, "bits_per_byte": bits}
    if trees_of(model):
        with soft_forward(model):
            figures["soft_ppl"] = perplexity(model, ids, model.spec.context).ppl
    return figures
