"""Modules and penalties of the trainer against plain loops over the papers' formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lapinfer.spec import FeedForwardSpec, RouterSpec, TreeSpec  # noqa: E402
from lapinfer.train.config import Architecture, Config, Dense, Mixture, Trees  # noqa: E402
from lapinfer.train.decoder import Decoder  # noqa: E402
from lapinfer.train.fff import FFF, mixture, soft_forward  # noqa: E402
from lapinfer.train.moe import MoE  # noqa: E402
from lapinfer.train.penalties import (  # noqa: E402
    decision_entropy,
    importance,
    leaf_balance,
    load,
    switch,
    z_loss,
)
from lapinfer.train.routed import Balance, Record, penalty  # noqa: E402

MODEL = Architecture(
    vocab_size=300, max_position_embeddings=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
D = MODEL.hidden_size


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def tree_layer(**options: Any) -> FFF:
    config = Config(MODEL, fff=Trees(**{"depth": 3, "leaf_width": 5} | options))
    layer = Decoder(config).layers[0].mlp
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


def moe_layer(model: Architecture = MODEL, **options: Any) -> MoE:
    config = Config(model, moe=Mixture(**{"num_experts": 6, "moe_intermediate_size": 5} | options))
    layer = Decoder(config).layers[0].mlp
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


# ---- penalties ----


def cv2(values: np.ndarray) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values) / mean**2


def test_importance_is_the_squared_variation_of_sums_of_gates() -> None:
    gates = np.random.default_rng(0).random((7, 5))
    assert float(importance(torch.tensor(gates))) == pytest.approx(cv2([sum(g[e] for g in gates) for e in range(5)]))
    assert float(importance(torch.ones(4, 3))) == 0.0


@pytest.mark.parametrize("k", [1, 2, 4])
def test_load_counts_how_likely_experts_are_chosen(k: int) -> None:
    """Equations 8 and 9 of 1701.06538: kth_excluding leaves the expert itself out."""
    rng = np.random.default_rng(1)
    clean, noise, spread = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), rng.random((6, 5)) + 0.1
    noisy = clean + noise * spread
    sums = np.zeros(5)
    for t in range(6):
        for e in range(5):
            others = sorted((noisy[t, i] for i in range(5) if i != e), reverse=True)
            z = (clean[t, e] - others[k - 1]) / spread[t, e]
            sums[e] += 0.5 * (1 + math.erf(z / math.sqrt(2)))
    got = load(*(torch.tensor(a) for a in (clean, noisy, spread)), k)
    assert float(got) == pytest.approx(cv2(sums))
    assert float(load(torch.zeros(3, 4), torch.randn(3, 4), torch.ones(3, 4), 4)) == 0


def test_switch_and_z_loss() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(9, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    counts = np.bincount(p.argmax(axis=1), minlength=4)
    expected = 4 * sum(counts[e] / 9 * sum(p[t, e] for t in range(9)) / 9 for e in range(4))
    assert float(switch(torch.tensor(p), torch.tensor(counts))) == pytest.approx(expected)
    assert float(switch(torch.full((8, 4), 0.25), torch.full((4,), 2.0))) == pytest.approx(1.0)
    z = sum(math.log(sum(math.exp(l) for l in row)) ** 2 for row in logits) / 9  # noqa: E741
    assert float(z_loss(torch.tensor(logits))) == pytest.approx(z)


def test_entropy_of_decisions_is_safe_and_right() -> None:
    z = np.random.default_rng(3).normal(size=(5, 2, 3)) * 3
    p = 1 / (1 + np.exp(-z))
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert float(decision_entropy(torch.tensor(z))) == pytest.approx(expected)
    far = torch.tensor([-300.0, -50.0, 50.0, 300.0], requires_grad=True)
    entropy = decision_entropy(far)
    entropy.backward()
    assert abs(entropy.item()) < 1e-6
    assert far.grad is not None
    assert far.grad.isfinite().all()
    assert float(decision_entropy(torch.zeros(3, 1, 0))) == 0


def test_leaf_balance_is_one_when_even_and_the_number_of_leaves_when_collapsed() -> None:
    rng = np.random.default_rng(4)
    soft = rng.random((10, 2, 4))
    soft /= soft.sum(axis=2, keepdims=True)
    hard = np.eye(4)[soft.argmax(axis=2)]
    expected = np.mean(
        [4 * sum(hard[:, p, leaf].mean() * soft[:, p, leaf].mean() for leaf in range(4)) for p in range(2)]
    )
    assert float(leaf_balance(torch.tensor(hard), torch.tensor(soft))) == pytest.approx(expected)
    one = torch.zeros(6, 1, 8)
    one[:, :, 3] = 1
    assert float(leaf_balance(one, one)) == 8
    assert float(leaf_balance(torch.eye(8)[:, None], torch.full((8, 1, 8), 1 / 8))) == pytest.approx(1)


# ---- trees ----


def test_the_mixture_is_the_product_of_decisions_on_the_way() -> None:
    c = torch.rand(5, 2, 7)
    weights = mixture(c, 3)
    for leaf in range(8):
        expected, node = torch.ones(5, 2), 0
        for level in (2, 1, 0):
            right = leaf >> level & 1
            expected = expected * (c[..., node] if right else 1 - c[..., node])
            node = 2 * node + 1 + right
        torch.testing.assert_close(weights[..., leaf], expected)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(5, 2))


def plain_tree(layer: FFF, x: Any, soft: bool) -> Any:
    """Recursion over one token's nodes, of one tree without biases."""
    z = layer.nodes(x)

    def leaf(j: int) -> Any:
        return layer.down[j] @ (torch.nn.functional.silu(layer.gate[j] @ x) * (layer.up[j] @ x))

    def below(node: int) -> Any:
        if node >= layer.tree.nodes:
            return leaf(node - layer.tree.nodes)
        if not soft:
            return below(2 * node + 1 + int(z[node] >= 0))
        c = z[node].sigmoid()
        return c * below(2 * node + 2) + (1 - c) * below(2 * node + 1)

    return below(0)


