"""Reports of models that were never run: sizes as their specs say, times and routes made up."""

from __future__ import annotations

import numpy as np

from lapinfer.report.costs import Costs
from lapinfer.report.measure import CONTEXTS, kind_of
from lapinfer.report.measured import Batch, Machine, Measured, Report, Routed, Step
from lapinfer.report.random_weights import shape_formats
from lapinfer.report.shapes import shape_spec
from lapinfer.report.whatif import own_bits, terms
from lapinfer.runtime.chance import expected_means
from lapinfer.runtime.kv import cache_bytes
from lapinfer.runtime.routing import Routing
from lapinfer.spec import ModelSpec

MACHINE = Machine({"cpu": "a processor", "lapinfer": "0"}, 2, 2e10, {"int8": 1e11, "float32": 3e10}, 2e10, 32_000_000)
CONTEXT = 512


def made_report(*kinds: str, size: str = "100m") -> Report:
    """One model of each kind (a name may follow it after a colon)."""
    models = []
    for i, (kind, _, name) in enumerate(each.partition(":") for each in kinds):
        models.append(made_model(shape_spec(size, kind), name or f"{size}-{kind}", seed=i))
    return Report(MACHINE, "a text", "2026-01-01 00:00 UTC", models)


def made_model(spec: ModelSpec, name: str, seed: int = 0) -> Measured:
    costs = Costs(spec, shape_formats(spec, "q4"))
    rng = np.random.default_rng(seed)
    predicted = costs.touched([CONTEXT - 1])
    nbytes = sum(predicted.values())
    seconds = nbytes / 1.5e10 * (1 + 0.02 * seed)
    decode = Step(1, CONTEXT - 1, nbytes, predicted, 2 * costs.active_parameters, seconds, 0.02, [seconds] * 5)
    whole = costs.touched(np.arange(CONTEXT))
    prompt = Step(CONTEXT, 0, sum(whole.values()), whole, CONTEXT * decode.macs, 1.0 + seed / 10, 0.03, [1.0] * 5)
    kind = kind_of(spec)
    routed = None if kind == "dense" else made_routing(spec, rng)
    contexts = [n for n in CONTEXTS if n <= spec.context]
    shares = np.linspace(1, 0.2 if kind == "dense" else 0.6, 5)
    return Measured(
        name, kind, spec.family, costs.main_format, costs.parameters, costs.active_parameters, costs.weight_bytes,
        cache_bytes(spec, "f16", 1, CONTEXT, 1), costs.weight_bytes + 5_000_000, own_bits(spec, costs.formats),
        costs.arithmetic, CONTEXT, "random", decode, prompt, [20.0 + seed, 0.5, 900.0], "",
        terms(spec, costs.formats, "f16"), [[n, sum(costs.touched([n - 1]).values())] for n in contexts],
        [Batch(2**i, nbytes * share, seconds * share, None if routed is None else 2.0 + i) for i, share in
         enumerate(shares.tolist())],
        routed, paired=True,
    )  # fmt: skip


def recorded(spec: ModelSpec, rng: np.random.Generator, tokens: int = 64) -> Routing:
    """Experts that chance has chosen, some more often than others."""
    routing = Routing(spec)
    routers = [layer.feed_forward.router for layer in spec.layers if layer.feed_forward.router is not None]
    most = max(router.top_k for router in routers)
    chosen = np.full((len(routers), tokens, most), -1)
    for i, router in enumerate(routers):
        weights = rng.normal(size=router.n_experts) + rng.gumbel(size=(tokens, router.n_experts))
        chosen[i, :, : router.top_k] = np.argsort(-weights, axis=1)[:, : router.top_k]
    routing.record(np.zeros(tokens, np.int64), np.arange(tokens), chosen, np.ones(chosen.shape, np.float32))
    return routing


def made_routing(spec: ModelSpec, rng: np.random.Generator) -> Routed:
    routing = recorded(spec, rng)
    arrays = routing.arrays()
    steps = 2.0 ** np.arange(0, 9.01, 0.5)
    uniform, by_load = (np.stack([steps, mean], axis=1).tolist() for mean in expected_means(arrays, steps))
    return Routed(
        arrays["layers"].tolist(), arrays["experts"].tolist(), arrays["top_k"].tolist(), 1,
        arrays["tokens_routed"].tolist(), uniform, by_load, [[n, 1.0 + n / 30] for n in (1, 4, 16, 64)],
        routing.summary(),
    )  # fmt: skip
