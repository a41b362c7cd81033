"""A small vision transformer (arXiv 2010.11929) whose feed-forwards are dense or fast feedforward trees.

Letters: N images, S patches and one more position, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lapinfer.spec import Activation, FeedForwardSpec, TreeSpec
from lapinfer.train.activations import ACTIVATIONS
from lapinfer.train.config import Trees
from lapinfer.train.fff import FFF

LAYERS, WIDTH, HEADS, PATCH, NEURONS, CLASSES = 4, 128, 4, 4, 128, 10
ACTIVATION: Activation = "gelu"
Forward = Literal["soft", "hardened", "straight_through"]


class Dense(nn.Module):
    """down(act(up(x)))."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)
        self.act = ACTIVATIONS[ACTIVATION]

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down(self.act(self.up(x)))


def tree(leaf: int, forward: Forward = "soft", balance: float = 0.0) -> FFF:
    """Leaves of `leaf` neurons, NEURONS together; weights begin with a deviation of 1/√inputs."""
    depth = (NEURONS // leaf).bit_length() - 1
    options = Trees(depth, leaf, gated=False, activation=ACTIVATION, bias=True, forward=forward, balance=balance)
    layer = FFF(FeedForwardSpec(leaf, ACTIVATION, False, True, TreeSpec(depth, node_bias=True)), WIDTH, options)
    layer.initialise(WIDTH**-0.5, leaf**-0.5)
    return layer


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, feed_forward: Dense | FFF) -> None:
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        N, S, D = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(N, S, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, S, D))
        return x + self.feed_forward(self.norm(x).flatten(0, 1)).view(N, S, D)


class ViT(nn.Module):
    """Images [N, channels, size, size] to logits [N, 10], read at a position of its own."""

    def __init__(self, channels: int, size: int, leaf: int, forward: Forward = "soft", balance: float = 0.0) -> None:
        """leaf: neurons of a leaf; 0: dense feed-forwards."""
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // PATCH) ** 2, WIDTH))
        self.blocks = nn.ModuleList(Block(tree(leaf, forward, balance) if leaf else Dense()) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """[N, channels, size, size] -> [N, 10]."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))

    @property
    def feed_forwards(self) -> list[Dense | FFF]:
        return [block.feed_forward for block in self.blocks]  # type: ignore[misc]

    @property
    def trees(self) -> list[FFF]:
        return [layer for layer in self.feed_forwards if isinstance(layer, FFF)]