@pytest.mark.parametrize("soft", [False, True])
def test_a_layer_of_trees_is_the_recursion_of_the_paper(soft: bool) -> None:
    layer, x = tree_layer().eval(), torch.randn(9, D)
    expected = torch.stack([plain_tree(layer, row, soft) for row in x])
    layer.soft = soft
    torch.testing.assert_close(layer(x), expected)
    layer.soft = False
    with soft_forward(layer):
        torch.testing.assert_close(layer(x), expected if soft else layer(x))
    trained = tree_layer(forward="soft")
    trained.load_state_dict(layer.state_dict())
    if soft:
        torch.testing.assert_close(trained.train()(x), expected)


def test_straight_through_computes_leaves_and_has_the_gradient_of_the_mixture() -> None:
    layer, x = tree_layer(balance=0.0).train(), torch.randn(9, D)
    hard = torch.stack([plain_tree(layer, row, soft=False) for row in x])
    y = layer(x)
    torch.testing.assert_close(y, hard)
    y.sum().backward()
    assert layer.nodes is not None
    assert layer.nodes.weight.grad.abs().sum() > 0
    # Only leaves with tokens learn.
    used = layer.record.load > 0
    np.testing.assert_array_equal((layer.down.grad.abs().sum(dim=(1, 2)) > 0).numpy(), used.numpy())
    # d y / d z through the weights of the mixture, all else held.
    weights = mixture(layer.logits(x).sigmoid(), 3)[:, 0]
    leaves = torch.einsum("ldf,tlf->tld", layer.down, layer._hidden(x, "").view(9, 8, 5)).detach()
    layer.nodes.weight.grad.zero_()
    got = torch.autograd.grad(layer(x).sum(), layer.nodes.weight)[0]
    expected = torch.autograd.grad((weights[..., None] * leaves).sum(), layer.nodes.weight)[0]
    torch.testing.assert_close(got, expected)


def test_hardened_nodes_learn_from_the_entropy_alone() -> None:
    layer, x = (
        tree_layer(forward="hardened", balance=0.0, hardening=3.0, hardening_start=0.0).train(),
        torch.randn(9, D),
    )
    layer(x).sum().backward()
    assert layer.nodes.weight.grad is None
    layer.set_progress(1.0)
    layer(x)
    layer.record.penalty.backward()
    assert layer.nodes.weight.grad.abs().sum() > 0
    assert layer.record.penalty.item() == pytest.approx(3 * layer.record.entropy.item())


def test_hardening_rises_in_the_last_part() -> None:
    layer = tree_layer(hardening=2.0, hardening_start=0.5)
    seen = []
    for done in (0.0, 0.5, 0.75, 1.0):
        layer.set_progress(done)
        seen.append(layer.hardening)
    assert seen == [0.0, 0.0, 1.0, 2.0]


