"""The sliders of a report's page: a form around whatif.js, which has whatif.py's formula in JavaScript."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from lapinfer.report.charts import letter
from lapinfer.report.measured import Machine, Measured
from lapinfer.shown import escape

SCRIPT = (files("lapinfer.report") / "whatif.js").read_text(encoding="utf-8")

FIELDS = (
    ("k", "Experts a token gets"),
    ("e", "Experts there are, of the same size"),
    ("bits", "Bits per weight"),
    ("context", "Positions that the token sees"),
    ("bandwidth", "Memory bandwidth"),
)
RESULTS = (
    ("touched", "touched per token", "ratio"),
    ("stored", "weights and KV cache", "predicted"),
    ("speed", "by bandwidth alone", "measured"),
)


def inlined(machine: Machine, m: Measured) -> dict[str, Any]:
    """What the script knows of a model."""
    own = {"context": m.context, "top_k": None, "doublings": 0, "scale": 1}
    return {
        "terms": [asdict(term) for term in m.terms], "own": own, "bits": round(m.bits, 4),
        "bandwidth": round(machine.bandwidth / 1e9, 1), "speed": m.decode.speed,
    }  # fmt: skip


def whatif(machine: Machine, models: Sequence[Measured]) -> str:
    """The form that `script` fills."""
    options = "".join(f'<option value="{i}">{letter(i)} {escape(m.name)}</option>' for i, m in enumerate(models))
    rows = "".join(
        f'<label for="{name}">{label}</label><output id="{name}-now" for="{name}"></output>'
        f'<input type="range" id="{name}" min="0" max="1" value="0"/>'
        for name, label in FIELDS
    )
    results = "".join(
        f'<div><b id="{name}"></b><span>{label}</span><span id="{below}"></span></div>'
        for name, label, below in RESULTS
    )
    return f"""<div id="whatif" hidden="hidden">
<div><label for="model">Model</label> <select id="model">{options}</select></div>
<div class="sliders">{rows}</div><div class="results">{results}</div></div>
<noscript><p>The sliders need JavaScript.</p></noscript>"""


def script(machine: Machine, models: Sequence[Measured]) -> str:
    """What moves the sliders, and the figures of the models."""
    data = json.dumps([inlined(machine, m) for m in models])
    for character in "<>&":  # so that none of it is read as a tag, a comment or the end of the script
        data = data.replace(character, f"\\u{ord(character):04x}")
    return f"{SCRIPT}sliders({data}, formula());"
