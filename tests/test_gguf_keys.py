"""Keys of GGUF files mean what they mean to llama.cpp: read, harmless, told, or refused by name."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

import gguf_files  # noqa: E402

from lapinfer.checkpoint.gguf import GGUFCheckpoint  # noqa: E402
from lapinfer.errors import CheckpointError, UnsupportedError  # noqa: E402
from lapinfer.families import spec_from_config  # noqa: E402

KINDS = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32,
         str: gguf.GGUFValueType.STRING, list: gguf.GGUFValueType.ARRAY}  # fmt: skip


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


def opened(folder, keys, architecture="llama", **options):
    """A tiny checkpoint with these keys besides; dots of names without a section are those of the architecture."""
    extra = {(k if k.split(".")[0] in ("general", "tokenizer") else f"{architecture}.{k}"): (v, KINDS[type(v)])
             for k, v in keys.items()}  # fmt: skip
    return GGUFCheckpoint(gguf_files.write(folder / "m.gguf", architecture, extra=extra, **options))


def spec_of(checkpoint):
    return spec_from_config(checkpoint.config, str(checkpoint.path))


def frequencies(checkpoint):
    return spec_of(checkpoint).layers[0].attention.rope.inv_freq


@pytest.mark.parametrize(
    ("keys", "divisor"),
    [
        ({}, 1),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 4),
        ({"rope.scaling.factor": 4.0}, 4),  # without a type it is linear
        ({"rope.scale_linear": 4.0}, 4),  # the key of 2023
        ({"rope.scale_linear": 4.0, "rope.scaling.factor": 2.0}, 2),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 1),
        ({"rope.scaling.factor": 0.0}, 1),
        ({"rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.0, "rope.scaling.finetuned": True}, 4),
    ],
)  # fmt: skip
def test_linear_scaling_of_positions(tmp_path, keys, divisor):
    plain, scaled = (np.array(frequencies(opened(tmp_path / n, k))) for n, k in (("a", {}), ("b", keys))
                     if not (tmp_path / n).mkdir())  # fmt: skip
    np.testing.assert_allclose(scaled, plain / divisor, rtol=1e-6)


def test_yarn_with_its_parameters(tmp_path):
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.attn_factor": 0.5}  # fmt: skip
    scaling = opened(tmp_path, yarn, "qwen2").config["rope_scaling"]
    assert scaling["attention_factor"] == pytest.approx(0.5 * (0.1 * np.log(4) + 1))
    assert (scaling["rope_type"], scaling["factor"]) == ("yarn", 4)
    assert scaling["original_max_position_embeddings"] == 16


def test_frequencies_are_taken_only_where_llama_cpp_takes_them(tmp_path):
    factors = {"rope_freqs.weight": np.ones(4, np.float32)}
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight is not known in this architecture"):
        opened(tmp_path, {}, "qwen2", tensors=factors)
    with pytest.raises(UnsupportedError, match="beside another scaling"):
        opened(tmp_path, {"rope.scaling.factor": 2.0}, tensors=factors)
    short = {"rope_factors_short.weight": np.ones(4, np.float32)}
    with pytest.raises(CheckpointError, match="rope_factors_long"):
        opened(tmp_path, {"rope.scaling.type": "longrope"}, "phi3", tensors=short)


@pytest.mark.parametrize(
    ("architecture", "keys", "config"),
    [
        ("gemma2", {"attn_logit_softcapping": 0.0}, {"attn_logit_softcapping": None}),
        ("gemma3", {"attention.sliding_window_pattern": 2}, {"layer_types": ["sliding_attention"]}),
        ("gemma3", {"attention.sliding_window_pattern": [False]}, {"layer_types": ["full_attention"]}),
        ("gemma3", {"rope.freq_base_swa": 5000.0, "rope.scaling.factor": 8.0}, {"rope_local_base_freq": 5000.0}),
        ("granite", {"attention.scale": 0.0, "residual_scale": 0.5}, {"attention_multiplier": 8**-0.5}),
        ("llama", {"feed_forward_length": [64]}, {"intermediate_size": 64}),
        ("llama", {"attention.head_count_kv": [2]}, {"num_key_value_heads": 2}),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path, architecture, keys, config):
    read = opened(tmp_path, keys, architecture).config
    assert {key: read.get(key) for key in config} == config


def test_gemma2_has_caps_unless_told(tmp_path):
    """ggml-org/llama.cpp#8197: files of the first days lack the keys, and the caps are there all the same."""
    spec = spec_of(opened(tmp_path, {}, "gemma2"))
    assert (spec.layers[0].attention.softcap, spec.logit_softcap) == (50, 30)


