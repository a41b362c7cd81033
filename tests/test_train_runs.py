"""Training runs: figures, stopping and going on, bad input, and the command."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_runs
from typer.testing import CliRunner

from lapinfer.cli import app
from lapinfer.errors import CheckpointError, InputError, TrainingError

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from lapinfer.train import Config, loop, read_texts, train  # noqa: E402
from lapinfer.train.corpus import Batches, split, train_tokenizer  # noqa: E402

ROOT = Path(__file__).parent.parent
KINDS = list(training_runs.KINDS)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def config(kind: str = "dense", **training: Any) -> Config:
    return Config.from_dict(training_runs.values(kind, **training))


def metrics(out: Path) -> list[dict[str, Any]]:
    """Lines without the times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(out: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_file(out / "state.safetensors").items()}


class Stopped(Exception):  # noqa: N818
    pass


def stopping_at(step: int) -> Any:
    def progress(what: str, done: float | None = None, total: float | None = None) -> None:
        if what == "training" and done == step:
            raise Stopped

    return progress


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_tells_what_it_did(kind: str, tmp_path: Path) -> None:
    result = train(config(kind, steps=60, learning_rate=1e-2, validate_every=20), [training_runs.text()], tmp_path)
    lines = metrics(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 61))
    assert steps[0]["loss"] == pytest.approx(math.log(300), rel=0.1)
    assert result.loss < 0.6 * steps[0]["loss"]
    found = [line["validation"] for line in lines if "validation" in line]
    assert len(found) == 3
    assert found[-1] == result.validation
    assert found[-1]["ppl"] < found[0]["ppl"]
    assert ("soft_ppl" in result.validation) == (kind == "fff")
    if kind != "dense":
        for line in (steps[-1], result.validation):
            assert len(line["layers"]) == 2
            assert {"max_load", "dead", "entropy", "mass"} <= set(line["layers"][0])
            assert 1 <= line["layers"][0]["max_load"] <= 4
    assert result.checkpoint == tmp_path / "model"
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "metrics.jsonl", "model", "run.json", "state.safetensors", "tokenizer.json",
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "precision"), [*((kind, "f32") for kind in KINDS), ("moe", "bf16"), ("fff", "bf16")])
def test_a_run_that_was_stopped_has_the_losses_of_one_that_was_not(kind: str, precision: str, tmp_path: Path) -> None:
    made = config(kind, precision=precision)
    texts, whole, parts = [training_runs.text()], tmp_path / "whole", tmp_path / "parts"
    train(made, texts, whole)
    for step in (3, 7, 11):  # before anything was saved, and between
        with pytest.raises(Stopped):
            train(made, texts, parts, progress=stopping_at(step))
    result = train(made, texts, parts)
    assert metrics(parts) == metrics(whole)
    expected = weights(whole)
    for name, values in weights(parts).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    again = train(made, texts, parts)  # a finished run is not run again
    assert (again.loss, again.validation) == (result.loss, result.validation)
    assert metrics(parts) == metrics(whole)


def test_ctrl_c_saves_the_step_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, texts, told = config("moe", save_every=100), [training_runs.text()], []
    train(made, texts, tmp_path / "whole")
    real = loop.train_step

    def pressed(model: Any, optimizer: Any, windows: Any, step: int, bf16: bool) -> Any:
        if step == 6:
            signal.raise_signal(signal.SIGINT)
        return real(model, optimizer, windows, step, bf16)

    def progress(what: str, done: float | None = None, total: float | None = None) -> None:
        if done is None:
            told.append(what)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(made, texts, tmp_path / "parts", progress=progress)
    assert _metadata(tmp_path / "parts")["step"] == "7"
    assert told[-1].startswith("stopped after step 7 of 12")
    train(made, texts, tmp_path / "parts", progress=progress)
    assert "going on after step 7 of 12" in told
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_run_is_saved_after_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVED_WITHIN", -1.0)
    with pytest.raises(Stopped):
        train(config("moe", save_every=100), [training_runs.text()], tmp_path, progress=stopping_at(3))
    assert _metadata(tmp_path)["step"] == "3"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("kind", ["moe", "fff"])
