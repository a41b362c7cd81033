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
from family_cases import USUAL, of_model_type
from hypothesis import given, settings
from hypothesis import strategies as st

from lapinfer.errors import CheckpointError, LapinferError, UnsupportedError
from lapinfer.families import Source, families, model_types, sources_for, spec_from_config
from lapinfer.families.names import LAYOUTS, Layout
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors

BOUND = 5e-5
"""max|Δ logit| / max|logit| in float32: sums in another order give 1e-6, at most 1e-5; a wrong formula 1e-4 or more."""

CASES = {str(case): case for case in tiny.CASES}
GOLDEN = sorted(tiny.GOLDEN.glob("*.npz"))

OURS = "lapinfer"
"""The one model_type that transformers does not have (tests/test_fff_models.py)."""


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def sizes(model_type: str) -> dict[str, Any]:
    return {"model_type": model_type} | of_model_type(model_type, "SIZES", USUAL)


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


WITH_IMAGES = ("gemma3", "mistral3", "qwen3_5", "qwen3_5_moe")
"""Whose config.json holds that of a text part."""


def test_every_family_has_golden_files() -> None:
    """`python tests/tiny.py` writes those that are missing."""
    assert {path.stem for path in GOLDEN} == set(CASES)
    assert {case.family for case in tiny.CASES} | {*WITH_IMAGES, OURS} == set(model_types())


@pytest.mark.parametrize("model_type", sorted(set(model_types()) - {*WITH_IMAGES, OURS}))
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


ROUTED_CASES = [case for case in tiny.CASES if case.routed]


def routers_of(model: Any) -> dict[int, Any]:
    """transformers' routers by the number of their layer."""
    called = ("topkrouter", "choicerouter")
    return {
        int(name.split(".")[2]): m for name, m in model.named_modules() if type(m).__name__.lower().endswith(called)
    }


@pytest.mark.parametrize("case", ROUTED_CASES, ids=str)
def test_oracle_chooses_the_experts_that_transformers_chooses(case: tiny.Case) -> None:
    pytest.importorskip("transformers")
    model = tiny.build(case.family, case.config)
    told: dict[int, Any] = {}
    for layer, router in routers_of(model).items():
        router.register_forward_hook(lambda _module, _given, out, layer=layer: told.update({layer: out}))
    ids = tiny.prompt(case.config["vocab_size"])
    tiny.logits_of(model, ids)
    spec = spec_from_config(json.loads(json.dumps(model.config.to_dict())), "config.json")
    stored = {name: p.detach().numpy() for name, p in tiny.stored_parameters(model).items()}
    chosen: dict[int, np.ndarray] = {}
    reference.forward(spec, reference.load_weights(stored, spec), ids, routed=chosen)
    assert set(chosen) == set(told) == {i for i, layer in enumerate(spec.layers) if layer.feed_forward.router}
    for layer, experts in chosen.items():
        router = spec.layers[layer].feed_forward.router
        assert router is not None
        assert experts.shape == (len(ids), router.top_k)
        assert np.array_equal(np.sort(experts), np.sort(told[layer][2].numpy()))
        assert len(np.unique(experts)) > 1