def test_region_leak_turns_decisions_around_in_training_alone() -> None:
    layer, x = tree_layer(depth=1, region_leak=0.5, forward="soft").train(), torch.randn(4000, D)
    still = tree_layer(depth=1, forward="soft").train()
    still.load_state_dict(layer.state_dict())
    leaking, kept = layer._weights(x)[:, 0], still._weights(x)[:, 0]
    turned = (leaking - kept.flip(1)).abs().amax(dim=1) < 1e-6
    same = (leaking - kept).abs().amax(dim=1) < 1e-6
    assert bool((turned | same).all())
    assert 0.45 < float(turned.float().mean()) < 0.55
    torch.testing.assert_close(layer.eval()(x), still.eval()(x))


def test_zero_nodes_are_a_dense_network_and_depth_0_too() -> None:
    layer, x = tree_layer().eval(), torch.randn(6, D)
    torch.nn.init.zeros_(layer.nodes.weight)
    torch.nn.init.zeros_(layer.nodes.bias)
    hidden = layer._hidden(x, "").view(6, 8, 5)
    expected = torch.einsum("ldf,tlf->td", layer.down, hidden) / 8
    with soft_forward(layer):
        torch.testing.assert_close(layer(x), expected)
    lone = tree_layer(depth=0, leaf_width=7, balance=0.1).train()
    y = lone(x)
    torch.testing.assert_close(y, lone._hidden(x, "") @ lone.down[0].T)
    assert lone.record.load.tolist() == [6]


# ---- mixtures ----