def test_a_killed_process_loses_nothing_before_the_last_checkpoint(kind: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script = [sys.executable, str(ROOT / "tests" / "training_runs.py"), kind]
    process = subprocess.Popen([*script, str(killed)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        until = time.monotonic() + 60
        while not (killed / "state.safetensors").exists():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    saved = int(_metadata(killed)["step"])
    assert saved < 40
    with (killed / "metrics.jsonl").open("a") as file:  # as a line that was half written
        file.write('{"step": 3')
    for out in (whole, killed):  # here, since every process would import PyTorch anew
        training_runs.run(kind, out)
    assert metrics(killed) == metrics(whole)
    expected = weights(whole)
    for name, values in weights(killed).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def _metadata(out: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(out / "state.safetensors", framework="np") as file:
        return file.metadata()


def test_runs_that_penalise_in_every_way_are_numbers(tmp_path: Path) -> None:
    values = training_runs.values("moe", steps=8, precision="bf16")
    values["model"]["qk_norm"] = True
    values["moe"] |= {"score": "sigmoid", "bias_rate": 0.01, "norm_topk_prob": False}
    train(Config.from_dict(values), [training_runs.text()], tmp_path / "moe")
    assert weights(tmp_path / "moe")["model.layers.0.mlp.selection_bias"].any()
    values = training_runs.values("fff", steps=8, precision="bf16")
    values["fff"] |= {"forward": "soft", "trees": 2, "node_width": 2, "bias": True, "master_width": 8, "mix": True}
    result = train(Config.from_dict(values), [training_runs.text()], tmp_path / "fff")
    assert result.validation["soft_ppl"] != result.validation["ppl"]


def test_learning_rates() -> None:
    options = config(steps=110, warmup=10, learning_rate=2.0, final=0.1).training
    rates = [loop.learning_rate(options, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(0.2 + 1.8 * 0.5)
    assert rates[109] == pytest.approx(0.2, abs=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_decay_is_for_matrices_alone() -> None:
    from lapinfer.train import Decoder

    model = Decoder(config("fff"))
    optimizer = loop.adamw(model, model.config.training)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    names = {name.split(".", 2)[-1] for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {*(f"self_attn.{m}_proj.weight" for m in "qkvo"), "mlp.gate", "mlp.up", "mlp.down"}


def test_batches_are_a_function_of_the_step() -> None:
    ids = np.arange(100)
    batches = Batches(ids, 8, 3, seed=5)
    assert batches.windows == 11
    first = [batches.at(step) for step in range(8)]
    for batch in first:
        assert batch.shape == (3, 9)
        assert bool((batch.diff(dim=1) == 1).all())
    np.testing.assert_array_equal(Batches(ids, 8, 3, seed=5).at(6).numpy(), first[6].numpy())
    epoch = np.concatenate([batch[:, 0].numpy() for batch in first])[:11]
    assert len(set(epoch)) == 11
    assert len(set(epoch % 8)) == 1
    assert not np.array_equal(Batches(ids, 8, 3, seed=6).at(0).numpy(), first[0].numpy())


def test_the_end_of_each_text_is_held_out() -> None:
    trained, held_out = split(["one\ntwo\nthree\nfour\n", "abcdefghij"], 0.25)
    assert trained == ["one\ntwo\nthree\n", "abcdefg"]
    assert held_out == "four\n\nhij"


def test_the_tokenizer_gives_any_text_back() -> None:
    tokenizer = train_tokenizer([training_runs.text()], 300)
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    for text in ("the dog sees a cat.", "Grüße 東京 🦊\r\n\tx"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    with pytest.raises(InputError, match=r"vocab_size: the texts give \d+ tokens, 9999 are asked for"):
        train_tokenizer(["hello"], 9999)


# ---- what cannot be ----


def test_another_run_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    texts, out = [training_runs.text()], tmp_path / "run"
    train(config(), texts, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"holds another run \(training.seed is 0 there, 3 here\)"):
        train(config(seed=3), texts, out)
    with pytest.raises(InputError, match=r"holds another run \(fff is absent there, a section here\)"):
        train(config("fff"), texts, out)
    with pytest.raises(InputError, match="of other texts"):
        train(config(), [training_runs.text(seed=1)], out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"has other files \(thesis.txt\)"):
        train(config(), texts, tmp_path / "other")
    with pytest.raises(InputError, match="is a file; name a folder for the run"):
        train(config(), texts, tmp_path / "other" / "thesis.txt")


def test_links_in_a_runs_folder_are_not_written_through(tmp_path: Path) -> None:
    texts, out = [training_runs.text()], tmp_path / "run"
    train(config(), texts, out)
    written = ["metrics.jsonl", "state.safetensors", "model/model.safetensors", "model/config.json"]
    for name in written:
        (out / name).rename(tmp_path / Path(name).name)
        (out / name).symlink_to(tmp_path / Path(name).name)
    before = {name: (tmp_path / Path(name).name).read_bytes() for name in written}
    (out / "state.safetensors").unlink()  # begins anew
    train(config(), texts, out)
    for name in written:
        assert not (out / name).is_symlink()
        assert (out / name).read_bytes() != b""
        assert (tmp_path / Path(name).name).read_bytes() == before[name]


FULL = """
import resource, signal, sys
import torch
from pathlib import Path
from lapinfer.errors import InputError
from lapinfer.train.state import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_tensors(Path(sys.argv[1]), {"x": torch.zeros(100_000)}, {})
except InputError as error:
    print(error)
"""


def test_a_state_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_text("before")
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: cannot be written: ")
    assert done.stdout.count("\n") == 1
    assert (path.read_text(), os.listdir(tmp_path)) == ("before", ["state.safetensors"])


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    from lapinfer.train import state

    with state.only_run(tmp_path / "run"), pytest.raises(InputError, match=r"run: .*process.* trains here"):
        train(Config.from_dict(training_runs.values("dense")), [training_runs.text()], tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_damaged_states_are_named(tmp_path: Path) -> None:
    texts = [training_runs.text()]
    train(config(), texts, tmp_path)
    path = tmp_path / "state.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not the state of this run"):
        train(config(), texts, tmp_path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not the state of this run"):
        train(config(), texts, tmp_path)
    path.write_bytes(whole)
    (tmp_path / "metrics.jsonl").write_text("what?\n")
    with pytest.raises(CheckpointError, match=r"a line without a step \(what\?\)"):
        train(config(), texts, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a usable tokenizer"):
        train(config(), texts, tmp_path)


def test_a_loss_that_is_no_number_stops_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [training_runs.text()]
    with pytest.raises(Stopped):
        train(config(), texts, tmp_path, progress=stopping_at(6))
    before = (tmp_path / "state.safetensors").read_bytes()
    monkeypatch.setattr(loop, "cross_entropy", lambda logits, ids: logits.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"step 6: loss is nan; what was saved is as it was"):
        train(config(), texts, tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    train(config(), texts, tmp_path)
    assert (tmp_path / "model" / "config.json").is_file()


def test_texts_that_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.txt: no such file"):
        read_texts([tmp_path / "gone.txt"])
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"empty.txt: empty"):
        read_texts([tmp_path / "empty.txt"])
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        read_texts([tmp_path / "bytes.txt"])
    out = tmp_path / "run"
    for texts in ([], ["", "x"]):
        with pytest.raises(InputError, match="no text to train on"):
            train(config(), texts, out)
    with pytest.raises(InputError, match="held-out text has"):
        train(config(validation=0.001), [training_runs.text()], out)
    with pytest.raises(InputError, match="the texts give"):
        train(config(), ["the same word again and again\n" * 50], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "modle: not a section; expected model, dense, moe, fff, training"),
        ({"model": {"hidden_sise": 3}}, "model.hidden_sise: not a key; expected vocab_size"),
        ({"model": 3}, r"model: expected a section \[model\], got 3"),
        ({"model": {"hidden_size": "big"}}, "model.hidden_size: expected an integer from 1 to 65536, got 'big'"),
        ({"model": {"hidden_size": 100, "num_attention_heads": 3}}, "hidden_size"),
        ({"model": {"num_attention_heads": 4, "num_key_value_heads": 3}}, "num_key_value_heads"),
        ({"model": {"hidden_size": 20, "num_attention_heads": 4}}, "5 of 5 dimensions of a head are rotated"),
        ({"model": {"vocab_size": 200}}, "model.vocab_size: expected an integer from 257"),
        ({"model": {"qk_norm": 1}}, "model.qk_norm: expected true or false, got 1"),
        ({"dense": {}, "fff": {}}, "dense, fff: expected one kind of feed-forward"),
        ({"moe": {"num_experts": 4, "num_experts_per_tok": 5}}, "num_experts_per_tok: expected at most num_experts, 4"),
        ({"moe": {"load": 0.1}}, "moe.load: a probability over the noise"),
        ({"moe": {"bias_rate": 0.001}}, "moe.bias_rate"),
        ({"moe": {"score": "sigmoid"}}, "needs model.qk_norm"),
        ({"moe": {"score": "best"}}, "moe.score: expected one of softmax, sigmoid, got 'best'"),
        ({"moe": {"num_experts_per_tok": 1}}, "a lone expert would always weigh 1"),
        ({"moe": {"norm_topk_prob": False}}, "moe.norm_topk_prob: false is written as qwen3_moe"),
        ({"fff": {"depth": 17}}, "fff.depth: expected an integer from 0 to 16, got 17"),
        ({"fff": {"mix": True}}, "'mix' is True, expected true only with a master_width"),
        ({"fff": {"activation": "softplus"}}, "softplus"),
        ({"fff": {"region_leak": 0.7}}, "fff.region_leak: expected a number from 0 to 0.5, got 0.7"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: expected a number"),
        ({"training": {"length": 512}}, "training.length: expected at most max_position_embeddings, 256, got 512"),
        ({"training": {"steps": 0}}, "training.steps: expected an integer from 1"),
    ],
)
def test_configurations_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Config.from_dict(change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "weights" / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_configurations_of_the_siblings(path: Path) -> None:
    made = Config.from_toml(path)
    assert Config.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    dense = Config.from_toml(path.with_name("dense.toml"))
    assert made.training == dense.training
    assert made.model == dense.model


def test_siblings_have_equal_sizes() -> None:

    from lapinfer.tensors import active_parameters, parameters

    specs = {p.stem: Config.from_toml(p).spec() for p in (ROOT / "weights" / "configs").glob("*.toml")}
    total = {name: parameters(spec) for name, spec in specs.items()}
    active = {name: active_parameters(spec) for name, spec in specs.items()}
    for name in ("moe", "fff"):
        assert total[name] == pytest.approx(total["dense"], rel=0.01)
        assert active[name] == pytest.approx(active["dense_active"], rel=0.01)


# ---- the command ----


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_the_command_trains_and_goes_on(tmp_path: Path) -> None:
    toml = tmp_path / "tiny.toml"
    lines = []
    for section, values in training_runs.values("fff", steps=6).items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    toml.write_text("\n".join(lines))
    text = tmp_path / "text.txt"
    text.write_text(training_runs.text())
    shorter = invoke(toml, text, "-o", tmp_path / "shorter", "--steps", 2)
    assert shorter.exit_code == 0, shorter.stderr
    assert "step 2 of 2" in shorter.stderr
    result = invoke(toml, text, "-o", tmp_path / "run", "--seed", 4, "--json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["checkpoint"] == str(tmp_path / "run" / "model")
    assert {"loss", "ppl", "soft_ppl", "bits_per_byte", "layers"} <= set(figures)
    assert figures["active_parameters"] < figures["parameters"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["training"]["seed"] == 4
    again = invoke(toml, text, "-o", tmp_path / "run", "--seed", 4)
    assert again.exit_code == 0
    assert "going on after step 6" in again.stderr
    assert "layers" not in again.stdout
    other = invoke(toml, text, "-o", tmp_path / "run")
    assert other.exit_code == 1
    assert other.stderr.startswith("error: ")
    assert other.stderr.count("\n") == 1
    toml.write_text("[model]\nwidth = 3\n")
    bad = invoke(toml, text)
    assert bad.exit_code == 1
    assert bad.stderr.startswith(f"error: {toml}: model.width: not a key")
    toml.write_text("[model")
    assert "not a TOML file" in invoke(toml, text).stderr
    assert invoke(tmp_path / "gone.toml", text).exit_code == 1
