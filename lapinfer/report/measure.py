"""Measure one model for the report: its steps, its batches, its perplexity and its routing."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from statistics import median
from typing import Any

import numpy as np

from lapinfer.errors import InputError
from lapinfer.model import Model
from lapinfer.report.costs import arithmetic, formats_of, main_format
from lapinfer.report.measured import Batch, Kind, Measured, Routed, Step
from lapinfer.report.perplexity import perplexity
from lapinfer.report.whatif import own_bits, terms
from lapinfer.runtime.kv import cache_bytes
from lapinfer.runtime.meter import Meter
from lapinfer.runtime.predict import packed_bytes, predict_bytes
from lapinfer.runtime.routing import Routing, expected_means
from lapinfer.spec import ModelSpec, TreeSpec
from lapinfer.tensors import active_parameters, tensors
from lapinfer.text.language_model import LanguageModel

BATCHES = (1, 2, 4, 8, 16)
"""Sequences that are decoded together; the last is how many slots a model is loaded with."""
PROMPTS = (1, 4, 16, 64, 256)
"""Tokens of a text in a step."""
CONTEXTS = (128, 512, 2048, 8192, 32_768)
DECODED, BATCHED = 48, 12
"""Steps at most: of one token, of a batch."""
SECONDS = 1.5
"""After which one kind of step has been measured enough."""
HISTORY = 8
"""Tokens before the decoded one in each sequence of a batch."""
BATCH_CONTEXT = BATCHES[-1]
"""What a model is loaded with for them: a step takes no more tokens than the context."""
MOST_CELLS = 128
"""Columns of the picture of load: of more experts, neighbours share one."""
LONGEST_SCORED = 512

Progress = Callable[..., Any]


def kind_of(spec: ModelSpec) -> Kind:
    """What most of the routed layers are; dense without any."""
    routers = [layer.feed_forward.router for layer in spec.layers if layer.feed_forward.router is not None]
    trees = sum(isinstance(router, TreeSpec) for router in routers)
    return "dense" if not routers else "fff" if 2 * trees >= len(routers) else "moe"


def measure_model(
    loaded: LanguageModel, name: str, text: str, context: int, progress: Progress, random: bool = False,
    known: float | None = None,
) -> Measured:  # fmt: skip
    """random: its weights are, so that a perplexity would say nothing; known: its perplexity. The decoded token sees
    `context` positions, or what the model was made for if that is less. `resident` and `batches` are left to who has
    more models."""
    model, spec = loaded.model, loaded.spec
    context = min(context, model.ctx, spec.context)
    if context < 2:
        raise InputError(f"{model.name}: a context of at least 2 is needed, got {context}")
    formats = formats_of(model)
    ids, of = _ids(loaded, text)
    ran = np.resize(ids, context + DECODED)
    with model.lock:
        progress("prompt", 0, 4)
        prompt = _prompt(model, ran[: min(context, model.max_step)], formats)
        progress("decode", 1, 4)
        decode = _decode(model, ran, context, formats)
        progress("routing", 2, 4)
        routed = _routed(model, ids, context) if kind_of(spec) != "dense" else None
        loaded.forget()
    progress("perplexity", 3, 4)
    if known is not None:
        ppl, unscored = [known, 0.0, 0.0], ""
    else:
        ppl, unscored = (None, "random weights") if random else _perplexity(loaded, text)
    progress("perplexity", 4, 4)
    sizes = packed_bytes(spec, formats)
    main = main_format(spec, formats)
    contexts = [n for n in CONTEXTS if n < spec.context] + [spec.context]
    return Measured(
        name=name,
        kind=kind_of(spec),
        family=spec.family,
        format=main,
        parameters=sum(map(prod, tensors(spec).values())),
        active=active_parameters(spec),
        weight_bytes=sum(sizes.values()),
        cache_bytes=cache_bytes(spec, model.limits.kv, 1, context, 1),
        resident=0,
        bits=own_bits(spec, formats),
        arithmetic=arithmetic(main),
        context=context,
        text=of,
        decode=decode,
        prompt=prompt,
        ppl=ppl,
        unscored=unscored,
        terms=terms(spec, formats, model.limits.kv),
        contexts=[[n, sum(_predicted(model, formats, n).values())] for n in contexts],
        routed=routed,
    )


def _ids(loaded: LanguageModel, text: str) -> tuple[np.ndarray, str]:
    """Token ids of the text, or random ones of a model without a tokenizer."""
    if loaded.tokenizer is None:
        return np.random.default_rng(0).integers(0, loaded.spec.vocab, 2048, dtype=np.int32), "random"
    ids = np.array([id for id in loaded.encode(text) if id < loaded.spec.vocab], np.int32)
    if not len(ids):
        raise InputError("the text is empty: at least one token is needed")
    return ids, "real"


def _predicted(model: Model, formats: dict[str, str], context: int) -> dict[str, int]:
    """Of one token that sees so many positions, from the spec alone."""
    return predict_bytes(model.spec, formats, model.limits.kv, [0], [context - 1], 1)


class _Watch:
    """Runs steps under a meter of its own, and notes what each took."""

    def __init__(self, model: Model):
        self.model, self.seconds, self.attended = model, [], 0
        self.meter = Meter(model.plan, model.team.ns_per_tick)

    def run(self, token: np.ndarray, slot: np.ndarray, pos: np.ndarray) -> None:
        want = np.zeros(len(pos), bool)
        want[-1 if slot[0] == slot[-1] else slice(None)] = True  # a prompt's last token, each token of a batch
        usual, self.model.usage = self.model.usage, self.meter
        began = time.perf_counter()
        try:
            self.model.step(token, slot, pos, want)
        finally:
            self.seconds.append(time.perf_counter() - began)
            self.model.usage = usual
        self.attended += sum(op.cost.attention_macs(pos) for op in self.model.plan.ops)

    @property
    def enough(self) -> bool:
        return sum(self.seconds) > SECONDS and len(self.seconds) > 2

    def step(self, tokens: int, position: int, predicted: dict[str, int]) -> Step:
        """The mean of bytes and multiply-adds, the median of times."""
        totals, n = self.meter.totals(), len(self.seconds)
        macs = (int(totals["macs"]) + self.attended) // n
        return Step(tokens, position, int(totals["bytes"]) // n, predicted, macs, median(self.seconds))


def _decode(model: Model, ids: np.ndarray, context: int, formats: dict[str, str]) -> Step:
    """Different tokens behind the same text, at one position: each touches the same bytes, of experts of its own."""
    if context > 1:
        model.prefill(ids[: context - 1])
    zero, pos = np.zeros(1, np.int64), np.array([context - 1])
    model.step(ids[context : context + 1], zero, pos, [True])
    watch = _Watch(model)
    for i in range(DECODED):
        watch.run(ids[context + i : context + i + 1], zero, pos)
        if watch.enough:
            break
    return watch.step(1, context - 1, _predicted(model, formats, context))


def _prompt(model: Model, ids: np.ndarray, formats: dict[str, str]) -> Step:
    """A prompt in one step, from an empty context."""
    slot, pos = np.zeros(len(ids), np.int64), np.arange(len(ids))
    model.prefill(ids)  # warms up
    watch = _Watch(model)
    for _ in range(4):
        watch.run(ids, slot, pos)
        if watch.enough:
            break
    predicted = predict_bytes(model.spec, formats, model.limits.kv, slot, pos, 1, model.distinct_experts,
                              model.distinct_nodes)  # fmt: skip
    return watch.step(len(ids), 0, predicted)


def measure_batches(loaded: LanguageModel, text: str) -> list[Batch]:
    """Of a model that was loaded with `slots=BATCHES[-1]` and `ctx=BATCH_CONTEXT`."""
    model = loaded.model
    ids = np.resize(_ids(loaded, text)[0], 2048)
    with model.lock:
        return [_batch(model, ids, size) for size in BATCHES if size <= min(model.slots, model.max_step)]


def _batch(model: Model, ids: np.ndarray, size: int) -> Batch:
    """Decode so many sequences together, each from a place of its own in the text."""
    slots = np.arange(size)
    starts = slots * (len(ids) // size)
    history = min(HISTORY, model.ctx - 1)
    for slot, start in zip(slots.tolist(), starts.tolist(), strict=True):
        model.prefill(ids[start : start + history], slot)
    watch, pos = _Watch(model), np.full(size, history)
    outer, routing = model.routing, Routing(model.spec) if kind_of(model.spec) != "dense" else None
    try:
        for i in range(BATCHED + 1):
            if i == 1:  # the first one warmed up
                watch, model.routing = _Watch(model), routing
            watch.run(ids[(starts + history + i) % len(ids)], slots, pos)
            if watch.enough:
                break
    finally:
        model.routing = outer
    distinct = None if routing is None else float(routing.arrays()["distinct_per_step"].mean())
    return Batch(
        size, watch.meter.totals()["bytes"] / len(watch.seconds) / size, median(watch.seconds) / size, distinct
    )


def _routed(model: Model, ids: np.ndarray, context: int) -> Routed:
    """Route the text in chunks of the context, then in steps of several sizes."""
    size = min(context, model.max_step)
    outer, whole = model.routing, Routing(model.spec)
    prompts: list[list[float]] = []
    try:
        model.routing = whole
        for at in range(0, len(ids), size):
            model.prefill(ids[at : at + size])
        for tokens in PROMPTS:
            if tokens > min(size, len(ids)):
                break
            model.routing = part = Routing(model.spec)
            for at in range(0, min(len(ids) // tokens, BATCHED) * tokens, tokens):
                model.prefill(ids[at : at + tokens], 0, at % size if at % size + tokens <= size else 0)
            prompts.append([tokens, float(part.arrays()["distinct_per_step"].mean())])
    finally:
        model.routing = outer
    arrays = whole.arrays()
    load, experts, top_k = arrays["tokens_routed"], arrays["experts"], arrays["top_k"]
    steps = 2.0 ** np.arange(0, 9.01, 0.5)
    uniform, by_load = expected_means(arrays, steps)
    merged = -(-load.shape[1] // MOST_CELLS)
    cells = np.pad(load, ((0, 0), (0, -load.shape[1] % merged))).reshape(len(load), -1, merged).sum(axis=2)
    return Routed(
        arrays["layers"].tolist(), experts.tolist(), top_k.tolist(), merged, cells.tolist(),
        np.stack([steps, uniform], axis=1).tolist(), np.stack([steps, by_load], axis=1).tolist(), prompts,
        whole.summary(),
    )  # fmt: skip


def _perplexity(loaded: LanguageModel, text: str) -> tuple[list[float] | None, str]:
    """Perplexity of the text, its standard error and the tokens scored, in chunks as long as text and model allow; or
    why there is none."""
    if loaded.tokenizer is None:
        return None, "no tokenizer"
    tokens = len(loaded.encode(text))
    ctx = min(LONGEST_SCORED, loaded.model.ctx, loaded.spec.context, tokens // 2)
    if ctx < 4:
        return None, "text too short"
    try:
        *_, result = perplexity(loaded, text, ctx)
    except InputError as error:
        return None, str(error)
    return [result.ppl, result.error, float(result.tokens)], ""
