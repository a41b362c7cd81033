"""The page at /: what it may do, by its policy, and what it does, in a browser."""

import re
import time

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from browser import ENTER, ESCAPE, browser  # noqa: E402
from serving import KEY, NAME, running, state_of  # noqa: E402
from talking_model import talking_model  # noqa: E402

MARKDOWN = """# A *fox*

1. **quick**
2. `brown`
   - nested

| a | b |
|---|--:|
| 1 | 2 |

```python
print("<b>")
```
See [it](https://example.org/a_(b)) and https://example.org/x."""
HOSTILE = """<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>

[a](javascript:document.title='owned') ![b](https://example.org/pixel.png) <a href="javascript:1">c</a>

```<script>
</script><script>document.title='owned'</script>
```"""
SCRIPT = {
    "fox": MARKDOWN,
    "hostile": HOSTILE,
    "think": "<think>\nHm.\n</think>\n\nSo.",
    "long": "word " * 800,
    "again": "One more.",
}


@pytest.fixture(scope="module")
def window():
    with browser() as window:
        yield window


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, state)"""
    model = talking_model(tmp_path_factory.mktemp("model"), SCRIPT, delay=0.001)
    state = state_of({NAME: lambda: model})
    with running(state) as (url, _):
        yield url, state


@pytest.fixture
def page(window, server):
    """The page, as somebody sees it who has the key."""
    window.open(server[0])
    window.run("localStorage.clear(); sessionStorage.setItem('lapinfer.key', arguments[0])", KEY)
    window.open(server[0])
    window.until(f"document.getElementById('model').value === '{NAME}'")
    window.problems()
    return window


def ask(page, text, ended=True):
    page.type("#text", text + ENTER)
    if ended:
        page.until("document.querySelector('article:last-child .figures, article:last-child .error')")


def runs(state):
    return [each.scheduler.stats().running for each in state.models.loaded]


def soon(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_no_other_script_and_no_other_host(server):
    answer = httpx.get(server[0])
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|(?:src|href)=\"https?:", answer.text
    )


def test_a_chat_with_its_figures_is_kept_and_cleared(page, server):
    ask(page, "a fox")
    figures = page.text(".figures summary")
    assert re.match(r"[\d.,]+ tokens/s · first token after [\d.]+ m?s · .*[\d.,]+ [kM]?B touched$", figures)
    page.click(".figures summary")
    assert re.search(r"head \(logits\)\s+[\d.]+ [kM]?B\s+100 %", page.text(".figures"))
    ask(page, "again")
    assert "tokens reused" in page.text("article:last-child .figures summary")
    page.open(server[0])
    assert page.run("return document.querySelectorAll('article').length") == 4
    page.click("#new")
    assert page.run("return document.querySelectorAll('article').length") == 0
    assert page.run("return JSON.parse(localStorage['lapinfer.chat']).messages") == []
    assert page.problems() == []


def test_markdown_becomes_nodes(page):
    ask(page, "a fox")
    tags = page.run("return [...document.querySelectorAll('.said *')].map(e => e.tagName.toLowerCase()).join(' ')")
    assert tags == (
        "h1 em ol li strong li code ul li div table thead tr th th tbody tr td td div header span button pre code p a a"
    )
    assert page.text(".said pre") == 'print("<b>")'
    links = page.run("return [...document.querySelectorAll('.said a')].map(e => [e.href, e.rel])")
    assert links == [[url, "noopener noreferrer"] for url in ("https://example.org/a_(b)", "https://example.org/x")]


def test_text_of_a_model_is_text(page):
    ask(page, "hostile")
    assert page.run("return document.title") == "lapinfer"
    assert (
        page.run("return document.querySelectorAll('.said :is(img, script, iframe, a[href^=javascript])').length") == 0
    )
    assert "<img src=x" in page.text(".said")
    assert page.problems() == []


def test_long_texts_of_marks_take_no_long_time(page):
    texts = [
        "[" * 20000,
        "[a](b" * 4000,
        "*a " * 6000 + "a*",
        "> " * 9000,
        "`" * 9000,
        "_a_b" * 5000,
        "- a\n" + "\n" * 20000,
    ]
    took = page.run(
        "const began = performance.now(); for (const text of arguments[0]) show(document.createElement('div'), text);"
        "return performance.now() - began", texts
    )  # fmt: skip
    assert took < 2000


def test_thinking_is_folded(page):
    ask(page, "think")
    assert page.text(".said") == "So."
    assert page.run("return document.querySelector('.thinking div').textContent") == "Hm.\n"


@pytest.mark.parametrize("leave", ["Escape", "button", "page"])
def test_who_leaves_frees_the_model(page, server, leave):
    ask(page, "long", ended=False)
    page.until("document.querySelector('.said')?.textContent.length > 20")
    assert runs(server[1]) == [1]
    if leave == "page":
        page.open("about:blank")
    else:
        page.type("#text", ESCAPE) if leave == "Escape" else page.click("#stop")
        page.until("document.querySelector('.note')?.textContent === 'Stopped.'")
    soon(lambda: runs(server[1]) == [0])
    if leave != "page":
        assert "tokens/s" in page.text(".figures summary")
        ask(page, "again")
        assert page.text("article:last-child .said") == "One more."


def test_a_question_is_changed_and_an_answer_made_again(page):
    ask(page, "a fox")
    ask(page, "hostile")
    page.click("article.user .small")
    page.type("#text", ESCAPE)
    assert page.run("return [document.getElementById('text').value, document.querySelector('.edited')]") == ["", None]
    page.click("article.user .small")
    assert page.run("return document.getElementById('text').value") == "a fox"
    page.type("#text", " again" + ENTER)  # the script has both words: the first one counts
    page.until("document.querySelectorAll('article').length === 2 && document.querySelector('.figures')")
    assert page.text(".asked") == "a fox again"
    page.run("[...document.querySelectorAll('.small')].at(-1).click()")
    page.until("document.querySelector('.waiting') === null && document.querySelector('.figures')")
    assert page.run("return document.querySelectorAll('article').length") == 2


def test_settings_are_sent_and_the_key_is_not_kept(page, server):
    page.click("#open")
    for name, value in {"max_tokens": 3, "temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "seed": 7}.items():
        page.type(f"[name={name}]", str(value))
    page.type("#system", "Be brief.")
    page.type("#key", ENTER)
    page.until("JSON.parse(localStorage['lapinfer.chat'] ?? '{}').system === 'Be brief.'")
    ask(page, "a fox")
    assert page.text(".said") == "A"
    assert "Cut off" in page.text(".note")
    assert "key" not in page.run("return Object.keys(JSON.parse(localStorage['lapinfer.chat'])).join()")
    assert KEY not in page.run("return JSON.stringify(localStorage)")
    page.open(server[0])
    page.click("#open")
    assert page.run("return document.querySelector('[name=top_p]').value") == "0.5"
    page.click("#defaults")
    page.type("#key", ENTER)
    page.until("Object.keys(JSON.parse(localStorage['lapinfer.chat']).options).length === 0")


def test_errors_are_told_in_words(page, server):
    page.run("sessionStorage.clear()")
    page.open(server[0])
    page.until("document.getElementById('hint').textContent.includes('wants an API key')")
    page.click("#open")
    page.type("#key", KEY + ENTER)
    page.until(f"document.getElementById('model').value === '{NAME}'")
    page.run("document.getElementById('text').value = 'x'.repeat(5000)")
    ask(page, " ")
    assert re.search(r"the prompt has [\d,]+ tokens, but the context holds 4096", page.text(".error"))
    ask(page, "again")
    assert page.text("article:last-child .said") == "One more."


@pytest.mark.parametrize("width", [400, 1000])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_everything_has_a_name(page, server, width, dark):
    page.open(server[0], width=width, dark=dark)
    ask(page, "a fox")
    page.click(".figures summary")
    assert page.run("return document.documentElement.scrollWidth") == width
    assert page.run("return document.getElementById('scroll').scrollWidth <= document.documentElement.clientWidth")
    page.click("#open")
    page.developer("Accessibility.enable")
    nodes = page.developer("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if node["role"]["value"] in ("button", "textbox", "combobox", "spinbutton")]
    assert len(controls) > 8
    assert all(node["name"]["value"] for node in controls)
    ground, ink = page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    assert (sum(map(int, re.findall(r"\d+", ground))) < sum(map(int, re.findall(r"\d+", ink)))) == dark
