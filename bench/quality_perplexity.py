"""Perplexity of a Hugging Face llama model whose weights went through a format and back.

Needs torch and transformers. The method is llama-perplexity's: the text tokenized whole, chunks of 512 tokens,
the second half of each scored. Example:

    python bench/quality_perplexity.py MODEL TEXT --quant q4 --importance norm --chunks 30
    python bench/quality_perplexity.py MODEL TEXT --quant q4 --calibrate OTHER_TEXT --feedback
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import argument_parser, print_result
from transformers import AutoModelForCausalLM, AutoTokenizer

from lapinfer.quant import calibrate
from lapinfer.quant.quantize import quantize

CTX = 512
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MATRICES += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
INPUTS = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o", "gate_proj": "gate_up"}
INPUTS |= {"up_proj": "gate_up", "down_proj": "down"}


def chunks_of(tokenizer, text: Path, count: int) -> torch.Tensor:
    """Token ids [count, 512] of a text tokenized whole."""
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    count = min(count, len(ids) // CTX)
    return torch.tensor(ids[: count * CTX]).reshape(count, CTX)


@torch.inference_mode()
def perplexity(model, chunks: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood of each chunk's second half."""
    nll, first = 0.0, CTX // 2
    for ids in chunks:
        hidden = model.model(ids[None]).last_hidden_state[0, first:-1]
        logp = torch.log_softmax(model.lm_head(hidden).float(), -1)
        nll -= logp.gather(1, ids[first + 1 :, None]).sum().item()
    return math.exp(nll / (len(chunks) * (CTX - first - 1)))


@torch.inference_mode()
def covariances(model, chunks: torch.Tensor) -> dict[tuple[int, str], np.ndarray]:
    """X^T X / tokens of the input of each matrix, by (layer, qkv | o | gate_up | down)."""
    sums: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []

    def watch(key: tuple[int, str]) -> Callable:
        def hook(_module, args):
            x = args[0].reshape(-1, args[0].shape[-1])
            sums[key] = sums.get(key, 0) + x.T @ x

        return hook

    for i, layer in enumerate(model.model.layers):
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
            module = layer.get_submodule(name)
            hooks.append(module.register_forward_pre_hook(watch((i, INPUTS[name.split(".")[1]]))))
    for ids in chunks:
        model.model(ids[None])
    for hook in hooks:
        hook.remove()
    return {key: (value / chunks.numel()).numpy() for key, value in sums.items()}


def quantize_activations(model) -> None:
    """Inputs of every linear layer rounded to int8 in groups of 32, as the kernels do."""

    def hook(_module, args):
        x = args[0]
        groups = x.unflatten(-1, (-1, 32))
        scale = groups.abs().amax(-1, keepdim=True) / 127
        rounded = torch.round(groups / scale.clamp_min(1e-30)).clamp(-127, 127) * scale
        return (rounded.flatten(-2),)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook)


def layer_arrays(layer) -> dict[str, np.ndarray]:
    """A layer's matrices and norms under the names of `lapinfer.spec`."""

    def weight(name: str) -> np.ndarray:
        return layer.get_submodule(name).weight.detach().numpy()

    return {
        "attn_norm.weight": weight("input_layernorm"),
        "ff_norm.weight": weight("post_attention_layernorm"),
        "qkv": np.concatenate([weight(f"self_attn.{n}_proj") for n in "qkv"]),
        "o": weight("self_attn.o_proj"),
        "gate_up": np.concatenate([weight("mlp.gate_proj"), weight("mlp.up_proj")]),
        "down": weight("mlp.down_proj"),
    }


