"""The study of sibling language models: its arms, a short run of it, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import training_runs

from bench.studies import siblings
from bench.studies.study import Setting, find_study, run_study
from lapinfer.errors import InputError
from lapinfer.loading import load_model
from lapinfer.tensors import active_parameters
from lapinfer.train import Config

CONFIGS = Path(__file__).parent.parent / "weights" / "configs"


def test_arms_have_equal_totals_and_equal_active_sizes():
    active = {name: active_parameters(siblings.arm(name).spec()) for name in siblings.ARMS}
    for name in ("moe", "fff", "fff_one"):
        assert abs(active[name] / active["dense_active"] - 1) < 0.01
    assert active["none"] < active["dense_active"] < active["dense"]


@pytest.mark.parametrize("name", siblings.SHIPPED)
def test_configurations_are_those_of_the_study(name):
    assert Config.from_toml(CONFIGS / f"{name}.toml") == siblings.arm(name)


def test_runs_and_goes_on(tmp_path):
    texts = []
    for i in range(2):
        texts.append(tmp_path / f"{i}.txt")
        texts[-1].write_text(training_runs.text(8000, seed=i))
    setting, study = Setting(tuple(texts), seeds=1, quick=True), find_study("siblings")
    summary = run_study(study, setting, tmp_path / "out")
    assert set(summary["arms"]) == set(siblings.ARMS)
    assert summary["texts"] == ["0.txt"]
    for name, arm in summary["arms"].items():
        assert arm["unseen_ppl"]["mean"] > 1
        assert (arm["unseen_soft_ppl"] is not None) == (name in ("fff", "fff_one", "fff_soft", "frozen"))
        load_model(tmp_path / "out" / "trials" / arm["best"]["folder"] / "model").close()
    assert (tmp_path / "out" / "siblings.svg").stat().st_size > 1000
    began = (tmp_path / "out" / "trials.jsonl").read_bytes()
    again = run_study(study, setting, tmp_path / "out")
    assert json.dumps(again["arms"]) == json.dumps(summary["arms"])
    assert (tmp_path / "out" / "trials.jsonl").read_bytes() == began
    some = run_study(study, replace(setting, only=("moe/*", "none/0")), tmp_path / "out")
    assert some["arms"] == {name: summary["arms"][name] for name in ("moe", "none")}
    with pytest.raises(InputError, match="--only"):
        run_study(study, replace(setting, only=("moe",)), tmp_path / "out")


def test_one_text_is_not_enough(tmp_path):
    (tmp_path / "a.txt").write_text("It was")
    with pytest.raises(InputError, match="two texts"):
        siblings.STUDY.read([tmp_path / "a.txt"])
    with pytest.raises(InputError, match="no such file"):
        siblings.STUDY.read([tmp_path / "a.txt", tmp_path / "b.txt"])


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_says_nothing_else(tmp_path):
    texts = []
    for i in range(2):
        texts.append(tmp_path / f"{i}.txt")
        texts[-1].write_text(training_runs.text(8000, seed=i))
    command = [sys.executable, "-m", "bench.studies", "siblings", *map(str, texts), "--quick", "--jobs", "2", "-o"]
    log = tmp_path / "out" / "trials.jsonl"
    process = subprocess.Popen(
        [*command, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (log.exists() and log.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert all(json.loads(line)["result"]["folder"] for line in log.read_text().splitlines())
