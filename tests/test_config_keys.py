"""Keys of config.json that no reader asks for: published files load without a word, made-up options are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.families import family, family_of_model_type, model_types, spec_from_config
from lapinfer.families.config import Config
from lapinfer.families.keys import HARMLESS, is_functional, unknown_keys
from lapinfer.families.quantized import READ

PUBLISHED = sorted((Path(__file__).parent / "published").glob("*.json"))
"""Keys as published files of these models have them; long lists of numbers are made up."""

GOLDEN = sorted(tiny.GOLDEN.glob("*.npz"))
OF_A_KIND = {config["model_type"]: config for config in (tiny.read_golden(path)[0] for path in GOLDEN)}


def read(config: dict[str, Any]) -> list[str]:
    """The notices about a config that can be read."""
    notices: list[str] = []
    spec_from_config(config, "config.json", notices.append)
    return notices


def unknown(config: dict[str, Any]) -> dict[str, Any]:
    """What a config has and its family's reader does not know, whatever the values."""
    config = json.loads(json.dumps(config))
    name = family_of_model_type(config["model_type"])
    assert name is not None
    asked = Config(config, "config.json")
    family(name).spec(asked)
    asked.know("add_cross_attention", "is_encoder_decoder", "use_bidirectional_attention", "quantization_config")
    return dict(unknown_keys(asked, family(name).ignored_keys))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_files_load_without_a_word(path: Path) -> None:
    assert read(json.loads(path.read_text())) == []


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_key_that_transformers_writes_is_known(path: Path) -> None:
    assert unknown(tiny.read_golden(path)[0]) == {}


REQUIRED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2},
    "glm4_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv"] * 32},
}
"""What transformers has no default for."""


@pytest.mark.parametrize("model_type", sorted(set(model_types()) - {"lapinfer"}))
def test_every_key_of_the_class_in_transformers_is_known(model_type: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.AutoConfig.for_model(model_type, **REQUIRED.get(model_type, {})).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {k: v for k, v in unknown(written).items() if not k.startswith("text_config.is_")} == {}


@pytest.mark.parametrize(
    ("key", "value", "tool"),
    [
        ("quantization_config", {"quant_method": "aqlm", "nbits_per_codebook": 16}, "AQLM"),
        ("quantization_config", {"quant_method": "hqq"}, "HQQ"),
        ("quantization_config", {"quant_method": "newer"}, "'newer'"),
        ("compression_config", {"quant_method": "vptq"}, "VPTQ"),
        ("quantization", {"bits": 4}, "quantized; load"),
    ],
)
def test_weights_that_others_quantized_are_told_by_their_tool(key: str, value: Any, tool: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"^config\.json: '{key}' says .*quantized.*--quant") as error:
        read(OF_A_KIND["llama"] | {key: value})
    assert tool in str(error.value)


@pytest.mark.parametrize("method", sorted(READ - {"mlx"}))
def test_methods_that_are_read_do_not_stand_in_the_way(method: str) -> None:
    assert read(OF_A_KIND["llama"] | {"quantization_config": {"quant_method": method}}) == []


def test_another_file_under_the_name_of_a_config() -> None:
    with pytest.raises(CheckpointError, match="more than 1000 keys"):
        read(OF_A_KIND["llama"] | {f"key{i}": i for i in range(2000)})


FUNCTIONAL = [
    ("attn_scale", 2.0), ("attention_chunk_size", 8192), ("logit_softcap", 30.0), ("use_layer_scale", True),
    ("moe_router_topk", 2), ("mlp_gate_bias", True), ("window_pattern", [1, 0]), ("ffn_norm_type", "dyt"),
    ("residual_gain_multiplier", 0.5), ("hidden_expansion_factor", 4),
    ("partial_rotary_dims", 16), ("embedding_scales", [1.5]), ("num_memory_slots", 1), ("per_layer_config", {"0": {}}),
]  # fmt: skip


@pytest.mark.parametrize("model_type", sorted(OF_A_KIND))
@pytest.mark.parametrize(("key", "value"), FUNCTIONAL, ids=lambda v: v if isinstance(v, str) else "")
def test_made_up_options_are_refused_by_name(model_type: str, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=rf"^config\.json: '{key}' is .*remove the key") as error:
        read(OF_A_KIND[model_type] | {key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model_type", sorted(set(OF_A_KIND) - {"gpt2"}))
def test_made_up_rope_parameters_are_refused(model_type: str) -> None:
    config = json.loads(json.dumps(OF_A_KIND[model_type]))
    rope = config["rope_parameters"]
    rope.get("full_attention", rope)["alpha"] = 1000.0
    with pytest.raises(UnsupportedError, match=r"'rope_parameters\.(full_attention\.)?alpha' is 1000"):
        read(config)


def test_rope_parameters_of_another_rule_are_left_aside() -> None:
    config = OF_A_KIND["llama"] | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32.0}}
    assert read(config) == []
    old = OF_A_KIND["gemma3_text"] | {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "alpha": 3.0}}
    with pytest.raises(UnsupportedError, match="alpha"):
        read(old)


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}, [False, None]])
def test_options_that_are_off_are_no_option(value: Any) -> None:
    assert read(OF_A_KIND["llama"] | {"use_layer_scale": value}) == []


def test_one_is_nothing_as_a_factor_only() -> None:
    assert read(OF_A_KIND["llama"] | {"residual_multiplier": 1, "attn_scale": 1.0}) == []
    assert is_functional("num_shared_experts", 1)
    assert is_functional("attn_scale", True)
    assert not is_functional("layer_types", ["full_attention"] * 2)
    assert is_functional("layer_types", ["full_attention", "sliding_attention"])


def test_other_unknown_keys_are_reported_in_one_line() -> None:
    config = OF_A_KIND["mistral"] | {"made_with": "forge 3", "lucky": 7}
    (line,) = read(config)
    assert line == "note: config.json: left aside, since it is not known here: 'made_with' ('forge 3'), 'lucky' (7)"
    assert spec_from_config(config, "") == spec_from_config(OF_A_KIND["mistral"], "")
    (line,) = read(config | {f"run_{i}": "x" * 10_000 for i in range(100)})
    assert "and 94 more" in line
    assert len(line) < 1000


def test_loading_tells_what_is_left_aside(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from lapinfer.loading import load_model

    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / "llama-plain.npz")
    (tmp_path / "config.json").write_text(json.dumps(config | {"lucky": 7}))
    save_file(stored, tmp_path / "model.safetensors")
    lines: list[str] = []
    load_model(tmp_path, progress=lambda line, *_: lines.append(str(line))).close()
    assert len([line for line in lines if "'lucky' (7)" in line]) == 1


def test_harmless_keys_are_spelled_once_and_harmless_in_each_family() -> None:
    for model_type, config in OF_A_KIND.items():
        assert read(config | {key: config.get(key, "x") for key in HARMLESS - {"dtype", "torch_dtype"}}) == []
        assert not set(family(family_of_model_type(model_type) or "").ignored_keys) & HARMLESS
