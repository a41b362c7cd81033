"""Logits are the same to the bit whatever the threads, the chunks of a prompt and the neighbours in a step; the team
finishes every step, whoever else wants the processor."""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
from random_weights import RandomWeights

from lapinfer.kernels.operands import BF16
from lapinfer.model import Model
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.formats.bf16 import to_bf16
from lapinfer.runtime.kv import DTYPES
from lapinfer.runtime.ops import Limits
from lapinfer.spec import (
    AttentionSpec,
    ConvolutionSpec,
    FeedForwardSpec,
    GrowthSpec,
    LatentSpec,
    LayerSpec,
    ModelSpec,
    NormSpec,
    RecurrenceSpec,
    RopeSpec,
    RouterSpec,
    TreeSpec,
)

PATIENCE = 120
"""Seconds after which a hang is a failure."""

CTX = 300


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def decoder(window: int | None = 150) -> ModelSpec:
    """Two layers, one with a window; grouped heads; widths that are no multiples of 32; a head of several bands."""
    norm = NormSpec("rms", 1e-5)
    rope = RopeSpec(20, tuple(1000.0 ** (-i / 10) for i in range(10)))
    attention = AttentionSpec(6, 2, 20, 24, 20**-0.5, rope=rope)
    layers = tuple(
        LayerSpec(dataclasses.replace(attention, window=w), FeedForwardSpec(100, "silu"), norm, norm)
        for w in (None, window)
    )
    return ModelSpec("llama", 531, 72, layers, norm, CTX, tied=False)


def routed_decoder(latent: bool = False) -> ModelSpec:
    """A dense layer, one whose experts are stored and normed, one whose experts are added; some are shared, and gated.

    `latent`: the last layer has latent attention.
    """
    dense = decoder()
    first, norm = dense.layers[0], dense.norm
    router = RouterSpec(5, 2, normalise=True, bias=True, selection_bias=True)
    experts = FeedForwardSpec(40, "silu", bias=True, router=router, shared=2, shared_gate=True, shared_width=70)
    plain = FeedForwardSpec(72, "gelu_tanh", gated=False, router=RouterSpec(7, 3, "sigmoid", groups=1, scale=1.5))
    last = first.mixer
    if latent:
        rope = RopeSpec(8, tuple(1000.0 ** (-i / 4) for i in range(4)), interleaved=True)
        last = AttentionSpec(5, 1, 64 + 8, 64, 0.2, rope, latent=LatentSpec(64, 12, 32, norm, q_rank=40))
    layers = (
        first,
        dataclasses.replace(dense.layers[1], feed_forward=experts, ff_post_norm=norm),
        LayerSpec(last, plain, norm, norm, residual_scale=0.7),
    )
    return dataclasses.replace(dense, layers=layers)


def hybrid_decoder() -> ModelSpec:
    """Convolutions around a layer of attention, the last one with biases, a norm behind it, and experts."""
    routed, norm = routed_decoder(), decoder().norm
    first, second, third = routed.layers
    long = ConvolutionSpec(5, bias=True)
    layers = (
        dataclasses.replace(first, mixer=ConvolutionSpec(3)),
        second,
        dataclasses.replace(third, mixer=long, attn_post_norm=norm),
    )
    return dataclasses.replace(routed, layers=layers)


def recurrent_decoder() -> ModelSpec:
    """A delta rule, attention with a gate, and a state space with a norm behind it, biases and experts."""
    routed, norm = routed_decoder(), decoder().norm
    first, second, third = routed.layers
    delta = RecurrenceSpec("delta", 4, 6, 3, 16, 40, norm, 40, norm_shared=True)
    space = RecurrenceSpec(
        "state_space", 3, 4, 2, 13, 24, norm, 48, gate_first=True, bias=True, kernel_bias=True, most_step=2.0
    )
    attention = second.attention
    assert attention is not None
    layers = (
        dataclasses.replace(first, mixer=delta),
        dataclasses.replace(second, mixer=dataclasses.replace(attention, gated=True)),
        dataclasses.replace(third, mixer=space, attn_post_norm=norm),
    )
    return dataclasses.replace(routed, layers=layers)


