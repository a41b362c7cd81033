"""The tables of docs/scale.md, made from bench/results (readme_tables.py writes them into the page)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
CALIBRATION = ("scale-calibration-zen4.json", "bench/scale_calibration.py austen-moe 100m:moe 1b:moe")
STUDIES = (
    ("scale-1b-zen4.json", "bench/scale_study.py --shapes 1b"),
    ("scale-qwen3-30b-zen4.json", "bench/scale_study.py Qwen/Qwen3-30B-A3B"),
)
NODES, BATCHES, NETWORK = 8, (1, 16, 256), "100gbe"
"""Of the table of costs."""


def calibration() -> str:
    name, command = CALIBRATION
    found = _read(name)
    if found is None:
        return _missing(command)
    rows = [
        [
            model["model"], row["arrangement"], str(row["processes"]), str(row["sequences"]), f"{row['foreseen']:,.0f}",
            f"{row['measured']:,.0f}", f"{row['ratio']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][1]:.2f})",
        ]
        for model in found["models"]
        for row in model["rows"]
    ]  # fmt: skip
    head = ["model", "arrangement", "processes", "sequences", "foreseen, tok/s", "measured", "foreseen : measured"]
    return f"{_table(head, rows)}\n\n{_about(found, command)}"


def costs() -> str:
    return "\n\n".join(_costs(*study) for study in STUDIES)


def _costs(name: str, command: str) -> str:
    found = _read(name)
    if found is None:
        return _missing(command)
    study = next(each for each in found["studies"] if each["network"]["name"] == NETWORK)
    sides: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in study["rows"]:
        if row["nodes"] == NODES:
            sides.setdefault((row["model"], row["arrangement"]), {})[row["batch"]] = row
    rows = [
        [
            model, arrangement, *(_three(by_batch[batch]["cost"]) for batch in BATCHES),
            f"{by_batch[BATCHES[-1]]['memory'] / 1e9:.1f} GB",
        ]
        for (model, arrangement), by_batch in sides.items()
    ]  # fmt: skip
    head = [f"{NODES} nodes, {NETWORK}", "arrangement", *(f"{n} sequences" for n in BATCHES), "a node holds"]
    return f"{_table(head, rows)}\n\n{_about(found, command)}"


def crossings() -> str:
    return "\n\n".join(_crossings(*study) for study in STUDIES)


def _crossings(name: str, command: str) -> str:
    found = _read(name)
    if found is None:
        return _missing(command)
    networks = [study["network"]["name"] for study in found["studies"]]
    cells: dict[tuple[str, int], list[str]] = {}
    for study in found["studies"]:
        for c in study["crossings"]:
            since = "never" if c["since"] is None else f"from {c['since']}"
            cells.setdefault((c["model"], c["nodes"]), []).append(f"{since} ({c['best']:.2f} at {c['batch']})")
    rows = [[model, str(nodes), *said] for (model, nodes), said in cells.items()]
    return f"{_table(['model', 'nodes', *networks], rows)}\n\n{_about(found, command)}"


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _read(name: str) -> Any:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _missing(command: str) -> str:
    return f"*No figures yet: `python {command}` measures them.*"


def _about(found: dict[str, Any], command: str) -> str:
    hint = "**Only a hint: the machine was busy with other programs.** " if found["hint"] else ""
    return f"{hint}{found['machine']['cpu']}, {found['when'][:10]}: `python {command}`."


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
