"""What a model will take, from its config alone."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import tiny
from safetensors.numpy import save_file
from typer.testing import CliRunner

from lapinfer import machine
from lapinfer.checkpoint import hub
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.cli import app
from lapinfer.errors import CheckpointError
from lapinfer.packing.pack import pack_checkpoint
from lapinfer.report import disk, fit, roofline
from lapinfer.report.fit_tables import fit_tables
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
    told, estimates, fitting = info("org/name", memory=4, bandwidth=lambda format: 3e10)
    assert remote == [("org/name", "config.json")]
    assert fitting
    assert told["parameters"] == 49152 * 2048 + 16 * (2048 * (2 * 2048 + 2 * 512 + 3 * 8192) + 2 * 2048) + 2048
    found = {each["quant"]: each for each in told["fit"]}
    assert list(found) == ["q4", "q4_1", "q5", "q6", "q8", "bf16"] == [fit.quant for fit in estimates]
    copy = 49152 * 2048 * 4.5 + 49152 * 32  # bits of a coarse copy of a q8 head, and of its rows' norms
    assert 4.5 < 8 * found["q4"]["packed"] / told["parameters"] < 4.9
    assert 8.4 < (8 * found["q8"]["packed"] - copy) / told["parameters"] < 8.6
    assert 16 <= 8 * found["bf16"]["packed"] / told["parameters"] < 16.1
    q4, cache = found["q4"], cache_bytes(shape_spec("1b", "dense"), "f16", 1, 4096, 512)
    assert q4["memory"] == pytest.approx(q4["packed"] + cache + fit.PROCESS_BYTES, rel=0.02)
    assert q4["tokens_per_second"] == pytest.approx(3e10 / q4["touched"], rel=0.1)
    assert [each["default"] for each in told["fit"]] == [True, False, False, False, False, False]
    assert [(room["ctx"], room["kv"]) for room in q4["contexts"]] == [(4096, cache), (8192, 2 * cache)]


def test_a_head_with_a_coarse_copy_counts_as_a_sampler_reads_it(remote):
    told, *_ = info("org/name", bandwidth=lambda format: 3e10)
    head, cache = 49152 * 2048 * 8.5 / 8, 16 * 2 * 2 * 512 * (4096 // 2 + 1)
    for each in told["fit"]:
        read = {"q4": 1.0, "q8": 0.05, "bf16": 1.0}.get(each["quant"])  # of q4 and bf16 there is no copy
        without = each["packed"] - head
        assert read is None or each["touched"] - cache - without == pytest.approx(read * head, abs=0.04 * head)


def test_speed_is_not_foreseen_of_weights_that_stay_in_caches(remote, monkeypatch):
    monkeypatch.setattr(machine, "largest_cache", lambda: 1 << 31)
    told, *_ = info("org/name", memory=8, bandwidth=lambda format: 3e10)
    assert {each["quant"]: each["tokens_per_second"] is None for each in told["fit"]} == {
        "q4": True, "q4_1": True, "q5": True, "q6": True, "q8": True, "bf16": False,
    }  # fmt: skip


def test_what_does_not_fit_ends_with_3(remote):
    runner = CliRunner()
    result = runner.invoke(app, ["info", "org/name", "--memory", "0.5"])
    assert result.exit_code == 3
    assert result.stdout.startswith("does not fit in any form: q4 needs 978 MB")
    result = runner.invoke(app, ["info", "org/name", "--memory", "1.2", "-c", "512", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["fits"].startswith(
        "fits in q4 and q4_1 with 8,192 positions, in q5 and q6 with 512 (--memory 1.2): about "
    )
    assert runner.invoke(app, ["info", "org/name", "--memory", "1.2", "--quant", "q8"]).exit_code == 3


def test_without_a_hub_the_message_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"lapinfer\[hub\]"):
        hub.remote_config("org/name")
    with pytest.raises(CheckpointError, match=r"lapinfer\[hub\].*; the sizes of Qwen/Qwen3-8B are known here"):
        info("Qwen/Qwen3-8X")
    assert hub.remote_config("no-such-name") is None
    assert hub.remote_config(str(tmp_path)) is None


def estimate(kind, quant="q4", **given):
    spec = shape_spec("1b", kind)
    (found,) = fit.fits(
        spec, {quant: fit.formats_of(spec, quant, lambda name: {"bf16"})}, 1024, bandwidth=lambda format: 3e10, **given
    )
    return found


def test_a_token_of_a_mixture_touches_less_and_is_faster():
    found = {kind: estimate(kind) for kind in ("dense", "moe", "fff")}
    assert found["moe"].packed == pytest.approx(found["dense"].packed, rel=0.02)
    for kind in ("moe", "fff"):
        assert found[kind].touched < 0.5 * found["dense"].touched
        assert found[kind].tokens_per_second > 1.8 * found["dense"].tokens_per_second


@pytest.mark.parametrize("golden", ["mixtral-plain", "gpt2-plain"])
def test_the_same_is_told_of_a_config_a_checkpoint_and_its_packed_copy(tmp_path, golden):
    config, stored, *_ = tiny.read_golden(tiny.GOLDEN / f"{golden}.npz")
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    alone = info(str(tmp_path), ctx=32, memory=1, quant="q4")[0]
    save_file(stored, tmp_path / "model.safetensors")
    checkpoint = info(str(tmp_path), ctx=32, memory=1, quant="q4")[0]
    packed = info(str(pack_checkpoint(FolderCheckpoint(tmp_path), tmp_path / "packed", "q4")), ctx=32, memory=1)[0]
    assert packed["packed_bytes"] == packed["fit"][0]["packed"]
    for told in (checkpoint, packed):
        assert {
            key: told[key] for key in alone if key not in ("path", "packed", "fit", "notes")
        }.items() <= alone.items()
        assert told["fit"][0] | {"default": False} == alone["fit"][0]


def test_experts_that_do_not_fit_are_read_from_disk():
    whole, part = estimate("moe", bound=10**10), estimate("moe", bound=600_000_000, disk=lambda: 1e9)
    assert whole.on_disk is None
    kept = part.on_disk
    assert (kept.experts, part.tokens_per_second) == (16 * 32, None)
    assert 0 < kept.kept < kept.experts
    expert = 3 * 2048 * 256 * 4.5 / 8
    assert kept.read == pytest.approx(16 * 4 * expert * (1 - kept.kept / kept.experts), rel=0.05)
    assert 1 / kept.tokens_per_second == pytest.approx(kept.read / 1e9 + 1 / whole.tokens_per_second, rel=1e-6)
    assert part.memory - 600_000_000 == pytest.approx(expert * (kept.experts - kept.kept), rel=0.1)
    assert estimate("moe", bound=300_000_000).on_disk is None  # not even a token's
    assert estimate("dense", bound=300_000_000).on_disk is None
    assert estimate("moe", bound=600_000_000).on_disk.tokens_per_second is None  # of a disk nobody knows


def test_verdicts_say_in_words_what_to_do():
    moe, dense = estimate("moe", bound=600_000_000, disk=lambda: 1e9), estimate("dense", bound=600_000_000)
    fitting, words = fit.verdict([moe], 600_000_000)
    assert not fitting
    assert re.fullmatch(
        r"does not fit: q4 needs 883 MB with 1,024 positions \(600 MB free now\); "
        r"with --memory 0\.6 experts are read from disk: about \d\d tok/s in q4", words
    )  # fmt: skip
    assert fit.verdict([dense], 600_000_000, 0.6)[1].endswith("with 1,024 positions (--memory 0.6)")
    assert fit.verdict([dense], 600_000_000)[1].startswith("does not fit in any form")
    assert fit.verdict([dense], 10**9) == (True, "fits in q4 with 4,096 positions (1.0 GB free now)")
    assert fit.verdict([dense], None)[0]


def test_tables_fit_a_terminal():
    spec = shape_spec("1b", "moe")
    ways = fit.all_formats(spec, lambda name: {"mxfp4" if "experts" in name else "bf16"})
    found = fit.fits(spec, ways, bound=10**9, auto=ways["auto"], bandwidth=lambda format: 3e10, disk=lambda: 1e9)
    lines = fit_tables(found, 10**9).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("auto (mxfp4) *")
    assert [line.split()[0] for line in lines[2:8]] == ["q4", "q4_1", "q5", "q6", "q8", "bf16"]


def test_a_disk_is_measured_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "BYTES", 4 * disk.PIECE)
    rate = disk.read_rate(tmp_path / "not" / "there", 2)
    assert rate is None or rate > 0
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr(disk.tempfile, "TemporaryFile", lambda dir: (_ for _ in ()).throw(OSError("full")))
    assert disk.read_rate(tmp_path, 1) is None
