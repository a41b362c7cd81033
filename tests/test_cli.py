"""The command line over a fake engine: in this process, and in others for signals, pipes and terminals."""

import json
import os
import re
import signal
import subprocess
import sys
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import typer.main
from fake_model import FakeModel, byte_tokenizer_folder, install
from safetensors.numpy import save_file
from typer.testing import CliRunner

import lapinfer
from lapinfer.cli import app
from lapinfer.errors import CheckpointError, DoesNotFitError, InputError
from lapinfer.report.perplexity import perplexity
from lapinfer.text.language_model import from_model

ROOT = Path(__file__).parent.parent
ANSWER = "Paris."


@pytest.fixture
def folder(tmp_path):
    return byte_tokenizer_folder(tmp_path / "model")


@pytest.fixture
def fake(folder, monkeypatch):
    model = FakeModel(folder, ctx=4096, script=[*ANSWER.encode(), 257])
    model.asked = install(monkeypatch, lambda: model)
    return model


def invoke(*arguments, **options):
    return CliRunner().invoke(app, list(map(str, arguments)), **options)


# run


def test_the_answer_alone_is_on_stdout(fake):
    result = invoke("run", "-m", "x", "capital?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, ANSWER + "\n", "")
    assert fake.closed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-n", 9), ""),
        (("-n", 10), "note: the context of 12 has room for 9 tokens, not 10: -c gives it more\n"),
        ((), "note: the answer ends after 9 tokens, where the context of 12 is full: -c gives it more\n"),
    ],
)
def test_an_answer_that_the_context_cuts(folder, monkeypatch, options, said):
    install(monkeypatch, lambda: FakeModel(folder, ctx=12, script=[65]))
    result = invoke("run", "-m", "x", "--raw", "--temp", 0, *options, "abcd")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "A" * 9 + "\n", said)


def test_an_answer_that_ends_before_is_not_said_to_be_cut(fake):
    fake.ctx = len(CHAT_OF("capital?")) + len(ANSWER)
    assert invoke("run", "-m", "x", "capital?").stderr == ""


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_the_prompt_may_come_from_stdin(fake, arguments):
    result = invoke("run", "-m", "x", "--no-stream", *arguments, input="Grüße\n")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    prompt = CHAT_OF("Grüße")
    assert list(fake.cache[0, : len(prompt)]) == prompt


def CHAT_OF(text, system=None):  # noqa: N802
    """Token ids of the rendered chat: one a byte, two special ones."""
    said = [] if system is None else [("system", system)]
    ids = []
    for role, content in [*said, ("user", text)]:
        ids += [256, *f"{role}\n{content}".encode(), 257, 10]
    return [*ids, 256, *b"assistant\n"]


def test_system_and_raw(fake):
    assert invoke("run", "-m", "x", "-s", "Be brief.", "hi").exit_code == 0
    prompt = CHAT_OF("hi", "Be brief.")
    assert list(fake.cache[0, : len(prompt)]) == prompt
    assert invoke("run", "-m", "x", "--raw", "hi").exit_code == 0
    assert list(fake.cache[0, :2]) == [*b"hi"]
    assert invoke("run", "-m", "x", "--raw", "-s", "no", "hi").exit_code == 2


def test_json_is_one_object(fake):
    result = invoke("run", "-m", "x", "--json", "-n", 3, "hi")
    value = json.loads(result.stdout)
    assert (value["text"], value["finish_reason"], value["model"]) == ("Par", "length", "fake")
    assert value["tokens"] == [*b"Par"]
    assert value["timings"]["prompt_tokens"] == len(CHAT_OF("hi"))


def test_options_arrive(fake):
    result = invoke("run", "-m", "org/x", "-t", 3, "-c", 77, "--quant", "q8", "--kv", "q8", "-v", "--stop", "s", "hi")
    assert result.stdout == "Pari\n"
    assert "tok/s" in result.stderr
    asked = {"quant": "q8", "threads": 3, "ctx": 77, "slots": 1, "kv": "q8", "activations": "auto", "experts": None}
    asked |= {"memory": None, "policy": "lrfu", "draft": None, "prefix_cache": None, "lora": (), "expert_nodes": None}
    assert fake.asked[0] == ("org/x", asked)


def test_a_seed_gives_the_same_answer(fake):
    fake.script = None
    answers = [invoke("run", "-m", "x", "--seed", 3, "--temp", 2, "-n", 20, "hi").stdout for _ in range(2)]
    assert answers[0] == answers[1]


