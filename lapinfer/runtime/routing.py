"""Which experts tokens were routed to, over many steps: load, weight, pairs, reuse, distinct experts per step.

Leaves of trees are experts, too; of trees, also how sure their decisions were.

L are the routed layers alone; layers with fewer experts than the largest are padded with zeros. Shared experts, which
every token gets, are not counted. Steps are only copied at first, and counted when some tokens have come together, so
that NumPy's calls are paid once for all of them.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from lapinfer.errors import InputError
from lapinfer.runtime.chance import expected_means
from lapinfer.spec import ModelSpec, TreeSpec

MOST_PAIRED = 1024
"""Experts of a layer up to which pairs that are chosen together are counted: that takes their square in numbers."""
TOGETHER = 64
"""Tokens that are counted at once."""
BINS = 24
"""Bin i of a histogram holds 2^i … 2^(i + 1) − 1; the last bin also holds everything above."""


def magnitude(values: np.ndarray) -> np.ndarray:
    """The bin of each number from 1: floor(log2)."""
    return np.minimum(np.frexp(values)[1] - 1, BINS - 1)


def decisions(path: np.ndarray, tree: TreeSpec) -> tuple[np.ndarray, np.ndarray]:
    """Mean entropy in nats of each token's decisions [T], and the weight of its leaf in the soft mixture [T].

    path [T, ≥ nodes met]: logits of the nodes that tokens met, tree by tree. Both are means over the trees.
    """
    met = tree.depth + tree.neurons  # a neuron at the bottom of its tree decides nothing
    if tree.depth == 0:
        return np.zeros(len(path)), np.ones(len(path))
    z = np.abs(path[:, : tree.trees * met].reshape(-1, tree.trees, met)[..., : tree.depth].astype(np.float64))
    softplus = np.log1p(np.exp(-z))  # −log of the more likely side
    entropy = softplus + z * np.exp(-z - softplus)
    return entropy.mean(axis=(1, 2)), np.exp(-softplus.sum(axis=2)).mean(axis=1)


class Routing:
    """Accumulates what each step's tokens were routed to; `arrays()` and `summary()` read it.

    layers, experts, top_k: int64 [L], index in the model, routed experts and experts per token of each routed layer.
    May be read while another thread records.
    """

    def __init__(self, spec: ModelSpec):
        routed = {i: layer.feed_forward.router for i, layer in enumerate(spec.layers)}
        routers = {i: router for i, router in routed.items() if router is not None}
        if not routers:
            raise InputError("this model has no routed layers: there are no experts to watch")
        self.layers = np.array(list(routers), np.int64)
        self.experts = np.array([router.n_experts for router in routers.values()], np.int64)
        self.top_k = np.array([router.top_k for router in routers.values()], np.int64)
        self._lock = threading.Lock()
        self._pending: list[tuple[np.ndarray, ...]] = []
        self._pending_tokens = 0
        self._trees = [router if isinstance(router, TreeSpec) else None for router in routers.values()]
        L, E, A = len(routers), int(self.experts.max()), int(self.top_k.max())
        self._shape = L, E
        paired = E if E <= MOST_PAIRED else 0
        self._pairs = np.zeros((L, paired, paired), np.uint32)  # [l, e, f]: e ranked before f
        self._tokens = 0
        # Sums, by their names in `arrays()`.
        self._sums = {
            "tokens_routed": np.zeros((L, E), np.int64), "weight_mass": np.zeros((L, E)),
            "node_entropy": np.zeros(L), "leaf_mass": np.zeros(L), "reuse": np.zeros((L, BINS), np.int64),
            "first_use": np.zeros(L, np.int64), "followed": np.zeros(L, np.int64), "repeated": np.zeros(L, np.int64),
            "steps": np.zeros(BINS, np.int64), "step_tokens": np.zeros(BINS, np.int64),
            "distinct": np.zeros((L, BINS), np.int64),
        }  # fmt: skip
        # By slot: tokens so far, position and experts of the last one, and the token at which each expert was used.
        self._count = np.zeros(0, np.int64)
        self._pos = np.zeros(0, np.int64)
        self._before = np.zeros((L, 0, A), np.int64)
        self._used = np.zeros((0, L, E), np.int64)

    def record(
        self, slot: np.ndarray, pos: np.ndarray, chosen: np.ndarray, weight: np.ndarray,
        path: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Add one step of T tokens: slot, pos int64 [T], chosen int64 and weight float32 [L, T, A].

        chosen: for each routed layer in order, the different experts of each token in order of rank, −1 where a layer
        has fewer than A = max(top_k). path: logits of the nodes that tokens met, float32 [L, T, nodes], tree by tree.
        The arrays are copied.
        """
        with self._lock:
            path = np.zeros((*chosen.shape[:2], 0), np.float32) if path is None else path.copy()
            self._pending.append((slot.copy(), pos.copy(), chosen.copy(), weight.copy(), path))
            self._pending_tokens += len(slot)
            if self._pending_tokens >= TOGETHER:
                self._count_pending()

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._tokens + self._pending_tokens

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything counted so far, and what follows from it.

        layers, experts, top_k [L]      as above
        tokens []                       tokens run
        tokens_routed [L, E]            tokens that got each expert
        weight_mass [L, E]              sums of the weights that tokens gave it
        together [L, E, E]              tokens that got both experts; the diagonal is 0 ([L, 0, 0] with more than 1,024)
        node_entropy [L]                mean entropy of a decision σ(logit) of the nodes met, in nats; 0 without trees
        leaf_mass [L]                   mean weight of the chosen leaf in the soft mixture; 1 without trees
        reuse [L, 24]                   uses of an expert by the number of tokens of the same slot since its last use
                                        there (1: the token before): 1, 2–3, 4–7, …
        first_use [L]                   uses of an expert that its slot had not used before
        followed [L]                    uses by tokens whose predecessor in the text was recorded, too
        repeated [L]                    those of them in which it had the same expert
        steps [24]                      steps of 1, 2–3, 4–7, … tokens
        step_tokens [24]                tokens in them
        distinct [L, 24]                sums over these steps of the number of different experts
        entropy [L]                     of the distribution of load over experts, in bits
        entropy_share [L]               that by log2 E, of experts with equal load: 0 … 1
        max_over_mean [L]               largest load by the mean
        unused [L]                      experts that no token got
        repeat_share [L]                repeated by followed
        repeat_chance [L]               what it would be for independent tokens with these loads
        distinct_per_step [L]           mean over all steps
        """
        with self._lock:
            self._count_pending()
            sums = {name: values.copy() for name, values in self._sums.items()}
            pairs = self._pairs.astype(np.int64) + self._pairs.transpose(0, 2, 1)
            tokens = self._tokens
        routed = sums["tokens_routed"]
        sums["node_entropy"] /= max(tokens, 1)
        sums["leaf_mass"] = np.where(
            [tree is not None for tree in self._trees], sums["leaf_mass"] / max(tokens, 1), 1.0
        )
        total = np.maximum(routed.sum(axis=1), 1)
        share = routed / total[:, None]
        entropy = -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum(axis=1) + 0.0
        most = np.log2(self.experts)
        return {
            "layers": self.layers.copy(),
            "experts": self.experts.copy(),
            "top_k": self.top_k.copy(),
            "tokens": np.array(tokens),
            "together": pairs,
            **sums,
            "entropy": entropy,
            "entropy_share": np.divide(entropy, most, where=most > 0, out=np.ones_like(entropy)),
            "max_over_mean": routed.max(axis=1) * self.experts / total,
            "unused": self.experts - np.count_nonzero(routed, axis=1),
            "repeat_share": sums["repeated"] / np.maximum(sums["followed"], 1),
            "repeat_chance": (share**2).sum(axis=1) * self.top_k,
            "distinct_per_step": sums["distinct"].sum(axis=1) / max(int(sums["steps"].sum()), 1),
        }

    def summary(self) -> dict[str, Any]:
        """Plain numbers: tokens, steps; for each layer the derived figures of `arrays()`; figures by size of step.

        reuse_median of a layer: half of the uses of an expert that its slot had used before came within this many
        tokens (the upper end of a bin; 0 without any). step_sizes: for steps of about the same size, the number of
        different experts that they touched, as mean over the layers, and the numbers expected of independent tokens
        (runtime/chance.py): `uniform` for equal loads, `by_load` for the measured ones.
        """
        a = self.arrays()
        names = (
            "experts", "top_k", "entropy", "entropy_share", "max_over_mean", "unused", "distinct_per_step",
            "first_use", "repeat_share", "repeat_chance", "node_entropy", "leaf_mass",
        )  # fmt: skip
        layers = [
            {"layer": int(layer), **{name: a[name][i].item() for name in names}, "reuse_median": _median(a["reuse"][i])}
            for i, layer in enumerate(self.layers)
        ]
        return {
            "tokens": int(a["tokens"]),
            "steps": int(a["steps"].sum()),
            "layers": layers,
            "step_sizes": [_step_size(a, i) for i in np.flatnonzero(a["steps"]).tolist()],
        }

    def _count_pending(self) -> None:
        if not self._pending:
            return
        slots, positions, choices, weights, paths = zip(*self._pending, strict=True)
        sizes = np.array([len(slot) for slot in slots])
        self._pending, self._pending_tokens = [], 0
        slot, pos = np.concatenate(slots).astype(np.int64), np.concatenate(positions).astype(np.int64)
        chosen, weight = np.concatenate(choices, axis=1).astype(np.int64), np.concatenate(weights, axis=1)
        self._tokens += len(slot)
        self._add_slots(int(slot.max()) + 1)
        valid = chosen >= 0
        expert = np.arange(len(chosen))[:, None, None] * self._shape[1] + chosen  # index in [L, E]
        self._count_load(expert[valid], weight[valid])
        if self._pairs.size:
            self._count_pairs(expert, chosen, valid)
        self._count_decisions(np.concatenate(paths, axis=1))
        self._count_distinct(sizes, expert, valid)
        index = self._count_repeats(slot, pos, chosen)
        self._count_reuse(slot, index, expert, valid)
        self._count += np.bincount(slot, minlength=len(self._count))

    def _add_slots(self, count: int) -> None:
        new = count - len(self._count)
        if new > 0:
            self._count = np.pad(self._count, (0, new))
            self._pos = np.pad(self._pos, (0, new), constant_values=-2)  # nothing follows it
            self._before = np.pad(self._before, ((0, 0), (0, new), (0, 0)), constant_values=-1)
            self._used = np.pad(self._used, ((0, new), (0, 0), (0, 0)), constant_values=-1)

    def _count_load(self, expert: np.ndarray, weight: np.ndarray) -> None:
        (L, E), sums = self._shape, self._sums
        sums["tokens_routed"] += np.bincount(expert, minlength=L * E).reshape(L, E)
        sums["weight_mass"] += np.bincount(expert, weight, minlength=L * E).reshape(L, E)

    def _count_pairs(self, expert: np.ndarray, chosen: np.ndarray, valid: np.ndarray) -> None:
        first, second = np.triu_indices(chosen.shape[2], 1)
        both = valid[:, :, first] & valid[:, :, second]
        pair = expert[:, :, first] * self._shape[1] + chosen[:, :, second]
        np.add.at(self._pairs.reshape(-1), pair[both], np.uint32(1))

    def _count_decisions(self, path: np.ndarray) -> None:
        """Entropy and weight of the paths [L, T, nodes] through each layer's trees."""
        for i, tree in enumerate(self._trees):
            if tree is not None and path.shape[2]:
                entropy, mass = decisions(path[i], tree)
                self._sums["node_entropy"][i] += entropy.sum()
                self._sums["leaf_mass"][i] += mass.sum()

    def _count_distinct(self, sizes: np.ndarray, expert: np.ndarray, valid: np.ndarray) -> None:
        seen = np.zeros((len(sizes), *self._shape), bool)
        step = np.repeat(np.arange(len(sizes)), sizes)[:, None]
        seen.reshape(-1)[(step * np.prod(self._shape) + expert)[valid]] = True
        bins = magnitude(sizes)
        np.add.at(self._sums["distinct"].T, bins, np.count_nonzero(seen, axis=2))
        np.add.at(self._sums["steps"], bins, 1)
        np.add.at(self._sums["step_tokens"], bins, sizes)

    def _count_repeats(self, slot: np.ndarray, pos: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Experts that tokens share with their predecessors; returns each token's index among those of its slot."""
        slots = len(self._count)
        slot = np.concatenate((np.arange(slots), slot))  # first each slot's last token
        pos = np.concatenate((self._pos, pos))
        chosen = np.concatenate((self._before, chosen), axis=1)
        order = np.argsort(slot, kind="stable")
        ordered = slot[order]
        ends = np.searchsorted(ordered, np.arange(slots), side="right")
        starts = np.concatenate(([0], ends[:-1]))
        index = np.empty_like(slot)
        index[order] = np.arange(len(slot)) - starts[ordered] - 1 + self._count[ordered]
        before, now = order[:-1], order[1:]
        follows = (slot[now] == slot[before]) & (pos[now] == pos[before] + 1)
        earlier, later = chosen[:, before[follows]], chosen[:, now[follows]]
        valid = later >= 0
        same = (later[..., :, None] == earlier[..., None, :]) & valid[..., None]
        self._sums["followed"] += np.count_nonzero(valid, axis=(1, 2))
        self._sums["repeated"] += np.count_nonzero(same, axis=(1, 2, 3))
        self._pos, self._before = pos[order[ends - 1]], chosen[:, order[ends - 1]]
        return index[slots:]

    def _count_reuse(self, slot: np.ndarray, index: np.ndarray, expert: np.ndarray, valid: np.ndarray) -> None:
        """Distances between uses: sorted by slot, layer, expert and token, each use follows the one before it."""
        T, (L, E) = len(slot), self._shape
        key = (((slot[:, None] * (L * E)) + expert) * T + np.arange(T)[:, None])[valid]
        key.sort()
        cell, token = np.divmod(key, T)  # cell of [slot, L, E]
        now = index[token]
        first = np.ones(len(key), bool)
        first[1:] = cell[1:] != cell[:-1]
        used = self._used.reshape(-1)
        before = np.where(first, used[cell], np.roll(now, 1))
        last = np.roll(first, -1)
        used[cell[last]] = now[last]
        layer, again = cell // E % L, before >= 0
        self._sums["first_use"] += np.bincount(layer[~again], minlength=L)
        bins = layer[again] * BINS + magnitude((now - before)[again])
        self._sums["reuse"] += np.bincount(bins, minlength=L * BINS).reshape(L, BINS)


def _median(histogram: np.ndarray) -> int:
    total = int(histogram.sum())
    return 2 ** (int((2 * histogram.cumsum() >= total).argmax()) + 1) - 1 if total else 0


def _step_size(a: dict[str, np.ndarray], i: int) -> dict[str, float]:
    """What `Routing.summary` says of the steps of one bin."""
    steps = int(a["steps"][i])
    size = int(a["step_tokens"][i]) / steps
    uniform, by_load = expected_means(a, size)
    return {
        "tokens": size,
        "steps": steps,
        "distinct": float(a["distinct"][:, i].mean()) / steps,
        "uniform": float(uniform),
        "by_load": float(by_load),
    }
