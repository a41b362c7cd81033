"""Rows of `lapinfer bench` as tables: for people, for programs, side by side, and against older ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lapinfer.errors import InputError
from lapinfer.machine import largest_cache
from lapinfer.report.against import FEWEST, Figures, Ratio, against_dense
from lapinfer.report.bench_runs import Row
from lapinfer.report.roofline import BUSY
from lapinfer.report.tables import markdown, to_csv, to_json, to_jsonl


def to_markdown(rows: Sequence[Row]) -> str:
    """The table for people: one line a test; of several models, before it a column a model, and what that says."""
    if not rows:
        return ""
    several = len({r.model_filename for r in rows}) > 1
    head = ["model", "size MB", "threads", "test", "t/s", "MB/token", "GB/s", "roofline", "peak MB"]
    table = [
        [
            r.model_filename if several else f"{r.model_filename}: {r.model_type}",
            _three_digits(r.model_size / 1e6),
            str(r.n_threads),
            r.test,
            f"{_three_digits(r.avg_ts)} ± {_three_digits(r.stddev_ts)}",
            _three_digits(r.touched_mb),
            f"{r.gb_per_s:.1f}",
            "" if r.roofline is None else f"{r.roofline:.0%}",
            "" if r.peak_rss_mb is None else f"{r.peak_rss_mb:.0f}",
        ]
        for r in rows
    ]
    if several:  # the process's peak is that of the largest one so far
        head, table = head[:-1], [line[:-1] for line in table]
    lines = [*([side_by_side(rows), "", *_conclusions(rows), ""] if several else [])]
    lines.append(markdown(head, table, left=(0, 3)))
    for r in rows:
        if r.expert_nodes is not None:
            lines.append(
                f"\n{r.test}: experts on {r.expert_nodes} nodes, of a token {r.messages:.1f} messages, "
                f"{r.sent_mb:.3f} MB out and {r.received_mb:.3f} MB back, {r.waited_ms:.2f} ms waited, of which the "
                f"slowest node has computed {r.computed_ms:.2f}; the busiest had {r.node_imbalance:.2f} times the mean"
            )
        if r.expert_hit_rate is not None:
            lines.append(f"\n{r.test}: {r.expert_hit_rate:.1%} of experts in memory, {r.read_mb:.1f} MB read per token")
    lines += batches(rows)
    return "\n".join([*lines, "", *_notes(rows)])


def batches(rows: Sequence[Row]) -> list[str]:
    """What sequences bring that are decoded together, or guesses, beside one token a step: a table, if there are such
    tests."""
    several = [r for r in rows if r.sequences > 1 or r.tokens_per_step is not None]
    together = {(r.model_filename, r.n_threads, r.n_gen, r.n_depth) for r in several}
    shown = [r for r in rows if (r.model_filename, r.n_threads, r.n_gen, r.n_depth) in together]
    if not shown:
        return []
    head = ["model", "test", "t/s of all", "of one", "MB/token", "of one", "ms a step"]
    head += ["tokens a step", "experts a step", "by chance"]
    table = [
        [
            r.model_filename, r.test, _three_digits(r.avg_ts), _beside_one(r),
            _three_digits(r.touched_mb), "" if r.mb_relative is None else f"{r.mb_relative:.2f}x",
            *("" if value is None else f"{value:.{digits}f}"
              for value, digits in (
                  (r.tpot_p50_ms, 2), (r.tokens_per_step or r.sequences, 1), (r.experts_read, 1),
                  (r.experts_expected, 1),
              )),
        ]
        for r in shown
    ]  # fmt: skip
    if all(r.experts_read is None for r in shown):
        head, table = head[:-2], [line[:-2] for line in table]
    return ["", markdown(head, table, left=(0, 1))]


def _beside_one(r: Row) -> str:
    """How much faster all are together than one alone, unless that may be chance."""
    if r.mb_relative is None:
        return ""
    if r.ts_relative is None or r.ts_relative_low is None or r.ts_relative_high is None:
        return f"fewer than {FEWEST} turns"
    found = Ratio(r.ts_relative, r.ts_relative_low, r.ts_relative_high, len(r.samples_ts))
    return str(found) if found.told else "cannot be told apart"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _notes(rows: Sequence[Row]) -> list[str]:
    """What else must be known to read the tables."""
    r, notes = rows[0], []
    if cached := sorted({r.model_filename for r in rows if r.model_size <= largest_cache()}):
        notes.append(
            f"the processor's caches ({largest_cache() / 1e6:,.0f} MB) can hold the weights of {', '.join(cached)}: "
            "then reading them costs next to nothing; for models that don't fit, see --shapes 1b"
        )
    over = sorted({r.model_filename for r in rows if (r.roofline or 0) > 1.03 and r.model_size > largest_cache()})
    if over:
        notes.append(
            f"above 100 % of the roofline, and larger than the caches: {', '.join(over)}; other programs ran while the "
            "bandwidth was measured, so measure again on a quiet machine"
        )
    slowest, best = min(r.least_read_gb_per_s for r in rows), max(r.best_read_gb_per_s for r in rows)
    if slowest < BUSY * best:
        notes.append(
            f"the machine read {slowest:.1f} to {best:.1f} GB/s before and after the turns: other programs ran, and "
            "speeds are lower than they could be"
        )
    if len({r.model_filename for r in rows}) > 1 and not all(r.paired for r in rows):
        notes.append("not all models took turns, so their speeds are of different times")
    if texts := sorted({r.perplexity_text for r in rows if r.perplexity_text}):
        notes.append(f"perplexity: of {', '.join(texts)}")
    ran = "real text" if r.text == "real" else "random token ids (no tokenizer)"
    return [*notes, f"{r.cpu_info}; {ran}; load {r.load_s:.2f} s, compile {r.compile_s:.2f} s; {r.build}"]


def side_by_side(rows: Sequence[Row]) -> str:
    """A column a model: of its first prompt and its first generation."""
    models = list(dict.fromkeys(r.model_filename for r in rows))
    firsts = []
    for name in models:
        own = [r for r in rows if r.model_filename == name]
        firsts.append([next((r for r in own if getattr(r, length)), None) for length in ("n_prompt", "n_gen")])
    table = []
    for label, test, show in _FIGURES:
        cells = []
        for prompt, answer in firsts:
            row = {"prompt": prompt, "answer": answer}.get(test, answer or prompt)
            value = None if row is None else show(row)
            cells.append("" if value is None else value)
        if any(cells):
            table.append([label, *cells])
    prompt, answer = firsts[0]
    tests = " and ".join(r.test for r in (prompt, answer) if r is not None)
    return markdown([tests, *models], table, left=(0,))


def _conclusions(rows: Sequence[Row]) -> list[str]:
    """Of the first generation of each model."""
    answers = {r.model_filename: r for r in reversed(rows) if r.n_gen}
    figures = [
        Figures(
            name,
            r.model_n_params,
            r.n_params_active,
            r.model_size,
            1e6 * r.touched_mb,
            r.samples_ts,
            r.perplexity,
            r.paired,
        )
        for name, r in reversed(answers.items())
    ]
    return [f"- {line}" for line in against_dense(figures)]


def _figure(name: str, digits: int, scale: float = 1.0) -> Callable[[Row], str | None]:
    def show(row: Row) -> str | None:
        value = getattr(row, name)
        return None if value is None else f"{value * scale:.{digits}f}"

    return show


_FIGURES: tuple[tuple[str, str, Callable[[Row], str | None]], ...] = (
    ("parameters, M", "any", _figure("model_n_params", 1, 1e-6)),
    ("parameters of a token, M", "any", _figure("n_params_active", 1, 1e-6)),
    ("weights in memory, MB", "any", _figure("model_size", 1, 1e-6)),
    ("a token reads, MB: predicted", "answer", _figure("predicted_mb", 3)),
    ("a token reads, MB: metered", "answer", _figure("touched_mb", 3)),
    ("multiply-adds with weights per token, M", "answer", _figure("mmacs", 1)),
    ("prompt, tok/s", "prompt", _figure("avg_ts", 1)),
    ("first token, ms", "prompt", _figure("ttft_ms", 1)),
    ("decode, tok/s", "answer", _figure("avg_ts", 1)),
    ("median token, ms", "answer", _figure("tpot_p50_ms", 2)),
    ("99 % of tokens within, ms", "answer", _figure("tpot_p99_ms", 2)),
    ("decode reads, GB/s", "answer", _figure("gb_per_s", 1)),
    ("decode, % of the roofline", "answer", _figure("roofline", 0, 100)),
    ("perplexity (lower is better)", "any", _figure("perplexity", 2)),
)
"""Label, test, and the figure of a row."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows that were written as JSON or JSON lines; InputError for a file that has none."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        kept = [
            {key: row[key] for key in ("model_filename", "test", "n_threads", "avg_ts", "touched_mb")} for row in rows
        ]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected what bench -o json wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not rows of bench ({error!r}); expected what bench -o json wrote") from error
    if not kept:
        raise InputError(f"{path}: has no rows")
    return kept


def compared(rows: Sequence[Row], old: Sequence[dict[str, Any]]) -> str:
    """Speed and bytes now and then, of tests that are in both."""
    before = {(r["model_filename"], r["test"], r["n_threads"]): (r["avg_ts"], r["touched_mb"]) for r in old}
    table = []
    for r in rows:
        if (then := before.get((r.model_filename, r.test, r.n_threads))) is not None:
            cells = [r.model_filename, r.test, str(r.n_threads)]
            for was, now in zip(then, (r.avg_ts, r.touched_mb), strict=True):
                cells += [f"{was:.2f}", f"{now:.2f}", f"{now / was:.2f}x" if was else ""]
            table.append(cells)
    if not table:
        return "no test is in both: nothing to compare"
    head = ("model", "test", "threads", "t/s then", "now", "now/then", "MB/token then", "now", "now/then")
    return markdown(head, table, left=(0, 1))


WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {
    "md": to_markdown,
    "csv": lambda rows: to_csv(rows, Row),
    "json": to_json,
    "jsonl": to_jsonl,
}