def test_no_chat_template_falls_back_to_plain_text(tmp_path, monkeypatch):
    folder = byte_tokenizer_folder(tmp_path, chat=None)
    install(monkeypatch, lambda: FakeModel(folder, script=[*b"ok", 257]))
    result = invoke("run", "-m", "x", "hi")
    assert (result.exit_code, result.stdout) == (0, "ok\n")
    assert "no chat template" in result.stderr


def test_a_template_gets_what_it_knows(tmp_path, monkeypatch):
    chat = "{{ messages[0].content }}{% if enable_thinking is false %}{{ raise_exception('no thinking') }}{% endif %}"
    folder = byte_tokenizer_folder(tmp_path, chat=chat)
    install(monkeypatch, lambda: FakeModel(folder, script=[*b"ok", 257]))
    assert invoke("run", "-m", "x", "hi").exit_code == 0
    result = invoke("run", "-m", "x", "--template-kwargs", '{"enable_thinking": false}', "hi")
    assert result.exit_code == 1
    assert result.stderr.strip() == "error: the chat template refuses these messages: no thinking"
    for wrong in ("x", "[1]", "3"):
        assert invoke("run", "-m", "x", "--template-kwargs", wrong, "hi").exit_code == 2
    assert invoke("run", "-m", "x", "--raw", "--template-kwargs", "{}", "hi").exit_code == 2


def test_without_a_name_a_shipped_model_runs_unless_the_chat_model_was_pulled(fake, monkeypatch):
    result = invoke("run", "hi")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    assert [name for name, _ in fake.asked] == ["austen-fff"]
    assert "austen-fff" in result.stderr
    monkeypatch.setattr("lapinfer.checkpoint.hub.is_local", lambda name: True)
    invoke("run", "hi")
    assert fake.asked[-1][0] == "smollm2"


def test_the_chat_model_is_pulled_when_it_is_asked_for_and_missing(fake):
    assert invoke("run", "-m", "smollm2", "hi").exit_code == 0
    assert fake.asked[0] == ("pull", "smollm2")
    assert fake.asked[-1][0] == "smollm2"


# Failures


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CheckpointError("model.safetensors: truncated"), 1, "error: model.safetensors: truncated"),
        (DoesNotFitError("needs 9 GB, there are 8"), 3, "error: needs 9 GB, there are 8"),
        (MemoryError(), 3, "error: not enough memory; try --quant q4 or a smaller -c"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: /x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device"),
        (
            OSError(24, "Too many open files", "/x"),
            1,
            "error: /x: Too many open files; allow more open files (ulimit -n)",
        ),
        (KeyboardInterrupt(), 130, ""),
        (
            ImportError("bad llvmlite", name="numba"),
            1,
            "error: numba: cannot be imported: bad llvmlite; install lapinfer again (pip install --force-reinstall)",
        ),
        (RecursionError("maximum depth"), 1, "error: something is nested too deeply: maximum depth"),
        (
            RuntimeError("can't start new thread"),
            1,
            "error: the system refuses one more thread: allow more (ulimit -u, or the container's limit)",
        ),
        (
            ValueError("x\ny"),
            1,
            "error: this should not have happened: ValueError: x y; please report it to lapinfer's issue tracker, "
            "with what the same command with -v prints",
        ),
        (
            AssertionError(),
            1,
            "error: this should not have happened: AssertionError; please report it to lapinfer's "
            "issue tracker, with what the same command with -v prints",
        ),
    ],
)
def test_failures_are_one_line(monkeypatch, error, code, line):
    def fail():
        raise error

    install(monkeypatch, fail)
    result = invoke("run", "-m", "x", "hi")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (code, "", line)
    if line:
        assert "Traceback" in invoke("run", "-m", "x", "-v", "hi").stderr


def test_more_positions_than_the_model_was_made_for_are_told(fake):
    fake.ctx = 2 * fake.spec.context
    result = invoke("run", "-m", "x", "capital?")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    assert "was made for 4,096 positions" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("-t", "0"), "--threads: expected a whole number from 1, got 0", 2),
        (("--temp", "-1"), "temperature: expected a number from 0, got -1.0", 2),
        (("--quant", "q7"), "--quant: expected one of auto, bf16,", 2),
        (("--policy", "best"), "--policy: expected one of lru,", 2),
        (("-c", "20"), "the prompt has", 1),
        (("--stop", ""), "stop: expected", 1),
    ],
)
def test_bad_values_are_one_line(fake, arguments, message, code):
    if arguments[0] == "-c":
        fake.ctx = 20
    result = invoke("run", "-m", "x", *arguments, "hi")
    assert result.exit_code == code
    assert result.stderr.startswith("error: " + message)
    assert result.stderr.count("\n") == 1


