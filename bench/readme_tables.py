"""The README's tables of speed, made from bench/results.

python bench/readme_tables.py            write them into README.md, between their marks
python bench/readme_tables.py --check    exit 1 where README.md has others
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "bench" / "results", ROOT / "README.md"

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


TABLES = {"llamacpp": llamacpp, "shapes": shapes}


def filled(text: str) -> str:
    """The README with all tables anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: bench/readme_tables.py -->", f"<!-- end of {name} -->"
        assert text.count(begin) == text.count(end) == 1, name
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", f"{begin}\n{make()}\n{end}", text, flags=re.DOTALL)
    return text


def main() -> None:
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(filled(text) != text and "README.md: other tables than bench/results; run bench/readme_tables.py")
    README.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
