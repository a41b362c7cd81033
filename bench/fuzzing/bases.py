"""Sound files that mutants are made of: tiny checkpoints of many families, with and without a tokenizer."""

from __future__ import annotations

import functools
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # what makes tiny models there makes them here

FAMILIES = (
    "deepseek_v2-yarn", "deepseek_v3-plain", "gemma2-options", "gemma3_text-options", "gpt2-options", "gpt_oss-yarn",
    "granite-multipliers", "granitemoeshared-uneven", "lfm2_moe-options", "llama-llama3", "llama-bias_mqa", "llama-odd",
    "mistral-window", "mixtral-window_top1", "olmo2-options", "olmoe-clip", "phi3-longrope_short", "phimoe-biases",
    "qwen2-window", "qwen2_moe-plain", "qwen3-plain", "smollm3-options",
)  # fmt: skip
"""Names of tests/golden, which cover what a spec can say."""
VOCAB = 258
LLAMA = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "bos_token_id": 256, "eos_token_id": 257,
}  # fmt: skip
TREES = {
    **LLAMA, "model_type": "lapinfer", "fff": {
        "depth": 2, "leaf_width": 8, "trees": 2, "gated": True, "activation": "silu", "bias": False, "node_bias": True,
        "node_width": 1, "node_activation": "relu", "master_width": 0, "mix": False,
    },
}  # fmt: skip


@functools.cache
def golden(name: str) -> tuple[str, bytes]:
    """(config.json, model.safetensors) of a tiny model of a family."""
    import tiny
    from safetensors.numpy import save

    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{name}.npz")
    return json.dumps(config), save({key: np.ascontiguousarray(array) for key, array in stored.items()})


def config(rng: random.Random) -> dict[str, Any]:
    """Of any family."""
    if rng.random() < 0.1:
        return json.loads(json.dumps(TREES))
    return json.loads(golden(rng.choice(FAMILIES))[0])


@functools.cache
def donors() -> dict[str, list[Any]]:
    """Every key of these configs with its values."""
    found: dict[str, list[Any]] = {}
    for name in FAMILIES:
        for key, value in json.loads(golden(name)[0]).items():
            found.setdefault(key, []).append(value)
    return found


def packed(folder: Path, config: dict[str, Any], rng: random.Random, *, random_bytes: bool) -> None:
    """A packed folder of a model of this config: formats by chance, random weights, maybe of random bytes."""
    from lapinfer.checkpoint.home import FILE_NAME
    from lapinfer.families import spec_from_config
    from lapinfer.packing.entries import packed_entries
    from lapinfer.packing.writer import PackedWriter
    from lapinfer.tensors import tensors

    spec = spec_from_config(config, str(folder / "config.json"))
    wanted = list(tensors(spec).values())
    formats = {tensor.name: rng.choice(sorted(_formats(tensor))) for tensor in wanted if tensor.is_matrix}
    by_bank: dict[tuple[str, str | None], str] = {}
    for tensor in wanted:  # one op reads both
        if tensor.name in formats and tensor.bank is not None:
            formats[tensor.name] = by_bank.setdefault((tensor.bank, tensor.packing), formats[tensor.name])
    entries = packed_entries(wanted, formats)
    numbers = np.random.default_rng(rng.getrandbits(32))
    (folder / "config.json").write_text(json.dumps(config))
    with PackedWriter(folder / FILE_NAME, entries, {"quant": "q8", "source": "fuzz", "calibration": "none"}) as writer:
        for entry in entries:
            dtype, shape = entry.stored
            writer.write(entry.name, _numbers(dtype, shape, numbers, random_bytes))
        writer.finish()


def _formats(tensor: Any) -> Iterable[str]:
    from lapinfer.quant.formats import FORMATS

    for name, format in FORMATS.items():
        if (format.row is not None or tensor.packing != "rows") and (tensor.role != "router" or format.for_routers):
            yield name


def _numbers(dtype: str, shape: tuple[int, ...], rng: np.random.Generator, random_bytes: bool) -> np.ndarray:
    if dtype == "F32" and not random_bytes:
        return rng.standard_normal(shape, dtype=np.float32)
    count = int(np.prod(shape)) * (4 if dtype == "F32" else 1)
    values = rng.integers(0, 256 if random_bytes else 60, count, np.uint8)
    return values.view(np.float32).reshape(shape) if dtype == "F32" else values.reshape(shape)


def tokenizer_folder(folder: Path, rng: random.Random) -> None:
    """tokenizer.json of bytes or of SentencePiece, and tokenizer_config.json."""
    import fake_model

    (fake_model.byte_tokenizer_folder if rng.random() < 0.6 else fake_model.sentencepiece_folder)(folder)