def tree_decoder() -> ModelSpec:
    """Trees of all kinds: narrow and wide leaves, several trees, nodes of several neurons, a master leaf, no nodes at
    all, and neurons that are nodes; stored and added."""
    dense = decoder()
    (first, second), norm = dense.layers, dense.norm
    master = TreeSpec(3, trees=2, node_bias=True, mix=True)
    kinds = (
        FeedForwardSpec(5, "silu", bias=True, router=master, shared=2, shared_width=9),
        FeedForwardSpec(40, "gelu_tanh", gated=False, router=TreeSpec(2, node_width=3, node_bias=True)),
        FeedForwardSpec(1, "gelu", gated=False, bias=True, router=TreeSpec(3, trees=2, neurons=True)),
        FeedForwardSpec(24, "relu", router=TreeSpec(0)),
        FeedForwardSpec(8, "relu", gated=False, bias=True, router=TreeSpec(5)),
    )
    layers = [
        dataclasses.replace(second if i % 2 else first, feed_forward=ff, residual_scale=0.7)
        for i, ff in enumerate(kinds)
    ]
    layers[0] = dataclasses.replace(layers[0], ff_post_norm=norm)
    layers[1] = dataclasses.replace(layers[1], ff_post_norm=norm)
    layers[4] = dataclasses.replace(layers[4], ff_norm=None)
    return dataclasses.replace(dense, layers=tuple(layers))


def parallel_decoder() -> ModelSpec:
    """Both halves side by side, behind one norm or two, with a dense feed-forward, experts and trees; norms of all
    kinds, after the embedding, too, and of heads; queries that grow; xIELU."""
    dense, bare = decoder(), NormSpec("layer", 1e-5, weight=False)
    attention, layer_norm = dense.layers[1].attention, NormSpec("layer", 1e-5, bias=True)
    assert attention is not None
    routed = routed_decoder().layers[1].feed_forward
    each = dataclasses.replace(attention, qk_norm=NormSpec("layer", 1e-5), qk_norm_each=True)
    after = dataclasses.replace(attention, qk_norm=bare, qk_norm_after=True, growth=GrowthSpec(0.3, 32))
    biased = dataclasses.replace(attention, qk_norm=layer_norm, growth=GrowthSpec(0.1, 32))
    layers = (
        LayerSpec(each, FeedForwardSpec(72, "xielu", gated=False), layer_norm, None, parallel=True),
        LayerSpec(after, routed, layer_norm, None, residual_scale=0.7, parallel=True),
        LayerSpec(biased, tree_decoder().layers[2].feed_forward, bare, layer_norm, parallel=True),
    )
    return dataclasses.replace(dense, layers=layers, embed_norm=layer_norm)


def build(fmt: str = "q4", kv: str = "f16", seed: int = 0, spec: ModelSpec | None = None, **limits: Any) -> Model:
    spec = spec or decoder()
    return Model(spec, RandomWeights(spec, fmt, seed), Limits(**{"ctx": CTX, "kv": kv} | limits))  # type: ignore[arg-type]


def prompt(length: int = CTX, seed: int = 0) -> list[int]:
    return tiny.prompt(131, length, seed)


def forward(ids: list[int], fmt: str = "q4", kv: str = "f16", **limits: Any) -> np.ndarray:
    model = build(fmt, kv, **limits)
    try:
        return model.forward(ids)
    finally:
        model.close()


CASES = [(fmt, kv, "q8") for fmt in FORMATS for kv in DTYPES]
CASES += [(fmt, "f16", "q16") for fmt, format in FORMATS.items() if format.grouped]


@pytest.mark.parametrize(("fmt", "kv", "activations"), CASES)
def test_threads_and_chunks_change_no_bit(fmt: str, kv: str, activations: str) -> None:
    ids = prompt()
    expected = forward(ids, fmt, kv, step=512, threads=1, activations=activations)
    assert np.isfinite(expected).all()
    for step, threads in ((512, 2), (512, 4), (1, 1), (1, 2), (3, 1), (3, 4), (8, 2)):
        got = forward(ids, fmt, kv, step=step, threads=threads, activations=activations)
        np.testing.assert_array_equal(got, expected, err_msg=f"chunks of {step}, {threads} threads")


