"""The chat in the terminal: its commands, what it keeps, its pen, its editor, and all of it at a pseudo-terminal."""

import json
import os
import re
import select
import signal
import stat
from types import SimpleNamespace

import pytest
from fake_model import FakeModel, byte_tokenizer_folder
from hypothesis import given
from hypothesis import strategies as st
from test_cli import command

from lapinfer.cli.chat import commands, editor, loop, readers, saved
from lapinfer.cli.chat.markdown import MarkdownPen
from lapinfer.cli.chat.talk import Talk
from lapinfer.errors import InputError, LapinferError
from lapinfer.options import SamplingParams
from lapinfer.text.language_model import from_model

SGR = re.compile(r"\x1b\[[0-9;]*m")
SAID = [{"role": "user", "content": "Grüße"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture
def chat():
    model = SimpleNamespace(defaults=SamplingParams())
    return commands.Chat(model, Talk("Be short.", [dict(message) for message in SAID]), {"max_tokens": None})


# Commands


def test_help_lists_every_command(chat, capsys):
    commands.run(chat, "/help")
    told = capsys.readouterr().err
    assert all(name in told for name in commands.COMMANDS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/hepl", "no command /hepl: did you mean /help"),
        ("/usr/bin is what?", "a space before it makes it a message"),
        ("/set temprature 1", "no setting temprature: did you mean temperature"),
        ("/set temperature hot", "temperature: expected a number from 0, got 'hot'"),
        ("/set top_p 2", "top_p: expected a number from 0 to 1, got 2"),
        ("/set top_k 1.5", "top_k: expected a whole number"),
        ("/set temperature nan", "temperature: expected"),
        ("/save", "expected the name of a file"),
    ],
)
def test_what_is_refused_is_refused_in_a_line(chat, line, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        commands.run(chat, line)
    assert "\n" not in str(caught.value)
    assert chat.options == {"max_tokens": None}


def test_settings(chat, capsys):
    commands.run(chat, "/set temperature 0.25")
    commands.run(chat, "/set seed 7")
    assert chat.options == {"max_tokens": None, "temperature": 0.25, "seed": 7}
    commands.run(chat, "/set temp 0.5")
    assert chat.options["temperature"] == 0.5
    commands.run(chat, "/set temperature=0.75")
    assert chat.options["temperature"] == 0.75
    commands.run(chat, "/set seed default")
    assert "seed" not in chat.options
    capsys.readouterr()
    commands.run(chat, "/set")
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == list(commands.SETTINGS)


def test_system_and_clear(chat):
    commands.run(chat, '/system """\nBe long.\nVery.\n"""')
    assert chat.talk.told()[0] == {"role": "system", "content": "Be long.\nVery."}
    commands.run(chat, "/clear")
    assert chat.talk.whole() == [{"role": "system", "content": "Be long.\nVery."}]


@pytest.mark.parametrize("line", ["/bye", "/exit"])
def test_the_end(chat, line):
    with pytest.raises(EOFError):
        commands.run(chat, line)


@pytest.mark.parametrize(
    ("text", "opened", "message"),
    [
        ('"""', True, None),
        ('"""a\nb', True, None),
        ('"""a\nb"""', False, "a\nb"),
        ('"""\na\n"""\n', False, "a"),
        ('say """x"""', False, 'say """x"""'),
        ('/system """a', True, None),
    ],
)
def test_blocks(text, opened, message):
    assert commands.is_open(text) == opened
    assert opened or commands.unblocked(text) == message


def test_a_pasted_text_that_begins_with_a_slash_is_a_message():
    assert commands.is_command("/hepl")
    assert commands.is_command("/system a\nb")
    assert not commands.is_command("// a comment\nint x;")
    assert not commands.is_command(" /usr/bin")


# Files


def test_a_saved_chat_comes_back(chat, tmp_path):
    commands.run(chat, f"/save {tmp_path / 'a.json'}")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["messages"] == chat.talk.whole()
    commands.run(chat, f"/save {tmp_path / 'a.json'}")  # our own file may be replaced
    other = commands.Chat(chat.model, Talk(), {})
    commands.run(other, f"/load {tmp_path / 'a.json'}")
    assert other.talk == chat.talk


def test_nobody_elses_file_is_overwritten(chat, tmp_path):
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "link.json").symlink_to(tmp_path / "notes.json")
    for name in ("notes.json", "link.json", ".", "none/a.json"):
        with pytest.raises(InputError):
            saved.save(str(tmp_path / name), chat.talk)
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"messages": 1}', b'{"messages": [1]}',
        b'{"messages": [{"role": "tool", "content": "x"}]}', b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": ["x"]}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "x", "reasoning_content": 1}]}',
    ],
)  # fmt: skip
def test_hostile_files_are_refused_in_a_line(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(LapinferError) as caught:
        saved.load(str(tmp_path / "a.json"))
    assert "\n" not in str(caught.value)


# A full context


def test_a_full_context_leaves_the_oldest_exchanges_out(tmp_path, capsys, monkeypatch):
    model = FakeModel(byte_tokenizer_folder(tmp_path / "m"), ctx=400, script=[*b"Yes.", 257])
    state = commands.Chat(from_model(model), Talk("Be short."), {"max_tokens": 20})
    for number in range(5):
        loop._exchange(state, f"{number} " + "x" * 60, raw=False, thinking=False, verbose=False)
    told = state.talk.told()
    assert "the context of 400 is full: the" in capsys.readouterr().err
    assert len(state.talk.messages) == 10  # all of it can still be saved
    assert told[0]["role"] == "system"
    assert told[1]["role"] == "user"
    assert told[-2]["content"].startswith("4 ")
    assert 0 < state.talk.left_out % 2 + state.talk.left_out < 10
    with pytest.raises(InputError, match="the context holds"):
        loop._exchange(state, "x" * 500, raw=False, thinking=False, verbose=False)
    assert state.talk.told() == told


# Markdown


def drawn(text, width=40, styled=True, pieces=1):
    out = []
    pen = MarkdownPen(out.append, lambda: width, styled)
    for i in range(0, len(text), pieces):
        pen.write(text[i : i + pieces])
    pen.lift()
    return "".join(out)


TEXT = """# A title

Some **bold words** and *others* with `code`, and 2 * 3 ** 4, which is long enough to be wrapped twice at least.

- an item that is longer than the line is wide, so it hangs
  1. inner
> quoted

```python
x = "**not bold**"  # which is a long line that is not wrapped at all
```
| a | b |
---
日本語のテキストは空白がないので、どこでも改行できますが、幅は二倍です。
"""


@pytest.mark.parametrize("pieces", [1, 3, 1000])
@pytest.mark.parametrize("styled", [True, False])
def test_markdown_is_the_same_however_it_comes(pieces, styled):
    assert drawn(TEXT, styled=styled, pieces=pieces) == drawn(TEXT, styled=styled, pieces=7)


@given(st.text(st.sampled_from("ab *`#->|\n\\1.~語\t_é")), st.integers(1, 30), st.integers(1, 9))
def test_markdown_of_anything(text, width, pieces):
    assert drawn(text, width, pieces=pieces) == drawn(text, width, pieces=1000)
    assert "".join(drawn(text, width, styled=False).split()) == "".join(text.split())


def test_markdown_looks_as_it_should():
    from lapinfer.shown import columns

    text = drawn(TEXT)
    plain = SGR.sub("", text)
    assert "\x1b[1mbold\x1b[0m \x1b[1mwords\x1b[0m" in text
    assert "\x1b[36mcode\x1b[0m," in text
    assert "2 * 3 ** 4," in plain
    assert "• an item that is longer than the line\n  is wide, so it hangs" in plain
    assert 'x = "**not bold**"' in plain
    assert plain.startswith("A title\n")
    wrapped = [line for line in plain.splitlines() if "not bold" not in line]
    assert max(map(columns, wrapped)) < 40


def test_without_colours_every_character_stays_and_lines_are_wrapped():
    text = drawn(TEXT, styled=False)
    assert "\x1b" not in text
    assert "".join(text.split()) == "".join(TEXT.split())
    assert all(len(line) < 40 for line in text.splitlines() if "not bold" not in line)


def test_a_terminal_obeys_no_answer():
    assert "\x1b]0;" not in drawn("a \x1b]0;title\x07 b")


def test_a_word_longer_than_the_screen_loses_nothing():
    assert "".join(drawn("see " + "x" * 500).split()) == "see" + "x" * 500


# The editor


@pytest.fixture
def typed(tmp_path, monkeypatch):
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path))
    with create_pipe_input() as pipe:

        def read(keys):
            pipe.send_text(keys)
            return editor.Editor(input=pipe, output=DummyOutput()).read()

        yield read


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello\r", "hello"),
        ("wrong\x03right\r", "right"),
        ('"""a\rb"""\r', '"""a\nb"""'),
        ("a\x1b\rb\r", "a\nb"),
        ("\x1b[200~one\ntwo\n\x1b[201~\r", "one\ntwo\n"),
        ("/he\t\r", "/help"),
        ("/set temp\t 1\r", "/set temperature 1"),
    ],
)
def test_keys(typed, keys, message):
    assert typed(keys).replace("temperature  ", "temperature ") == message


