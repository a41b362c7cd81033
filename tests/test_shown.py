"""What strangers write is shown on a terminal and in pages, and never obeyed there."""

import ast
import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_model import FakeModel, byte_tokenizer_folder, install
from typer.testing import CliRunner

from lapinfer.cli import app
from lapinfer.cli.console import print_figures, print_json
from lapinfer.errors import CheckpointError
from lapinfer.report.document import Section, document
from lapinfer.report.tables import aligned, markdown, to_csv
from lapinfer.shown import columns, escape, padded, shown, shown_answer, shown_line

ROOT = Path(__file__).parent.parent
TITLE = "\x1b]0;owned\x07\x1b[2J"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\U000e0000-\U000e007f]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, 日本語, Ελλάδα, café, 🙂, no\u00a0break, \ue0b0", None),
        ("two\nlines\tand a tab", None),
        ("windows\r\nlines", "windows\nlines"),
        ("over\rwritten", "over\\x0dwritten"),
        (TITLE, "\\x1b]0;owned\\x07\\x1b[2J"),
        ("\x1b]8;;http://a.example\x1b\\link\x1b]8;;\x1b\\", "\\x1b]8;;http://a.example\\x1b\\link\\x1b]8;;\\x1b\\"),
        ("\x1b]52;c;cm0=\x07", "\\x1b]52;c;cm0=\\x07"),  # what would be pasted next
        ("\x9b2J\x9d0;t\x9c\x85", "\\x9b2J\\x9d0;t\\x9c\\x85"),  # the same in one character each
        ("rm\x08\x08ls\x7f\x00\x0b\x0c", "rm\\x08\\x08ls\\x7f\\x00\\x0b\\x0c"),
        ("\u202egnp.exe\u202c \u2066a\u2069", "\\u202egnp.exe\\u202c \\u2066a\\u2069"),
        ("hidden\U000e0041\U000e007f", "hidden\\U000e0041\\U000e007f"),
        ("a\u2028b\u2029c\ufffaz\ufeff", "a\\u2028b\\u2029c\\ufffaz\\ufeff"),
        ("no text: \udc9b", "no text: \\udc9b"),
    ],
)
def test_what_would_act_is_shown(text, expected):
    assert shown(text) == shown_answer(text) == (text if expected is None else expected)
    assert not ACTS.search(shown_answer(text))


@pytest.mark.parametrize(
    "text", ["👨\u200d👩\u200d👧", "می\u200cخواهم", "ไทย\u200bไทย", "\u200fשלום", "co\u00adop", "\u0600١"]
)
def test_what_scripts_need_is_left_in_answers_and_shown_in_names(text):
    assert shown_answer(text) == text
    assert shown_line(text) == text.encode("unicode_escape").decode() or "\\" in shown_line(text)


def test_a_name_stays_on_its_line():
    assert shown_line("a\nerror: b\tc\r\n") == "a\\nerror: b\\tc\\x0d\\n"


def test_every_piece_of_an_answer_is_shown_by_itself():
    """Tokens split escape sequences anywhere."""
    text = f"a{TITLE}b\u202ec"
    assert "".join(map(shown_answer, text)) == shown_answer(text)


@pytest.mark.parametrize(("text", "expected"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("ａ", 2), ("", 0)])
def test_places_in_a_terminal(text, expected):
    assert columns(text) == expected
    assert columns(padded(text, 7)) == columns(padded(text, 7, right=True)) == 7


# Tables


def test_cells_line_up_and_stay_cells():
    names = ["a|b", "日本", f"x{TITLE}\ny", "[/bold]"]
    lines = markdown(["model"], [[name] for name in names], left=(0,)).splitlines()
    assert len({columns(line) for line in lines}) == 1
    assert len(lines) == 2 + len(names)
    assert [re.split(r"(?<!\\)\|", line)[1].strip() for line in lines[2:]] == [
        "a\\|b", "日本", "x\\x1b]0;owned\\x07\\x1b[2J\\ny", "[/bold]",
    ]  # fmt: skip
    assert len({columns(line) for line in aligned([[name, "1"] for name in names], left=1).splitlines()}) == 1


@dataclass
class Row:
    name: str
    change: float


@pytest.mark.parametrize("name", ['=HYPERLINK("http://a.example")', "+1", "-1", "@SUM(A1)"])
def test_csv_has_no_formulas(name):
    (row,) = csv.DictReader(io.StringIO(to_csv([Row(name, -1.5)], Row)))
    assert row == {"name": f"'{name}", "change": "-1.5"}


def test_json_is_the_same_value_and_prints_nothing_that_acts(capsys):
    value = {"text": f"{TITLE}\x7f\x9b2J\u202e\u2028\U000e0041 é 🙂\n"}
    print_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert not ACTS.search(out)
    assert "é 🙂" in out


def test_figures_are_lines(capsys):
    print_figures({"model": f"a{TITLE}\nb", "日本": [1, "x\x9b"]}, json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.replace(" ", "") for line in lines] == ["modela\\x1b]0;owned\\x07\\x1b[2J\\nb", "日本1,x\\x9b"]


# The command line