@pytest.mark.parametrize(
    ("fmt", "activations"),
    [("q4", "q8"), ("q8", "q8"), ("mxfp4", "q8"), ("bf16", "q8"), ("q4", "q16"), ("mxfp4", "q16")],
)
@pytest.mark.parametrize(
    "spec",
    [routed_decoder(), routed_decoder(True), hybrid_decoder(), recurrent_decoder(), tree_decoder()],
    ids=["heads", "latent", "convolutions", "recurrences", "trees"],
)
def test_experts_change_no_bit_either(fmt: str, activations: str, spec: ModelSpec) -> None:
    """Whichever tokens share an expert with a token, and whoever sorts them."""
    ids = prompt(150)
    expected = forward(ids, fmt, spec=spec, step=512, threads=1, activations=activations)
    assert np.isfinite(expected).all()
    for step, threads in ((512, 2), (512, 4), (1, 1), (1, 4), (7, 2), (8, 4)):
        got = forward(ids, fmt, spec=spec, step=step, threads=threads, activations=activations)
        np.testing.assert_array_equal(got, expected, err_msg=f"chunks of {step}, {threads} threads")


def test_halves_side_by_side_change_no_bit_either() -> None:
    ids, spec = prompt(60), parallel_decoder()
    expected = forward(ids, spec=spec, threads=1)
    assert np.isfinite(expected).all()
    for step, threads in ((1, 2), (7, 4)):
        np.testing.assert_array_equal(forward(ids, spec=spec, step=step, threads=threads), expected)


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize(
    "spec",
    [
        decoder(),
        routed_decoder(),
        routed_decoder(True),
        hybrid_decoder(),
        tree_decoder(),
        parallel_decoder(),
        recurrent_decoder(),
    ],
    ids=["dense", "routed", "latent", "convolutions", "trees", "parallel", "recurrences"],
)
def test_sequences_side_by_side_are_as_alone(kv: str, spec: ModelSpec) -> None:
    """Four sequences at different places, their tokens in one step in any order of slots, prompts beside decoding."""
    prompts = [prompt(n, seed=n) for n in (290, 17, 131, 1)]
    alone = [forward(ids, kv=kv, spec=spec, step=64) for ids in prompts]
    model = build(kv=kv, spec=spec, step=64, slots=4, threads=2)
    rng = np.random.default_rng(0)
    at = [0] * 4
    while any(at[s] < len(ids) for s, ids in enumerate(prompts)):
        token, slot, pos = [], [], []
        for s in rng.permutation(4):
            n = min(int(rng.choice([1, 1, 2, 5, 16])), len(prompts[s]) - at[s])
            token += prompts[s][at[s] : at[s] + n]
            slot += [int(s)] * n
            pos += range(at[s], at[s] + n)
            at[s] += n
        want = rng.random(len(token)) < 0.7
        logits = model.step(token, slot, pos, want)
        wanted = np.flatnonzero(want)
        for values, best, i in zip(logits.values, logits.block_max, wanted, strict=True):
            np.testing.assert_array_equal(values, alone[slot[i]][pos[i]])
            assert best.max() == values.max()
    model.close()


@pytest.mark.parametrize(
    "spec", [decoder(), hybrid_decoder(), recurrent_decoder()], ids=["dense", "convolutions", "recurrences"]
)
def test_a_slot_is_used_again(spec: ModelSpec) -> None:
    """What an earlier, longer sequence has left is not seen by the next one."""
    first, second = prompt(300, 1), prompt(200, 2)
    expected = forward(second, step=32, spec=spec)
    model = build(step=32, spec=spec)
    model.forward(first)
    np.testing.assert_array_equal(model.forward(second), expected)
    model.close()


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize(
    "spec", [decoder(), hybrid_decoder(), recurrent_decoder()], ids=["dense", "convolutions", "recurrences"]
)
def test_a_slot_recovers_from_a_poisoned_cache(kv: str, spec: ModelSpec) -> None:
    """Keys, values and inputs that are no numbers, left by an earlier sequence, never reach the next one."""
    ids = prompt(40)
    expected = forward(ids, kv=kv, step=16, spec=spec)
    model = build(kv=kv, step=16, spec=spec)
    kept = {"k_cache", "v_cache", "k_scale", "v_scale", "state", "states"}
    poisoned = [array for op in model.runner.plan.ops for name, array in op.operands.items() if name in kept]
    assert poisoned
    for array in poisoned:
        assert isinstance(array, np.ndarray)
        if array.dtype.kind == "f":
            array[:] = np.nan
        elif array.dtype == BF16:
            array[:] = to_bf16(np.float32([np.nan]))[0]
    np.testing.assert_array_equal(model.forward(ids), expected)
    model.close()


