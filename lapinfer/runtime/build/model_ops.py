"""What the layers of a model share: the step's buffers, and the embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapinfer.kernels.operands import ACT_F32, ADD, ITEM, STORE, TILE, TILES, KernelId
from lapinfer.quant import GROUP, ROWS
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.buffers import zeros
from lapinfer.runtime.build.sizes import attention_scratch, mixer_width, partial_row, partials
from lapinfer.runtime.cost import Cost
from lapinfer.runtime.exchange import Exchange
from lapinfer.runtime.expert_nodes import ExpertNodes
from lapinfer.runtime.ops import Limits, Ops, Weights
from lapinfer.runtime.pool import Bank, ExpertPool
from lapinfer.runtime.sizes import padded
from lapinfer.spec import GrowthSpec, ModelSpec, NormSpec, RopeSpec


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """What a step writes before its ops run, and the hidden states and logits that they leave."""

    token: np.ndarray
    slot: np.ndarray
    pos: np.ndarray
    want: np.ndarray
    items: np.ndarray
    part: np.ndarray
    partials: int
    hidden: np.ndarray
    logits: np.ndarray
    block_max: np.ndarray


class ModelOps(Ops):
    """Ops over the buffers of a whole model: the embedding, and how a sublayer ends."""

    def __init__(self, spec: ModelSpec, weights: Weights, limits: Limits, nodes: ExpertNodes | None = None):
        attentions = spec.attentions
        latent = [a for a in attentions if a.latent is not None]
        widths = [a.n_heads * a.v_dim for a in attentions]
        widths += [a.n_heads * padded(max(a.latent.nope, a.latent.v_dim)) for a in latent if a.latent]
        widths += [a.latent.q_rank for a in latent if a.latent]
        widths += [layer.recurrence.values for layer in spec.layers if layer.recurrence is not None]
        feed_forwards = {i: layer.feed_forward for i, layer in enumerate(spec.layers)}
        super().__init__(
            spec.hidden,
            feed_forwards,
            weights,
            limits,
            widths=widths,
            scratch=max(map(attention_scratch, attentions), default=0),
        )
        self.spec = spec
        T = len(self.x)
        self.qkv = zeros((T, max(mixer_width(layer, spec.hidden) for layer in spec.layers)))
        self.q = zeros((T, max((padded(a.q_rows) for a in latent), default=0)))
        self.query = zeros((T, max((padded(a.n_heads * a.k_dim) for a in latent), default=0)))
        self.pool = self._pool()
        self.exchange = None if nodes is None else self._exchange(nodes)
        count = partials(limits)
        self.partial = zeros((count, *partial_row(spec)))
        W, V = padded(limits.most_wanted, TILE), padded(spec.vocab, ROWS)
        self.step = StepBuffers(
            token=np.zeros(T, np.int64),
            slot=np.zeros(T, np.int64),
            pos=np.zeros(T, np.int64),
            want=np.zeros(T, np.int64),
            items=np.zeros((count, len(ITEM)), np.int64),
            part=np.zeros((T, 2), np.int64),
            partials=count,
            hidden=zeros((W, padded(spec.hidden))),
            logits=zeros((W, V)),
            block_max=zeros((W, V // ROWS)),
        )
        self.ropes: dict[RopeSpec, np.ndarray] = {}
        self.growths: dict[GrowthSpec, np.ndarray] = {}

    def embed(self) -> None:
        table, fmt = self.weights.tensor("embed"), FORMATS[self.format("embed")]
        positions: np.ndarray | int = 0
        if self.spec.positions:
            positions = np.zeros((self.spec.positions, padded(self.spec.hidden)), np.float32)
            positions[:, : self.spec.hidden] = self.weights.tensor("positions")
        self.add(
            KernelId("embed", fmt.name), "embed", "embedding", -1, TILES, 1,
            weights=table, row_blocks=len(table), groups=padded(self.spec.hidden) // GROUP, token=self.step.token,
            pos=self.step.pos, positions=positions, scale=self.spec.embed_scale, out=self.x,
            out_stride=self.x.strides[0],
            cost=Cost(token_bytes=table.shape[1] // ROWS + (4 * self.spec.hidden if self.spec.positions else 0)),
        )  # fmt: skip

        norm = self.spec.embed_norm
        if norm is not None:  # in place
            self.norm_of(self.x, "embed_norm", norm, self.hidden, -1, "embedding", ACT_F32, exact=self.x, out=0)

    def sublayer_end(
        self, name: str, post_name: str, post: NormSpec | None, layer: int, part: str, x: np.ndarray,
        bias: np.ndarray | None, logical: tuple[int, int],
    ) -> None:  # fmt: skip
        """The matrix that returns to the residual stream, and the norm after it, if there is one."""
        scale = self.spec.layers[layer].residual_scale
        if self.spec.layers[layer].parallel:  # the feed-forward reads the residual stream before anything is added
            self.matmul(name, layer, part, x, STORE, out=self.y, bias=bias, logical=logical)
        elif post is None:
            self.matmul(name, layer, part, x, ADD, out=self.x, bias=bias, scale=scale, logical=logical)
        else:
            self.matmul(name, layer, part, x, STORE, out=self.y, bias=bias, logical=logical)
            self.add_norm(post_name, post, layer, part, scale)

    def _pool(self) -> ExpertPool | None:
        """Holds experts that do not all fit into memory."""
        if self.limits.experts == "resident" or not self.routing.layers:
            return None
        weights, banks = self.weights, []
        for i in self.routing.layers:
            name, ff = f"layers.{i}.experts", self.spec.layers[i].feed_forward
            down, fmt = f"{name}.down", FORMATS[self.format(f"{name}.down")]
            end = weights.offset(down) + weights.row_blocks(down) * fmt.row_block_bytes(ff.width)
            banks.append(Bank(weights.tensor(name), weights.file_offset(name), end))
        slots = self.limits.slots_of_pool if self.limits.experts == "pool" else None
        return ExpertPool(list(self.feed_forwards.values()), weights.path, banks, slots, self.limits.policy)

    def _exchange(self, nodes: ExpertNodes) -> Exchange:
        """With nodes that have the experts."""
        routing = self.routing
        return Exchange(
            nodes, [self.feed_forwards[i] for i in routing.layers], step=len(self.x), tiles=len(routing.tiles),
            groups=padded(self.hidden) // GROUP, width=padded(self.hidden, ROWS),
        )  # fmt: skip
