"""lapinfer, llama.cpp and ik_llama.cpp in one run: a prompt of 512 tokens, and 64 tokens after it. README's table.

    python bench/compare_engines.py MODEL… --peer PYTHON [--peer PYTHON …] [--work FOLDER] [-t 2] [-r 7] [-o FILE]

MODEL is a folder, a .gguf file, or the name of a shape (llama-1b, granite-1b), of which random weights are made in
--work. PYTHON is an interpreter with llama-cpp-python or ik-llama-cpp-python; PYTHON+repack loads with the weights
repacked for the processor (ik_llama.cpp's -rtr). The first peer must be llama.cpp: its quantizer makes the Q4_0 files.
All engines stay loaded and take turns (A B C A B C …), each turn after a probe of the machine; figures are medians over
the turns in which two threads had cores of their own. Ours runs q4, a small model also with int8 activations as theirs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from compare_llamacpp import Ours, token_ids
from harness import argument_parser, paired, paired_line, take_turns, write_result
from llamacpp import Peer, peer_file

COMMON = {"vocab_size": 49152, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": COMMON | {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rope_theta": 10000.0,
    },
    "granite-1b": COMMON | {
        "model_type": "granitemoe", "hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_local_experts": 32, "num_experts_per_tok": 8,
        "rope_theta": 10000.0, "attention_multiplier": 0.125, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
}  # fmt: skip
"""config.json of models with random weights: as many as a real model of this size has."""
SMALL = 400_000_000
"""Below so many bytes of a file, ours is measured with int8 activations, too: its default are 16 bits there."""


def shapes_of(c: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of a Llama's or Granite's checkpoint."""
    D, F, heads, kv = (
        c[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    head = c.get("head_dim", D // heads)
    yield from (("model.embed_tokens.weight", (c["vocab_size"], D)), ("model.norm.weight", (D,)))
    for i in range(c["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (D,), "post_attention_layernorm": (D,), "self_attn.q_proj": (heads * head, D),
            "self_attn.k_proj": (kv * head, D), "self_attn.v_proj": (kv * head, D),
            "self_attn.o_proj": (D, heads * head),
        }  # fmt: skip
        if experts := c.get("num_local_experts"):
            layer["block_sparse_moe.router.layer"] = (experts, D)
            layer["block_sparse_moe.input_linear"] = (experts, 2 * F, D)
            layer["block_sparse_moe.output_linear"] = (experts, D, F)
        else:
            layer |= {"mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F)}
        yield from ((f"model.layers.{i}.{name}.weight", shape) for name, shape in layer.items())


def random_checkpoint(shape: str, work: Path) -> Path:
    """A float16 checkpoint of normal numbers, made once."""
    from safetensors.numpy import save_file

    folder = work / shape / "random"
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng, config = np.random.default_rng(0), SHAPES[shape]
        save_file({
            name: np.ones(size, np.float16) if len(size) == 1
            else (rng.standard_normal(size, np.float32) * 0.02).astype(np.float16)
            for name, size in shapes_of(config)
        }, folder / "model.safetensors")  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def compare(options: argparse.Namespace) -> dict[str, Any]:
    ids = token_ids(None, None)
    rows, about = [], {}
    for name in options.models:
        source = random_checkpoint(name, options.work) if name in SHAPES else Path(name)
        gguf = peer_file(source, "Q4_0", options.work, options.peer[0].removesuffix("+repack"))
        ours = {"lapinfer": Ours(source, "q4", options.threads)}
        if gguf.stat().st_size < SMALL:
            ours["lapinfer, int8 activations"] = Ours(source, "q4+q8", options.threads)
        peers = {}
        for python in options.peer:
            peer = Peer(python.removesuffix("+repack"), gguf, options.threads, repacked=python.endswith("+repack"))
            side = peer.about["name"] + (", repacked" if python.endswith("+repack") else "")
            about[side], peers[side] = peer.about, peer
        sides = {side: lambda engine=engine: engine.measure(ids) for side, engine in (ours | peers).items()}
        turns = take_turns(sides, options.repetitions, options.threads)
        for peer in peers.values():
            peer.close()
        row: dict[str, Any] = {"model": name if name in SHAPES else source.stem, "turns": turns, "pairs": []}
        for mine in ours:
            for theirs in peers:
                pair = paired(turns, mine, theirs, options.threads)
                row["pairs"].append({"ours": mine, "theirs": theirs, **pair})
                print(f"{row['model']}, {mine} : {theirs}: {paired_line(pair, mine, theirs, len(turns))}", flush=True)
        rows.append(row)
    return {"threads": options.threads, "repetitions": options.repetitions, "peers": about, "models": rows}


def main() -> None:
    parser = argument_parser(__doc__, repetitions=7)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--peer", action="append", metavar="PYTHON", help="twice: llama.cpp's, then ik_llama.cpp's")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="folder for what is made once")
    options = parser.parse_args()
    options.peer = options.peer or [sys.executable]
    options.work.mkdir(parents=True, exist_ok=True)
    write_result(compare(options), options.output)


if __name__ == "__main__":
    main()
