"""Measure one model for the report: its steps, its batches, its perplexity and its routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, median

import numpy as np

from lapinfer.errors import InputError
from lapinfer.model import Model
from lapinfer.report.costs import Costs
from lapinfer.report.measured import Batch, Kind, Measured, Routed, Step
from lapinfer.report.perplexity import perplexity
from lapinfer.report.texts import RANDOM_IDS, sample_ids
from lapinfer.report.timing import Watch
from lapinfer.report.whatif import own_bits, terms
from lapinfer.runtime.chance import expected_means
from lapinfer.runtime.kv import cache_bytes
from lapinfer.runtime.routing import Routing
from lapinfer.spec import ModelSpec, TreeSpec
from lapinfer.text.language_model import LanguageModel

BATCHES = (1, 2, 4, 8, 16)
"""Sequences that are decoded together; the last is how many slots a model is loaded with."""
PROMPTS = (1, 4, 16, 64, 256)
"""Tokens of a text in a step."""
CONTEXTS = (128, 512, 2048, 8192, 32_768)
TURNS = 5
"""Turns of a model that count: each is a prompt, and tokens after it."""
DECODED, BATCHED = 10, 12
"""Steps at most: of one token in a turn, of a batch."""
SECONDS = 0.5
"""After which one kind of step has been measured enough in a turn."""
HISTORY = 8
"""Tokens before the decoded one in each sequence of a batch."""
BATCH_CONTEXT = BATCHES[-1]
"""What a model is loaded with for them: a step takes no more tokens than the context."""
MOST_CELLS = 128
"""Columns of the picture of load: of more experts, neighbours share one."""
LONGEST_SCORED = 512

MEASURED_PARTS = TURNS + 3
"""What `measure_model` begins one after the other: routing, perplexity, a turn that warms up, and turns."""


def kind_of(spec: ModelSpec) -> Kind:
    """What most of the routed layers are; dense without any."""
    routers = [layer.feed_forward.router for layer in spec.layers if layer.feed_forward.router is not None]
    trees = sum(isinstance(router, TreeSpec) for router in routers)
    return "dense" if not routers else "fff" if 2 * trees >= len(routers) else "moe"


def measure_model(
    loaded: LanguageModel, name: str, text: str, context: int, count: Callable[[str], object], random: bool = False,
    perplexity_known: float | None = None,
) -> Iterator[Measured]:  # fmt: skip
    """What is known after each of its turns. The first one warms up: it counts as long as there is no other.

    random: its weights are, so that a perplexity would say nothing; perplexity_known: from its card. The decoded
    token sees `context` positions, or what the model was made for if that is less. `resident`, `batches` and `paired`
    are left as they are by default.
    """
    model, spec = loaded.model, loaded.spec
    context = min(context, model.ctx, spec.context)
    if context < 2:
        raise InputError(f"{model.name}: a context of at least 2 is needed, got {context}")
    ids, kind_of_ids = sample_ids(loaded.tokenizer, spec.vocab, text)
    ran = np.resize(ids, context + (TURNS + 1) * (DECODED + 1))
    count(f"{name}: routing")
    with model.lock:
        routed = _routed(model, ids, context) if kind_of(spec) != "dense" else None
        loaded.forget()
    count(f"{name}: perplexity")
    if perplexity_known is not None:
        ppl, unscored = [perplexity_known, 0.0, 0.0], ""
    else:
        ppl, unscored = (None, "random weights") if random else _perplexity(loaded, text)
    prompts: list[Watch] = []
    decodes: list[Watch] = []
    for turn in range(TURNS + 1):
        count(f"{name}: turn {turn + 1} of {TURNS + 1}")
        with model.lock:
            prompts.append(_prompt(model, ran[: min(context, model.max_step)]))
            read = Costs.of(model).touched(prompts[-1].positions[0], read_by=model, best_blocks=prompts[-1].blocks[0])
            decodes.append(_decode(model, ran, context, turn))
            loaded.forget()
        costs = Costs.of(model)
        contexts = [n for n in CONTEXTS if n < spec.context] + [spec.context]
        blocks = _mean_blocks(decodes[-1])
        yield Measured(
            name=name,
            kind=kind_of(spec),
            family=spec.family,
            format=costs.main_format,
            parameters=costs.parameters,
            active=costs.active_parameters,
            weight_bytes=costs.weight_bytes,
            cache_bytes=cache_bytes(spec, costs.kv, 1, context, 1),
            resident=0,
            bits=own_bits(spec, costs.formats),
            arithmetic=costs.arithmetic,
            context=context,
            text=kind_of_ids,
            decode=_step(decodes[1:] or decodes, _predicted(costs, decodes[-1])),
            prompt=_step(prompts[1:] or prompts, read),
            ppl=ppl,
            unscored=unscored,
            terms=terms(spec, costs.formats, costs.kv, blocks),
            contexts=[[n, sum(costs.touched([n - 1], best_blocks=blocks).values())] for n in contexts],
            routed=routed,
        )


def _predicted(costs: Costs, watch: Watch) -> dict[str, int]:
    """Bytes by part of single tokens, the mean of those that ran."""
    ran = zip(watch.positions, watch.blocks, strict=True)
    steps = [costs.touched(pos, best_blocks=blocks) for pos, blocks in ran]
    return {part: sum(step[part] for step in steps) // len(steps) for part in steps[0]}


def _mean_blocks(watch: Watch) -> int | None:
    """Row blocks of the head that a step has read on average; None: all."""
    blocks = [count for count in watch.blocks if count is not None]
    return round(fmean(blocks)) if blocks else None


def _step(turns: Sequence[Watch], predicted: dict[str, int]) -> Step:
    """Bytes and multiply-adds of the last turn's steps, the mean; of the times of all turns, the median."""
    last, pos = turns[-1], turns[-1].positions[-1]
    n = len(last.seconds)
    macs = (int(last.meter.macs.sum()) + last.attended) // n
    seconds = [second for turn in turns for second in turn.seconds]
    low, high = np.percentile(seconds, (25, 75))
    middle = median(seconds)
    return Step(
        len(pos), int(pos[0]), int(last.meter.bytes.sum()) // n, predicted, macs, middle,
        float((high - low) / 2 / middle), [median(turn.seconds) for turn in turns],
    )  # fmt: skip


