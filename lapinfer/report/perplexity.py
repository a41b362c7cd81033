"""Perplexity of a text, and divergence from a reference model, by the method of llama.cpp's llama-perplexity.

The whole text becomes tokens, cut into chunks of ctx tokens, each a fresh sequence. The tokens after the
middle of a chunk are scored: with first = ctx // 2, tokens first + 1 … ctx − 1, from the logits at positions
first … ctx − 2. Where the tokenizer begins texts with BOS, it takes the place of each chunk's first token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lapinfer.digits import measured
from lapinfer.errors import CheckpointError, InputError
from lapinfer.progress import Phase, Progress, silent
from lapinfer.report.texts import chunk, text_ids
from lapinfer.text.likelihood import SCORED_PIECE, log_probs

SCORING = "scoring"

if TYPE_CHECKING:
    from lapinfer.text.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(reference ‖ model) in nats over the scored positions, and how often their likeliest token agrees.

    `error` and `same_top_error` are standard errors.
    """

    mean: float
    error: float
    median: float
    p99: float
    same_top: float
    same_top_error: float


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp(mean negative log-likelihood) over the chunks so far, with its standard error.

    `difference` is ppl − reference_ppl; its standard error is that of the tokens' pairs, which vary together.
    """

    ppl: float
    error: float
    tokens: int
    chunks: int
    ctx: int
    reference_ppl: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    divergence: Divergence | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"PPL = {self.ppl:.4f} ± {self.error:.5f}  ({self.chunks} chunks of {self.ctx} tokens)"]
        if self.divergence is not None:
            d = self.divergence
            lines += [
                f"reference PPL = {self.reference_ppl:.4f}, "
                f"difference {self.difference:+.4f} ± {self.difference_error:.5f}",
                f"KL divergence: mean {d.mean:.6f} ± {d.error:.6f}, median {d.median:.6f}, 99% {d.p99:.6f} nats",
                f"same top token: {100 * d.same_top:.2f} ± {100 * d.same_top_error:.2f} %",
            ]
        return "\n".join(lines)


def perplexity(
    model: LanguageModel,
    text: str,
    ctx: int = 512,
    chunks: int | None = None,
    reference: LanguageModel | None = None,
    progress: Progress = silent,
) -> Iterator[Perplexity]:
    """The estimate after each chunk; the last one is the result."""
    ids = _ids(model, text, ctx)
    if reference is not None and (
        reference.spec.vocab != model.spec.vocab or not np.array_equal(ids, _ids(reference, text, ctx))
    ):
        raise InputError("the models have different tokenizers: their predictions cannot be compared")
    wanted = min(chunks or len(ids), len(ids) // ctx)
    nll: list[np.ndarray] = []
    reference_nll: list[np.ndarray] = []
    divergence: list[np.ndarray] = []
    same: list[np.ndarray] = []
    progress(Phase(SCORING, "chunks"), 0, wanted)
    for i in range(wanted):
        part = chunk(model, ids, i * ctx, ctx)
        first = ctx // 2
        others = None if reference is None else _log_probs(reference, part, first)
        for start, log_p in _log_probs(model, part, first):
            targets = part[start + 1 : start + 1 + len(log_p)]
            rows = np.arange(len(log_p))
            nll.append(-log_p[rows, targets])
            if others is not None:
                _, log_q = next(others)
                reference_nll.append(-log_q[rows, targets])
                divergence.append((np.exp(log_q) * (log_q - log_p)).sum(axis=1, dtype=np.float64))
                same.append(log_p.argmax(axis=1) == log_q.argmax(axis=1))
        scored = np.concatenate(nll, dtype=np.float64)
        ppl, error = estimate(scored)
        result = Perplexity(ppl, error, len(scored), i + 1, ctx)
        progress(Phase(SCORING, "chunks", beside=f"PPL {measured(ppl, error)}"), i + 1, wanted)
        if reference is not None:
            base = np.concatenate(reference_nll, dtype=np.float64)
            base_ppl, _ = estimate(base)
            yield replace(
                result,
                reference_ppl=base_ppl,
                difference=ppl - base_ppl,
                difference_error=float((ppl * scored - base_ppl * base).std()) / math.sqrt(max(len(scored) - 1, 1)),
                divergence=_divergence(np.concatenate(divergence), np.concatenate(same)),
            )
        else:
            yield result


def _ids(model: LanguageModel, text: str, ctx: int) -> np.ndarray:
    ids = text_ids(model, text)
    if ctx < 4 or model.model.ctx < ctx:
        raise InputError(f"ctx: expected 4 to {model.model.ctx} (the model's context), got {ctx}")
    if len(ids) < 2 * ctx:  # as llama-perplexity has it: one chunk says nothing
        raise InputError(f"the text has {len(ids)} tokens; a context of {ctx} needs at least {2 * ctx}")
    return ids


def _log_probs(model: LanguageModel, ids: np.ndarray, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """(position, log-probabilities [≤ SCORED_PIECE, V] float32 after it and those that follow) for first … len − 2."""
    engine = model.model
    with engine.lock:
        model.forget()
        engine.prefill(ids[:first], 0, 0)
        size = min(SCORED_PIECE, engine.max_step, engine.max_wanted)
        for start in range(first, len(ids) - 1, size):
            stop = min(start + size, len(ids) - 1)
            n = stop - start
            pos = np.arange(start, stop, dtype=np.int32)
            logits = engine.step(ids[start:stop], np.zeros(n, np.int32), pos, np.ones(n, bool)).values
            found = np.stack([log_probs(row) for row in logits])
            if not np.isfinite(found).all():
                raise CheckpointError(f"{engine.name}: the model's output is not numbers: its weights are damaged")
            yield start, found


def estimate(nll: np.ndarray) -> tuple[float, float]:
    """Perplexity and its standard error from negative log-likelihoods, as llama.cpp computes them."""
    mean = float(nll.mean())
    variance = float((nll**2).mean()) - mean**2
    ppl = math.exp(mean)
    return ppl, ppl * math.sqrt(variance / (len(nll) - 1)) if variance > 0 and len(nll) > 1 else 0.0


def _divergence(kl: np.ndarray, same: np.ndarray) -> Divergence:
    n, agree = len(kl), float(same.mean())
    return Divergence(
        mean=float(kl.mean()),
        error=float(kl.std()) / math.sqrt(max(n - 1, 1)),
        median=float(np.median(kl)),
        p99=float(np.quantile(kl, 0.99)),
        same_top=agree,
        same_top_error=math.sqrt(agree * (1 - agree) / max(n - 1, 1)),
    )
