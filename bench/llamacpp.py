"""llama.cpp as a peer: its files, made by its own quantizer, and a process of its interpreter that measures them.

An interpreter with a native build of llama-cpp-python, or with ik-llama-cpp-python, its fastest fork, runs this file
(`--serve`, `--quantize`) and `LlamaCpp`.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import ANSWER, PROMPT


def interface() -> Any:
    """The C interface of whichever of both is installed."""
    if importlib.util.find_spec("llama_cpp") is not None:
        return importlib.import_module("llama_cpp")
    return importlib.import_module("ik_llama_cpp._ctypes_api")


class LlamaCpp:
    """A model in this process. loading: more fields of llama.cpp's parameters for loading."""

    def __init__(self, gguf: str, ctx: int, batch: int, threads: int, **loading: bool) -> None:
        self.api = api = interface()
        self.is_fork = not hasattr(api, "llama_get_memory")
        if not self.is_fork:
            self._quiet = api.llama_log_callback(lambda level, text, data: None)
            api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        options = api.llama_model_default_params()
        for name, value in loading.items():
            setattr(options, name, value)
        self.model = api.llama_model_load_from_file(gguf.encode(), options)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = ctx, batch, batch
        params.n_threads = params.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, params)
        self._batch = api.llama_batch_init(batch, 0, 1)

    def about(self) -> dict[str, str]:
        """What it was built as."""
        if self.is_fork:
            return {"name": "ik_llama.cpp", "version": version("ik-llama-cpp-python")}
        system = self.api.llama_print_system_info().decode()
        return {"name": "llama.cpp", "system": system, "version": self.api.__version__}

    def forget(self, position: int = 0) -> None:
        """The tokens from a position on, by default all."""
        if self.is_fork:
            self.api._lib.llama_kv_cache_seq_rm(ctypes.c_void_p(self.context), 0, position, -1)
        elif position == 0:
            self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        else:
            self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, position, -1)

    def seconds(self, ids: Sequence[int], position: int, every: bool = False) -> float:
        """Of one step of tokens from a position on, with the logits of the last or of every token."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or i == len(ids) - 1
        began = time.perf_counter()
        assert self.api.llama_decode(self.context, batch) == 0
        if not self.is_fork:
            self.api.llama_synchronize(self.context)
        return time.perf_counter() - began

    def likeliest(self) -> int:
        """The likeliest token after the last one."""
        vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        logits = self.api.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (vocab,)).argmax())


# ---- a process of its own, which answers one JSON line per request ----


def serve_peer(gguf: str, threads: int, repacked: bool) -> None:
    """Runs in the peer's interpreter. repacked: ik_llama.cpp's -rtr, which reads the file and doesn't map it."""
    loading = {"repack_tensors": True, "use_mmap": False} if repacked else {}
    peer = LlamaCpp(gguf, PROMPT + ANSWER, PROMPT, threads, **loading)
    print(json.dumps(peer.about()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ids = request["ids"]
        peer.forget()
        prefill = peer.seconds(ids[:PROMPT], 0)
        if "steps" in request:
            times = {}
            for tokens in request["steps"]:
                for _ in range(request["repetitions"]):
                    peer.forget(PROMPT)
                    spent = peer.seconds(ids[PROMPT : PROMPT + tokens], PROMPT, every=True)
                    times.setdefault(str(tokens), []).append(spent)
            print(json.dumps({tokens: median(spent) for tokens, spent in times.items()}), flush=True)
            continue
        decode = sum(peer.seconds([token], PROMPT + i) for i, token in enumerate(ids[PROMPT:]))
        print(json.dumps({"prefill": PROMPT / prefill, "decode": ANSWER / decode}), flush=True)


def quantize_peer(source: str, target: str, kind: str) -> None:
    """Runs in the peer's interpreter: requantize a GGUF file."""
    import llama_cpp as ll  # pyright: ignore[reportMissingImports]

    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize, params.nthread = True, 2
    assert ll.llama_model_quantize(source.encode(), target.encode(), params) == 0


class Peer:
    """llama.cpp with one file, at the other end of a pipe."""

    def __init__(self, python: str, gguf: Path, threads: int, *, repacked: bool = False):
        command = [python, __file__, "--serve", str(gguf), str(threads), *(["--repacked"] if repacked else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.about = json.loads(self.process.stdout.readline())

    def measure(self, ids: np.ndarray) -> dict[str, float]:
        """Tokens per second of a prompt of PROMPT ids, and of decoding the rest."""
        return self._ask({"ids": ids.tolist()})

    def steps(self, ids: np.ndarray, steps: Sequence[int], repetitions: int) -> dict[str, float]:
        """Median seconds of steps of so many tokens, behind PROMPT ids, with the logits of all of them."""
        return self._ask({"ids": ids.tolist(), "steps": [*steps], "repetitions": repetitions})

    def _ask(self, request: dict[str, Any]) -> dict[str, float]:
        self.process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
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


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve_peer(sys.argv[2], int(sys.argv[3]), "--repacked" in sys.argv)
    else:
        quantize_peer(*sys.argv[2:5])