def test_the_end_of_input(typed):
    with pytest.raises(EOFError):
        typed("\x04")


def test_history_is_kept_in_a_private_file(typed, tmp_path):
    typed("first\r")
    assert typed("\x1b[A\r") == "first"
    assert stat.S_IMODE((tmp_path / editor.HISTORY).stat().st_mode) == 0o600


def test_a_history_that_is_a_link_is_left_alone(typed, tmp_path, capsys):
    (tmp_path / "other").write_text("mine")
    (tmp_path / editor.HISTORY).symlink_to(tmp_path / "other")
    assert typed("x\r") == "x"
    assert (tmp_path / "other").read_text() == "mine"
    assert "not kept" in capsys.readouterr().err


def test_a_long_history_loses_its_older_half(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path))
    (tmp_path / editor.HISTORY).write_bytes(b"".join(b"\n# 2026\n+line %06d\n" % i for i in range(60_000)))
    strings = list(editor.history().load_history_strings())
    assert strings[0] == "line 059999"
    assert 20_000 < len(strings) < 40_000
    assert os.path.getsize(tmp_path / editor.HISTORY) <= editor.MOST // 2


@pytest.mark.parametrize("term", ["dumb", "", "xterm"])
def test_which_reader(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(readers.sys, stream, SimpleNamespace(isatty=lambda: True))
    assert readers.is_screen() == (term == "xterm")


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
@pytest.mark.parametrize("with_editor", [True, False])
def test_a_chat_on_a_screen(tmp_path, with_editor):
    folder = byte_tokenizer_folder(tmp_path / "model")
    main, terminal = os.openpty()
    environment = {"TERM": "xterm" if with_editor else "dumb", "PROMPT_TOOLKIT_NO_CPR": "1"}
    environment |= {"LAPINFER_HOME": str(tmp_path / "home"), "COLUMNS": "60", "NO_COLOR": "1"}
    process = command(
        folder, "run", "-m", "x", "--temp", "0", delay=0.005, stdin=terminal, stdout=terminal, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    seen = b""

    def wait_for(text):
        nonlocal seen
        while text not in seen:
            seen += os.read(main, 1 << 16)
        seen = seen[seen.index(text) + len(text) :]

    for _ in range(2):  # the second time shows that signals are still seen after an event loop had them
        wait_for(b">")
        os.write(main, b"hello\n")
        wait_for(b"a" * 50)  # the fake never ends by itself
        process.send_signal(signal.SIGINT)  # stops the answer, not the chat
    wait_for(b">")
    process.send_signal(signal.SIGINT)  # gives the line up
    while not with_editor and b">" not in seen:
        if select.select([main], [], [], 1)[0]:
            seen += os.read(main, 1 << 16)
        else:  # between its prompt and its wait, input() sees a signal with the next key only
            process.send_signal(signal.SIGINT)
    os.write(main, f"/save {tmp_path / 'saved.json'}\n".encode())
    os.write(main, b"/bye\n")
    _, errors = process.communicate(timeout=20)
    os.close(main)
    assert process.returncode == 0
    assert b"Traceback" not in errors
    roles = [message["role"] for message in json.loads((tmp_path / "saved.json").read_text())["messages"]]
    assert roles == ["user", "assistant"] * 2
    assert (tmp_path / "home" / editor.HISTORY).exists() == with_editor
