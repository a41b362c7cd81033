"""Speed of prompt processing and generation by llama-bench's two tests, with its names.

pp512: the tokens of a prompt of 512, as large steps as the model takes. tg128: 128 tokens, one a step, from
an empty context. "@ d1024" after either: at a depth of 1024 tokens, whose reading is not timed. Nothing is
sampled. The first run of each test warms up and is not counted; compile and load times have their own columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.resources import files
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from lapinfer import __version__
from lapinfer.errors import InputError
from lapinfer.report.machine import cpu_name
from lapinfer.runtime.predict import packed_bytes
from lapinfer.tensors import is_matrix, tensors
from lapinfer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lapinfer.model import Model


@dataclass(frozen=True, slots=True)
class Row:
    """One test; llama-bench's field names where it has them.

    Times are of one repetition in ns, speeds in tokens a second. touched_mb: bytes a token had to read
    (weights on the path and KV), in MB (10^6), and gb_per_s that over time. peak_rss_mb and major_faults are
    the process's so far. expert_hit_rate, read_mb: of a model whose experts are partly on disk (--memory): the share of
    chosen experts that were in memory, and MB read from the file a token. text: "real", or "random" for a model
    without a tokenizer.
    """

    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    test: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_threads: int
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    samples_ns: list[int]
    samples_ts: list[float]
    touched_mb: float
    gb_per_s: float
    compile_s: float
    load_s: float
    peak_rss_mb: float | None
    major_faults: int | None
    text: str
    expert_hit_rate: float | None
    read_mb: float | None
    cpu_info: str
    test_time: str
    build: str


def bench(
    name: str,
    n_prompt: Sequence[int] = (512,),
    n_gen: Sequence[int] = (128,),
    depth: Sequence[int] = (0,),
    threads: Sequence[int | None] = (None,),
    repetitions: int = 5,
    quant: str = "auto",
    kv: str = "f16",
    activations: str = "auto",
    experts: int | None = None,
    memory: float | None = None,
    policy: str = "lrfu",
    hints: bool = False,
    progress: Callable[..., Any] | None = None,
) -> Iterator[Row]:
    """A row for each combination, as soon as it is measured; a length of 0 leaves its test out."""
    from lapinfer.loading import load_model

    if repetitions < 1:
        raise InputError(f"repetitions: expected a number from 1, got {repetitions}")
    tests = [(p, 0) for p in n_prompt if p] + [(0, n) for n in n_gen if n]
    if not tests:
        raise InputError("nothing to measure: -p and -n are both 0")
    ctx = max(map(sum, tests)) + max(depth)
    for count in threads:
        model = load_model(
            name,
            quant=quant,
            threads=count,
            ctx=ctx,
            kv=kv,
            activations=activations,
            experts=experts,
            memory=memory,
            policy=policy,
            hints=hints,
            progress=progress,
        )
        try:
            ids, text = _ids(model, ctx)
            for (p, n), d in itertools.product(tests, depth):
                yield _measure(model, ids, text, p, n, d, repetitions, progress or (lambda *args: None))
        finally:
            model.close()


def _ids(model: Model, count: int) -> tuple[np.ndarray, str]:
    """`count` token ids, of real text where there is a tokenizer: random ones are routed and cached unlike text."""
    tokenizer = None if model.folder is None else Tokenizer.from_folder(model.folder)
    if tokenizer is None:
        return np.random.default_rng(0).integers(0, model.spec.vocab, count, dtype=np.int32), "random"
    passage = (files("lapinfer.report") / "passage.txt").read_text(encoding="utf-8")
    ids = [id for id in tokenizer.encode(passage) if id < model.spec.vocab]
    return np.resize(np.array(ids, np.int32), count), "real"


def _measure(
    model: Model, ids: np.ndarray, text: str, p: int, n: int, d: int, repetitions: int, progress: Callable[..., Any]
) -> Row:
    count = p + n
    test = f"{'pp' if p else 'tg'}{count}" + (f" @ d{d}" if d else "")
    samples: list[int] = []
    touched = 0
    pool = getattr(model, "pool", None)
    with model.lock:
        for repetition in range(repetitions + 1):
            progress(test, repetition, repetitions + 1)
            if d:
                model.prefill(ids[:d], 0, 0)
            if pool is not None and repetition <= 1:  # what warmed up is not counted
                pool.reset()
            before = model.usage.totals()
            started = time.perf_counter_ns()
            if p:
                model.prefill(ids[d : d + p], 0, d)
            else:
                _decode(model, ids, d, n)
            spent = time.perf_counter_ns() - started
            if repetition:  # the first one warmed up
                samples.append(spent)
                touched += model.usage.totals().get("bytes", 0) - before.get("bytes", 0)
    progress(test, repetitions + 1, repetitions + 1)
    speeds = [count * 1e9 / ns for ns in samples]
    rss, faults = _process_memory()
    shapes = tensors(model.spec)
    params = sum(map(prod, shapes.values()))
    formats = {name: str(model.weights.format(name)) for name in shapes if is_matrix(name)}
    return Row(
        model_filename=model.name,
        model_type=f"{model.spec.family} {params / 1e6:.0f}M {_main_format(model)}",
        model_size=sum(packed_bytes(model.spec, formats).values()),
        model_n_params=params,
        test=test,
        n_prompt=p,
        n_gen=n,
        n_depth=d,
        n_threads=model.threads,
        avg_ns=round(statistics.mean(samples)),
        stddev_ns=round(statistics.stdev(samples)) if len(samples) > 1 else 0,
        avg_ts=statistics.mean(speeds),
        stddev_ts=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        samples_ns=samples,
        samples_ts=speeds,
        touched_mb=touched / (repetitions * count) / 1e6,
        gb_per_s=touched / sum(samples),
        compile_s=model.compile_s,
        load_s=model.load_s,
        peak_rss_mb=rss,
        major_faults=faults,
        text=text,
        **_from_disk(pool, repetitions * count),
        cpu_info=f"{cpu_name()} ({os.cpu_count()} threads)",
        test_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        build=f"lapinfer {__version__}",
    )


def _from_disk(pool: Any, tokens: int) -> dict[str, float | None]:
    """Share of experts found in memory, and MB read a token."""
    if pool is None or not pool.pooled:
        return {"expert_hit_rate": None, "read_mb": None}
    n = pool.stats()
    used = n["hits"] + n["misses"]
    return {"expert_hit_rate": n["hits"] / max(used, 1), "read_mb": n["bytes_read"] / tokens / 1e6}


def _main_format(model: Model) -> str:
    """The format that most weights are packed in."""
    weights: Counter[str] = Counter()
    for name, shape in tensors(model.spec).items():
        weights[model.weights.format(name) or "f32"] += prod(shape)
    return weights.most_common(1)[0][0]


def _decode(model: Model, ids: np.ndarray, start: int, n: int) -> None:
    slot, want = np.zeros(1, np.int32), np.ones(1, bool)
    for pos in range(start, start + n):
        model.step(ids[pos : pos + 1], slot, np.array([pos], np.int32), want)


def _process_memory() -> tuple[float | None, int | None]:
    """Peak resident MB (10^6) and major page faults of this process; None on Windows."""
    if sys.platform == "win32":
        return None, None
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6, usage.ru_majflt


def to_markdown(rows: Sequence[Row]) -> str:
    """The table for people: one line a test."""
    if not rows:
        return ""
    head = ("model", "size MB", "threads", "test", "t/s", "MB/token", "GB/s", "peak MB")
    table = [head, ("---", *["---:"] * 2, "---", *["---:"] * 4)]
    table += [
        (
            r.model_type,
            f"{r.model_size / 1e6:.0f}",
            str(r.n_threads),
            r.test,
            f"{r.avg_ts:.2f} ± {r.stddev_ts:.2f}",
            f"{r.touched_mb:.1f}",
            f"{r.gb_per_s:.1f}",
            "" if r.peak_rss_mb is None else f"{r.peak_rss_mb:.0f}",
        )
        for r in rows
    ]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    for r in rows:
        if r.expert_hit_rate is not None:
            lines.append(f"\n{r.test}: {r.expert_hit_rate:.1%} of experts in memory, {r.read_mb:.1f} MB read a token")
    r = rows[0]
    ran = f"{r.text} text" if r.text == "real" else "random token ids (no tokenizer)"
    lines += ["", f"{r.cpu_info}; {ran}; load {r.load_s:.2f} s, compile {r.compile_s:.2f} s; {r.build}"]
    return "\n".join(lines)


def to_csv(rows: Sequence[Row]) -> str:
    """A header line, then a line a test; lists are left to JSON."""
    out = io.StringIO()
    names = [f.name for f in fields(Row) if not f.name.startswith("samples_")]
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue().rstrip("\n")


def to_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


def to_jsonl(rows: Sequence[Row]) -> str:
    return "\n".join(json.dumps(asdict(row)) for row in rows)


WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
    "jsonl": to_jsonl,
}
