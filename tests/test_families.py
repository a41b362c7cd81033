"""Families: parity with transformers through the oracle, golden logits, both spellings, refusals, hostile configs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lapinfer.errors import CheckpointError, LapinferError, UnsupportedError
from lapinfer.families import FAMILIES, Source, sources_for, spec_from_config
from lapinfer.spec import ModelSpec, tensors

BOUND = 5e-5
"""max|Δ logit| / max|logit| in float32: sums in another order give 1e-6, at most 1e-5; a wrong formula 1e-4 or more."""

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2_SIZES = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
CASES = {str(case): case for case in tiny.CASES}
GOLDEN = sorted(tiny.GOLDEN.glob("*.npz"))


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def sizes(model_type: str) -> dict[str, Any]:
    return {"model_type": model_type, **(GPT2_SIZES if model_type == "gpt2" else SIZES)}


def spec_of(**config: Any) -> ModelSpec:
    return spec_from_config(sizes(config.get("model_type", "llama")) | config, "config.json")


@pytest.mark.parametrize("case", tiny.CASES, ids=str)
def test_oracle_agrees_with_transformers(case: tiny.Case, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder, ids, expected = tiny.make(case, tmp_path)
    spec = spec_from_config(read_config(folder), "config.json")
    logits = reference.forward(spec, reference.load_weights(folder, spec), ids)
    assert distance(logits, expected) <= BOUND


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_logits(path: Path) -> None:
    config, stored, ids, expected = tiny.read_golden(path)
    spec = spec_from_config(config, "config.json")
    logits = reference.forward(spec, reference.load_weights(stored, spec), ids)[-tiny.KEPT :]
    assert distance(logits, expected) <= BOUND


def test_every_family_has_golden_files() -> None:
    assert {path.stem for path in GOLDEN} == set(CASES)
    assert {case.family for case in tiny.CASES} | {"gemma3"} == set(FAMILIES)


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - {"gemma3"}))
def test_absent_options_mean_what_transformers_means(model_type: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    written = transformers.AutoConfig.for_model(**sizes(model_type), pad_token_id=None)
    written.save_pretrained(tmp_path)
    assert spec_from_config(sizes(model_type), "short") == spec_from_config(read_config(tmp_path), "long")


def old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with rope_theta and rope_scaling, as files before transformers 5 have it."""
    old = dict(config)
    rope = dict(old.pop("rope_parameters"))
    if "full_attention" in rope:
        full, sliding = dict(rope["full_attention"]), rope["sliding_attention"]
        old |= {"rope_local_base_freq": sliding["rope_theta"], "rope_theta": full.pop("rope_theta")}
        return old | {"rope_scaling": full}
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            old[key] = rope.pop(key)
    kind = rope.pop("rope_type")
    return old | {"rope_scaling": {"type": kind, **rope} if kind != "default" else None}


@pytest.mark.parametrize("path", [p for p in GOLDEN if not p.stem.startswith("gpt2")], ids=lambda path: path.stem)
def test_old_and_new_spelling_of_rope_agree(path: Path) -> None:
    config = tiny.read_golden(path)[0]
    assert spec_from_config(old_spelling(config), "old") == spec_from_config(config, "new")


PREFIXES = [
    ("llama-plain", "model.", ""),
    ("gpt2-plain", "transformer.", ""),
    ("gemma3_text-options", "model.", "language_model.model."),
    ("gemma3_text-options", "model.", "model.language_model."),
]


@pytest.mark.parametrize(("name", "usual", "prefix"), PREFIXES)
def test_published_prefixes_of_stored_tensors(name: str, usual: str, prefix: str) -> None:
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{name}.npz")
    renamed = {(prefix + n.removeprefix(usual) if n.startswith(usual) else n): v for n, v in stored.items()}
    spec = spec_from_config(config, "config.json")
    weights, expected = reference.load_weights(renamed, spec), reference.load_weights(stored, spec)
    assert all(np.array_equal(weights[n], expected[n]) for n in tensors(spec))


def test_gemma3_with_images_is_its_text_part() -> None:
    config = tiny.read_golden(tiny.GOLDEN / "gemma3_text-options.npz")[0]
    both = {"model_type": "gemma3", "text_config": config, "vision_config": {"hidden_size": 16}}
    assert spec_from_config(both, "config.json") == spec_from_config(config, "config.json")
    untied = spec_from_config(both | {"tie_word_embeddings": False}, "config.json")
    names = ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"]
    assert sources_for(untied, names)["head"] == (Source("language_model.lm_head.weight"),)


def test_gemma_embedding_scale_is_rounded_to_the_stored_type() -> None:
    assert spec_of(model_type="gemma2", hidden_size=3072, dtype="bfloat16").embed_scale == 55.5
    assert spec_of(model_type="gemma2", hidden_size=3072, torch_dtype="float16").embed_scale == 55.4375
    assert spec_of(model_type="gemma2", hidden_size=3072).embed_scale == pytest.approx(math.sqrt(3072), rel=1e-7)


def test_rope_frequencies_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for dim, theta in ((64, 10_000.0), (128, 500_000.0), (80, 1e6), (256, 1e4)):
        spec = spec_of(head_dim=dim, rope_theta=theta)
        rope = spec.layers[0].attention.rope
        assert rope is not None
        expected = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
        np.testing.assert_allclose(np.float32(rope.inv_freq), expected.numpy(), rtol=2.5e-7)  # two units in last place


