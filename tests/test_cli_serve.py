"""`lapinfer serve` as a process: what it says when it starts, and how signals end it."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_model import byte_tokenizer_folder
from typer.testing import CliRunner

from lapinfer.cli import app

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).parent.parent
CODE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import fake_model as f; folder = sys.argv.pop(1);"
    "make = lambda: f.FakeModel(f.Path(folder), ctx=4096, delay=0.005, slots=4, script=[97]); f.install(None, make);"
    "from lapinfer.cli import main; main()"
)


@pytest.fixture
def start(tmp_path):
    """Starts servers; gives (process, address, what it said)."""
    folder, processes = byte_tokenizer_folder(tmp_path / "model"), []

    def started(*arguments, **environment):
        line = [sys.executable, "-c", CODE, str(ROOT / "tests"), str(folder), "serve", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        process = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        processes.append(process)
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"serving .* at (http://\S+)", line):
                return process, found[1], said
        raise AssertionError(said)

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def ask(url, **options):
    body = {"prompt": "x", "max_tokens": 100, "temperature": 0, "stream": True} | options
    return httpx.stream("POST", f"{url}/v1/completions", json=body, headers={"x-api-key": "k"}, timeout=20)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_answers_end(start, number, code):
    named = ["smollm2", "other"] if number == signal.SIGINT else []
    process, url, said = start(*named, "--port", "0", LAPINFER_API_KEY="k")
    assert f"serving {', '.join(named) or 'austen-fff, smollm2'} at" in said
    assert "4 slots of 4,096 positions" in said
    assert httpx.get(f"{url}/v1/models").status_code == 401
    with ask(url) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(number)
        assert "ending after the answers that run" in process.stderr.readline()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(20) == code


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_second_signal_ends_it_at_once(start):
    process, url, _ = start("smollm2", "--port", "0", LAPINFER_API_KEY="k")
    with ask(url, max_tokens=4000) as response:
        next(response.iter_lines())
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "austen-fff", "--port", str(port)])
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: 127.0.0.1:{port}: Address already in use; choose another --port, or 0 for a free one\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "port: expected a whole number from 0 to 65535, got 70000"),
        (["--memory", "0"], "memory: expected a number of GB above 0, got 0.0"),
        (["--slots", "0"], "--slots: expected a whole number from 1, got 0"),
        (["--api-key", ""], "api_key: expected a text that is not empty, got ''"),
    ],
)
def test_wrong_options_are_wrong_usage(arguments, message):
    result = CliRunner().invoke(app, ["serve", "smollm2", *arguments])
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(app, ["serve", "smollm2"])
    assert result.exit_code == 1
    assert result.stderr == 'error: lapinfer serve needs uvicorn: pip install "lapinfer[serve]"\n'
