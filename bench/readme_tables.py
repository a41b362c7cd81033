"""The tables of speed in README.md and docs/benchmarks.md, made from bench/results.

python bench/readme_tables.py            write them into the pages, between their marks
python bench/readme_tables.py --check    exit 1 where a page has others
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scale_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
ENGINES = "engines-zen4.json"
"""What compare_engines.py found. Where it is not there yet, README has the table of steps."""
NAMES = {
    "SmolLM2-135M-Instruct.Q4_1": "SmolLM2-135M", "llama-1b": "Llama shape, 1.07 B, random weights",
    "granite-1b": "Granite 3 shape, 1.33 B, 8 of 32 experts, random weights",
}  # fmt: skip
STEPS = (
    ("SmolLM2-135M", "steps-smollm2-zen4.json"),
    ("Llama shape, 1.07 B, random weights", "steps-llama1b-zen4.json"),
)
STEP_SIZES = ("1", "4", "16")

LLAMACPP = (
    ("SmolLM2-135M", "llamacpp-smollm2-zen4.json"),
    ("1.07 B Llama shape, random weights", "llamacpp-llama1b-zen4.json"),
    ("Granite 3 shape, 1.33 B, 8 of 32 experts, random weights, a novel's tokens", "llamacpp-granite-text-zen4.json"),
    ("OLMoE shape, 6.9 B, 8 of 64 experts, random weights", "llamacpp-olmoe-zen4.json"),
    ("4 layers of Qwen3-30B-A3B, 8 of 128 experts, random weights", "llamacpp-qwen3moe-zen4.json"),
)
"""What a row is called, and the file of its figures."""
SHAPES = "shapes-1b-zen4.json"
FIGURES: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("parameters", "any", "model_n_params", lambda v: f"{v / 1e6:,.0f} M"),
    ("of which a token uses", "any", "n_params_active", lambda v: f"{v / 1e6:,.0f} M"),
    ("weights in memory", "any", "model_size", lambda v: f"{v / 1e6:,.0f} MB"),
    ("touched per token", "tg", "touched_mb", lambda v: f"{v:,.0f} MB"),
    ("multiply-adds per token", "tg", "mmacs", lambda v: f"{v:,.0f} M"),
    ("prompt of 512, tok/s", "pp", "avg_ts", lambda v: f"{v:,.0f}"),
    ("decode, tok/s", "tg", "avg_ts", lambda v: f"{v:,.0f}"),
)


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def ours(variant: str, model: str) -> str:
    """`q4+q8` is q4 weights times int8 activations; small models have 16 bits by default, larger ones int8 anyway."""
    format, _, activations = variant.partition("+")
    if activations:
        return f"{format}, int8 activations"
    return f"{format}, 16-bit activations (its default)" if model.startswith("SmolLM2") else format


def llamacpp() -> str:
    rows = []
    for label, name in LLAMACPP:
        shown = label
        for v in read(name)["variants"]:
            cells = [shown, f"{ours(v['ours'], label)} : {v['peer']}"]
            for test in ("prefill", "decode"):
                cells += [f"{v[f'{test}_ours']:.0f} : {v[f'{test}_peer']:.0f}", f"{v[f'{test}_ratio']:.2f}×"]
            rows.append(cells)
            shown = ""
    return table(["model", "ours : theirs", "prefill", "", "decode", ""], rows)


def shapes() -> str:
    rows = read(SHAPES)
    models = list(dict.fromkeys(row["model_filename"] for row in rows))
    lines = []
    for label, test, key, show in FIGURES:
        cells = [label]
        for model in models:
            own = [row for row in rows if row["model_filename"] == model]
            row = next(row for row in own if test == "any" or row["test"].startswith(test))
            cells.append(show(row[key]))
        lines.append(cells)
    return table(["", *(model.partition("-")[2] for model in models)], lines)


def peers_of(about: list[dict[str, str]]) -> str:
    return " and ".join(f"{peer['name']} ({PACKAGES[peer['name']]} {peer['version']})" for peer in about)


PACKAGES = {"llama.cpp": "llama-cpp-python", "ik_llama.cpp": "ik-llama-cpp-python"}


def engines() -> str:
    """Three engines, one run: the better of both ways to load counts for ik_llama.cpp."""
    if not (RESULTS / ENGINES).exists():
        return steps()
    found = read(ENGINES)
    names = list(dict.fromkeys(peer["name"] for peer in found["peers"].values()))
    rows = []
    for model in found["models"]:
        for mine in dict.fromkeys(pair["ours"] for pair in model["pairs"]):
            pairs = [pair for pair in model["pairs"] if pair["ours"] == mine]
            cells = [NAMES.get(model["model"], model["model"]) + mine.removeprefix("lapinfer")]
            for test in ("prefill", "decode"):
                cells.append(f"**{pairs[0][f'{test}_{mine}']:,.0f}**")
                for name in names:
                    best = max(p[f"{test}_{p['theirs']}"] for p in pairs if p["theirs"].startswith(name))
                    cells.append(f"{best:,.0f}")
            rows.append(cells)
    head = ["4-bit weights, tokens per second"]
    for what in ("prompt of 512", "64 after it"):
        head += [f"{what}: lapinfer", *names]
    peers = list({peer["name"]: peer for peer in found["peers"].values()}.values())
    return f"""{table(head, rows)}

One run on {found["machine"]["cpu"]}, {found["threads"]} threads, {found["when"][:10]}; against {peers_of(peers)}."""


def steps() -> str:
    """Steps of a few tokens, three engines: one run for each model."""
    rows, about, sides = [], "", [""]
    for label, name in STEPS:
        found = read(name)
        sides = list(found["ms"])
        for tokens in STEP_SIZES:
            times = [f"{found['ms'][side][tokens]:.1f} ms" for side in sides]
            rows.append([label, tokens, f"**{times[0]}**", *times[1:]])
            label = ""
        about = f"On {found['machine']['cpu']}, {found['threads']} threads; against {peers_of(found['peers'])}."
    head = ["4-bit weights, behind a prompt of 512", "tokens of a step", "lapinfer", *sides[1:]]
    return f"{table(head, rows)}\n\n{about}"


PAGES = {
    ROOT / "README.md": {"engines": engines},
    ROOT / "docs" / "benchmarks.md": {"llamacpp": llamacpp, "shapes": shapes, "steps": steps},
    ROOT / "docs" / "scale.md": {
        "costs": scale_tables.costs,
        "crossings": scale_tables.crossings,
        "calibration": scale_tables.calibration,
    },
}


def filled(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """A page with all its tables anew."""
    for name, make in tables.items():
        begin, end = f"<!-- {name}: bench/readme_tables.py -->", f"<!-- end of {name} -->"
        assert text.count(begin) == text.count(end) == 1, name
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", f"{begin}\n{make()}\n{end}", text, flags=re.DOTALL)
    return text


def main() -> None:
    for page, tables in PAGES.items():
        text = page.read_text(encoding="utf-8")
        new = filled(text, tables)
        if "--check" not in sys.argv:
            page.write_text(new, encoding="utf-8")
        elif new != text:
            sys.exit(f"{page.name}: other tables than bench/results; run bench/readme_tables.py")


if __name__ == "__main__":
    main()