def test_stdin_that_is_not_text(fake):
    result = invoke("run", "-m", "x", "-", input=b"ab\xff")
    assert result.exit_code == 1
    assert "not UTF-8 text: byte 2 is 0xff" in result.stderr


def test_an_empty_prompt(fake):
    for arguments in (("",), ("-",)):
        result = invoke("run", "-m", "x", *arguments)
        assert (result.exit_code, result.stderr) == (1, "error: the prompt is empty\n")
    assert invoke("run", "-m", "x", "--raw", "-n", 1, "").exit_code == 0
    assert fake.cache[0, 0] == 256  # BOS


@pytest.mark.parametrize(
    "arguments", [(), ("run", "--nonsense"), ("bench", "-p", "x"), ("nonsense",), ("convert", "a")]
)
def test_wrong_usage_is_exit_2(arguments):
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("chat",), "Did you mean 'run'?"),
        (("lss",), "Did you mean 'ls'?"),
        (("embed", "-m", "x", "notes.txt"), "the model is an argument of this command"),
        (("run", "-m", "x", "two", "words"), "put text with spaces into quotes"),
    ],
)
def test_usage_that_is_often_wrong_has_a_hint(arguments, hint):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert hint in " ".join(result.stderr.replace("│", " ").split())


# The other commands


def test_explain_convert_pull_ls_doctor(fake, tmp_path):
    assert invoke("explain", "x", "--analyze").stdout == "plan, {'analyze': True, 'layers': False}\n"
    assert invoke("convert", "x", tmp_path / "out", "--quant", "q8").exit_code == 0
    assert fake.asked[-1] == ("convert", "x", tmp_path / "out", "q8", None)
    assert invoke("pull", "smollm2").exit_code == 0
    assert "smollm2" in invoke("ls").stdout
    assert json.loads(invoke("ls", "--json").stdout)[0]["name"] == "smollm2"
    assert "fast" in invoke("doctor").stdout
    assert json.loads(invoke("doctor", "--json").stdout) == {"cpu": "fast", "threads": [1, 2]}


def test_info_reads_headers_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("lapinfer.report.roofline.weights_bandwidth", lambda *arguments: 1e10)
    sizes = {"vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    folder = byte_tokenizer_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_act": "silu", **sizes, **heads}))
    save_file({"model.embed_tokens.weight": np.zeros((258, 16), np.float16)}, folder / "model.safetensors")
    value = json.loads(invoke("info", folder, "--json").stdout)
    assert (value["family"], value["kv_heads"], value["stored"]) == ("llama", 1, {"F16": "100.0 %"})
    assert (value["tokenizer"], value["chat_template"]) == ("258 tokens", True)
    assert invoke("info", folder).stdout.startswith("fits in every format with 64 positions")
    (folder / "config.json").write_text("{")
    assert invoke("info", folder).exit_code == 1


def test_version_and_help():
    assert invoke("--version").stdout.startswith("lapinfer 0.")
    for command in ("run", "info", "explain", "convert", "bench", "perplexity", "pull", "ls", "doctor"):
        assert invoke(command, "-h").exit_code == 0