REFUSALS = [
    ("model_type", {"model_type": "mamba"}),
    ("hidden_act", {"hidden_act": "quick_gelu"}),
    ("quantization_config", {"quantization_config": {"quant_method": "gptq"}}),
    ("add_cross_attention", {"model_type": "gpt2", "add_cross_attention": True}),
    ("is_encoder_decoder", {"is_encoder_decoder": True}),
    ("use_bidirectional_attention", {"model_type": "gemma3_text", "use_bidirectional_attention": True}),
    ("attn_logit_softcapping", {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}),
    ("rope_type", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    ("'type'", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    ("rope_type", {"model_type": "phi3", "rope_parameters": {"rope_type": "llama3"}}),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
    ("full_attention", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
    ("rope_parameters", {"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}}),
    ("layer_types", {"model_type": "qwen2", "layer_types": ["chunked_attention"] * 5}),
    ("layer_types", {"model_type": "mistral", "layer_types": ["full_attention"] * 5}),
]


@pytest.mark.parametrize(("named", "config"), REFUSALS, ids=lambda v: v if isinstance(v, str) else "")
def test_unsupported_options_are_refused_by_name(named: str, config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as error:
        spec_of(**config)
    assert named in str(error.value)
    assert "config.json" in str(error.value)


def test_unknown_model_type_lists_the_supported_ones() -> None:
    with pytest.raises(UnsupportedError) as error:
        spec_of(model_type="mamba")
    assert all(name in str(error.value) for name in FAMILIES)


WRONG = [
    ("hidden_size", {"hidden_size": None}),
    ("hidden_size", {"hidden_size": 33}),
    ("hidden_size", {"hidden_size": "32"}),
    ("num_hidden_layers", {"num_hidden_layers": -1}),
    ("num_hidden_layers", {"num_hidden_layers": 10**30}),
    ("num_key_value_heads", {"num_key_value_heads": 3}),
    ("vocab_size", {"vocab_size": True}),
    ("rms_norm_eps", {"rms_norm_eps": math.nan}),
    ("rope_theta", {"rope_theta": math.inf}),
    ("rope_theta", {"rope_theta": 0}),
    ("attention_bias", {"attention_bias": "yes"}),
    ("rope_scaling", {"rope_scaling": [1]}),
    ("dimensions of a head", {"head_dim": 7}),
    (
        "low_freq_factor",
        {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
    ),
    ("short_factor", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}}),
    ("layer_types", {"model_type": "qwen2", "layer_types": ["full_attention"]}),
    ("sliding_window", {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 5}),
    ("no_rope_layers", {"model_type": "smollm3", "no_rope_layers": [2] * 5}),
    ("text_config", {"model_type": "gemma3", "text_config": 3}),
]


@pytest.mark.parametrize(("named", "config"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_impossible_values_are_one_clear_line(named: str, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as error:
        spec_of(**config)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_missing_key_is_named() -> None:
    with pytest.raises(CheckpointError, match="'vocab_size' is missing"):
        spec_from_config({k: v for k, v in sizes("llama").items() if k != "vocab_size"}, "config.json")
    for config in ([], None, 3, {}):
        with pytest.raises(CheckpointError, match="model_type"):
            spec_from_config(config, "config.json")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.floats(0, 4),
    st.text(max_size=8),
    st.sampled_from(["linear", "llama3", "yarn", "longrope", "dynamic", "su", "sliding_attention", "gelu", 10**5000]),
    st.recursive(st.none() | st.floats(), lambda inner: st.lists(inner, max_size=4), max_leaves=5),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention"]), st.floats(), max_size=2),
)
ROPE_KEYS = sorted(
    {key for path in GOLDEN for key in (tiny.read_golden(path)[0].get("rope_parameters") or {})}
    | {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "type"}
)
CONFIGS = [tiny.read_golden(path)[0] for path in GOLDEN]


@settings(deadline=2000, max_examples=1500)
@given(data=st.data())
def test_hostile_configs_give_an_error_of_ours_or_a_whole_spec(data: st.DataObject) -> None:
    config = json.loads(json.dumps(data.draw(st.sampled_from(CONFIGS))))
    for _ in range(data.draw(st.integers(1, 3))):
        target = config
        if isinstance(config.get("rope_parameters"), dict) and data.draw(st.booleans()):
            target = config["rope_parameters"]
        key = data.draw(st.sampled_from(ROPE_KEYS if target is not config else sorted({*config, "rope_scaling"})))
        if data.draw(st.booleans()):
            target[key] = data.draw(VALUES)
        else:
            target.pop(key, None)
    try:
        spec = spec_from_config(config, "config.json")
    except LapinferError:
        return
    assert set(sources_for(spec)) == set(tensors(spec))
    assert all(size > 0 for shape in tensors(spec).values() for size in shape)
    assert all(math.isfinite(number) for number in numbers_in(spec))


def numbers_in(value: Any) -> list[float]:
    """All numbers inside a spec, layers that are equal counted once."""
    if dataclasses.is_dataclass(value):
        return [n for f in dataclasses.fields(value) for n in numbers_in(getattr(value, f.name))]
    if isinstance(value, tuple):
        return [n for item in set(value) for n in numbers_in(item)]
    return [value] if isinstance(value, int | float) else []