@pytest.fixture
def fake(tmp_path, monkeypatch):
    model = FakeModel(byte_tokenizer_folder(tmp_path / "model"), ctx=4096, script=[*TITLE.encode(), 257])
    model.asked = install(monkeypatch, lambda: model)
    return model


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_an_answer_is_raw_where_no_terminal_would_obey_it(fake):
    assert run("run", "-m", "x", "--temp", 0, "hi").stdout == f"{TITLE}\n"


def test_names_are_shown_wherever_they_are_printed(fake, monkeypatch):
    fake.name = f"a{TITLE}\x9b"
    for arguments in (["bench", "x", "-p", 4, "-n", 1, "-r", 1], ["run", "-m", "x", "--json", "-n", 2, "hi"]):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert "owned" in result.output
        assert not ACTS.search(result.output)


@pytest.mark.parametrize("verbose", [[], ["-v"]])
def test_errors_are_shown(monkeypatch, verbose):
    def make():
        raise CheckpointError(f"{TITLE}: the tensor \x9b[bold] is [/] not there\nerror: another line")

    install(monkeypatch, make)
    result = run("run", "-m", "x", "hi", *verbose)
    assert result.exit_code == 1
    assert not ACTS.search(result.output)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: \\x1b]0;owned\\x07\\x1b[2J: the tensor \\x9b[bold] is [/] not there\\nerror:")


@pytest.mark.parametrize(
    "arguments",
    [["no-command" + TITLE], ["run", "--no-option" + TITLE], ["run", "a", f"b{TITLE}"], ["run", "--kv", TITLE, "a"],
     ["run", "--quant", TITLE, "a"], ["bench", "-p", TITLE], ["bench", "-o", TITLE], ["ls", f"[/bold]{TITLE}"]],
)  # fmt: skip
def test_wrong_usage_is_shown(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert not ACTS.search(result.output)
    assert "owned" in result.output.replace("\n", "")


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
@pytest.mark.parametrize("more", [[], ["--no-stream"], ["--json"]])
def test_a_terminal_gets_no_control_sequence_from_a_model(tmp_path, more):
    folder = byte_tokenizer_folder(tmp_path / "model")
    said = [*f"{TITLE}\u202e\x9b é\r\n\rend".encode(), 257]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import fake_model as f\n"
        f"make = lambda: f.FakeModel(f.Path({str(folder)!r}), ctx=4096, script={said})\n"
        "f.FakeModel.name = 'a\\x1b[2Jb'\n"
        "f.install(None, make); from lapinfer.cli import main; main()"
    )
    arguments = ["run", "-m", "x", "-v", "--temp", "0", "hi", *more]
    main, terminal = os.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=terminal,
        stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    got = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        got += piece
    os.close(main)
    assert process.wait(20) == 0
    text = re.sub("\x1b\\[(\\?25[lh]|2K)|\r", "", got.decode())  # what a bar of progress hides the cursor with
    assert not ACTS.search(text)
    if more != ["--json"]:
        assert "\\x1b]0;owned\\x07\\x1b[2J\\u202e\\x9b é" in text
        assert "\\x0dend\n" in text
        assert "a\\x1b[2Jb: loaded" in text
    else:
        assert "\\u001b]0;owned\\u0007\\u001b[2J\\u202e\\u009b é\\r\\n\\rend" in text


def test_a_bar_names_what_it_is_about():
    """Rich would take brackets for its own, and fail on those that close nothing."""
    from rich.console import Console

    from lapinfer.cli.bars import line
    from lapinfer.cli.eta import Pace
    from lapinfer.cli.last_line import LastLine
    from lapinfer.progress import Phase

    out = io.StringIO()
    LastLine().show(
        Console(file=out, width=100, force_terminal=True),
        line(Phase(f"pulling [bold]x[/red] {TITLE}"), Pace(1, 2), since=0, width=99),
    )
    text = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", out.getvalue())  # Rich's own colours
    assert "pulling [bold]x[/red] \\x1b]0;owned\\x07\\x1b[2J" in text


def test_only_the_console_prints_what_is_not_constant():
    """Everything else goes through `say`, `note`, `write_answer`, which show what would act."""
    wrong = []
    for path in sorted((ROOT / "lapinfer" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.name == "console.py" or not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("print", "sys.stdout.write", "sys.stderr.write", "typer.echo"):
                own = all(isinstance(each, ast.Constant) or "__version__" in ast.unparse(each) for each in node.args)
                wrong += [] if own else [f"{path.name}:{node.lineno}"]
    assert not wrong


# Pages


def test_pages_hold_text_as_text():
    name = f"</title><script>alert(1)</script><!-- {TITLE} & \" ' \u202e"
    page = document(name, escape(name), [Section("a", name, name, "")], "const a = 1;")
    root = ElementTree.fromstring(page)
    expected = name.replace(TITLE, "\\x1b]0;owned\\x07\\x1b[2J").replace("\u202e", "\\u202e")
    assert root.findtext(".//title") == root.findtext(".//h1") == root.findtext(".//h2") == expected
    assert len(root.findall(".//script")) == 1


def test_pages_allow_their_own_script_alone():
    import base64
    import hashlib

    page = document("a", "b", [], "const a = 1 < 2 && 3;")
    policy = ElementTree.fromstring(page).find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
