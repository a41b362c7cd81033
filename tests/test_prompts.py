"""Texts from outside: encodings, line ends, and stdin beside a prompt."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_model import byte_tokenizer_folder
from typer.testing import CliRunner

from lapinfer.cli import prompts, run
from lapinfer.errors import InputError
from lapinfer.text.tokenizer import Tokenizer
from lapinfer.texts import decoded, read_text, without_final_newline

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"hi\n", "hi\n"),
        (b"a\r\nb\r\n", "a\nb\n"),
        (b"a\rb", "a\rb"),  # a progress bar's
        (b"\xef\xbb\xbfhi", "hi"),
        ("Grüße\r\n".encode("utf-16"), "Grüße\n"),  # PowerShell's > and |
        (codecs.BOM_UTF16_BE + "ja\n".encode("utf-16-be"), "ja\n"),
        ("ja\n".encode("utf-32"), "ja\n"),
        ("\ufeff in the middle".encode()[3:], " in the middle"),
        ("a\ufeffb".encode(), "a\ufeffb"),
    ],
)
def test_bytes_become_the_text_that_was_meant(data: bytes, text: str, tmp_path: Path) -> None:
    assert decoded(data, "x") == text
    (tmp_path / "file").write_bytes(data)
    assert read_text(tmp_path / "file") == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ab\xffcd", "x: not UTF-8 text: byte 2 is 0xff"),
        (b"\xef\xbb\xbfab\xff", "x: not UTF-8 text: byte 5 is 0xff"),
        (b"caf\xe9", "x: not UTF-8 text: byte 3 is 0xe9"),
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8", "x: not UTF-16-LE text: byte 4"),
        (b"ab\0cd", "x: not a text: character 2 is NUL"),
        ("hi".encode("utf-16-le"), "x: not a text: character 1 is NUL; UTF-16 needs a byte order mark"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as error:
        decoded(data, "x")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_one_final_newline_is_the_editors() -> None:
    assert [without_final_newline(text) for text in ("a\n", "a\n\n", "a", "\n")] == ["a", "a\n", "a", ""]


def test_a_prompt_that_no_tokenizer_could_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(byte_tokenizer_folder(tmp_path))
    assert tokenizer is not None
    assert tokenizer.longest == len("<|im_start|>")
    tokenizer.check_length("a" * 16 * 8, 8)  # not long enough to be looked at
    with pytest.raises(InputError, match=r"the prompt has 129 characters, .* but the context holds 8"):
        tokenizer.check_length("a" * 129, 8)


ASKED = (
    "import json, sys; from lapinfer.cli.streams import prepare_streams; prepare_streams()\n"
    "from lapinfer.cli.prompts import prompt_of\nfrom lapinfer.errors import InputError\n"
    "try: print(json.dumps(prompt_of(sys.argv[1] if len(sys.argv) > 1 else None)))\n"
    "except InputError as error: print('error', error)\n"
)


def asked(*arguments: str, **options: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASKED, *arguments], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    ("arguments", "data", "prompt"),
    [
        (("explain this code",), b"print(1)\n", '"print(1)\\n explain this code"'),  # as `llm` puts them together
        (("explain",), b"a\r\nb", '"a\\nb explain"'),
        (("hi",), b"", '"hi"'),
        (("-",), b"hi\r\n", '"hi"'),
        ((), b"\xef\xbb\xbfhi\n", '"hi"'),
        (("",), b"hi\n", '"hi"'),
        (("hi",), b"\xff", "error the prompt on stdin: not UTF-8 text: byte 0 is 0xff"),
    ],
)
def test_stdin_beside_a_prompt(arguments: tuple[str, ...], data: bytes, prompt: str) -> None:
    assert asked(*arguments, input=data).startswith(prompt)


def test_no_stdin_is_no_prompt() -> None:
    assert asked("hi", stdin=subprocess.DEVNULL) == '"hi"'
    assert asked("hi", preexec_fn=lambda: os.close(0)) == '"hi"'


def test_an_open_pipe_is_waited_for_with_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A parent's stdin that nobody writes to: cron, ssh without -n, a program that starts another."""
    reader, writer = os.pipe()
    monkeypatch.setattr(prompts, "PATIENCE", 0.01)

    def note(message: str) -> None:
        print(message)
        os.write(writer, b"late\n")
        os.close(writer)

    monkeypatch.setattr(prompts, "note", note)
    with open(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert prompts.prompt_of("hi") == "late\n hi"
    assert capsys.readouterr().out == (
        "waiting for stdin, which comes before the prompt (start with </dev/null if there is none)\n"
    )


def test_more_than_any_context_holds_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"a" * 5000)
    monkeypatch.setattr(prompts, "MOST", 4096)
    with (tmp_path / "long").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InputError, match="more than 4,096 bytes"):
            prompts.prompt_of("-")


def test_a_long_prompt_is_refused_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lapinfer.cli import app

    monkeypatch.setattr(run, "open_model", lambda *arguments: pytest.fail("loaded"))
    result = CliRunner().invoke(app, ["run", "-m", "austen-fff", "-"], input="a" * 100_000)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the prompt has 100,000 characters")
