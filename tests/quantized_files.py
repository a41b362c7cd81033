"""Weights as other tools quantize and store them, written by plain loops over Python's integers, word by word.

Each writer gives what is stored of a module, and the float32 matrix that it means. None of it shares code with the
readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint.folder import FolderCheckpoint

D, FF, VOCAB = 128, 64, 40
LAYER = "model.layers.0."
SHAPES = {
    "self_attn.q_proj": (64, D), "self_attn.k_proj": (32, D), "self_attn.v_proj": (32, D), "self_attn.o_proj": (D, 64),
    "mlp.gate_proj": (FF, D), "mlp.up_proj": (FF, D), "mlp.down_proj": (D, FF),
}  # fmt: skip
CONFIG = {
    "model_type": "llama", "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": FF, "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]

Stored = dict[str, tuple[str, np.ndarray]]
"""Name -> safetensors' type, and the numbers or their bits."""
Write = Callable[[np.random.Generator, int, int], tuple[Stored, np.ndarray]]


@dataclass(frozen=True)
class Scheme:
    """kind: what a matrix is called; packed: the format that it becomes; loss: its most, in parts of the weights'."""

    name: str
    section: dict[str, Any]
    write: Write
    kind: str
    packed: str
    loss: float = 0.0
    key: str = "quantization_config"
    known: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def e4m3(byte: int) -> float:
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    value = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2 ** (exponent - 7)
    return -value if sign else value


