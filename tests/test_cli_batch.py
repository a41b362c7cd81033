"""`lapinfer batch` as a process that is killed, what it says, and its answers beside those of a server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_model import FakeModel, byte_tokenizer_folder, install
from typer.testing import CliRunner

from lapinfer.cli import app

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
import lapinfer.batch.identity  # noqa: E402
from lapinfer.text.language_model import from_model  # noqa: E402

ROOT = Path(__file__).parent.parent
CODE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import fake_model as f
import lapinfer.batch.identity as identity
identity.model_identity = lambda *arguments: "digest"
folder = f.Path(sys.argv.pop(1))
f.install(None, lambda: f.FakeModel(folder, ctx=256, delay=0.002, slots=3))
from lapinfer.cli import main
main()
"""
LINES = [
    *({"prompt": f"Say {n}", "max_tokens": 10 + n % 7} for n in range(50)),
    {"custom_id": "a", "text": "abc"},
    {"custom_id": "b", "prompt": "x", "temprature": 1},
]


@pytest.fixture
def folder(tmp_path):
    """Where the input is, beside a model's texts."""
    byte_tokenizer_folder(tmp_path / "model")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


@pytest.fixture
def fake(folder, monkeypatch):
    monkeypatch.setattr(lapinfer.batch.identity, "model_identity", lambda *arguments: "digest")
    monkeypatch.chdir(folder)
    install(monkeypatch, lambda: FakeModel(folder / "model", ctx=256, slots=2))


def invoke(*arguments, stdin=None):
    return CliRunner().invoke(app, ["batch", *map(str, arguments), "-m", "smollm2"], input=stdin)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_stopped_and_gone_on_with(folder, fake):
    out, part = folder / "out.jsonl", folder / "out.jsonl.part"
    command = [sys.executable, "-c", CODE, str(ROOT / "tests"), "model", "batch", "in.jsonl", "-m", "smollm2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [*command, "-o", "out.jsonl"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
        before = done(part)
        while done(part) < before + 4:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == code
    assert f"going on: {before} lines are done already, in out.jsonl.part" in said
    assert f"{done(part)} of 52 lines are done, and kept in out.jsonl.part: the same command goes on" in said
    assert not out.exists()
    other = invoke("in.jsonl", "-o", "other.jsonl")
    assert other.exit_code == 0, other.output
    kept = done(part)
    last = invoke("in.jsonl", "-o", "out.jsonl")
    assert f"52 lines ({kept} of them before), 1 failed" in last.stderr
    assert out.read_bytes() == (folder / "other.jsonl").read_bytes()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["line"] for record in records] == [*range(1, 53)]
    assert not part.exists()


def done(part):
    return max(part.read_bytes().count(b"\n") - 1, 0) if part.exists() else 0


def test_streams_and_exit_codes(folder, fake):
    result = invoke("-", "-o", "-", stdin='{"prompt": "a", "max_tokens": 2}\n"b"\noops\n')
    assert result.exit_code == 0
    assert sorted(json.loads(line)["line"] for line in result.stdout.splitlines()) == [1, 2, 3]
    assert "3 lines, 1 failed" in result.stderr
    assert "the first that failed is line 3: the line is not JSON" in result.stderr
    assert invoke("-", "-o", "-", "--strict", stdin='{"prompt": "a", "max_tokens": 2}\noops\n').exit_code == 1
    assert invoke("-", "-o", "all.jsonl", stdin="oops\noops").exit_code == 1
    assert invoke("-", "-o", "none.jsonl", stdin="").exit_code == 0
    assert Path("none.jsonl").read_bytes() == b""
    repeated = invoke("-", "-o", "-", "-n", 2, stdin='{"prompt": "a", "custom_id": "x"}\n' * 2)
    assert "note: 2 lines have a custom_id that another line has, too" in repeated.stderr


def test_another_seed_draws_others(folder, fake):
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES[40:]))
    texts = [
        invoke("in.jsonl", "-o", f"{n}.jsonl", *more) and Path(f"{n}.jsonl").read_text()
        for n, more in enumerate(([], ["--seed", 0], ["--seed", 1]))
    ]
    assert texts[0] == texts[1]
    one, other = ([json.loads(line)["response"]["body"] for line in text.splitlines()] for text in texts[1:])
    same = [a == b for a, b in zip(one, other, strict=True)]
    assert sum(same[:10]) < 3
    assert same[10:] == [True, True]


def test_records_have_what_a_server_answers(folder, fake):
    from serving import KEY, served

    lines = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 9, "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "max_tokens": 3}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4, "echo": True}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 4}),
        ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}),
        ("/v1/completions", {"prompt": "a", "temperature": -1}),
    ]
    lines = [(url, body if url == "/v1/embeddings" else body | {"seed": 5}) for url, body in lines]
    (folder / "in.jsonl").write_text("".join(json.dumps({"url": url, "body": body}) + "\n" for url, body in lines))
    assert invoke("in.jsonl", "-o", "out.jsonl").exit_code == 0
    records = [json.loads(line)["response"] for line in (folder / "out.jsonl").read_text().splitlines()]
    made = from_model(FakeModel(folder / "model", ctx=256, slots=2))
    with served(folder, {}, model=made) as url, httpx.Client(headers={"x-api-key": KEY}, timeout=20) as client:
        for (path, body), record in zip(lines, records, strict=True):
            answer = client.post(f"{url}{path}", json=body)
            assert answer.status_code == record["status_code"]
            assert told(answer.json()) == told(record["body"])


def told(value):
    """An answer without what is not the same each time: ids, times, names, and what the work took."""
    if isinstance(value, dict):
        return {
            name: told(each) for name, each in value.items()
            if name not in ("id", "created", "created_at", "model", "lapinfer", "cached_tokens")
        }  # fmt: skip
    return [told(each) for each in value] if isinstance(value, list) else value


def test_what_is_missing_is_named(folder, fake, monkeypatch):
    assert "no such file" in invoke("nothing.jsonl", "-o", "out.jsonl").stderr.lower()
    assert not (folder / "nothing.jsonl.part").exists()
    (folder / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    missing = invoke("a.parquet", "-o", "out.jsonl")
    assert missing.stderr == 'error: Parquet needs pyarrow: pip install "lapinfer[batch]"\n'
    monkeypatch.setitem(sys.modules, "starlette", None)
    missing = invoke("in.jsonl", "-o", "out.jsonl")
    assert missing.stderr == 'error: lapinfer batch needs starlette: pip install "lapinfer[batch]"\n'
