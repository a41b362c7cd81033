"""A mixture of experts for training: noisy top-k gating, penalties, and balancing by a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from lapinfer.spec import FeedForwardSpec, RouterSpec
from lapinfer.train import penalties
from lapinfer.train.activations import ACTIVATIONS
from lapinfer.train.config import Mixture
from lapinfer.train.routed import Routed


class MoE(Routed):
    """Σ weight · expert(x) over the `top_k` experts that the router chooses, as the engine's RouterSpec says.

    Parameters: router.weight [E, D], gate_up [E, 2F, D] (gate rows first) or, without gates, up [E, F, D], down
    [E, out, F], with biases up_bias (gate_up_bias) and down_bias [E, …], and for training alone noise.weight [E, D].
    Buffer: selection_bias [E], with loss-free balancing. out: numbers that leave it, by default `hidden`.
    """

    selection_bias: Tensor

    def __init__(self, ff: FeedForwardSpec, hidden: int, options: Mixture, out: int | None = None) -> None:
        super().__init__()
        assert isinstance(ff.router, RouterSpec)
        self.spec, self.options, self.gated = ff.router, options, ff.gated
        self.activation = ACTIVATIONS[ff.activation]
        self.first = "gate_up" if ff.gated else "up"
        E, rows, out = ff.router.n_experts, (1 + ff.gated) * ff.width, hidden if out is None else out
        self.router = nn.Linear(hidden, E, bias=False)
        self.noise = nn.Linear(hidden, E, bias=False) if options.noise else None
        self.register_parameter(self.first, nn.Parameter(torch.empty(E, rows, hidden)))
        self.down = nn.Parameter(torch.empty(E, out, ff.width))
        if ff.bias:
            self.register_parameter(f"{self.first}_bias", nn.Parameter(torch.zeros(E, rows)))
            self.down_bias = nn.Parameter(torch.zeros(E, out))
        if ff.router.selection_bias:
            self.register_buffer("selection_bias", torch.zeros(E))

    def initialise(self, deviation: float, out_deviation: float) -> None:
        """Normal weights. Routers of noisy gating begin at zero (1701.06538, appendix A): the noise decides."""
        nn.init.normal_(getattr(self, self.first), std=deviation)
        nn.init.normal_(self.down, std=out_deviation)
        nn.init.normal_(self.router.weight, std=0.0 if self.noise is not None else deviation)
        if self.noise is not None:
            nn.init.zeros_(self.noise.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, out]."""
        chosen, weights = self._route(x)
        k = self.spec.top_k
        order = chosen.reshape(-1).argsort(stable=True)  # (token, choice) pairs by expert
        inverse = order.argsort()
        counts = self.record.load.long().tolist()
        rows = _Permuted.apply(x.repeat_interleave(k, dim=0), order, inverse)
        # unbind, since the gradient of one indexed expert would be as large as that of all.
        experts = zip(rows.split(counts), *map(self._unbound, (self.first, "down")), strict=True)
        outputs = torch.cat([self._expert(part, first, down) for part, first, down in experts])
        outputs = _Permuted.apply(outputs, inverse, order).view(len(x), k, -1)
        return (outputs * weights[..., None]).sum(dim=1)

    def _unbound(self, name: str) -> list[tuple[Tensor, Tensor | None]]:
        """A matrix of each expert, and its bias."""
        matrices, biases = getattr(self, name).unbind(), getattr(self, f"{name}_bias", None)
        return list(zip(matrices, [None] * len(matrices) if biases is None else biases.unbind(), strict=True))

    def _expert(self, x: Tensor, first: tuple[Tensor, Tensor | None], down: tuple[Tensor, Tensor | None]) -> Tensor:
        hidden = linear(x, *first)
        if not self.gated:
            return linear(self.activation(hidden), *down)
        gate, up = hidden.chunk(2, dim=-1)
        return linear(self.activation(gate) * up, *down)

    @torch.autocast("cpu", enabled=False)
    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(chosen experts [T, k], their weights [T, k]); leaves the record. In float32: choices hang on last digits."""
        options, spec, x = self.options, self.spec, x.float()
        clean = logits = self.router(x)
        spread = None
        if self.training and self.noise is not None:
            spread = softplus(self.noise(x))
            logits = clean + torch.randn_like(clean) * spread
        scores = logits.softmax(dim=1) if spec.score == "softmax" else logits.sigmoid()
        ranked = scores + self.selection_bias if spec.selection_bias else scores
        chosen = ranked.detach().topk(spec.top_k, dim=1).indices
        weights = scores.gather(1, chosen)
        if spec.normalise:
            weights = weights / (weights.sum(dim=1, keepdim=True) + spec.eps)
        weights = weights * spec.scale

        counts = torch.bincount(chosen.reshape(-1), minlength=spec.n_experts).float()
        probabilities = scores / scores.sum(dim=1, keepdim=True)
        terms: dict[str, tuple[float, Tensor]] = {}
        if options.importance:
            gates = torch.zeros_like(scores).scatter(1, chosen, weights)
            terms["importance"] = options.importance, penalties.importance(gates)
        if options.load and spread is not None:
            terms["load"] = options.load, penalties.load(clean, logits, spread, spec.top_k)
        if options.switch:
            terms["switch"] = options.switch, penalties.switch(probabilities, counts)
        if options.z_loss:
            terms["z_loss"] = options.z_loss, penalties.z_loss(logits)
        with torch.no_grad():
            entropy = -torch.xlogy(probabilities, probabilities).sum(dim=1).mean()
            mass = probabilities.gather(1, chosen).sum(dim=1).mean()
        self.remember(counts, entropy, mass, terms)
        return chosen, weights

    @torch.no_grad()
    def after_step(self) -> None:
        """bias += u · sign(mean load − load), from the last batch's loads (2408.15664, algorithm 1)."""
        if self.options.bias_rate:
            load = self.record.load
            self.selection_bias += self.options.bias_rate * (load.mean() - load).sign()


class _Permuted(torch.autograd.Function):
    """x[order]. The gradient is a permutation, too: that of indexing adds with atomics, in any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (inverse,) = ctx.saved_tensors
        return gradient[inverse], None, None
