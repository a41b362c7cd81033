"""The sliders of a report's page: a form around whatif.js, which has whatif.py's formula in JavaScript."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from lapinfer.report.charts import part_keys, part_name, title
from lapinfer.report.measured import Machine, Measured
from lapinfer.report.pieces import legend
from lapinfer.runtime.predict import PARTS
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
    ("stored", "weights and KV cache in memory", "stored-ratio"),
    ("speed", "decoding, by bandwidth alone", "measured"),
)


def inlined(machine: Machine, m: Measured) -> dict[str, Any]:
    """What the script knows of a model."""
    own = {"context": m.context, "top_k": None, "doublings": 0, "scale": 1}
    return {
        "terms": [asdict(term) for term in m.terms], "own": own, "bits": round(m.bits, 4), "cache": machine.caches,
        "bandwidth": round(machine.bandwidth / 1e9, 1), "speed": m.decode.speed,
    }  # fmt: skip


def first_shown(models: Sequence[Measured]) -> int:
    """The model that all sliders can change: a mixture, else trees, else the first one."""
    kinds = [m.kind for m in models]
    return next((kinds.index(kind) for kind in ("moe", "fff") if kind in kinds), 0)


def whatif(machine: Machine, models: Sequence[Measured]) -> str:
    """The form that `script` fills."""
    first, chosen = first_shown(models), ' selected="selected"'
    options = "".join(
        f'<option value="{i}"{chosen if i == first else ""}>{escape(title(i, m))}</option>'
        for i, m in enumerate(models)
    )
    rows = "".join(
        f'<label for="{name}">{label}</label><span id="{name}-now" aria-hidden="true"></span>'
        f'<input type="range" id="{name}" min="0" max="1" value="0" autocomplete="off"/>'
        for name, label in FIELDS
    )
    results = "".join(
        f'<div><b id="{name}"></b><span>{label}</span><span id="{below}"></span></div>'
        for name, label, below in RESULTS
    )
    present = [part for part in PARTS if any(term.part == part for m in models for term in m.terms)]
    names = json.dumps({part: part_name(part) for part in present})
    pieces = "".join(f'<i class="part {part}" title="{part}"></i>' for part in present)  # filled by the script
    bars = "".join(
        f'<div class="bar"><span>{label}</span><span id="{id}-total"></span><div id="{id}">{pieces}</div></div>'
        for id, label in (("bar-own", "as it is"), ("bar-set", "as you set it"))
    )
    return f"""<div id="whatif" hidden="hidden" data-parts='{escape(names)}'>
<p><label for="model">Model</label> <select id="model" autocomplete="off">{options}</select>
<button type="button" id="reset">As it is</button></p>
<div class="whatif"><div class="sliders">{rows}</div>
<div><div class="results" role="status">{results}</div>
{legend(part_keys(present))}
<div class="bars" role="group" aria-label="Bytes that a decoded token would touch, by part">{bars}</div>
</div></div></div>
<noscript><p>The sliders need JavaScript.</p></noscript>"""


def script(machine: Machine, models: Sequence[Measured]) -> str:
    """What moves the sliders, and the figures of the models."""
    data = json.dumps([inlined(machine, m) for m in models])
    for character in "<>&":  # so that none of it is read as a tag, a comment or the end of the script
        data = data.replace(character, f"\\u{ord(character):04x}")
    return f"{SCRIPT}sliders({data}, formula());"