@pytest.mark.parametrize(
    "keys",
    [
        {"vocab_size": 12, "attention.causal": True, "pooling_type": 0, "expert_count": 0, "expert_used_count": 0},
        {"attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "use_parallel_residual": False},
        {"attention.scale": 8**-0.5, "logit_scale": 1.0, "swin_norm": False, "attention.layer_norm_epsilon": 1e-5},
        {"general.sampling.temp": 0.0, "general.base_model.0.name": "x", "general.tags": ["a"], "general.file_type": 7},
        {"tensor_data_layout": "Meta AI original pth", "rope.dimension_sections": [0, 0], "hidden_activation": "silu"},
        {"tokenizer.ggml.remove_extra_whitespaces": True, "tokenizer.ggml.token_type_count": 1,
         "tokenizer.ggml.seperator_token_id": 3, "tokenizer.ggml.add_sep_token": False},
    ],
)  # fmt: skip
def test_what_changes_nothing(tmp_path, keys):
    checkpoint = opened(tmp_path, keys)
    assert [line for line in checkpoint.notices if "of 300 tokens" not in line] == []


@pytest.mark.parametrize(
    ("architecture", "keys", "named"),
    [
        ("llama", {"attention.clamp_kqv": 8.0}, "attention.clamp_kqv"),
        ("llama", {"attention.max_alibi_bias": 8.0}, "attention.max_alibi_bias"),
        ("llama", {"attention.causal": False}, "attention.causal"),
        ("llama", {"attention.scale": 0.25}, "attention.scale"),
        ("llama", {"logit_scale": 0.25}, "logit_scale"),
        ("llama", {"residual_scale": 0.25}, "residual_scale"),
        ("llama", {"embedding_scale": 12.0}, "embedding_scale"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("llama", {"use_parallel_residual": True}, "use_parallel_residual"),
        ("llama", {"expert_count": 8}, "mixture of experts"),
        ("llama", {"expert_used_count": 2}, "expert_used_count"),
        ("llama", {"leading_dense_block_count": 1}, "leading_dense_block_count"),
        ("llama", {"attention.key_length_mla": 192}, "attention.key_length_mla"),
        ("llama", {"attention.key_length_swa": 16}, "attention.key_length_swa"),
        ("llama", {"attention.temperature_scale": 0.1}, "attention.temperature_scale"),
        ("llama", {"ssm.conv_kernel": 4}, "ssm.conv_kernel"),
        ("llama", {"rope.dimension_sections": [16, 24, 24]}, "rope.dimension_sections"),
        ("llama", {"rope.scaling.type": "of-tomorrow"}, "rope.scaling.type"),
        ("llama", {"rope.scaling.attn_factor": 1.5}, "rope.scaling.attn_factor"),
        ("llama", {"rope.scaling.alpha": 1000.0}, "rope.scaling.alpha"),
        ("llama", {"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ("llama", {"rope.scaling.type": "yarn", "rope.scaling.yarn_beta_fast": 16.0}, "yarn_beta_fast"),
        ("llama", {"rope.scaling.type": "yarn", "rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ("llama", {"rope.dimension_count": 4}, "rotates 4 of 8"),
        ("llama", {"tensor_data_layout": "of-tomorrow"}, "tensor_data_layout"),
        ("llama", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("qwen2", {"attention.sliding_window": 16}, "sliding window"),
        ("qwen3", {"attention.sliding_window": 16}, "sliding window"),
        ("gemma2", {"rope.freq_base_swa": 5000.0}, "rope.freq_base_swa"),
        ("granite", {"rope.scaling.finetuned": False}, "without rotary positions"),
        ("qwen3", {"tensor_data_layout": "Meta AI original pth"}, "tensor_data_layout"),
        ("llama", {"general.type": "adapter"}, "a LoRA adapter without its model"),
        ("llama", {"general.type": "imatrix"}, "an importance matrix"),
        ("llama", {"general.type": "mmproj"}, "sees or hears"),
        ("llama", {"general.type": "of-tomorrow"}, "general.type is 'of-tomorrow'"),
        ("clip", {}, "sees or hears"),
        ("llama", {"tokenizer.ggml.normalizer.lowercase": True}, "normalizer.lowercase"),
    ],
)  # fmt: skip
def test_what_is_refused_by_name(tmp_path, architecture, keys, named):
    with pytest.raises(UnsupportedError, match=named):
        opened(tmp_path, keys, architecture)


@pytest.mark.parametrize(
    ("architecture", "keys", "named"),
    [
        ("gemma3", {"attention.sliding_window": 0}, "gemma3.attention.sliding_window is missing or 0"),
        ("gemma3", {"attention.sliding_window_pattern": [True, True]}, r"a period, or 1 flags"),
        ("llama", {"attention.head_count_kv": [2, 2]}, "2 values, expected one for each of 1 layers"),
        ("llama", {"rope.freq_base": "10000"}, "rope.freq_base is 10000, expected a number"),
        ("llama", {"rope.freq_base": float("nan")}, "rope.freq_base is nan, expected a finite number"),
        ("llama", {"rope.scaling.factor": -2.0}, "rope.scaling.factor is -2, expected a positive number"),
        ("llama", {"rope.scaling.type": 1}, "rope.scaling.type is 1, expected a string"),
        ("granite", {"attention.key_length": 0}, "attention.key_length is 0, expected at least 1"),
        ("granite", {"logit_scale": "8"}, "logit_scale is 8, expected a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_true(tmp_path, architecture, keys, named):
    with pytest.raises(CheckpointError, match=named):
        opened(tmp_path, keys, architecture)


def test_layers_beyond_block_count_are_not_dropped(tmp_path):
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_norm\.weight' is beyond the 1 layers"):
        opened(tmp_path, {}, tensors={"blk.1.attn_norm.weight": np.ones(32, np.float32)})


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"pooling_type": 3}, "llama.pooling_type (3: a model for embeddings)"),
        ({"general.of_tomorrow": "x"}, "'general.of_tomorrow' ('x')"),
        ({"tokenizer.ggml.suppress_tokens": [3]}, "'tokenizer.ggml.suppress_tokens'"),
    ],
)
def test_what_is_told(tmp_path, keys, told):
    assert told in "\n".join(opened(tmp_path, keys).notices)


def test_an_old_quantization_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match=r"general\.quantization_version is 1, expected 2"):
        opened(tmp_path, {"general.quantization_version": 1}, kind="Q8_0")
    opened(tmp_path, {"general.quantization_version": 1}, kind="F16")