@pytest.mark.parametrize(("k", "normalise"), [(1, False), (2, True), (3, False), (6, True)])
def test_a_mixture_is_the_sum_of_the_best(k: int, normalise: bool) -> None:
    model = replace(MODEL, qk_norm=not normalise)
    layer, x = moe_layer(model, num_experts_per_tok=k, norm_topk_prob=normalise).eval(), torch.randn(11, D)
    expected = torch.zeros(11, D)
    for t, row in enumerate(x):
        p = (layer.router.weight @ row).softmax(dim=0)
        best = p.argsort(descending=True)[:k]
        share = p[best] / p[best].sum() if normalise else p[best]
        for weight, e in zip(share, best, strict=True):
            gate, up = (layer.gate_up[e] @ row).chunk(2)
            expected[t] += weight * (layer.down[e] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(layer(x), expected)
    assert layer.record.load.sum() == 11 * k


@pytest.mark.parametrize("gated", [True, False])
def test_experts_may_be_plain_and_biased_and_give_other_sizes(gated: bool) -> None:
    ff = FeedForwardSpec(5, "relu", gated, True, RouterSpec(4, 2, normalise=True))
    layer, x = MoE(ff, D, Mixture(num_experts=4), out=3).eval(), torch.randn(7, D)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    assert set(layer.state_dict()) == {
        "router.weight", layer.first, f"{layer.first}_bias", "down", "down_bias",
    }  # fmt: skip
    expected = torch.zeros(7, 3)
    for t, row in enumerate(x):
        p = (layer.router.weight @ row).softmax(dim=0)
        best = p.argsort(descending=True)[:2]
        for e in best:
            hidden = getattr(layer, layer.first)[e] @ row + getattr(layer, f"{layer.first}_bias")[e]
            hidden = hidden[:5].relu() * hidden[5:] if gated else hidden.relu()
            expected[t] += p[e] / p[best].sum() * (layer.down[e] @ hidden + layer.down_bias[e])
    torch.testing.assert_close(layer(x), expected)


def test_trees_may_give_other_sizes() -> None:
    ff = FeedForwardSpec(5, "relu", False, True, TreeSpec(2, node_bias=True))
    layer, x = FFF(ff, D, Trees(), out=3).eval(), torch.randn(7, D)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    assert layer.nodes is not None
    for row, y in zip(x, layer(x), strict=True):
        node = 0
        while node < 3:
            node = 2 * node + 1 + int(layer.nodes(row)[node] >= 0)
        leaf = node - 3
        hidden = (layer.up[leaf] @ row + layer.up_bias[leaf]).relu()
        torch.testing.assert_close(y, layer.down[leaf] @ hidden + layer.down_bias[leaf])


def test_the_gradient_of_a_mixture_is_that_of_the_sum() -> None:
    layer, x = (
        moe_layer(switch=0.0, z_loss=0.0).train(),
        torch.randn(5, D, requires_grad=True),
    )
    y = layer(x)
    direct = torch.zeros_like(y)
    with torch.no_grad():
        chosen, _ = layer._route(x)
    scores = (x @ layer.router.weight.T).softmax(dim=1).gather(1, chosen)
    scores = scores / scores.sum(dim=1, keepdim=True)
    for e in range(6):
        gate, up = (x @ layer.gate_up[e].T).chunk(2, dim=1)
        out = (torch.nn.functional.silu(gate) * up) @ layer.down[e].T
        direct = direct + out * (scores * (chosen == e)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(y, direct)
    named = [x, layer.gate_up, layer.down, layer.router.weight]
    for got, expected in zip(
        torch.autograd.grad(y.sum(), named), torch.autograd.grad(direct.sum(), named), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_noise_is_drawn_in_training_alone_and_spreads_the_first_choices() -> None:
    config = Config(MODEL, moe=Mixture(num_experts=6, moe_intermediate_size=5, noise=True, importance=0.1, load=0.1))
    layer, x = Decoder(config).layers[0].mlp, torch.randn(300, D)
    assert not layer.router.weight.any()
    layer.train()(x)
    assert layer.record.load.min() > 50
    assert set(layer.record.terms) == {"importance", "load", "switch", "z_loss"}
    layer.record.penalty.backward()
    assert layer.noise.weight.grad.abs().sum() > 0
    layer.eval()(x)
    first = layer.record.load.clone()
    layer(x)
    torch.testing.assert_close(first, layer.record.load)


def test_a_bias_moves_tokens_to_idle_experts() -> None:
    model = replace(MODEL, qk_norm=True)
    layer, x = moe_layer(model, score="sigmoid", bias_rate=0.05, switch=0.0, z_loss=0.0).train(), torch.randn(200, D)
    with torch.no_grad():
        layer.router.weight[0] = 0
        x[:, 0] = 5.0
        layer.router.weight[1, 0] = 1.0  # everybody's favourite
    layer(x)
    before, weights = layer.record.load.clone(), layer._route(x)[1]
    layer.after_step()
    np.testing.assert_array_equal(np.sign(layer.selection_bias.numpy()), np.sign((before.mean() - before).numpy()))
    for _ in range(200):
        layer(x)
        layer.after_step()
    assert layer.record.load.max() < before.max()
    scores = (x @ layer.router.weight.T).sigmoid()
    chosen, weights = layer._route(x)
    expected = scores.gather(1, chosen)
    torch.testing.assert_close(weights, expected / (expected.sum(dim=1, keepdim=True) + 1e-6))


def test_balance_tells_collapse() -> None:
    def record(load: list[float]) -> Record:
        zero = torch.zeros(())
        return Record(torch.tensor(load), zero, zero + 0.5, zero, {"switch": zero + 2})

    balance = Balance()
    balance.add(record([8.0, 0.0, 0.0, 0.0]))
    balance.add(record([8.0, 0.0, 0.0, 0.0]))
    assert balance.as_dict() == {"max_load": 4.0, "dead": 3, "entropy": 0.0, "mass": 0.5, "switch": 2.0}
    even = Balance()
    even.add(record([2.0, 2.0, 2.0, 2.0]))
    assert (even.as_dict()["max_load"], even.as_dict()["dead"]) == (1.0, 0)


# ---- the decoder ----


@pytest.mark.parametrize("section", [
    {"dense": Dense(40)}, {"moe": Mixture(num_experts=4, moe_intermediate_size=8)},
    {"fff": Trees(depth=2, leaf_width=6, trees=2, node_width=2, bias=True, master_width=7, mix=True)},
])  # fmt: skip
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_learns_and_the_future_is_not_seen(section: dict[str, Any], tied: bool) -> None:
    model = Decoder(Config(replace(MODEL, tie_word_embeddings=tied, qk_norm=not tied), **section)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ids = torch.randint(0, 300, (3, 20))
    logits = model(ids)
    assert logits.shape == (3, 20, 300)
    (logits.float().logsumexp(dim=-1).mean() + penalty(model)).backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not still
    changed = ids.clone()
    changed[:, 12:] = 7
    model.eval()
    torch.testing.assert_close(model(changed)[:, :12], model(ids)[:, :12])