@pytest.mark.parametrize("case", ROUTED_CASES, ids=str)
def test_saved_files_and_transformers_own_names_give_the_same_weights(case: tiny.Case, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = tiny.build(case.family, case.config)
    model.save_pretrained(tmp_path)
    spec = spec_from_config(read_config(tmp_path), "config.json")
    held = {name: p.detach().numpy() for name, p in tiny.stored_parameters(model).items()}
    fused, saved = reference.load_weights(held, spec), reference.load_weights(tmp_path, spec)
    assert all(np.array_equal(fused[name], saved[name]) for name in tensors(spec))


def in_layout(layout: Layout, weights: dict[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    """The routed experts of a layer of ours as a file of this layout has them."""
    at = f"model.layers.{layer}."
    up, down = (weights[f"layers.{layer}.experts.{part}"] for part in ("gate_up", "down"))
    if "{}" not in layout.down:
        return {at + layout.gate_up[0]: up, at + layout.down: down}
    stored = {}
    for e in range(len(up)):
        for name, rows in zip(layout.gate_up, np.split(up[e], 2), strict=True):
            stored[at + name.format(e)] = rows
        stored[at + layout.down.format(e)] = down[e]
    return stored


@pytest.mark.parametrize(
    "name", ["mixtral-plain", "qwen3_moe-plain", "olmoe-plain", "granitemoe-plain", "phimoe-plain", "lfm2_moe-plain"]
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.down)
def test_every_layout_of_experts_gives_the_same_weights(name: str, layout: Layout) -> None:
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{name}.npz")
    spec = spec_from_config(config, "config.json")
    weights = reference.load_weights(stored, spec)
    other = {name: value for name, value in stored.items() if ".experts." not in name}
    for i, layer in enumerate(spec.layers):
        if layer.feed_forward.router is not None:
            other |= in_layout(layout, weights, i)
    found = reference.load_weights(other, spec)
    assert all(np.array_equal(found[n], weights[n]) for n in tensors(spec))


def test_gpt_oss_blocks_and_floats_give_the_same_weights() -> None:
    sizes_of_blocks = {"model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 32, "head_dim": 16}
    spec = spec_of(**sizes_of_blocks, quantization_config={"quant_method": "mxfp4"})
    rng = np.random.default_rng(0)
    floats: dict[str, np.ndarray] = {}
    blocks: dict[str, np.ndarray] = {}
    for name, sources in sources_for(spec).items():
        shape = tensors(spec)[name].shape
        if ".experts." not in name:  # whole tensors, in as many equal parts as there are sources
            for source in sources:
                rows = {"q": 64, "k": 32, "v": 32}.get(source.name.rsplit(".", 2)[-2][0], shape[0])
                floats[source.name] = rng.standard_normal((rows, *shape[1:]), dtype=np.float32)
        elif name.endswith("bias"):
            floats[sources[0].name] = rng.standard_normal(shape, dtype=np.float32)
        else:
            of, (E, R, C) = sources[0].name.removesuffix("_blocks"), shape
            blocks[f"{of}_blocks"] = rng.integers(0, 256, (E, R, C // 32, 16), np.uint8)
            blocks[f"{of}_scales"] = rng.integers(120, 130, (E, R, C // 32), np.uint8)
    dense = {
        name.removesuffix("_blocks"): reference.mxfp4(value, blocks[name.removesuffix("blocks") + "scales"])
        for name, value in blocks.items()
        if name.endswith("_blocks")
    }
    found = reference.load_weights(floats | blocks, spec)
    expected = reference.load_weights(floats | {n: np.swapaxes(v, 1, 2) for n, v in dense.items()}, spec)
    assert all(np.array_equal(found[name], expected[name]) for name in tensors(spec))
    gate_up = dense["model.layers.1.mlp.experts.gate_up_proj"][2]
    np.testing.assert_array_equal(found["layers.1.experts.gate_up"][2, :32], gate_up[::2])
    np.testing.assert_array_equal(found["layers.1.experts.gate_up"][2, 32:], gate_up[1::2])


def test_mxfp4_blocks_are_the_numbers_that_the_format_means() -> None:
    block = np.arange(16, dtype=np.uint8) * 17  # twice each: 0x00, 0x11, …
    values = reference.mxfp4(block.reshape(1, 1, 1, 16), np.array([[[128]]], np.uint8))
    positive = [0, 1, 2, 3, 4, 6, 8, 12]
    assert values.ravel().tolist() == [v for v in [*positive, *(-v for v in positive)] for _ in "ab"]
    low_first = reference.mxfp4(np.full((1, 1, 1, 16), 0x21, np.uint8), np.array([[[127]]], np.uint8))
    assert low_first.ravel()[:2].tolist() == [0.5, 1.0]


def test_shared_experts_are_split_and_filled_up_with_zeros() -> None:
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / "qwen2_moe-dense_layer.npz")
    spec = spec_from_config(config, "config.json")
    weights = reference.load_weights(stored, spec)
    shared = {part: stored[f"model.layers.0.mlp.shared_expert.{part}_proj.weight"] for part in ("gate", "up", "down")}
    assert spec.layers[0].feed_forward.shared == 2  # 40 of 24 and 16
    for part, at in (("gate", 0), ("up", 24)):
        both = weights["layers.0.experts.gate_up"][6:, at : at + 24].reshape(48, -1)
        np.testing.assert_array_equal(both[:40], shared[part])
        assert not both[40:].any()
    down = np.hstack(list(weights["layers.0.experts.down"][6:]))
    np.testing.assert_array_equal(down[:, :40], shared["down"])
    assert not down[:, 40:].any()


def test_only_the_first_of_equal_scores_is_chosen() -> None:
    equal = np.zeros((2, 6), np.float32)
    assert reference.first_largest(equal, 3).tolist() == [[0, 1, 2]] * 2


PREFIXES = [
    ("llama-plain", "model.", ""),
    ("gpt2-plain", "transformer.", ""),
    ("deepseek_v3-groups", "model.", ""),
    ("gpt_oss-yarn", "model.", ""),
    ("lfm2_moe-plain", "model.", ""),
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


LFM2_12B = {"model_type": "lfm2", "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8}


def test_lfm2_in_the_words_of_older_files() -> None:
    old = {"block_ff_dim": 12288, "full_attn_idxs": [2, 4], "tie_embedding": False, "rope_theta": 1e6}
    spec = spec_of(**LFM2_12B, **old, block_multiple_of=256, block_ffn_dim_multiplier=1.0, tie_word_embeddings=True)
    new = {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"], "tie_word_embeddings": False}
    assert spec == spec_of(**LFM2_12B, **new, intermediate_size=8192, block_auto_adjust_ff_dim=False)


@pytest.mark.parametrize(
    ("config", "width"),
    [({}, 256), ({"block_multiple_of": 48}, 96), ({"block_ffn_dim_multiplier": None}, 66),
     ({"block_multiple_of": 1, "block_ffn_dim_multiplier": 1.5}, 99), ({"block_auto_adjust_ff_dim": False}, 100)],
)  # fmt: skip
def test_width_of_lfm2s_feed_forward(config: dict[str, Any], width: int) -> None:
    assert spec_of(**LFM2_12B, intermediate_size=100, **config).layers[0].feed_forward.width == width


def test_phimoe_has_scales_of_its_own_for_each_context() -> None:
    rope = spec_of(model_type="phimoe", rope_scaling=of_model_type("phimoe", "LONGROPE", None)).layers[0].attention.rope
    assert rope is not None
    assert (rope.scale, rope.long_scale, rope.long_context) == (1.2, 1.4, 16)
    assert np.allclose(np.array(rope.inv_freq), 2 * np.array(rope.long_inv_freq))


def from_families(what: str) -> list[tuple[str, dict[str, Any]]]:
    """(word in the message, config) of all families' test files."""
    return [
        (named, {"model_type": family.model_types[0]} | config)
        for family in families().values()
        for named, config in of_model_type(family.model_types[0], what, [])
    ]


REFUSED = [
    ("model_type", {"model_type": "mamba"}),
    ("hidden_act", {"hidden_act": "quick_gelu"}),
    ("quantization_config", {"quantization_config": {"quant_method": "exl2"}}),
    ("is_encoder_decoder", {"is_encoder_decoder": True}),
    ("rope_type", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    ("'type'", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
    ("full_attention", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
]
"""Of a Llama, unless told otherwise; each family has more of its own."""


@pytest.mark.parametrize(
    ("named", "config"), [*REFUSED, *from_families("REFUSED")], ids=lambda v: v if isinstance(v, str) else ""
)
def test_unsupported_options_are_refused_by_name(named: str, config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as error:
        spec_of(**config)
    assert named in str(error.value)
    assert "config.json" in str(error.value)


def test_unknown_model_type_lists_the_supported_ones() -> None:
    with pytest.raises(UnsupportedError) as error:
        spec_of(model_type="mamba")
    assert all(name in str(error.value) for name in model_types())


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
    ("text_config", {"model_type": "gemma3", "text_config": 3}),
]
"""Of a Llama, unless told otherwise; each family has more of its own."""


@pytest.mark.parametrize(
    ("named", "config"), [*WRONG, *from_families("WRONG")], ids=lambda v: v if isinstance(v, str) else ""
)
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
    assert all(size > 0 for tensor in tensors(spec).values() for size in tensor.shape)
    assert all(math.isfinite(number) for number in numbers_in(spec))


def numbers_in(value: Any) -> list[float]:
    """All numbers inside a spec, layers that are equal counted once."""
    if dataclasses.is_dataclass(value):
        return [n for f in dataclasses.fields(value) for n in numbers_in(getattr(value, f.name))]
    if isinstance(value, tuple):
        return [n for item in set(value) for n in numbers_in(item)]
    return [value] if isinstance(value, int | float) else []


def test_qwen3_5_with_images_is_its_text_part() -> None:
    """By the names of published files, which lie below model.language_model."""
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / "qwen3_5_text-plain.npz")
    both = {"model_type": "qwen3_5", "text_config": config, "vision_config": {"hidden_size": 16}}
    spec = spec_from_config(both, "config.json")
    assert spec == spec_from_config(config, "config.json")
    renamed = {n.replace("model.", "model.language_model.", 1): v for n, v in stored.items()}
    weights, expected = reference.load_weights(renamed, spec), reference.load_weights(stored, spec)
    assert all(np.array_equal(weights[n], expected[n]) for n in tensors(spec))
    assert spec_from_config(both | {"text_config": config | {"model_type": "qwen3_5_text"}}, "config.json") == spec
    with pytest.raises(UnsupportedError, match="model_type"):
        spec_from_config(both | {"text_config": config | {"model_type": "llama"}}, "config.json")