def _prompt(model: Model, ids: np.ndarray) -> Watch:
    """A prompt in one step, from an empty context."""
    watch = Watch(model)
    watch.step(ids, np.zeros(len(ids), np.int64), np.arange(len(ids)))
    return watch


def _decode(model: Model, ids: np.ndarray, context: int, turn: int) -> Watch:
    """Different tokens after the same text, at one position: each touches the same bytes, of experts of its own."""
    slot, pos = np.zeros(1, np.int64), np.array([context - 1])
    if context > model.max_step:  # else the prompt has just left them
        model.prefill(ids[: context - 1])
    start = context + turn * (DECODED + 1)
    tokens = ids[start : start + DECODED + 1]
    return Watch(model).steps(((tokens[i : i + 1], slot, pos) for i in range(len(tokens))), SECONDS)


def measure_batches(loaded: LanguageModel, text: str) -> list[Batch]:
    """Of a model that was loaded with `slots=BATCHES[-1]` and `ctx=BATCH_CONTEXT`."""
    model = loaded.model
    ids = np.resize(sample_ids(loaded.tokenizer, model.spec.vocab, text)[0], RANDOM_IDS)
    with model.lock:
        return [_batch(model, ids, size) for size in BATCHES if size <= min(model.slots, model.max_step)]


def _batch(model: Model, ids: np.ndarray, size: int) -> Batch:
    """Decode so many sequences together, each from a place of its own in the text."""
    slots = np.arange(size)
    starts = slots * (len(ids) // size)
    history = min(HISTORY, model.ctx - 1)
    for slot, start in zip(slots.tolist(), starts.tolist(), strict=True):
        model.prefill(ids[start : start + history], slot)
    places, pos = starts + history, np.full(size, history)
    outer, routing = model.routing, Routing(model.spec) if kind_of(model.spec) != "dense" else None
    model.routing = routing
    try:
        watch = Watch(model).steps(((ids[(places + i) % len(ids)], slots, pos) for i in range(BATCHED + 1)), SECONDS)
    finally:
        model.routing = outer
    distinct = None if routing is None else float(routing.arrays()["distinct_per_step"].mean())
    touched = int(watch.meter.bytes.sum()) / len(watch.seconds) / size
    return Batch(size, touched, median(watch.seconds) / size, distinct)


def _routed(model: Model, ids: np.ndarray, context: int) -> Routed:
    """Route the text in chunks of the context, then in steps of several sizes."""
    size = min(context, model.max_step)
    outer, routing = model.routing, Routing(model.spec)
    prompts: list[list[float]] = []
    try:
        model.routing = routing
        for start in range(0, len(ids), size):
            model.prefill(ids[start : start + size])
        for tokens in PROMPTS:
            if tokens > min(size, len(ids)):
                break
            model.routing = part = Routing(model.spec)
            for start in range(0, min(len(ids) // tokens, BATCHED) * tokens, tokens):
                pos = start % size
                model.prefill(ids[start : start + tokens], 0, pos if pos + tokens <= size else 0)
            prompts.append([tokens, float(part.arrays()["distinct_per_step"].mean())])
    finally:
        model.routing = outer
    arrays = routing.arrays()
    load, experts, top_k = arrays["tokens_routed"], arrays["experts"], arrays["top_k"]
    steps = 2.0 ** np.arange(0, 9.01, 0.5)
    uniform, by_load = expected_means(arrays, steps)
    merged = -(-load.shape[1] // MOST_CELLS)
    cells = np.pad(load, ((0, 0), (0, -load.shape[1] % merged))).reshape(len(load), -1, merged).sum(axis=2)
    return Routed(
        arrays["layers"].tolist(), experts.tolist(), top_k.tolist(), merged, cells.tolist(),
        np.stack([steps, uniform], axis=1).tolist(), np.stack([steps, by_load], axis=1).tolist(), prompts,
        routing.summary(),
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
