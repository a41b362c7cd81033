"""examples/: every script and notebook runs, on small sizes, and says what its docstring promises."""

import io
import json
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script as a command, in a folder of its own; what it printed."""

    def run(script, *arguments, typed=""):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_chat_with_a_model_that_continues_text(run):
    assert len(run("chat.py", "austen-fff", "It is a truth", "--tokens", "8").split()) > 2
    assert run("chat.py", "austen-fff", "--tokens", "2", typed="It is\n\nShe was\n").count("> ") == 4  # the end, too


def test_experts_as_a_picture(run, tmp_path):
    told = run("experts_picture.py", "-o", "picture.svg", "--layer", "1")
    root = ElementTree.parse(tmp_path / "picture.svg").getroot()
    words = "".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    assert words.startswith("It is a truth universally acknowledged")
    assert "256 tokens by their experts in layer 1" in told
    assert "the busiest expert of each layer" in told


def test_side_by_side(run):
    *table, _, text = run("side_by_side.py", "austen-dense-active", "austen-moe", "--tokens", "4").splitlines()[2:]
    assert text.startswith("perplexity: of a passage")
    assert [line.split()[0] for line in table] == ["austen-dense-active", "austen-moe"]
    assert all("±" in line for line in table)


def test_a_layer_of_ones_own(run):
    told = run("own_layer.py", "--neurons", "1024")
    assert "a token" in told
    assert told.count("nodes ×") == 4


def test_training_a_tiny_model(run, one_torch_thread, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog ran after the cat. " * 400)
    sizes = ["--steps", "2", "--vocabulary", "270", "--width", "16", "-o", "run"]
    told = run("train_tiny.py", "text.txt", *sizes)
    assert "perplexity" in told
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("chat.py", ["nowhere"]), ("experts_picture.py", ["-m", "austen-dense"]), ("own_layer.py", ["--quant", "q3"])],
)
def test_an_error_is_one_line(run, script, arguments):
    with pytest.raises(SystemExit) as ended:
        run(script, *arguments)
    assert "\n" not in str(ended.value.code)
    assert len(str(ended.value.code)) > 20


def test_training_without_its_extra_is_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lapinfer.train", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"^[^\n]+$"):
        run("train_tiny.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_short_and_explain_themselves(script):
    source = (EXAMPLES / script).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
    assert f"python examples/{script}" in source
    assert script in (EXAMPLES / "README.md").read_text(encoding="utf-8")


NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_and_come_without_outputs(name, monkeypatch, tmp_path):
    """Their cells, one after the other, as Jupyter would run them."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert name in (EXAMPLES / "README.md").read_text(encoding="utf-8")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for i, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{name}, cell {i}", "exec"), namespace)
    assert pyplot.get_fignums()
    pyplot.close("all")
