"""What a model will take, from its config alone."""

import json
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from lapinfer import machine
from lapinfer.checkpoint import hub
from lapinfer.cli import app
from lapinfer.errors import CheckpointError
from lapinfer.report import fit, roofline
from lapinfer.report.info import info
from lapinfer.report.shapes import shape_spec
from lapinfer.runtime.kv import cache_bytes

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """org/name on a hub that has its config.json and nothing else."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    asked = []

    def hf_hub_download(repository, file):
        asked.append((repository, file))
        return str(path)

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    told = SimpleNamespace(get_verbosity=lambda: 0, set_verbosity=lambda to: None, set_verbosity_error=lambda: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download))
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", SimpleNamespace(logging=told))
    monkeypatch.setattr(roofline, "weights_bandwidth", lambda format, threads: 3e10)
    return asked


def test_a_model_that_is_elsewhere_is_told_by_its_config_alone(remote):
    told, fitting = info("org/name", memory=4, bandwidth=lambda format: 3e10)
    assert remote == [("org/name", "config.json")]
    assert fitting
    assert told["parameters"] == 49152 * 2048 + 16 * (2048 * (2 * 2048 + 2 * 512 + 3 * 8192) + 2 * 2048) + 2048
    q4, q8, f16 = told["fit"]
    copy = 49152 * 2048 * 4.5 + 49152 * 32  # bits of a coarse copy of a q8 head, and of its rows' norms
    assert 4.5 < 8 * q4["packed"] / told["parameters"] < 4.9
    assert 8.4 < (8 * q8["packed"] - copy) / told["parameters"] < 8.6
    assert 16 <= 8 * f16["packed"] / told["parameters"] < 16.1
    cache = cache_bytes(shape_spec("1b", "dense"), "f16", 1, 4096, 512)
    assert q4["memory"] == pytest.approx(q4["packed"] + cache + fit.PROCESS_BYTES, rel=0.02)
    assert q4["tokens_per_second"] == pytest.approx(3e10 / q4["touched"], rel=0.1)


def test_a_head_with_a_coarse_copy_counts_as_a_sampler_reads_it(remote):
    told, _ = info("org/name", bandwidth=lambda format: 3e10)
    head, cache = 49152 * 2048 * 8.5 / 8, 16 * 2 * 2 * 512 * (4096 // 2 + 1)
    for each, read in zip(told["fit"], (1.0, 0.05, 1.0), strict=True):  # of q4 and f16 there is none
        without = each["packed"] - head
        assert each["touched"] - cache - without == pytest.approx(read * head, abs=0.04 * head)


def test_speed_is_not_foreseen_of_weights_that_stay_in_caches(remote, monkeypatch):
    monkeypatch.setattr(machine, "largest_cache", lambda: 1 << 31)
    told, _ = info("org/name", bandwidth=lambda format: 3e10)
    assert [fit["tokens_per_second"] is None for fit in told["fit"]] == [True, True, False]
    assert "tok/s" not in told["as q4"]


def test_what_does_not_fit_ends_with_3(remote):
    runner = CliRunner()
    result = runner.invoke(app, ["info", "org/name", "--memory", "0.5"])
    assert result.exit_code == 3
    assert "no: q4 needs" in result.stdout
    result = runner.invoke(app, ["info", "org/name", "--memory", "1.2", "-c", "512", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["fits"] == "q4 in the 1,200 MB of --memory"
    assert runner.invoke(app, ["info", "org/name", "--memory", "1.2", "--quant", "q8"]).exit_code == 3


def test_without_a_hub_the_message_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"lapinfer\[hub\]"):
        hub.remote_config("org/name")
    assert hub.remote_config("no-such-name") is None
    assert hub.remote_config(str(tmp_path)) is None


def test_a_token_of_a_mixture_touches_less_and_is_faster():
    found = {}
    for kind in ("dense", "moe", "fff"):
        (found[kind],) = fit.fits(
            shape_spec("1b", kind), lambda name: {"bf16"}, 1024, quants=("q4",), bandwidth=lambda format: 3e10
        )
    assert found["moe"].packed == pytest.approx(found["dense"].packed, rel=0.02)
    for kind in ("moe", "fff"):
        assert found[kind].touched < 0.5 * found["dense"].touched
        assert found[kind].tokens_per_second > 1.8 * found["dense"].tokens_per_second