def decode(model: Model, ids: list[int], steps: int) -> np.ndarray:
    """The last logits of each of some greedy steps behind a prompt."""
    logits = [model.prefill(ids).values[-1].copy()]
    for i in range(steps):
        best = int(logits[-1].argmax())
        logits.append(model.step([best], [0], [len(ids) + i], [True]).values[0].copy())
    return np.stack(logits)


@pytest.fixture
def busy() -> Iterator[None]:
    """Other threads that want the processors; NumPy's products run without the GIL."""
    stop = threading.Event()

    def burn() -> None:
        a = np.ones((300, 300))
        while not stop.is_set():
            a @ a

    threads = [threading.Thread(target=burn) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


def test_thousands_of_small_steps_on_busy_processors(busy: None) -> None:
    """Four threads on fewer processors: no hang, no lost or doubled chunk."""
    ids = prompt(5)
    quiet = build(threads=1)
    expected = decode(quiet, ids, 280)
    quiet.close()
    model = build(threads=4)
    for _ in range(8):
        np.testing.assert_array_equal(decode(model, ids, 280), expected)
    assert (model.usage.counters[:, 0] == 8 * 281).all()
    model.close()


def test_helpers_that_fell_asleep_come_back() -> None:
    ids = prompt(30)
    expected = forward(ids, step=4, threads=1)
    model = build(threads=4, step=4)
    for _ in range(3):
        np.testing.assert_array_equal(model.forward(ids), expected)
        threading.Event().wait(0.3)  # longer than they spin
    model.close()


def test_two_models_at_once() -> None:
    expected = [forward(prompt(60, seed), fmt, step=7) for seed, fmt in enumerate(("q4", "f32"))]
    models = [build(fmt, step=7, threads=3) for fmt in ("q4", "f32")]
    failures: list[str] = []

    def use(index: int) -> None:
        for _ in range(20):
            if not np.array_equal(models[index].forward(prompt(60, index)), expected[index]):
                failures.append(f"model {index}")

    threads = [threading.Thread(target=use, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for model in models:
        model.close()


def test_calls_from_several_threads_wait_for_each_other() -> None:
    model = build(step=16, threads=2)
    prompts = [prompt(40, seed) for seed in range(4)]
    expected = [model.forward(ids) for ids in prompts]
    failures: list[int] = []

    def use(index: int) -> None:
        for _ in range(10):
            if not np.array_equal(model.forward(prompts[index]), expected[index]):
                failures.append(index)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    model.close()


def helpers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("lapinfer-")}


def test_closing_ends_the_threads() -> None:
    before = helpers()
    model = build(threads=4)
    model.forward(prompt(9))
    mine = helpers() - before
    assert len(mine) == 3
    model.close()
    model.close()
    for thread in mine:
        thread.join(10)
    assert not helpers() & mine


def test_a_forgotten_model_lets_its_threads_end() -> None:
    import gc

    before = helpers()
    model = build(threads=2)
    model.forward(prompt(9))
    mine = helpers() - before
    del model
    gc.collect()
    for thread in mine:
        thread.join(10)
    assert not helpers() & mine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_after_a_team_has_started() -> None:
    model = build(threads=3, step=32)
    ids = prompt(100)
    expected = model.forward(ids)
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE // 2)  # faulthandler's own watchdog would not survive the fork
        code = 1
        try:
            code = 0 if np.array_equal(model.forward(ids), expected) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(model.forward(ids), expected)
    model.close()
