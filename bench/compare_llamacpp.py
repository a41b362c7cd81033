"""Speed side by side with llama.cpp, in one run: prefill of 512 tokens, and decode of 64 tokens behind them.

    python bench/compare_llamacpp.py MODEL --peer PYTHON [--variants q4:Q4_0,q4:Q4_K_M,q8:Q8_0] [-t 2] [-r 5] [-o FILE]
        [--text FILE --tokenizer FOLDER]

MODEL is a Hugging Face folder (llama, granitemoe, olmoe, qwen3_moe) or a .gguf file; PYTHON is an interpreter with a
native build of llama-cpp-python (`CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python
llama-cpp-python`). GGUF files of the peer's types are made once in --work by llama.cpp's own quantizer. A variant is
ours:theirs; ours may name the activations behind a plus (q4+q8 for int8, as llama.cpp has them; by default small models
have q16).

Both engines stay loaded and take turns (A B A B …); every turn begins with a probe of how well two threads scale right
now and of how fast two threads read memory, stored with the result. Figures are medians, and medians of the paired
ratios, over the turns with a scaling of at least 1.8.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PROMPT, ANSWER = 512, 64


# ---- the peer: a process of its own, which answers one JSON line a request ----


def serve_peer(gguf: str, threads: int) -> None:
    """Runs in the peer's interpreter."""
    import ctypes

    import llama_cpp as ll

    def quiet(level: int, text: bytes, data: object) -> None:
        pass

    log = ll.llama_log_callback(quiet)
    ll.llama_log_set(log, ctypes.c_void_p(0))
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(gguf.encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = PROMPT + ANSWER, PROMPT, PROMPT
    params.n_threads = params.n_threads_batch = threads
    context = ll.llama_init_from_model(model, params)
    print(json.dumps({"system": ll.llama_print_system_info().decode(), "version": ll.__version__}), flush=True)
    for line in sys.stdin:
        ids = json.loads(line)
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        tokens = (ll.llama_token * len(ids))(*ids)
        began = time.perf_counter()
        assert ll.llama_decode(context, ll.llama_batch_get_one(tokens, PROMPT)) == 0
        ll.llama_synchronize(context)
        prefill = time.perf_counter() - began
        decode = []
        for i in range(ANSWER):
            one = (ll.llama_token * 1)(ids[PROMPT + i])
            began = time.perf_counter()
            assert ll.llama_decode(context, ll.llama_batch_get_one(one, 1)) == 0
            ll.llama_synchronize(context)
            decode.append(time.perf_counter() - began)
        print(json.dumps({"prefill": PROMPT / prefill, "decode": ANSWER / sum(decode)}), flush=True)


def quantize_peer(source: str, target: str, kind: str) -> None:
    """Runs in the peer's interpreter: requantize a GGUF file."""
    import llama_cpp as ll

    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize, params.nthread = True, 2
    assert ll.llama_model_quantize(source.encode(), target.encode(), params) == 0


class Peer:
    """llama.cpp with one file, behind a pipe."""

    def __init__(self, python: str, gguf: Path, threads: int):
        command = [python, __file__, "--serve", str(gguf), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.about = json.loads(self.process.stdout.readline())

    def measure(self, ids: np.ndarray) -> dict[str, float]:
        self.process.stdin.write(json.dumps(ids.tolist()) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return json.loads(self.process.stdout.readline())  # type: ignore[union-attr]

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


# ---- making the peer's files ----


ARCHITECTURES = {"llama": "llama", "granitemoe": "granitemoe", "olmoe": "olmoe", "qwen3_moe": "qwen3moe"}
"""model_type of a config.json -> llama.cpp's name for it."""

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.router.layer": "ffn_gate_inp", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(folder: Path, target: Path) -> None:
    """A float16 GGUF of a folder of one of ARCHITECTURES, without a tokenizer: for speed."""
    import gguf

    from lapinfer.checkpoint.folder import FolderCheckpoint

    checkpoint = FolderCheckpoint(folder)
    c = checkpoint.config
    arch = ARCHITECTURES[c["model_type"]]
    writer = gguf.GGUFWriter(target, arch, use_temp_file=True)
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base((c.get("rope_parameters") or c)["rope_theta"])
    writer.add_vocab_size(c["vocab_size"])
    writer.add_tokenizer_model("none")
    if arch != "llama":
        writer.add_expert_count(c.get("num_local_experts") or (c.get("num_experts") or c["num_local_experts"]))
        writer.add_expert_used_count(c["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(c.get("moe_intermediate_size") or c["intermediate_size"])
    if arch == "granitemoe":
        writer.add_attention_scale(c["attention_multiplier"])
        writer.add_embedding_scale(c["embedding_multiplier"])
        writer.add_residual_scale(c["residual_multiplier"])
        writer.add_logit_scale(c["logits_scaling"])
    experts: dict[tuple[str, str], dict[int, np.ndarray]] = {}

    def add(name: str, values: np.ndarray) -> None:
        exact = values.ndim == 1 or "ffn_gate_inp" in name
        writer.add_tensor(name, values.astype(np.float32 if exact else np.float16))

    for name in sorted(checkpoint.names(), key=lambda name: [int(p) if p.isdigit() else 0 for p in name.split(".")]):
        values = checkpoint.read(name)
        if not name.startswith("model.layers."):
            add({
                "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }[name], values)  # fmt: skip
            continue
        _, _, layer, part = name.split(".", 3)
        part = part.removesuffix(".weight")
        if part == "block_sparse_moe.input_linear":
            gate, up = np.split(values, 2, axis=1)
            add(f"blk.{layer}.ffn_gate_exps.weight", gate)
            add(f"blk.{layer}.ffn_up_exps.weight", up)
        elif part == "block_sparse_moe.output_linear":
            add(f"blk.{layer}.ffn_down_exps.weight", values)
        elif ".experts." in part:
            _, _, expert, which = part.split(".")
            group = experts.setdefault((layer, which), {})
            group[int(expert)] = values.astype(np.float16)
            if len(group) == (c.get("num_experts") or c["num_local_experts"]):
                stacked = np.stack([group[e] for e in sorted(group)])
                add(f"blk.{layer}.ffn_{which.removesuffix('_proj')}_exps.weight", stacked)
                del experts[layer, which]
        else:
            # llama.cpp's rotary order of rows, in these architectures alone
            if arch in ("llama", "granitemoe") and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = c["num_attention_heads" if part.endswith("q_proj") else "num_key_value_heads"]
                rows, columns = values.shape
                values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
            add(f"blk.{layer}.{NAMES[part]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peer_file(source: Path, kind: str, work: Path, python: str) -> Path:
    """The GGUF file of a type, made if it is not there."""
    stem = source.stem if source.is_file() else source.resolve().parent.name + "-" + source.name
    target = work / f"{stem}.{kind}.gguf"
    if not target.exists():
        base = source
        if source.is_dir():
            base = work / f"{stem}.F16.gguf"
            if not base.exists():
                write_gguf(source, base)
        subprocess.run(
            [python, __file__, "--quantize", str(base), str(target), kind], check=True, stderr=subprocess.DEVNULL
        )
    return target


# ---- ours ----


class Ours:
    """lapinfer, measured the same way: the logits of every answer token are computed, the tokens are given."""

    def __init__(self, source: Path, variant: str, threads: int):
        from lapinfer.loading import load_model
        from lapinfer.options import LoadOptions

        quant, _, activations = variant.partition("+")
        self.model = load_model(
            source, LoadOptions(quant=quant, threads=threads, ctx=PROMPT + ANSWER, activations=activations or "auto")
        )

    def measure(self, ids: np.ndarray) -> dict[str, float]:
        from lapinfer.report.timing import Watch

        watch = Watch(self.model)
        return {"prefill": PROMPT / watch.prefill(ids[:PROMPT]), "decode": ANSWER / watch.decode(ids, PROMPT, ANSWER)}


def median(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def token_ids(text: Path | None, tokenizer: Path | None) -> np.ndarray:
    """The first tokens of a text, or random ones."""
    if text is None:
        return np.random.default_rng(0).integers(5, 40000, PROMPT + ANSWER)
    from lapinfer.text.tokenizer import Tokenizer

    found = Tokenizer.from_folder(tokenizer or Path())
    if found is None:
        raise SystemExit(f"{tokenizer}: has no tokenizer.json; --tokenizer names a folder that has")
    return np.array(found.encode(text.read_text(encoding="utf-8")[:20_000])[: PROMPT + ANSWER])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    from lapinfer.machine import cpu_name
    from lapinfer.report.bandwidth import read_bandwidth, thread_scaling

    ids = token_ids(args.text, args.tokenizer)
    result: dict[str, Any] = {
        "text": args.text.name if args.text else "random ids", "model": args.model.name, "threads": args.threads,
        "repetitions": args.repetitions,
        "machine": {"processor": cpu_name(), "platform": platform.platform(), "python": platform.python_version()},
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "variants": [],
    }  # fmt: skip
    engines: dict[str, Any] = {}
    pairs = [pair.split(":") for pair in args.variants.split(",")]
    for quant, kind in pairs:
        ours = engines.setdefault(quant, None) or Ours(args.model, quant, args.threads)
        engines[quant] = ours
        peer = Peer(args.peer, peer_file(args.model, kind, args.work, args.peer), args.threads)
        result["peer"] = peer.about
        ours.measure(ids), peer.measure(ids)  # warm-up
        turns = []
        for _ in range(args.repetitions):
            turn: dict[str, Any] = {"scaling": thread_scaling(), "bandwidth": read_bandwidth(args.threads)}
            turn["ours"], turn["peer"] = ours.measure(ids), peer.measure(ids)
            turns.append(turn)
        peer.close()
        good = [turn for turn in turns if args.threads < 2 or turn["scaling"] >= 1.8] or turns
        row: dict[str, Any] = {
            "ours": quant, "peer": kind, "turns": turns, "good": len(good),
            "scaling": statistics.median(t["scaling"] for t in turns),
            "bandwidth": statistics.median(t["bandwidth"] for t in good),
        }  # fmt: skip
        for test in ("prefill", "decode"):
            row[f"{test}_ours"] = median([t["ours"] for t in good], test)
            row[f"{test}_peer"] = median([t["peer"] for t in good], test)
            row[f"{test}_ratio"] = statistics.median(t["ours"][test] / t["peer"][test] for t in good)
        result["variants"].append(row)
        print(
            f"{quant} against {kind}: prefill {row['prefill_ours']:.0f} / {row['prefill_peer']:.0f} = "
            f"{row['prefill_ratio']:.2f}×, decode {row['decode_ours']:.1f} / {row['decode_peer']:.1f} = "
            f"{row['decode_ratio']:.2f}×  (two-thread scaling {row['scaling']:.2f}, {len(good)} of {len(turns)} turns "
            f"at 1.8 or more, reads {row['bandwidth'] / 1e9:.1f} GB/s)",
            flush=True,
        )
    return result


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        return serve_peer(sys.argv[2], int(sys.argv[3]))
    if sys.argv[1:2] == ["--quantize"]:
        return quantize_peer(*sys.argv[2:5])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", default=sys.executable, help="Python interpreter with llama-cpp-python")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="folder for the peer's files")
    parser.add_argument("--variants", default="q4:Q4_0,q4:Q4_K_M,q8:Q8_0")
    parser.add_argument("--text", type=Path, help="its first tokens are run; random ones when not given")
    parser.add_argument("--tokenizer", type=Path, help="folder with the tokenizer.json for it (of the same vocabulary)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    result = compare(args)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