def words(codes: list[int], bits: int) -> list[int]:
    """32-bit words, as signed integers, of a stream of codes."""
    stream = 0
    for i, code in enumerate(codes):
        stream |= code << bits * i
    count = -(-len(codes) * bits // 32)
    return [(stream >> 32 * i & 0xFFFFFFFF) for i in range(count)]


def as_int32(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, np.uint32).view(np.int32)


def half(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.uniform(0.01, 0.05, shape)).astype(np.float16)


def gptq(bits: int, size: int, symmetric: bool, *, version: int = 1, ordered: bool = True) -> Write:
    def write(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
        each = size if size > 0 else C
        G = math.ceil(C / each)
        codes = rng.integers(0, 1 << bits, (R, C))
        zeros = np.full((R, G), 1 << bits - 1) if symmetric else rng.integers(1, 1 << bits, (R, G))
        scales = half(rng, G, R)
        group = np.arange(C) // each
        if not ordered:
            group = rng.permutation(group)
        weights = np.zeros((R, C), np.float32)
        for r in range(R):
            for c in range(C):
                weights[r, c] = np.float32(scales[group[c], r]) * (int(codes[r, c]) - int(zeros[r, group[c]]))
        qweight = as_int32([words([int(c) for c in codes[r]], bits) for r in range(R)]).T
        less = 1 if version == 1 else 0
        qzeros = as_int32([words([int(z) - less for z in zeros[:, g]], bits) for g in range(G)])
        stored = {"qweight": ("I32", qweight), "qzeros": ("I32", qzeros), "scales": ("F16", scales)}
        return stored | {"g_idx": ("I32", group.astype(np.int32))}, weights

    return write


def awq(size: int) -> Write:
    def write(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
        each = size if size > 0 else C
        G = math.ceil(C / each)
        codes, zeros = rng.integers(0, 16, (C, R)), rng.integers(0, 16, (G, R))
        scales = half(rng, G, R)
        order = [0, 2, 4, 6, 1, 3, 5, 7]

        def packed(values: np.ndarray) -> np.ndarray:
            return as_int32(
                [[sum(int(row[8 * k + order[i]]) << 4 * i for i in range(8)) for k in range(R // 8)] for row in values]
            )

        weights = np.array(
            [
                [np.float32(scales[c // each, r]) * (int(codes[c, r]) - int(zeros[c // each, r])) for c in range(C)]
                for r in range(R)
            ],
            np.float32,
        )
        return {
            "qweight": ("I32", packed(codes)), "qzeros": ("I32", packed(zeros)), "scales": ("F16", scales)
        }, weights  # fmt: skip

    return write


def fp8(block: tuple[int, int] | None, scale_name: str, rows: bool = False, powers: bool = False) -> Write:
    def write(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
        codes = rng.integers(0, 256, (R, C)).astype(np.uint8)
        codes[codes & 127 == 127] = 3
        h, w = block or ((1 if rows else R), C)
        scales = rng.uniform(1e-4, 2e-4, (math.ceil(R / h), math.ceil(C / w))).astype(np.float32)
        exponents = rng.integers(112, 116, scales.shape).astype(np.uint8)
        if powers:
            scales = (2.0 ** (exponents - 127.0)).astype(np.float32)
        weights = np.array(
            [[np.float32(e4m3(int(codes[r, c]))) * scales[r // h, c // w] for c in range(C)] for r in range(R)],
            np.float32,
        )
        stored = ("F8_E8M0", exponents) if powers else ("F32", scales if block or rows else scales.reshape(()))
        return {"weight": ("F8_E4M3", codes), scale_name: stored}, weights

    return write


def pack_quantized(bits: int, size: int, symmetric: bool) -> Write:
    def write(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
        each = size if size > 0 else C
        G, offset = math.ceil(C / each), 1 << bits - 1
        codes = rng.integers(-offset, offset, (R, C))
        zeros = np.zeros((R, G), int) if symmetric else rng.integers(-offset, offset, (R, G))
        scales = (rng.integers(129, 255, (R, G)) * 2.0**-13).astype(np.float32)  # eight bits, as bfloat16 has
        weights = np.array(
            [
                [scales[r, c // each] * np.float32(codes[r, c] - zeros[r, c // each]) for c in range(C)]
                for r in range(R)
            ],
            np.float32,
        )
        packed = as_int32([words([int(c) + offset for c in row], bits) for row in codes])
        stored: Stored = {
            "weight_packed": ("I32", packed), "weight_shape": ("I64", np.array([R, C])),
            "weight_scale": ("BF16", (scales.view(np.uint32) >> 16).astype(np.uint16)),
        }  # fmt: skip
        if not symmetric:
            columns = [words([int(z) + offset for z in zeros[:, g]], bits) for g in range(G)]
            stored["weight_zero_point"] = ("I32", np.ascontiguousarray(as_int32(columns).T))
        return stored, weights

    return write


def int_quantized(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
    codes = rng.integers(-127, 128, (R, C)).astype(np.int8)
    scales = half(rng, R, 1)
    weights = np.array([[np.float32(scales[r, 0]) * int(codes[r, c]) for c in range(C)] for r in range(R)], np.float32)
    return {"weight": ("I8", codes), "weight_scale": ("F16", scales)}, weights


def bnb_int8(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
    codes = rng.integers(-127, 128, (R, C)).astype(np.int8)
    largest = rng.uniform(0.1, 0.3, R).astype(np.float32)
    weights = np.array([[int(codes[r, c]) * (largest[r] / np.float32(127)) for c in range(C)] for r in range(R)])
    return {
        "weight": ("I8", codes), "SCB": ("F32", largest), "weight_format": ("U8", np.zeros((), np.uint8))
    }, weights.astype(np.float32)  # fmt: skip


def bnb_4bit(nested: bool) -> Write:
    def write(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
        numbers, block, each = R * C, 64, 16
        codes = [int(c) for c in rng.integers(0, 16, numbers)]
        blocks = math.ceil(numbers / block)
        absmax = rng.uniform(0.1, 0.3, blocks).astype(np.float32)
        said: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [R, C]}
        stored: Stored = {}
        if nested:
            table = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            short = rng.integers(0, 256, blocks).astype(np.uint8)
            wide = rng.uniform(0.05, 0.1, math.ceil(blocks / each)).astype(np.float32)
            offset = np.float32(0.2)
            absmax = np.array([table[short[i]] * wide[i // each] + offset for i in range(blocks)], np.float32)
            said |= {"nested_blocksize": each, "nested_dtype": "float32", "nested_offset": float(offset)}
            stored |= {"weight.nested_absmax": ("F32", wide), "weight.nested_quant_map": ("F32", table)}
        weights = np.array([np.float32(NF4[c]) * absmax[i // block] for i, c in enumerate(codes)], np.float32)
        pairs = [codes[i] << 4 | codes[i + 1] for i in range(0, numbers, 2)]
        text = json.dumps(said).encode()
        return {
            "weight": ("U8", np.array(pairs, np.uint8)[:, None]),
            "weight.absmax": ("U8", short) if nested else ("F32", absmax),
            "weight.quant_map": ("F32", np.array(NF4, np.float32)),
            "weight.quant_state.bitsandbytes__nf4": ("U8", np.frombuffer(text, np.uint8)),
        } | stored, weights.reshape(R, C)  # fmt: skip

    return write


def mlx(bits: int, size: int) -> Write:
    def write(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
        codes = rng.integers(0, 1 << bits, (R, C))
        scales, biases = half(rng, R, C // size), (-8 * half(rng, R, C // size)).astype(np.float16)
        weights = np.array([
            [
                int(codes[r, c]) * np.float32(scales[r, c // size]) + np.float32(biases[r, c // size])
                for c in range(C)
            ]
            for r in range(R)
        ], np.float32)  # fmt: skip
        packed = np.array([words([int(c) for c in row], bits) for row in codes], np.uint32)
        return {"weight": ("U32", packed), "scales": ("F16", scales), "biases": ("F16", biases)}, weights

    return write


def fp4(scheme: str) -> Write:
    """nvfp4 as compressed-tensors has it, modelopt's, or mxfp4."""

    def write(rng: np.random.Generator, R: int, C: int) -> tuple[Stored, np.ndarray]:
        codes = rng.integers(0, 16, (R, C))
        size = 32 if scheme == "mxfp4" else 16
        stored_scales = rng.integers(*((118, 124) if scheme == "mxfp4" else (40, 120)), (R, C // size)).astype(np.uint8)
        whole = np.float32(1000 if scheme == "nvfp4" else 1 / 1000)
        weights = np.zeros((R, C), np.float32)
        for r in range(R):
            for c in range(C):
                value = np.float32(E2M1[codes[r, c] & 7] * (-1 if codes[r, c] & 8 else 1))
                short = int(stored_scales[r, c // size])
                if scheme == "mxfp4":
                    scale = np.float32(2.0 ** (short - 127))
                else:
                    scale = np.float32(e4m3(short)) / whole if scheme == "nvfp4" else np.float32(e4m3(short)) * whole
                weights[r, c] = value * scale
        pairs = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
        if scheme == "mxfp4":
            return {"weight_packed": ("U8", pairs), "weight_scale": ("U8", stored_scales)}, weights
        if scheme == "nvfp4":
            return {
                "weight_packed": ("U8", pairs), "weight_scale": ("F8_E4M3", stored_scales),
                "weight_global_scale": ("F32", whole.reshape(1)), "input_global_scale": ("F32", np.ones(1, np.float32)),
            }, weights  # fmt: skip
        return {
            "weight": ("U8", pairs), "weight_scale": ("F8_E4M3", stored_scales),
            "weight_scale_2": ("F32", whole.reshape(())), "input_scale": ("F32", np.ones((), np.float32)),
        }, weights  # fmt: skip

    return write


def _gptq(bits: int, size: int, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric, "desc_act": False, **more}


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    said = {
        "num_bits": 4, "type": "int", "symmetric": True, "group_size": None, "strategy": "channel", "actorder": None,
        "block_structure": None, "dynamic": False, "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": said | weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "ignore": ["lm_head"], "global_compression_ratio": 1.5, "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
    }  # fmt: skip


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_threshold": 6.0, "llm_int8_skip_modules": None}
NF4_SECTION = BNB | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16", "_load_in_4bit": True}

SCHEMES = [
    Scheme("gptq-4-32", _gptq(4, 32), gptq(4, 32, True), "INT4", "q4_1"),
    Scheme("gptq-4-128", _gptq(4, 128, False), gptq(4, 128, False), "INT4", "q4_1", 1e-3),
    Scheme("gptq-4-row-v2", _gptq(4, -1, checkpoint_format="gptq_v2"), gptq(4, -1, True, version=2), "INT4", "q4_1"),
    Scheme("gptq-2-64", _gptq(2, 64), gptq(2, 64, True), "INT2", "q4_1"),
    Scheme("gptq-8-64", _gptq(8, 64), gptq(8, 64, True), "INT8", "q8", 0.02),
    Scheme("gptq-8-asymmetric", _gptq(8, 64, False), gptq(8, 64, False), "UINT8", "q8", 0.02),
    Scheme("gptq-4-act-order", _gptq(4, 32) | {"desc_act": True}, gptq(4, 32, True, ordered=False),
           "INT4 mixed", "q6", 0.05),
    Scheme("awq-64", {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True},
           awq(64), "INT4", "q4_1", 1e-3),
    Scheme("fp8-blocks", FP8 | {"weight_block_size": [32, 48]}, fp8((32, 48), "weight_scale_inv"), "FP8", "q8", 0.03),
    Scheme("fp8-powers", FP8 | {"weight_block_size": [32, 48], "scale_fmt": "ue8m0"},
           fp8((32, 48), "weight_scale_inv", powers=True), "FP8", "q8", 0.03),
    Scheme("fp8-whole", FP8 | {"weight_block_size": None, "activation_scheme": "static"},
           fp8(None, "weight_scale_inv"), "FP8", "q8", 0.03),
    Scheme("fbgemm", {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": []},
           fp8(None, "weight_scale", rows=True), "FP8", "q8", 0.03),
    Scheme("pack-4-32", _compressed("pack-quantized", strategy="group", group_size=32), pack_quantized(4, 32, True),
           "INT4", "q4_1"),
    Scheme("pack-4-row-asymmetric", _compressed("pack-quantized", symmetric=False), pack_quantized(4, -1, False),
           "INT4", "q4_1", 1e-3),
    Scheme("pack-8-row", _compressed("pack-quantized", num_bits=8), pack_quantized(8, -1, True), "INT8", "q8", 0.02),
    Scheme("int-quantized", _compressed("int-quantized", num_bits=8), int_quantized, "INT8", "q8"),
    Scheme("float-quantized", _compressed("float-quantized", num_bits=8, type="float"),
           fp8(None, "weight_scale", rows=True), "FP8", "q8", 0.03),
    Scheme("float-blocks", _compressed("float-quantized", num_bits=8, type="float", strategy="block",
           block_structure=[32, 48]), fp8((32, 48), "weight_scale"), "FP8", "q8", 0.03),
    Scheme("nvfp4", _compressed("nvfp4-pack-quantized", type="float", strategy="tensor_group", group_size=16),
           fp4("nvfp4"), "NVFP4", "q6", 0.05),
    Scheme("mxfp4", _compressed("mxfp4-pack-quantized", type="float", strategy="group", group_size=32),
           fp4("mxfp4"), "MXFP4", "mxfp4"),
    Scheme("modelopt", {"quant_method": "modelopt", "quant_algo": "NVFP4", "producer": {"name": "modelopt"},
           "group_size": 16}, fp4("modelopt"), "NVFP4", "q6", 0.05),
    Scheme("nf4", NF4_SECTION, bnb_4bit(False), "NF4", "nf4", 0.01),
    Scheme("nf4-double", NF4_SECTION | {"bnb_4bit_use_double_quant": True}, bnb_4bit(True), "NF4", "nf4", 0.01),
    Scheme("bnb-int8", BNB | {"load_in_4bit": False, "load_in_8bit": True}, bnb_int8, "INT8", "q8", 1e-3),
    *(
        Scheme(f"mlx-{bits}-{size}", {"group_size": size, "bits": bits, "mode": "affine"}, mlx(bits, size), kind,
               packed, loss, key="quantization")
        for bits, size, kind, packed, loss in (
            (4, 32, "INT4", "q4_1", 0.0), (5, 32, "INT5", "q5_1", 0.0),
            (3, 32, "INT3", "q4_1", 0.0), (6, 32, "UINT6", "q8", 0.02),
            (8, 32, "UINT8", "q8", 0.02),
        )
    ),
]  # fmt: skip


def save(tensors: Stored, path: Path) -> None:
    """A safetensors file of these types."""
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, values) in tensors.items():
        more = np.ascontiguousarray(values).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(more)]}
        data += more
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def floats() -> dict[str, np.ndarray]:
    """What no tool quantizes."""
    rng = np.random.default_rng(3)
    shapes = {"model.embed_tokens": (VOCAB, D), "lm_head": (VOCAB, D)}
    norms = ("model.norm", f"{LAYER}input_layernorm", f"{LAYER}post_attention_layernorm")
    plain = {f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    return plain | {f"{name}.weight": rng.uniform(0.5, 1.5, D).astype(np.float32) for name in norms}


def write(folder: Path, scheme: Scheme, **changed: Any) -> tuple[FolderCheckpoint, dict[str, np.ndarray]]:
    """A tiny Llama's folder, and all of its matrices as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {scheme.key: scheme.section | changed}))
    stored, weights = _made(scheme.name)
    save(stored, folder / "model.safetensors")
    return FolderCheckpoint(folder), dict(weights)


@cache
def _made(name: str) -> tuple[Stored, dict[str, np.ndarray]]:
    """All that is stored, and the matrices that it means."""
    scheme = next(scheme for scheme in SCHEMES if scheme.name == name)
    rng, weights = np.random.default_rng(0), floats()
    stored: Stored = {name: ("F32", values) for name, values in weights.items()}
    for module, shape in SHAPES.items():
        parts, weights[f"{LAYER}{module}.weight"] = scheme.write(rng, *shape)
        stored |= {f"{LAYER}{module}.{suffix}": value for suffix, value in parts.items()}
    return stored, weights
