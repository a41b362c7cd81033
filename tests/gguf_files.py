"""Small GGUF files for tests, made with the gguf package's own writer."""

from pathlib import Path

import gguf
import numpy as np
import tiny

from lapinfer.families import family, family_of_gguf, spec_from_config
from lapinfer.spec import ModelSpec

HEADS, KV_HEADS, DIM, WIDTH, FF, VOCAB = 4, 2, 8, 32, 64, 300


def byte_pieces() -> list[str]:
    return [f"<0x{b:02X}>" for b in range(256)]


def sentencepiece_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """<unk> <s> </s>, 256 bytes, characters, and the pieces that lead to ▁hello and ▁world."""
    characters = sorted(set("▁helloworld"))
    merged = ["he", "ll", "▁w", "hell", "or", "hello", "▁wor", "▁hello", "ld", "▁world"]
    tokens = ["<unk>", "<s>", "</s>", *byte_pieces(), *merged, *characters, "<|end|>"]
    scores = [0.0] * 259 + [-float(i) for i in range(len(merged) + len(characters))] + [0.0]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(merged) + len(characters)), 3]
    return tokens, scores, types


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    return weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def spec_of(architecture: str) -> ModelSpec:
    """Of a tiny model of the architecture's family, or of a Llama: it says which biases and norms there are."""
    name = family_of_gguf(architecture) or "llama"
    paths = sorted(tiny.GOLDEN.glob(f"{family(name).model_types[0]}-*.npz"), key=lambda path: "plain" not in path.stem)
    return spec_from_config(tiny.read_golden(paths[0])[0], str(paths[0]))


def weights(architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Published-order weights of one layer under GGUF names."""
    rng = np.random.default_rng(seed)
    names, spec = family(family_of_gguf(architecture) or "llama").names, spec_of(architecture)
    layer, attention = spec.layers[0], spec.layers[0].attention
    assert attention is not None
    kv = HEADS * DIM if attention.n_heads == attention.n_kv_heads else KV_HEADS * DIM
    second = "post_attention_norm" if architecture == "seed_oss" else "ffn_norm"
    norms = {"attn_norm": layer.attn_norm, second: layer.ff_norm, "post_ffw_norm": layer.ff_post_norm}
    if layer.attn_post_norm is not None:
        norms["post_attention_norm"] = layer.attn_post_norm
    shapes: dict[str, tuple[int, ...]] = {
        module: (WIDTH,) for module, norm in norms.items() if norm is not None and norm.weight
    }
    if attention.qk_norm is not None:
        both = (HEADS * DIM, kv) if attention.qk_norm_full else (DIM, DIM)
        shapes |= {f"attn_{side}_norm": (size,) for side, size in zip("qk", both, strict=True)}
    fused, gates = len(names.modules["qkv"]) == 1, len(names.modules.get("gate_up", ()))
    qkv = {"attn_qkv": HEADS * DIM + 2 * kv} if fused else {"attn_q": HEADS * DIM, "attn_k": kv, "attn_v": kv}
    shapes |= {module: (rows, WIDTH) for module, rows in qkv.items()} | {"attn_output": (WIDTH, HEADS * DIM)}
    shapes |= {"ffn_gate": (FF, WIDTH)} if gates == 2 else {}
    shapes |= {"ffn_up": (2 * FF if gates == 1 else FF, WIDTH), "ffn_down": (WIDTH, FF)}
    biased = {module for module, norm in norms.items() if norm is not None and norm.bias}
    biased |= set(qkv) if attention.qkv_bias else set()
    biased |= {"attn_output"} if attention.o_bias else set()
    biased |= {"ffn_gate", "ffn_up", "ffn_down"} & set(shapes) if layer.feed_forward.bias else set()
    named: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    if spec.norm.bias:
        named["output_norm.bias"] = (WIDTH,)
    if spec.positions:
        named["position_embd.weight"] = (64, WIDTH)
    if spec.head_bias:
        named |= {"output.weight": (VOCAB, WIDTH), "output.bias": (VOCAB,)}
    if not spec.norm.weight:
        del named["output_norm.weight"]
    for module, shape in shapes.items():
        named |= {f"blk.0.{module}.weight": shape} | ({f"blk.0.{module}.bias": shape[:1]} if module in biased else {})
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in named.items()}


def write(
    path: Path,
    architecture: str = "llama",
    kind: str = "F32",
    tokenizer: bool = True,
    extra: dict | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    extra = extra or {}
    if f"{architecture}.feed_forward_length" not in extra:
        writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    spec = spec_of(architecture)
    if spec.norm.kind == "layer":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
    if not spec.positions:
        attention = spec.layers[0].attention
        alike = attention is not None and attention.n_heads == attention.n_kv_heads
        if not alike and f"{architecture}.attention.head_count_kv" not in extra:
            writer.add_head_count_kv(KV_HEADS)
        if f"{architecture}.rope.freq_base" not in extra:
            writer.add_rope_freq_base(10000.0)
    if architecture.startswith("gemma"):
        writer.add_key_length(DIM)
        writer.add_value_length(DIM)
    if architecture in ("gemma2", "gemma3", "cohere2"):
        if f"{architecture}.attention.sliding_window" not in extra:
            writer.add_sliding_window(16)
        if architecture == "gemma3":
            writer.add_final_logit_softcapping(30.0)
    if architecture in ("granite", "cohere2") and f"{architecture}.logit_scale" not in extra:
        writer.add_logit_scale(8.0)
    for key, value in extra.items():
        writer.add_key_value(key, *value)
    if tokenizer and architecture == "gpt2":
        letters = [chr(c) for c in (*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list([*letters, "he", "Ġw", "<|end|>"])
        writer.add_token_types([1] * (len(letters) + 2) + [3])
        writer.add_token_merges(["h e", "Ġ w"])
        writer.add_eos_token_id(len(letters) + 2)
    elif tokenizer:
        tokens, scores, types = sentencepiece_vocabulary()
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template("{{ messages }}")
    # llama.cpp's own list of what its converter does, not ours.
    permuted = architecture in ("llama", "granite", "smollm3", "olmo", "mistral3")
    regrouped = architecture == "gptneox"
    plus_one = architecture.startswith("gemma")
    for name, array in weights(architecture).items():
        if permuted and ".attn_q." in name:
            array = permute(array, HEADS)
        elif permuted and ".attn_k." in name:
            array = permute(array, KV_HEADS)
        elif regrouped and ".attn_qkv." in name:
            array = array.reshape(HEADS, 3, DIM, -1).swapaxes(0, 1).reshape(array.shape)
        if plus_one and name.endswith("norm.weight"):
            array = array + 1
        quantization = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, quantization), raw_dtype=quantization)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
