"""SmolLM2 (or another llama checkpoint) as a mixture of experts without training, for routing that follows real text.

    python bench/mixture_of_smollm2.py MODEL TEXT OUT [--experts 16] [--top-k 8] [--tokens 4096]

The neurons of each feed-forward are grouped into experts of equal size by when they are active on the text; a router is
the least-squares map from a layer's input to how much each expert contributes (after CMoE, arXiv 2502.04416, which also
trains). With top-k = experts the function is that of the dense model. OUT is a Hugging Face folder of family mixtral,
whose softmax weights are made nearly equal and whose down projections are multiplied by top-k: a chosen expert counts
fully.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from harness import argument_parser, text_ids
from safetensors.numpy import save_file

SPREAD = 0.02
"""Standard deviation of router logits: softmax weights then differ by a few percent."""


def activations(model: str, text: Path, tokens: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each layer: inputs of the feed-forward [T, D], and its hidden values [T, F]."""
    from lapinfer.loading import load_model
    from lapinfer.options import LoadOptions
    from lapinfer.runtime.trace import traced

    loaded = load_model(model, LoadOptions(quant="f32", ctx=512))
    ids = text_ids(loaded.texts, text, tokens)
    layers, D, F = len(loaded.spec.layers), loaded.spec.hidden, loaded.spec.layers[0].feed_forward.width
    inputs: list[list[np.ndarray]] = [[] for _ in range(layers)]
    hidden: list[list[np.ndarray]] = [[] for _ in range(layers)]

    def before(op, values, experts) -> None:
        if op.label == "gate_up":
            inputs[op.layer].append(values[:, :D].copy())
        if op.label == "down":
            hidden[op.layer].append(values[:, :F].copy())

    with traced(loaded, before):
        for start in range(0, len(ids), 512):
            loaded.prefill(ids[start : start + 512])
    loaded.close()
    return [np.concatenate(x) for x in inputs], [np.concatenate(x) for x in hidden]


def balanced_groups(profiles: np.ndarray, groups: int, rounds: int = 12) -> np.ndarray:
    """Rows [F, C] into equal groups by k-means whose clusters may not grow beyond their share -> group [F]."""
    rng = np.random.default_rng(0)
    size = len(profiles) // groups
    centres = profiles[rng.choice(len(profiles), groups, replace=False)]
    group = np.zeros(len(profiles), np.int64)
    for _ in range(rounds):
        near = profiles @ centres.T
        order = np.argsort(-(near.max(axis=1) - np.partition(near, -2, axis=1)[:, -2]))
        room = np.full(groups, size)
        for row in order:  # the most decided ones first
            best = next(g for g in np.argsort(-near[row]) if room[g] > 0)
            group[row], room[best] = best, room[best] - 1
        centres = np.stack([profiles[group == g].mean(axis=0) for g in range(groups)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True) + 1e-9
    return group


def main() -> None:
    parser = argument_parser(__doc__, threads=False, output=False)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    from lapinfer.checkpoint.hub import resolve

    checkpoint = resolve(options.model)
    assert not isinstance(checkpoint, Path), "name a checkpoint, not a packed folder"
    config = dict(checkpoint.config)
    E, K = options.experts, options.top_k
    F = config["intermediate_size"] // E
    inputs, hidden = activations(options.model, options.text, options.tokens)
    project = np.random.default_rng(1).standard_normal((len(inputs[0]), 96)).astype(np.float32)
    tensors: dict[str, np.ndarray] = {}
    for name in checkpoint.names():
        if ".mlp." not in name:
            tensors[name] = checkpoint.read(name)
    for i, (x, h) in enumerate(zip(inputs, hidden, strict=True)):
        p = f"model.layers.{i}."
        gate, up, down = (checkpoint.read(f"{p}mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
        strength = np.abs(h) * np.linalg.norm(down, axis=0)  # [T, F]: how much each neuron adds
        profiles = (strength / (strength.mean(axis=0) + 1e-9) - 1).T @ project
        profiles /= np.linalg.norm(profiles, axis=1, keepdims=True)
        group = balanced_groups(profiles, E)
        share = np.stack([np.sqrt((strength[:, group == e] ** 2).sum(axis=1)) for e in range(E)], axis=1)  # [T, E]
        gram = x.T @ x + 1e-2 * len(x) * np.eye(x.shape[1], dtype=np.float32)
        router = np.linalg.solve(gram, x.T @ share).T  # [E, D]
        router *= SPREAD / (x @ router.T).std()
        tensors[f"{p}block_sparse_moe.gate.weight"] = router.astype(np.float32)
        for e in range(E):
            q, own = f"{p}block_sparse_moe.experts.{e}.", group == e
            tensors[f"{q}w1.weight"], tensors[f"{q}w3.weight"] = gate[own], up[own]
            tensors[f"{q}w2.weight"] = np.ascontiguousarray(down[:, own]) * np.float32(K)
        chosen = np.argsort(-(x @ router.T), axis=1)[:, :K]
        kept = np.take_along_axis(share**2, chosen, axis=1).sum() / (share**2).sum()
        print(f"layer {i}: the chosen {K} of {E} carry {kept:.1%} of what all add", flush=True)
    config |= {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "intermediate_size": F,
        "num_local_experts": E, "num_experts_per_tok": K, "sliding_window": None,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "config.json").write_text(json.dumps(config, indent=1))
    save_file({name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()},
              options.out / "model.safetensors")  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, options.out / name)


if __name__ == "__main__":
    main()
