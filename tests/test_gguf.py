"""GGUF files: what llama.cpp's converter changed is undone exactly, and the tokenizer is the published one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers

gguf = pytest.importorskip("gguf")

import gguf_files  # noqa: E402

from lapinfer.checkpoint.gguf import GGUFCheckpoint  # noqa: E402
from lapinfer.errors import UnsupportedError  # noqa: E402
from lapinfer.families import families, sources_for, spec_from_config  # noqa: E402
from lapinfer.packing.assemble import Assembler  # noqa: E402
from lapinfer.packing.pack import pack_checkpoint  # noqa: E402
from lapinfer.packing.reader import PackedFile  # noqa: E402
from lapinfer.quant.blocks import unpack  # noqa: E402
from lapinfer.quant.choice import matrix_format  # noqa: E402
from lapinfer.quant.formats import FORMATS, KEPT, STORED  # noqa: E402
from lapinfer.quant.groups import GroupFormat  # noqa: E402
from lapinfer.quant.quantize import quantize  # noqa: E402
from lapinfer.spec import GrowthSpec  # noqa: E402
from lapinfer.tensors import tensors  # noqa: E402


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


ARCHITECTURES = [known.gguf.architecture for known in families().values() if known.gguf is not None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_all_tensors_of_its_model(tmp_path, architecture):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", architecture))
    notices = []
    spec = spec_from_config(checkpoint.config, str(checkpoint.path), notices.append)
    assembler = Assembler(checkpoint, sources_for(spec, checkpoint.names()))
    for tensor in tensors(spec).values():
        assembler.check(tensor)
    assert len(checkpoint.names()) == len(gguf_files.weights(architecture))
    assert notices == []


@pytest.mark.parametrize(
    "architecture", ["llama", "granite", "smollm3", "qwen2", "gemma", "gemma2", "gemma3", "mistral3", "ernie4_5"]
)
def test_weights_come_back_as_published(tmp_path, architecture):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", architecture))
    weights = gguf_files.weights(architecture)
    for name, stored in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.0.self_attn.q_proj", "blk.0.attn_q"),
        ("model.layers.0.self_attn.k_proj", "blk.0.attn_k"),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
    ):
        expected = weights[f"{stored}.weight"]
        np.testing.assert_allclose(checkpoint.read(f"{name}.weight"), expected, atol=2e-7)
        np.testing.assert_allclose(checkpoint.read(f"{name}.weight", 3, 9), expected[3:9], atol=2e-7)
        assert checkpoint.shape(f"{name}.weight") == expected.shape
    assert len(checkpoint.names()) == len(weights)


def test_gpt_neox_has_rows_of_a_head_together_again(tmp_path):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", "gptneox"))
    weights = gguf_files.weights("gptneox")
    for suffix in ("weight", "bias"):
        name, expected = f"gpt_neox.layers.0.attention.query_key_value.{suffix}", weights[f"blk.0.attn_qkv.{suffix}"]
        np.testing.assert_array_equal(checkpoint.read(name), expected)
        np.testing.assert_array_equal(checkpoint.read(name, 5, 40), expected[5:40])


def test_mistral3_says_how_queries_grow(tmp_path):
    kinds = gguf.GGUFValueType
    extra = {
        "mistral3.attention.temperature_scale": (0.1, kinds.FLOAT32),
        "mistral3.rope.scaling.type": ("yarn", kinds.STRING),
        "mistral3.rope.scaling.factor": (16.0, kinds.FLOAT32),
        "mistral3.rope.scaling.original_context_length": (16, kinds.UINT32),
        "mistral3.rope.scaling.yarn_log_multiplier": (1.0, kinds.FLOAT32),
    }
    config = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", "mistral3", extra=extra)).config
    attention = spec_from_config(config, "config.json").layers[0].attention
    assert attention.growth == GrowthSpec(0.1, 16)
    assert (attention.rope.scale, config["rope_scaling"]["mscale"]) == (1.0, 1.0)


def test_gpt2_is_stored_in_by_out(tmp_path):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", "gpt2"))
    weights = gguf_files.weights("gpt2")
    name, expected = "transformer.h.0.mlp.c_fc.weight", weights["blk.0.ffn_up.weight"].T
    assert checkpoint.shape(name) == expected.shape
    np.testing.assert_array_equal(checkpoint.read(name, 2, 7), expected[2:7])
    np.testing.assert_array_equal(checkpoint.read("transformer.wpe.weight"), weights["position_embd.weight"])
    np.testing.assert_array_equal(checkpoint.read("transformer.h.0.attn.c_attn.bias"), weights["blk.0.attn_qkv.bias"])


EXACT = {
    kind: form
    for kind, form in STORED.items()
    if isinstance(form, GroupFormat) and type(form).from_gguf is not GroupFormat.from_gguf and kind != "IQ4_NL"
}
"""Types whose groups are taken as they are, and the formats that hold them. The gguf package writes no IQ4_NL."""


@pytest.mark.parametrize("kind", EXACT)
def test_groups_are_exact(tmp_path, kind):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", kind=kind))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        assert checkpoint.stored_as(name) == kind
        for rows in ((0, None), (3, 11)):
            grouped = checkpoint.read_grouped(name, *rows)
            assert grouped is not None
            assert grouped.format is EXACT[kind]
            np.testing.assert_array_equal(grouped.weights(), checkpoint.read(name, *rows))
    assert checkpoint.read_grouped("model.norm.weight") is None


@pytest.mark.parametrize("kind", EXACT)
def test_packed_as_auto_they_stay_what_they_are(tmp_path, kind):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", kind=kind))
    spec = spec_from_config(checkpoint.config, "config.json")
    packed = PackedFile(pack_checkpoint(checkpoint, tmp_path / "packed", "auto"), tensors(spec).values())
    assert packed.metadata["calibration"] == "none"
    assert packed.format("layers.0.down") == EXACT[kind].name
    stored = checkpoint.read("model.layers.0.mlp.down_proj.weight")
    values = unpack(EXACT[kind].name, packed.tensor("layers.0.down"), (stored.shape[0], stored.shape[1]))
    np.testing.assert_array_equal(values, stored)


def test_groups_that_float16_cannot_hold(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", kind="Q4_0")
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    data = bytearray(path.read_bytes())
    data[tensor.data_offset : tensor.data_offset + 2] = np.float16(10000).tobytes()
    path.write_bytes(data)
    assert GGUFCheckpoint(path).read_grouped("model.layers.0.mlp.up_proj.weight") is None


def test_eight_bit_code_out_of_range(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", kind="Q8_0")
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    data = bytearray(path.read_bytes())
    data[tensor.data_offset + 2] = 0x80
    path.write_bytes(data)
    assert GGUFCheckpoint(path).read_grouped("model.layers.0.mlp.up_proj.weight") is None


@pytest.mark.parametrize("kind", [k for k in ("F16", "BF16", "Q5_0", "Q5_1") if k not in EXACT])
def test_other_types_are_dequantized(tmp_path, kind):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", kind=kind))
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = gguf_files.weights("llama")["blk.0.attn_q.weight"]
    np.testing.assert_allclose(checkpoint.read(name), expected, atol=0.15 if kind.startswith("Q") else 0.02)
    assert checkpoint.read_grouped(name) is None


def test_config(tmp_path):
    config = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf")).config
    assert config["model_type"] == "llama"
    assert config["rms_norm_eps"] == 1e-5
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 8)
    assert config["tie_word_embeddings"]
    window = {"llama.attention.sliding_window": (32, gguf.GGUFValueType.UINT32)}
    config = GGUFCheckpoint(gguf_files.write(tmp_path / "w.gguf", extra=window)).config
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 32)
    config = GGUFCheckpoint(gguf_files.write(tmp_path / "g.gguf", "gemma3")).config
    assert (config["model_type"], config["final_logit_softcapping"]) == ("gemma3_text", 30.0)


def test_an_olmo2_with_windows_is_an_olmo3(tmp_path):
    kinds = gguf.GGUFValueType
    extra = {
        "olmo2.attention.sliding_window": (32, kinds.UINT32),
        "olmo2.attention.sliding_window_pattern": ([True], kinds.ARRAY),
        "olmo2.rope.scaling.type": ("yarn", kinds.STRING),
        "olmo2.rope.scaling.factor": (8.0, kinds.FLOAT32),
        "olmo2.rope.scaling.original_context_length": (16, kinds.UINT32),
    }
    config = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", "olmo2", extra=extra)).config
    assert (config["model_type"], config["layer_types"]) == ("olmo3", ["sliding_attention"])
    assert config["rope_parameters"]["sliding_attention"] == {"rope_theta": 10000.0}
    assert config["rope_parameters"]["full_attention"]["rope_type"] == "yarn"


def llama3_factors(theta, factor=8.0, original=8192):
    wavelength = 2 * np.pi * theta ** (np.arange(0, gguf_files.DIM, 2) / gguf_files.DIM)
    smooth = (original / wavelength - 1) / 3
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelength < original / 4, 1, np.where(wavelength > original, factor, between))
    return {"rope_freqs.weight": factors.astype(np.float32)}


def test_llama3_rope_is_found_again(tmp_path):
    theta = {"llama.rope.freq_base": (500000.0, gguf.GGUFValueType.FLOAT32)}
    path = gguf_files.write(tmp_path / "m.gguf", tensors=llama3_factors(500000.0), extra=theta)
    assert GGUFCheckpoint(path).config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    other = {"rope_freqs.weight": np.array([1, 3, 2, 8], np.float32)}
    scaling = GGUFCheckpoint(gguf_files.write(tmp_path / "o.gguf", tensors=other, extra=theta)).config["rope_scaling"]
    assert scaling["short_factor"] == scaling["long_factor"] == [1, 3, 2, 8]
    assert (scaling["rope_type"], scaling["attention_factor"]) == ("longrope", 1.0)


def test_longrope_of_phi3(tmp_path):
    factors = {f"rope_factors_{w}.weight": np.arange(1, 5, dtype=np.float32) for w in ("long", "short")}
    original = {"phi3.rope.scaling.original_context_length": (32, gguf.GGUFValueType.UINT32)}
    config = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", "phi3", tensors=factors, extra=original)).config
    assert config["rope_scaling"]["rope_type"] == "longrope"
    assert config["rope_scaling"]["long_factor"] == [1, 2, 3, 4]
    assert config["original_max_position_embeddings"] == 32


def test_unsupported_is_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedError, match="architecture 'mamba'"):
        GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", "mamba"))
    experts = {"llama.expert_count": (8, gguf.GGUFValueType.UINT32)}
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        GGUFCheckpoint(gguf_files.write(tmp_path / "e.gguf", extra=experts))


def test_sentencepiece_tokenizer(tmp_path):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf"))
    tokens = gguf_files.sentencepiece_vocabulary()[0]
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))

    def pieces(text):
        return [tokens[i] for i in tokenizer.encode(text).ids]

    assert pieces("hello world") == ["<s>", "▁hello", "▁world"]
    assert pieces("hello é<|end|>") == ["<s>", "▁hello", "▁", "<0xC3>", "<0xA9>", "<|end|>"]
    assert tokenizer.decode(tokenizer.encode("hello  wé\n").ids) == "hello  wé\n"
    config = json.loads((checkpoint.folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["add_bos_token"], config["chat_template"]) == ("<s>", True, "{{ messages }}")
    assert checkpoint.folder.is_relative_to(tmp_path / "home")


def test_sentencepiece_as_transformers_reads_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    path = gguf_files.write(tmp_path / "m.gguf")
    ours = tokenizers.Tokenizer.from_file(str(GGUFCheckpoint(path).folder / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in ("hello world", "hello  hello", "world\nworld", "é 日本 hello!", "helloworld 12"):
        assert ours.encode(text).ids == theirs(text).input_ids, text


def test_no_tokenizer_is_no_error(tmp_path):
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", tokenizer=False))
    assert sorted(os.listdir(checkpoint.folder)) == ["config.json", "sha256.json"]


def test_an_unknown_pretokenizer_is_refused(tmp_path):
    extra = {
        "tokenizer.ggml.model": ("gpt2", gguf.GGUFValueType.STRING),
        "tokenizer.ggml.pre": ("of-tomorrow", gguf.GGUFValueType.STRING),
    }
    with pytest.raises(UnsupportedError, match="pre-tokenizer 'of-tomorrow'"):
        GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", tokenizer=False, extra=extra))


SMOLLM2 = Path(os.environ.get("LAPINFER_TEST_SMOLLM2", "absent"))


@pytest.mark.skipif(not SMOLLM2.is_file(), reason="LAPINFER_TEST_SMOLLM2 names no GGUF file of SmolLM2")
def test_smollm2_tokenizer():
    tokenizer = tokenizers.Tokenizer.from_file(str(GGUFCheckpoint(SMOLLM2).folder / "tokenizer.json"))
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>"
    assert tokenizer.encode(text).ids == [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2]
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("in 1984").ids] == ["in", "Ġ", "1", "9", "8", "4"]


def k_quants(rng: np.random.Generator, R: int, C: int) -> tuple[np.ndarray, np.ndarray]:
    """Q4_K as ggml-quants.c has it, written field by field; bytes [R, C/256 · 144], and the weights."""
    data, weights = bytearray(), np.zeros((R, C), np.float32)
    for r in range(R):
        for first in range(0, C, 256):
            d, dmin = (np.float16(x) for x in rng.uniform(1e-3, 2e-3, 2))
            scales, minima = rng.integers(1, 64, 8), rng.integers(0, 64, 8)
            codes = rng.integers(0, 16, 256)
            packed = [0] * 12
            for j in range(8):
                if j < 4:
                    packed[j] |= int(scales[j])
                    packed[j + 4] |= int(minima[j])
                else:
                    packed[j + 4] = int(scales[j]) & 15 | (int(minima[j]) & 15) << 4
                    packed[j - 4] |= int(scales[j]) >> 4 << 6
                    packed[j] |= int(minima[j]) >> 4 << 6
            pairs = [int(codes[64 * k + i]) | int(codes[64 * k + 32 + i]) << 4 for k in range(4) for i in range(32)]
            data += d.tobytes() + dmin.tobytes() + bytes(packed) + bytes(pairs)
            for c in range(256):
                step, low = np.float32(d) * int(scales[c // 32]), np.float32(dmin) * int(minima[c // 32])
                weights[r, first + c] = step * int(codes[c]) - low
    return np.frombuffer(bytes(data), np.uint8).reshape(R, C // 256, 144), weights


def test_q4_k_keeps_its_codes_under_nearly_its_scales():
    blocks, weights = k_quants(np.random.default_rng(0), 5, 512)
    grouped = FORMATS["q4"].from_gguf("Q4_K", blocks)
    assert grouped is not None
    read = gguf.quants.dequantize(blocks.reshape(5, -1), gguf.GGMLQuantizationType.Q4_K)
    np.testing.assert_allclose(read, weights, rtol=1e-6, atol=1e-7)
    kept = np.linalg.norm(grouped.weights() - weights) / np.linalg.norm(weights)
    again = np.linalg.norm(quantize("q4", weights).weights() - weights) / np.linalg.norm(weights)
    assert kept < 0.008
    assert kept < again


@pytest.mark.parametrize(
    ("kind", "format"), [("Q4_K", "q4"), ("Q6_K", "q6"), ("Q5_K", "q5_1"), ("Q2_K", "q4"), ("IQ4_XS", "q4n")]
)
def test_each_type_has_the_format_that_loses_least(kind: str, format: str):
    assert KEPT[kind].name == format
    assert matrix_format("auto", {format}, "small") == matrix_format("auto", {format}, "large") == format


def test_parts_of_five_bits_beside_parts_of_eight_stay_exact():
    weights = np.random.default_rng(1).normal(0, 0.1, (7, 64)).astype(np.float32)
    five = quantize("q5", weights)
    wider = FORMATS["q8"].holding(five)
    assert wider is not None
    assert np.array_equal(wider.weights(), five.weights())
    assert FORMATS["q8"].holding(quantize("q6", weights)) is None


def test_types_of_256_columns_keep_their_codes(tmp_path):
    """Random bytes against the gguf package: of Q5_K and IQ4_XS only scales and minima are rounded."""
    rng = np.random.default_rng(2)
    for kind, size in (("Q5_K", 176), ("IQ4_XS", 136), ("IQ4_NL", 18)):
        blocks = rng.integers(0, 256, (6, 2, size)).astype(np.uint8)
        if kind == "IQ4_NL":
            blocks[..., :2] = np.array([0.01], np.float16).view(np.uint8)
        else:
            blocks[..., :4] = np.array([0.01, 0.02], np.float16).view(np.uint8)
        if kind == "IQ4_XS":
            blocks[..., 2:4] = rng.integers(0, 256, (6, 2, 2))
        stored = gguf.quants.dequantize(blocks.reshape(6, -1), gguf.GGMLQuantizationType[kind])
        grouped = KEPT[kind].from_gguf(kind, blocks)
        assert grouped is not None
        bound = 0 if kind == "IQ4_NL" else 2**-11
        np.testing.assert_allclose(grouped.weights(), stored, rtol=bound, atol=np.abs(stored).max() * bound)
