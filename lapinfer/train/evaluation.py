"""Perplexity as `lapinfer perplexity` defines it, of a model that is being trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lapinfer.report.perplexity import Perplexity, estimate
from lapinfer.train.corpus import Corpus
from lapinfer.train.decoder import Decoder
from lapinfer.train.fff import FFF, soft_forward
from lapinfer.train.record import Balance

CHUNKS = 16
"""Computed at once."""


@torch.no_grad()
def perplexity(model: Decoder, ids: np.ndarray, ctx: int, balances: Sequence[Balance] = ()) -> Perplexity:
    """Of ids cut into chunks of ctx tokens, whose second halves are scored (report/perplexity.py), in float32.

    balances: one a routed layer, to which all tokens are added.
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
            for module, balance in zip(model.routed, balances, strict=False):
                assert module.record is not None
                balance.add(module.record)
    finally:
        model.train(training)
    scored = torch.cat(nll).double().numpy()
    ppl, error = estimate(scored)
    return Perplexity(ppl, error, len(scored), len(chunks), ctx)


def validate(model: Decoder, corpus: Corpus) -> dict[str, Any]:
    """Figures of the held-out text: ppl (trees: of the chosen leaves), soft_ppl of trees, bits_per_byte, layers."""
    ctx = model.spec.context
    balances = [Balance() for _ in model.routed]
    result = perplexity(model, corpus.held_out, ctx, balances)
    bits = math.log2(result.ppl) * len(corpus.held_out) / corpus.held_out_bytes
    figures: dict[str, Any] = {"ppl": result.ppl, "error": result.error, "bits_per_byte": bits}
    if any(isinstance(module, FFF) for module in model.routed):
        with soft_forward(model):
            figures["soft_ppl"] = perplexity(model, corpus.held_out, ctx).ppl
    if balances:
        figures["layers"] = [balance.as_dict() for balance in balances]
    return figures