@pytest.mark.parametrize("width", [80, 120])
def test_help_shows_every_word_that_was_written(monkeypatch, width):
    """Words in [brackets], which Rich takes for markup; long ones, which it would cut; flags, and short help of all."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    group = typer.main.get_command(app)
    for name, command in [("", group), *group.commands.items()]:
        shown = re.sub("[│╭╮╰╯─,]", " ", invoke(*filter(None, [name]), "--help").stdout).split()
        written = [command.help, *(getattr(param, "help", None) for param in command.params)]
        written += [each.get_short_help_str(10_000) for each in getattr(command, "commands", {}).values()]
        for text in filter(None, written):
            left = iter(shown)
            lost = [word for word in re.sub("[,─]", " ", text).split() if word not in left]
            assert not lost, (name, text)
        flags = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts) if flag[0] == "-"}
        assert flags <= set(shown)


def test_bench_makes_a_grid(fake):
    result = invoke("bench", "-m", "x", "-p", "32,64", "-n", "4", "-d", "0,16", "-t", "1,2", "-r", 2, "-o", "json")
    rows = json.loads(result.stdout)
    assert [r["test"] for r in rows[:6]] == ["pp32", "pp32 @ d16", "pp64", "pp64 @ d16", "tg4", "tg4 @ d16"]
    assert len(rows) == 12
    row = rows[0]
    assert (row["n_prompt"], row["n_gen"], len(row["samples_ts"]), row["text"]) == (32, 0, 2, "real")
    assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2)
    assert row["touched_mb"] == pytest.approx(1e-3)  # the fake's 1000 bytes per token
    assert [call[1]["threads"] for call in fake.asked] == [1, 2]


def test_bench_writes_what_is_asked(fake):
    fast = ("-m", "x", "-p", "16", "-n", "2", "-r", 1)
    markdown = invoke("bench", *fast).stdout
    assert "| fake" in markdown
    assert "pp16" in markdown
    lines = invoke("bench", *fast, "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["test"] for line in lines] == ["pp16", "tg2"]
    table = invoke("bench", *fast, "-o", "csv").stdout.splitlines()
    assert len(table) == 3
    assert table[0].startswith("model_filename,")
    assert invoke("bench", *fast, "-o", "xml").exit_code == 2
    assert invoke("bench", "-m", "x", "-p", "0", "-n", "0").exit_code == 1
    fake.texts = None
    assert json.loads(invoke("bench", *fast, "-o", "json").stdout)[0]["text"] == "random"


def test_bench_sets_models_side_by_side(fake, tmp_path, monkeypatch):
    from lapinfer import loading

    load = loading.load_model

    def load_model(name, *options, **more):
        model = copy(load(name, *options, **more))
        model.name = name
        return model

    monkeypatch.setattr(loading, "load_model", load_model)
    fast = ("-p", "16", "-n", "2", "-r", 1)
    lines = invoke("bench", "-m", "x", "-m", "y", *fast).stdout.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["pp16 and tg2", "x", "y"]
    assert len({len(line) for line in lines[:8]}) == 1
    assert lines[2].startswith("| parameters, M ")
    assert invoke("bench", "x", "-m", "y", *fast).stdout.startswith("| pp16 and tg2 ")
    rows = tmp_path / "old.json"
    rows.write_text(invoke("bench", "-m", "x", *fast, "-o", "json").stdout)
    row = json.loads(rows.read_text())[1]
    assert row["tpot_p50_ms"] <= row["tpot_p99_ms"]
    assert row["roofline"] > 0
    assert row["predicted_mb"] > 0
    compared = re.compile(r"\| x +\| tg2 +\| +1 \|")
    assert compared.search(invoke("bench", "-m", "x", *fast, "--compare", rows).stdout)
    result = invoke("bench", "-m", "x", *fast, "--compare", rows, "-o", "json")
    assert len(json.loads(result.stdout)) == 2
    assert compared.search(result.stderr)
    rows.write_text("{}")
    result = invoke("bench", "-m", "x", *fast, "--compare", rows)
    assert result.exit_code == 1
    assert "not rows of bench" in result.stderr


def test_bench_goes_on_after_a_model_that_fails(fake, monkeypatch):
    from lapinfer import loading

    good = loading.load_model

    def load_model(name, *options, **more):
        if name == "bad":
            raise CheckpointError("bad: no such folder")
        if name == "full":
            raise OSError(28, "No space left on device")
        return good(name, *options, **more)

    monkeypatch.setattr(loading, "load_model", load_model)
    fast = ("-p", "16", "-n", "2", "-r", 1, "-o", "json")
    result = invoke("bench", "-m", "x", "-m", "bad", "-m", "full", "-m", "y", *fast)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert len(json.loads(result.stdout)) == 4
    assert "error: bad: no such folder" in result.stderr
    assert invoke("bench", "-m", "bad", *fast).exit_code == 1
    result = invoke("bench", "-m", "x", *fast, "--text", "nothing.txt")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing.txt: no such file" in result.stderr
    assert invoke("bench", "--shapes", "9b", *fast).exit_code == 2
    assert invoke("bench", "--shapes", "1b", "-m", "x", *fast).exit_code == 2


def test_thinking_is_shown_where_it_is_asked_for(fake):
    fake.script = [*b"<think>Hm.</think>\n\nYes.", 257]
    assert invoke("run", "Well?", "-m", "x", "--temp", 0).stdout == "Yes.\n"
    assert invoke("run", "Well?", "-m", "x", "--temp", 0, "--thinking").stdout == "Hm.\n\nYes.\n"
    assert invoke("run", "Well?", "-m", "x", "--temp", 0, "--no-stream", "--thinking").stdout == "Hm.\n\nYes.\n"
    assert invoke("run", "Well?", "-m", "x", "--temp", 0, "--raw").stdout == "<think>Hm.</think>\n\nYes.\n"
    result = invoke("run", "Well?", "-m", "x", "--temp", 0, "-n", 9)
    assert result.stdout == "\n"
    assert "after 9 tokens of thinking there is no answer: give it more with -n" in result.stderr
    value = json.loads(invoke("run", "Well?", "-m", "x", "--temp", 0, "--json").stdout)
    assert (value["thinking"], value["text"]) == ("Hm.", "Yes.")


def test_perplexity_against_itself(fake, tmp_path):
    fake.script = None
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night. " * 4)
    result = invoke("perplexity", "x", text, "-c", 32, "--chunks", 3, "--against", "x", "--json")
    value = json.loads(result.stdout)
    assert (value["chunks"], value["tokens"], value["divergence"]["same_top"]) == (3, 3 * 15, 1)
    assert abs(value["divergence"]["mean"]) < 1e-6
    assert invoke("perplexity", "x", text, "-c", 32).stdout.startswith("PPL = ")
    assert "at least 1024" in invoke("perplexity", "x", text).stderr
    assert invoke("perplexity", "x", tmp_path / "none").exit_code == 1


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_scores_what_llama_perplexity_scores(tmp_path, bos):
    folder = byte_tokenizer_folder(tmp_path, adds_bos=bos)
    text, ctx = "The quick brown fox jumps over the lazy dog. " * 3, 40
    model = from_model(FakeModel(folder))  # pyright: ignore
    results = list(perplexity(model, text, ctx))
    ids = model.encode(text)
    nll = []
    for chunk in range(len(ids) // ctx):
        part = ids[chunk * ctx : (chunk + 1) * ctx]
        if bos:
            part[0] = 256
        logits = model.forward(part).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        nll += [-log_p[i, part[i + 1]] for i in range(ctx // 2, ctx - 1)]
    assert [r.chunks for r in results] == [1, 2, 3]
    assert results[-1].tokens == len(nll) == 3 * (ctx - ctx // 2 - 1)
    assert results[-1].ppl == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    error = np.exp(np.mean(nll)) * np.std(nll) / np.sqrt(len(nll) - 1)
    assert results[-1].error == pytest.approx(error, rel=1e-4)


def test_divergence_from_a_reference(tmp_path):
    folder = byte_tokenizer_folder(tmp_path)
    text, ctx = "pack my box with five dozen liquor jugs " * 3, 40
    sharper = FakeModel(folder)
    plain_logits = sharper._logits
    sharper._logits = lambda ids, pos: 2 * plain_logits(ids, pos)
    model, reference = from_model(sharper), from_model(FakeModel(folder))  # pyright: ignore
    *_, result = perplexity(model, text, ctx, chunks=1, reference=reference)
    part = model.encode(text)[:ctx]
    q = np.array([_log_softmax(row) for row in reference.forward(part)[ctx // 2 : -1]])
    p = np.array([_log_softmax(row) for row in model.forward(part)[ctx // 2 : -1]])
    kl = (np.exp(q) * (q - p)).sum(axis=1)
    found = result.divergence
    assert found is not None
    assert (found.mean, found.median, found.same_top) == pytest.approx((kl.mean(), np.median(kl), 1), rel=1e-4)
    assert found.p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    with pytest.raises(InputError, match="different tokenizers"):
        next(perplexity(model, text, ctx, reference=from_model(FakeModel(folder, vocab=300))))  # pyright: ignore


def _log_softmax(row):
    row = row.astype(np.float64)
    return row - np.log(np.exp(row).sum())


def test_training_without_pytorch_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("lapinfer.train")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(lapinfer, "train", raising=False)  # which an earlier import has left there
    result = invoke("train", tmp_path / "x.toml", tmp_path / "x.txt")
    assert result.exit_code == 1
    assert result.stderr == "error: training needs PyTorch: pip install 'lapinfer[train]'\n"


# Other processes


def command(folder, *arguments, **options):
    """A process that runs the command line over a fake model."""
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import fake_model as f; folder, delay = sys.argv[1:3];"
        "del sys.argv[1:3]; make = lambda: f.FakeModel(f.Path(folder), ctx=4096, delay=float(delay), script=[97]);"
        "f.install(None, make, float(delay) * 50);"
        "from lapinfer.cli import main; main()"
    )
    delay = str(options.pop("delay", 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | options.pop("env", {})
    line = [sys.executable, "-c", script, str(ROOT / "tests"), str(folder), delay, *map(str, arguments)]
    return subprocess.Popen(
        line, env=environment, **({"stdout": -1, "stderr": -1, "stdin": subprocess.DEVNULL} | options)
    )


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("when", ["loading", "answering"])
def test_ctrl_c_ends_with_130(folder, when):
    process = command(folder, "run", "-m", "x", "--raw", "hello", delay=0.02)
    if when == "answering":
        assert process.stdout.read(1)
    else:
        assert process.stderr.read(7) == b"loading"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in errors


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_quiet(folder):
    process = command(folder, "run", "-m", "x", "--raw", "-n", "2000", "hello")
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(20) == 0
    assert errors == b""
    reader, writer = os.pipe()
    os.close(reader)
    process = command(folder, "explain", "x", stdout=writer)
    os.close(writer)
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_is_told_once(folder):
    with open("/dev/full", "w") as full:
        process = command(folder, "explain", "x", stdout=full)
    assert process.communicate(timeout=20)[1] == b"error: No space left on device\n"
    assert process.returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX descriptors")
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_was_closed(folder, closed):
    process = command(folder, "explain", "x", preexec_fn=lambda: os.close(closed))
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")
    assert bool(out) == (closed != 1)


@pytest.mark.parametrize(
    ("encoding", "text", "code"),
    [("utf-8", "Grüße, 世界", 0), ("ascii", "Gr??e, ??", 0), ("latin-1", "Grüße, ??", 0)],
)
def test_any_text_can_be_written(encoding, text, code):
    script = (
        "import sys; from lapinfer.cli import app, main; sys.argv = ['lapinfer', 'say', '-v']\n"
        "@app.command()\ndef say(): print('Grüße, 世界')\nsys.argv.pop()\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    assert (done.returncode, done.stdout.decode(encoding)) == (code, f"{text}\n")
    assert (b"lacks were written as ?; PYTHONIOENCODING=utf-8 keeps them" in done.stderr) == ("?" in text)


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_chat_in_a_terminal(folder):
    main, terminal = os.openpty()
    process = command(folder, "run", "-m", "x", "--temp", "0", delay=0.01, stdin=terminal, start_new_session=True)
    os.close(terminal)
    os.write(main, b"hello\n")
    assert process.stdout.read(20)  # the fake never ends by itself
    process.send_signal(signal.SIGINT)  # stops the answer, not the chat
    assert set(process.stdout.readline()) <= set(b"a\n")
    os.write(main, b"and?\n")
    assert process.stdout.read(20) == b"a" * 20
    process.send_signal(signal.SIGINT)
    assert set(process.stdout.readline()) <= set(b"a\n")
    os.write(main, b"/exit\n")
    _, errors = process.communicate(timeout=20)
    os.close(main)
    assert process.returncode == 0
    assert b"Traceback" not in errors


def test_help_is_fast_and_light():
    code = (
        "import sys, lapinfer.cli as c\ntry: c.app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numba', 'numpy', 'tokenizers', 'jinja2'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_embeddings_of_lines(fake, folder, tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("abc\n\nhello\nabc\n")
    lines = [json.loads(line) for line in invoke("embed", "x", text, "-c", 32).stdout.splitlines()]
    assert [line["line"] for line in lines] == [1, 3, 4]
    assert fake.asked[-1][1]["ctx"] == 32
    expected = from_model(FakeModel(folder)).embed(["abc", "hello", "abc"])
    assert np.array_equal(np.float32([line["embedding"] for line in lines]), expected)
    piped = invoke("embed", "x", "-", "--pooling", "last", input="abc").stdout
    assert json.loads(piped)["line"] == 1
    assert "pooling: expected mean or last" in invoke("embed", "x", text, "--pooling", "max").stderr
