"""Pages of reports as people meet them: in a window of any width, by mouse and by keys, read aloud, on paper."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser
from fake_model import spec as routed_spec
from made_reports import CONTEXT, made_report, recorded
from made_study import made_study

from lapinfer.report.charts import title
from lapinfer.report.drawing import megabytes
from lapinfer.report.experts import to_html
from lapinfer.report.measured import Report
from lapinfer.report.page import page
from lapinfer.report.whatif import Settings, stored, touched
from lapinfer.scale.page import page as scale_page
from lapinfer.spec import RouterSpec

REPORT = made_report("dense", "dense-active", "moe", "fff")
LONG = "a-name-that-does-not-end-" * 4 + "<b>&"
CROWD = made_report("dense", f"moe:{LONG}", *["moe", "dense-active", "fff"] * 3)
LARGEST = 1_000_000
PAPER = 718
"""Pixels of A4 between its margins."""
PAGES = ["report", "crowd", "experts", "scale", "large"]

OVERLAPS = """
const boxes = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode());) {
  const parent = node.parentElement;
  const seen = parent.checkVisibility({visibilityProperty: true});
  if (!node.data.trim() || parent.localName === 'option' || !seen) continue;
  const range = document.createRange(), wide = parent.closest('.wide');
  const edge = wide && getComputedStyle(wide).overflowX !== 'visible' ? wide.getBoundingClientRect() : null;
  range.selectNodeContents(node);
  for (const r of range.getClientRects()) {
    const box = {left: r.left, right: edge ? Math.min(r.right, edge.right) : r.right, top: r.top, bottom: r.bottom};
    if (box.right - box.left > 1 && r.height > 1) boxes.push([node, box]);
  }
}
boxes.sort((a, b) => a[1].top - b[1].top);
const wrong = [];
boxes.forEach(([node, a], i) => {
  for (let j = i + 1; j < boxes.length && boxes[j][1].top < a.bottom - 1; j++) {
    const b = boxes[j][1];
    if (boxes[j][0] !== node && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1)
      wrong.push(node.data.trim() + ' | ' + boxes[j][0].data.trim());
  }
});
return wrong;
"""
KEYS = {
    "Tab": 9,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Escape": 27,
}


@pytest.fixture(scope="module")
def window():
    with browser() as window:
        yield window


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    small = recorded(routed_spec(routers=(RouterSpec(12, 3), None, RouterSpec(6, 2))), rng)
    large = recorded(routed_spec(routers=(RouterSpec(256, 8),) * 58), rng)
    texts = {
        "report": page(REPORT).encode(), "crowd": page(CROWD).encode(),
        "experts": to_html(small, "a name"), "large": to_html(large, "many experts"),
        "scale": scale_page(made_study("dense", "dense-active", "fff", "moe", name=LONG)).encode(),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.html").write_bytes(text)
    return {name: folder / f"{name}.html" for name in texts}


def press(window: Any, *keys: str) -> None:
    """As a keyboard does."""
    for key in keys:
        window.developer(
            "Input.dispatchKeyEvent", type="rawKeyDown", key=key, code=key, windowsVirtualKeyCode=KEYS[key]
        )


def tip(window: Any) -> str:
    return window.run("const tip = document.getElementById('tip'); return tip.matches('.there') ? tip.innerText : ''")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_small(pages: dict[str, Path], name: str) -> None:
    assert pages[name].stat().st_size < LARGEST


@pytest.mark.parametrize(
    ("name", "width"), [(name, width) for name in PAGES[:4] for width in (400, 800, 1280)] + [("large", 400)]
)
def test_all_of_a_page_can_be_read_at_any_width(window: Any, pages: dict[str, Path], name: str, width: int) -> None:
    window.open(pages[name].as_uri(), width)
    for opened in (False, True):
        window.run("for (const each of document.querySelectorAll('details')) each.open = arguments[0]", opened)
        assert window.run("return document.documentElement.scrollWidth") <= width
        assert window.run(OVERLAPS) == []
    assert window.problems() == []


@pytest.mark.parametrize("name", ["report", "experts", "scale"])
def test_contents_lead_to_all_sections(window: Any, pages: dict[str, Path], name: str) -> None:
    window.open(pages[name].as_uri())
    links = "[...document.querySelectorAll('nav a')].map(link => document.querySelector(link.hash).textContent)"
    assert window.run(f"return {links}") == window.run(
        "return [...document.querySelectorAll('h2')].map(heading => heading.textContent)"
    )


@pytest.mark.parametrize("name", ["report", "experts", "scale"])
def test_each_value_is_told_to_keys_and_to_the_mouse(window: Any, pages: dict[str, Path], name: str) -> None:
    window.open(pages[name].as_uri(), 400)
    charts = window.run("return document.querySelectorAll('.chart, .bars, .map').length")
    assert charts == {"report": 10, "experts": 3, "scale": 4}[name]
    for i in range(charts):
        find = f"const chart = document.querySelectorAll('.chart, .bars, .map')[{i}]; "
        marks = window.run(
            find + "chart.querySelector('[tabindex=\"0\"]').focus(); "
            "return [...chart.querySelectorAll('[tabindex]')].filter(mark => !mark.hidden).length"
        )
        assert window.run(find + "return chart.querySelectorAll('[tabindex=\"0\"]').length") == 1
        first = tip(window)
        press(window, "ArrowRight")
        second = tip(window)
        assert (first == second) == (marks == 1)
        press(window, "End", "ArrowRight", "Home")
        assert tip(window) == first
        edge = "return document.getElementById('tip').getBoundingClientRect().toJSON()"
        box = window.run(edge)
        assert 0 <= box["left"] <= box["right"] <= 400
        press(window, "Escape")
        assert not tip(window)
        window.run("document.activeElement.blur()")
        box = window.run(
            find + "const marks = [...chart.querySelectorAll('[tabindex]')].filter(mark => !mark.hidden); "
            "marks[0].scrollIntoView({block: 'center'}); const frame = done => requestAnimationFrame(done); "
            "return new Promise(frame).then(() => new Promise(frame))"
            ".then(() => marks[0].getBoundingClientRect().toJSON())"
        )
        x, y = box["left"] + min(box["width"], 3) / 2, box["top"] + box["height"] / 2
        window.developer("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        assert tip(window)
    assert window.problems() == []


def test_arrows_go_up_and_down_a_map(window: Any, pages: dict[str, Path]) -> None:
    window.open(pages["experts"].as_uri(), 800)
    window.run("document.querySelector('.map td').focus()")
    assert tip(window).startswith("layer 0, expert 0: ")
    press(window, "ArrowDown")
    assert tip(window).startswith("layer 2, expert 0: ")
    press(window, "ArrowUp", "ArrowRight")
    assert re.fullmatch(r"layer 0, expert 1: \d+ tokens, \d+\.\d\d × the mean", tip(window))


def test_bytes_of_the_bars_are_those_of_the_table(window: Any, pages: dict[str, Path]) -> None:
    window.open(pages["report"].as_uri())
    told = window.run("return [...document.querySelectorAll('#bytes ~ figure .bar b')].map(each => each.textContent)")
    row = window.run(
        "return [...document.querySelectorAll('.models tbody tr:first-child td')].map(td => td.textContent)"
    )
    assert told == [f"{cell} MB" for cell in row] == [f"{megabytes(m.decode.bytes)} MB" for m in REPORT.models]


# Sliders


def moved(window: Any, slider: str, *keys: str) -> tuple[int, int]:
    """(touched, stored) bytes after keys at a slider."""
    window.run(f"document.getElementById('{slider}').focus()")
    press(window, *keys)
    bytes_, stored_ = window.run(
        "const all = document.getElementById('whatif').dataset; return [all.bytes, all.stored]"
    )
    return int(bytes_), int(stored_)


def foretold(report: Report, i: int, settings: Settings) -> tuple[int, int]:
    of = report.models[i].terms
    return sum(touched(of, settings).values()), stored(of, settings)


def test_sliders_begin_at_a_mixture_as_it_is(window: Any, pages: dict[str, Path]) -> None:
    window.open(pages["report"].as_uri())
    assert window.run("return document.getElementById('model').selectedOptions[0].text") == title(2, REPORT.models[2])
    m = REPORT.models[2]
    assert int(window.run("return document.getElementById('whatif').dataset.bytes")) == m.decode.bytes
    assert window.run("return [...document.querySelectorAll('.sliders input')].some(input => input.disabled)") is False


@pytest.mark.parametrize(
    ("slider", "keys", "settings"),
    [
        ("k", ["ArrowRight"], Settings(CONTEXT, top_k=3)),
        ("k", ["Home"], Settings(CONTEXT, top_k=1)),
        ("e", ["ArrowRight", "ArrowRight"], Settings(CONTEXT, doublings=2)),
        ("e", ["Home"], Settings(CONTEXT, doublings=-2)),
        ("context", ["ArrowLeft"], Settings(256)),
        ("context", ["End"], Settings(131072)),
    ],
)
def test_sliders_say_what_is_predicted(
    window: Any, pages: dict[str, Path], slider: str, keys: list[str], settings: Settings
) -> None:
    window.open(pages["report"].as_uri())
    assert moved(window, slider, *keys) == foretold(REPORT, 2, settings)
    shown = window.run("return document.getElementById('touched').textContent")
    assert float(shown.removesuffix(" MB").replace(",", "")) == pytest.approx(
        foretold(REPORT, 2, settings)[0] / 1e6, rel=1e-3
    )
    window.click("#reset")
    assert moved(window, slider) == foretold(REPORT, 2, Settings(CONTEXT))


def test_sliders_scale_bits_and_know_trees_and_dense_models(window: Any, pages: dict[str, Path]) -> None:
    window.open(pages["report"].as_uri())
    m = REPORT.models[2]
    assert moved(window, "bits", "End") == foretold(REPORT, 2, Settings(CONTEXT, scale=32 / round(m.bits, 4)))
    choose = (
        "const all = document.getElementById('model'); all.value = arguments[0]; all.dispatchEvent(new Event('change'))"
    )
    window.run(choose, 3)
    assert moved(window, "e", "ArrowRight") == foretold(REPORT, 3, Settings(CONTEXT, doublings=1))
    window.run(choose, 0)
    assert window.run("return ['k', 'e'].map(id => document.getElementById(id).disabled)") == [True, True]
    assert moved(window, "context", "ArrowLeft") == foretold(REPORT, 0, Settings(256))
    parts = window.run(
        "return [...document.querySelectorAll('#bar-set i:not([hidden])')].map(each => each.getAttribute('aria-label'))"
    )
    assert [part.split(":")[0] for part in parts] == ["embedding", "attention", "KV cache", "feed-forward", "head"]
    assert window.problems() == []


def test_what_fits_the_caches_has_no_bound(window: Any, tmp_path: Path) -> None:
    roomy = replace(REPORT, machine=replace(REPORT.machine, caches=1 << 40))
    (tmp_path / "r.html").write_text(page(roomy), encoding="utf-8")
    window.open((tmp_path / "r.html").as_uri())
    assert window.run("return document.getElementById('speed').textContent") == "no bound"
    assert "it fits the caches" in window.run("return document.getElementById('measured').textContent")


# Colours, readers, paper


def ground(window: Any) -> str:
    return window.run("return getComputedStyle(document.body).backgroundColor")


def test_dark_where_the_reader_wants_it_and_light_on_paper(window: Any, pages: dict[str, Path]) -> None:
    window.open(pages["report"].as_uri())
    light = ground(window)
    window.open(pages["report"].as_uri(), PAPER, dark=True)
    assert ground(window) != light
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    window.developer("Emulation.setEmulatedMedia", media="print", features=[scheme])
    try:
        assert ground(window) == light
        hidden = "return [...document.querySelectorAll('details table')].some(table => !table.checkVisibility())"
        assert window.run(hidden) is False
        assert window.run("return document.documentElement.scrollWidth") <= PAPER
        assert window.run(OVERLAPS) == []
        printed = base64.b64decode(window.developer("Page.printToPDF", paperWidth=8.27, paperHeight=11.7)["data"])
        assert printed.startswith(b"%PDF")
    finally:
        window.developer("Emulation.setEmulatedMedia", media="", features=[])


@pytest.mark.parametrize("name", ["report", "experts"])
def test_readers_are_told_what_each_picture_and_table_is(window: Any, pages: dict[str, Path], name: str) -> None:
    """By the browser's accessibility tree."""
    window.open(pages[name].as_uri())
    window.developer("Accessibility.enable")
    nodes = window.developer("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    for role in ("grid", "image", "slider", "combobox", "heading", "navigation", "link"):
        assert all(text for found, text in named if found == role), role
    cells = [text for found, text in named if found == "gridcell"]
    assert len(cells) >= 18
    assert all(text.isdigit() for text in cells)
    assert any(found == "columnheader" and text for found, text in named)
    assert any(found == "rowheader" and text for found, text in named)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["report", "experts", "scale"])
def test_axe_finds_nothing(window: Any, pages: dict[str, Path], name: str, dark: bool) -> None:
    """https://github.com/dequelabs/axe-core, whose axe.min.js LAPINFER_AXE names."""
    axe = os.environ.get("LAPINFER_AXE")
    if not axe:
        pytest.skip("needs axe.min.js of npm's axe-core, named by LAPINFER_AXE")
    window.open(pages[name].as_uri(), dark=dark)
    window.run("for (const each of document.querySelectorAll('details')) each.open = true")
    window.developer("Runtime.evaluate", expression=Path(axe).read_text(encoding="utf-8"))
    found = window.developer(
        "Runtime.evaluate", awaitPromise=True, returnByValue=True,
        expression="axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))]))",
    )  # fmt: skip
    assert found["result"]["value"] == []


def test_made_reports_are_like_measured_ones() -> None:
    for m in (*REPORT.models, *CROWD.models):
        assert sum(touched(m.terms, Settings(CONTEXT)).values()) == m.decode.bytes
    json.dumps(asdict(REPORT))
