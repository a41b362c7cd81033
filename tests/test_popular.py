"""Models without their weights: lapinfer's table of sizes, and a config.json alone."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lapinfer.checkpoint import popular
from lapinfer.checkpoint.bare import bare_config, local_name
from lapinfer.cli import app
from lapinfer.errors import CheckpointError
from lapinfer.families import spec_from_config
from lapinfer.report import roofline
from lapinfer.report.info import info
from lapinfer.runtime.kv import cache_bytes
from lapinfer.tensors import parameters, tensors

PUBLISHED = sorted((Path(__file__).parent / "published").glob("*.json"))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(roofline, "weights_bandwidth", lambda format, threads: 3e10)
    monkeypatch.setattr("lapinfer.checkpoint.bare.remote_config", lambda name: None)


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


SIZES_ONCE = {id(popular.popular(name).config): name for name in popular.popular_names()}
"""A name for each config: others share it."""


@pytest.mark.parametrize("name", [*SIZES_ONCE.values()])
def test_sizes_add_up_to_what_the_publisher_tells(name):
    model, notes = popular.popular(name), []
    spec = spec_from_config(model.config, name, notes.append)
    assert parameters(spec) / 1e9 == pytest.approx(model.billions, rel=0.02)
    assert not notes


@pytest.mark.parametrize("path", [p for p in PUBLISHED if popular.popular(p.stem)], ids=lambda path: path.stem)
def test_sizes_are_those_of_published_files(path):
    """Whatever a published file says beside them changes neither a tensor nor the memory of a context."""

    def sizes(config):
        spec = spec_from_config(config, path.name)
        return (
            spec.context,
            [(t.name, t.shape, t.reads) for t in tensors(spec).values()],
            [cache_bytes(spec, "f16", 1, ctx, 512) for ctx in (100, 4096, 32768)],
        )

    of_file = sizes(json.loads(path.read_text()))
    of_table = sizes(popular.popular(path.stem).config)
    assert of_table == of_file


def test_names_are_found_as_people_write_them():
    names = popular.popular_names()
    assert (
        len({name.lower() for name in names}) == len({name.lower().partition("/")[2] for name in names}) == len(names)
    )
    for name in ("Qwen/Qwen3-30B-A3B", "qwen/qwen3-30b-a3b", "Qwen3-30B-A3B", "QWEN3-30b-a3b"):
        assert popular.popular(name).name == "Qwen/Qwen3-30B-A3B"
    assert popular.popular("somebody/Qwen3-30B-A3B") is None
    assert popular.like("Qwen3-30-A3B")[0] == "Qwen/Qwen3-30B-A3B"
    assert popular.like("qwen/qwen3-30b-a3")[0] == "Qwen/Qwen3-30B-A3B"
    assert popular.like("zzz") == []


def test_a_name_that_is_missed_is_suggested():
    result = invoke("info", "Qwen3-30-A3B")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "did you mean Qwen/Qwen3-30B-A3B?" in result.stderr


def test_will_it_fit_is_answered_without_a_file():
    told, estimates, runs = info("qwen3-30b-a3b", memory=12, bandwidth=lambda format: 3e10, disk=lambda: 2e9)
    assert runs
    assert not info("qwen3-30b-a3b", memory=1)[2]
    assert told["fits"].startswith(
        "does not fit: q4 needs 18.2 GB with 4,096 positions (--memory 12); with --memory 12"
    )
    assert told["path"] == "Qwen/Qwen3-30B-A3B (not on this computer; sizes known here)"
    q4 = told["fit"][0]
    assert [room["ctx"] for room in q4["contexts"]] == [4096, 32768, 40960]
    assert q4["on_disk"]["experts"] == 48 * 128
    assert estimates[0].on_disk.share == pytest.approx(0.62, abs=0.01)
    assert "stored" not in told
    assert info("DeepSeek-R1", memory=12)[0]["notes"][0].startswith("DeepSeek's own files are in FP8")


def test_experts_in_mxfp4_stay_so():
    told, *_ = info("gpt-oss-20b", memory=100)
    assert [(each["quant"], each["format"], each["default"]) for each in told["fit"][:2]] == [
        ("auto", "mxfp4", True), ("q4", "q4", False),
    ]  # fmt: skip
    assert told["fits"].startswith("fits in every format with 131,072 positions (--memory 100)")


def test_a_model_on_this_computer_wins(tmp_path, monkeypatch):
    """A folder of this name in the working folder, and a snapshot of the hub whose name was written otherwise."""
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    assert local_name("gpt2") == "gpt2"
    assert invoke("info", "gpt2").stderr.startswith("error: gpt2: has no config.json")
    monkeypatch.setattr("lapinfer.checkpoint.bare.is_local", lambda name: name == "Qwen/Qwen3-0.6B")
    assert local_name("qwen3-0.6b") == "Qwen/Qwen3-0.6B"
    assert local_name("Qwen3-1.7B") == "Qwen3-1.7B"
    monkeypatch.setattr("lapinfer.checkpoint.bare.is_local", lambda name: name == "smollm2")
    assert local_name("SmolLM2-135M-Instruct") == "smollm2"


def test_that_a_model_is_here_is_told(tmp_path, monkeypatch):
    import tiny
    from safetensors.numpy import save_file

    from lapinfer.report import known

    config, stored, *_ = tiny.read_golden(tiny.GOLDEN / "qwen3-plain.npz")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(stored, tmp_path / "model.safetensors")
    monkeypatch.setattr(known, "local_name", lambda name: tmp_path)
    told, *_ = info("qwen3-0.6b")
    assert told["notes"][0] == f"qwen3-0.6b: {tmp_path} is on this computer, and this is about its files"
    assert told["path"] == str(tmp_path)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(popular.popular("gpt2").config))
    return path


def test_a_config_alone_is_enough(config):
    for name in (config, config.parent):
        result = invoke("info", name, "--memory", "4", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["parameters"] == 124_439_808
    renamed = config.rename(config.with_name("gpt2.json"))
    assert bare_config(renamed).told == f"{renamed} (no weights)"
    assert invoke("info", renamed, "-c", "2000").stderr == (
        "error: ctx 2000 is more than the 1024 positions that this model has learned\n"
    )


def test_weights_beside_a_config_are_told(config):
    (config.parent / "model.safetensors").touch()
    assert "name the folder" in bare_config(config).notes[0]
    assert bare_config(config.parent) is None
    (config.parent / "model.safetensors").rename(config.parent / "pytorch_model.bin")
    assert bare_config(config.parent) is None  # what they are is told where it is opened


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors.index.json"])
def test_other_json_is_no_config(config, name):
    other = config.rename(config.with_name(name))
    other.write_text("{}")
    assert bare_config(other) is None
    assert "a file of a model's folder" in invoke("info", other).stderr


SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings", "num_experts",
    "num_experts_per_tok", "moe_intermediate_size",
)  # fmt: skip
HOSTILE = [
    *({key: value} for key in SIZES for value in (0, -1, 1.5, 10**300, "8", [], True)),
    *({key: value} for key, value in (("model_type", "mamba"), ("model_type", 7), ("model_type", None), ("head_dim", 0),
                                      ("num_attention_heads", 7), ("num_experts_per_tok", 129), ("hidden_act", "new"))),
    *({"quantization_config": {"quant_method": method}} for method in ("exl2", "mxfp4", "hqq")),
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: str(change)[:40])
def test_hostile_configs_give_one_line(config, change):
    config.write_text(json.dumps(popular.popular("Qwen3-30B-A3B").config | change))
    result = invoke("info", config.parent)
    assert result.exit_code == 1, result.stdout
    assert result.stderr.startswith(f"error: {config}")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 2100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"model_type": "qwen3"}',
        "\0" * 600,
        "[" * 100_000,
        '{"model_type": "qwen3", "hidden_size": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_no_config_gives_one_line(config, text):
    config.write_text(text)
    for name in (config, config.parent):
        result = invoke("info", name)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {config}")
        assert result.stderr.count("\n") == 1


def test_the_largest_sizes_that_are_read_are_told_at_once(config):
    said = {"num_hidden_layers": 200, "hidden_size": 1 << 24, "vocab_size": 1 << 24, "num_attention_heads": 1 << 10,
            "num_experts": 128, "moe_intermediate_size": 1 << 20, "max_position_embeddings": 1 << 24}  # fmt: skip
    config.write_text(json.dumps(popular.popular("Qwen3-30B-A3B").config | said))
    result = invoke("info", config.parent, "--memory", "12")
    assert result.exit_code == 3, result.stderr
    assert result.stdout.startswith("does not fit in any form")


def test_a_name_of_no_use_is_refused():
    with pytest.raises(CheckpointError, match="no such folder"):
        info("zzz")
    with pytest.raises(CheckpointError):
        info("a" * 5000)