@torch.inference_mode()
def store(layer, arrays: dict[str, np.ndarray]) -> None:
    """The reverse of `layer_arrays`, into the model."""
    attention, mlp = layer.self_attn, layer.mlp
    sizes = [m.weight.shape[0] for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
    q, k, v = np.split(arrays["qkv"], np.cumsum(sizes)[:2])
    gate, up = np.split(arrays["gate_up"], 2)
    for module, value in (
        (layer.input_layernorm, arrays["attn_norm.weight"]), (layer.post_attention_layernorm, arrays["ff_norm.weight"]),
        (attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v), (attention.o_proj, arrays["o"]),
        (mlp.gate_proj, gate), (mlp.up_proj, up), (mlp.down_proj, arrays["down"]),
    ):  # fmt: skip
        module.weight.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def guess_importance(
    qkv: np.ndarray, attn_norm: np.ndarray, n_heads: int, n_kv_heads: int, v_dim: int
) -> dict[str, np.ndarray]:
    """Importance [C] of the columns of a layer's qkv and o, from its weights alone.

    A normed vector times the norm's weights n feeds qkv: E x_j² ∝ n_j². The value rows feed o: E x_j² ∝ |v_j · n|².
    The same guesses for gate_up and down made these worse. Second moments of random tokens are far better.
    """
    values = qkv[len(qkv) - n_kv_heads * v_dim :]
    strength = np.einsum("rc,rc,c->r", values, values, attn_norm * attn_norm).reshape(n_kv_heads, v_dim)
    return {"qkv": attn_norm * attn_norm, "o": np.repeat(strength, n_heads // n_kv_heads, axis=0).reshape(-1)}


def quantize_layer(arrays, config, options, moments) -> dict[str, np.ndarray]:
    """One layer's arrays after quantization and back. moments: covariance by input name, or empty."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.head_dim
    guessed = {}
    if options.importance != "none":
        guessed = guess_importance(arrays["qkv"], arrays["attn_norm.weight"], heads, kv_heads, head_dim)
    result = dict(arrays)
    for name in ("qkv", "o", "gate_up", "down"):
        importance = guessed.get(name)
        if name in moments:
            importance = np.diag(moments[name])
        if importance is not None and (options.power != 1.0 or (options.random and name in ("o", "down"))):
            importance = importance ** (options.power if options.power != 1.0 else 0.5)
        if options.feedback and name in moments and options.quant == "q4":
            result[name] = calibrate.quantize_with_feedback(
                options.quant, arrays[name], calibrate.feedback_factors(moments[name])
            ).weights()
        else:
            result[name] = quantize(options.quant, arrays[name], importance).weights()
    return result


def main() -> None:
    parser = argument_parser(__doc__, threads=False, output=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--quant", choices=("none", "q8", "q4"), default="q4")
    parser.add_argument("--embed", choices=("none", "q8", "q4"), default="q8")
    parser.add_argument("--importance", choices=("none", "norm"), default="norm", help="without a calibration text")
    parser.add_argument("--power", type=float, default=1.0, help="exponent of the importance")
    parser.add_argument("--calibrate", type=Path, help="text for second moments")
    parser.add_argument("--random", action="store_true", help="second moments of random tokens instead of a text's")
    parser.add_argument("--calibrate-chunks", type=int, default=32)
    parser.add_argument("--feedback", action="store_true", help="error feedback (GPTQ)")
    parser.add_argument("--activations", action="store_true", help="round activations to int8 groups of 32")
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    moments = {}
    if options.random:
        tokens = torch.Generator().manual_seed(0)
        count = options.calibrate_chunks
        moments = covariances(model, torch.randint(0, model.config.vocab_size, (count, CTX), generator=tokens))
    elif options.calibrate:
        moments = covariances(model, chunks_of(tokenizer, options.calibrate, options.calibrate_chunks))
    started = time.perf_counter()
    if options.quant != "none":
        for i, layer in enumerate(model.model.layers):
            own = {name: value for (index, name), value in moments.items() if index == i}
            store(layer, quantize_layer(layer_arrays(layer), model.config, options, own))
    if options.embed != "none" and options.quant != "none":
        embed: Any = model.get_input_embeddings().weight
        with torch.inference_mode():
            embed.copy_(torch.from_numpy(quantize(options.embed, embed.detach().numpy()).weights()))
    seconds = time.perf_counter() - started
    if options.activations:
        quantize_activations(model)
    ppl = perplexity(model, chunks_of(tokenizer, options.text, options.chunks))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    print_result({"ppl": round(ppl, 4), "quantize_s": round(seconds, 1), **settings})


if __name__ == "__main__":
    main()
