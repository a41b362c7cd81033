"""Fast feedforward layers for training (arXiv 2308.14711): all leaves, weighed by the decisions on the way to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lapinfer.spec import FeedForwardSpec, TreeSpec
from lapinfer.train import penalties
from lapinfer.train.activations import ACTIVATIONS
from lapinfer.train.config import Trees
from lapinfer.train.routed import Routed


def mixture(right: Tensor, depth: int) -> Tensor:
    """Weight of each leaf [T, P, 2^d], from how much each node gives to its right child [T, P, 2^d − 1]."""
    weights = right.new_ones(*right.shape[:2], 1)
    for level in range(depth):
        first = (1 << level) - 1
        c = right[..., first : 2 * first + 1]
        weights = torch.stack([weights * (1 - c), weights * c], dim=-1).flatten(2)
    return weights


class FFF(Routed):
    """Trees of nodes over leaves; names and shapes of parameters are those of docs/checkpoint-format.md.

    Each leaf's hidden numbers are weighed before they go through `down`, all leaves side by side: a step costs what it
    does for a dense layer of P · 2^d · F neurons, and the nodes. out: numbers that leave it, by default `hidden`.
    """

    def __init__(self, ff: FeedForwardSpec, hidden: int, options: Trees, out: int | None = None) -> None:
        super().__init__()
        out = hidden if out is None else out
        tree = ff.router
        assert isinstance(tree, TreeSpec)
        assert not tree.neurons  # they have no soft mixture to train by
        self.tree, self.options, self.gated = tree, options, ff.gated
        self.activation = ACTIVATIONS[ff.activation]
        self.hardening = 0.0
        self.soft = False
        L, F, N, M, n = tree.n_experts, ff.width, tree.trees * tree.nodes, ff.shared_width, tree.node_width
        self.nodes = nn.Linear(hidden, N * n, bias=tree.node_bias) if N else None
        if N and n > 1:
            self.node_out = nn.Parameter(torch.empty(N, n))
            self.node_out_bias = nn.Parameter(torch.zeros(N))
        sides = ("gate", "up") if ff.gated else ("up",)
        for side in sides:
            setattr(self, side, nn.Parameter(torch.empty(L, F, hidden)))
            if M:
                setattr(self, f"master_{side}", nn.Parameter(torch.empty(M, hidden)))
        self.down = nn.Parameter(torch.empty(L, out, F))
        if M:
            self.master_down = nn.Parameter(torch.empty(out, M))
        if ff.bias:
            for side in sides:
                setattr(self, f"{side}_bias", nn.Parameter(torch.zeros(L, F)))
                if M:
                    setattr(self, f"master_{side}_bias", nn.Parameter(torch.zeros(M)))
            self.down_bias = nn.Parameter(torch.zeros(L, out))
            if M:
                self.master_down_bias = nn.Parameter(torch.zeros(out))
        if tree.mix:
            self.mix = nn.Parameter(torch.zeros(1))

    def initialise(self, deviation: float, out_deviation: float) -> None:
        """Normal weights; nodes as nn.Linear has them, so that the first decisions are neither clear nor all alike."""
        for name, parameter in self.named_parameters():
            if name.endswith("node_out"):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            elif name.endswith(("gate", "up")):
                nn.init.normal_(parameter, std=deviation)
            elif name.endswith("down"):
                nn.init.normal_(parameter, std=out_deviation)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, out]."""
        L, out, F = self.down.shape
        hidden = self._hidden(x, "").view(-1, L, F)
        weights = self._weights(x).flatten(1).to(hidden.dtype)
        hidden = hidden * weights[..., None]
        y = linear(hidden.flatten(1), self.down.permute(1, 0, 2).reshape(out, L * F))
        if (bias := getattr(self, "down_bias", None)) is not None:
            y = y + weights @ bias
        if not hasattr(self, "master_down"):
            return y
        master = linear(self._hidden(x, "master_"), self.master_down, getattr(self, "master_down_bias", None))
        if not self.tree.mix:
            return y + master
        share = self.mix.sigmoid()
        return share * y + (1 - share) * master

    def _hidden(self, x: Tensor, prefix: str) -> Tensor:
        """What the neurons of all leaves, or of the master leaf, give: [T, neurons]."""

        def side(name: str) -> Tensor:
            weight, bias = getattr(self, prefix + name), getattr(self, f"{prefix}{name}_bias", None)
            return linear(x, weight.reshape(-1, weight.shape[-1]), None if bias is None else bias.reshape(-1))

        return self.activation(side("gate")) * side("up") if self.gated else self.activation(side("up"))

    def logits(self, x: Tensor) -> Tensor:
        """Of all nodes, [T, P, nodes]."""
        tree = self.tree
        if self.nodes is None:
            return x.new_zeros(len(x), tree.trees, 0)
        z = self.nodes(x)
        if tree.node_width > 1:
            z = ACTIVATIONS[tree.node_activation](z).view(len(x), -1, tree.node_width)
            z = (z * self.node_out).sum(dim=-1) + self.node_out_bias
        return z.view(len(x), tree.trees, tree.nodes)

    @torch.autocast("cpu", enabled=False)
    def _weights(self, x: Tensor) -> Tensor:
        """Weights of the leaves [T, P, 2^d]; leaves the record. In float32: logits go into the hundreds."""
        options, tree = self.options, self.tree
        z = self.logits(x.float())
        if self.training and options.region_leak:  # ⟨1 − p, p⟩ swapped is −z
            z = torch.where(torch.rand_like(z) < options.region_leak, -z, z)
        soft = mixture(z.sigmoid(), tree.depth)
        hard = mixture((z >= 0).float(), tree.depth)
        entropy = penalties.decision_entropy(z)
        terms: dict[str, tuple[float, Tensor]] = {}
        if options.balance:
            terms["balance"] = options.balance, penalties.leaf_balance(hard, soft)
        self.remember(hard.sum(dim=0).flatten(), entropy, (soft * hard).sum(dim=2).mean(), terms, self.hardening)
        if not self.training:
            return soft if self.soft else hard
        if options.forward == "straight_through":
            return hard + (soft - soft.detach())  # the brackets: exactly hard
        return soft if options.forward == "soft" else hard

    def set_progress(self, done: float) -> None:
        """The weight of the hardening loss rises linearly from `hardening_start` on."""
        start = self.options.hardening_start
        self.hardening = self.options.hardening * min(max((done - start) / (1 - start), 0.0), 1.0)


def trees_of(model: nn.Module) -> list[FFF]:
    """The layers that are trees, in the order of the model."""
    return [module for module in model.modules() if isinstance(module, FFF)]


@contextmanager
def soft_forward(model: nn.Module) -> Iterator[None]:
    """Within, trees are evaluated as soft mixtures."""
    trees = trees_of(model)
    for tree in trees:
        tree.soft = True
    try:
        yield
    finally:
        for tree in trees:
            tree.soft = False
