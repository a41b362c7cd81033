"""From a finished study `siblings` to the models of this folder: float16 weights, and a card for each.

    python weights/ship.py STUDY TEXT

STUDY is the study's folder, TEXT the one that was only scored in it. Perplexities on the cards are the engine's own,
of the files that are written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lapinfer.checkpoint.shipped import SHIPPED  # noqa: E402
from lapinfer.report.perplexity import perplexity  # noqa: E402
from lapinfer.text.language_model import load  # noqa: E402
from lapinfer.train import Config, Decoder  # noqa: E402
from lapinfer.train.export import decoder_names, renamed  # noqa: E402

PROMPT = "It is a truth universally acknowledged"
GOLDEN = ROOT / "tests" / "golden_siblings.json"
TOKENS = 48
TITLES = {
    "dense": "a dense feed-forward of 768 neurons in every layer",
    "dense_active": "a dense feed-forward of 97 neurons in every layer: as much as a token computes in the others",
    "moe": "16 experts of 48 neurons in every layer, of which a token gets 2",
    "fff": "two trees of 8 leaves of 48 neurons in every layer; a token gets one leaf of each (fast feedforward)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("text", type=Path)
    arguments = parser.parse_args()
    summary = json.loads((arguments.study / "siblings.json").read_text(encoding="utf-8"))
    golden = {}
    for name in SHIPPED:
        arm = name.removeprefix("austen-").replace("-", "_")
        found = summary["arms"][arm]
        folder = ROOT / "weights" / name
        written = write_model(arguments.study / "trials" / found["best"]["folder"] / "model", folder)
        golden[name] = reference_tokens(arm_config(summary, arm, found["best"]["seed"]), folder)
        text = arguments.text.read_text(encoding="utf-8")
        figures = {quant: engine_perplexity(folder, quant, text) for quant in ("f32", "q8", "q4")}
        (folder / "README.md").write_text(card(name, arm, summary, figures, written), encoding="utf-8")
        sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        told = {"perplexity": figures["q8"], "text": summary["unseen_text"], "quant": "q8", "sha256": sha256}
        (folder / "figures.json").write_text(json.dumps(told) + "\n", encoding="utf-8")
        print(name, figures, flush=True)
    GOLDEN.write_text(json.dumps({"prompt": PROMPT, "models": golden}, indent=1) + "\n", encoding="utf-8")
    shutil.copy(arguments.study / "siblings.svg", ROOT / "weights" / "siblings.svg")


def write_model(source: Path, folder: Path) -> int:
    """The checkpoint in float16; bytes of its weights."""
    folder.mkdir(exist_ok=True)
    tensors = {name: value.half() for name, value in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return (folder / "model.safetensors").stat().st_size


def arm_config(summary: dict[str, Any], arm: str, seed: int) -> Config:
    from bench.studies.siblings import ARMS

    sections = {name: summary["config"][name] for name in ("model", "training")}
    config = Config.from_dict(sections | {"training": sections["training"] | {"seed": seed}})
    return Config(config.model, **ARMS[arm], training=config.training)


@torch.no_grad()
def reference_tokens(config: Config, folder: Path) -> dict[str, list[Any]]:
    """Greedy continuation by PyTorch in float32, of the file's weights: ids, and by how much each was the best."""
    import tokenizers

    model = Decoder(config).eval()
    names, stored = decoder_names(model), load_file(folder / "model.safetensors")
    state = {}
    for name, value in model.state_dict().items():
        parts = renamed({name: value}, names)
        if len(parts) == 1 and (only := next(iter(parts))) in stored and stored[only].shape == value.shape:
            state[name] = stored[only].float()
        elif parts:  # a bank of experts, which the file has one by one
            state[name] = merged(value, list(parts), stored)
    model.load_state_dict(state)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = ids = tokenizer.encode(PROMPT).ids
    margins = []
    for _ in range(TOKENS):
        best = model(torch.tensor([ids]))[0, -1].topk(2)
        ids = [*ids, int(best.indices[0])]
        margins.append(round(float(best.values[0] - best.values[1]), 4))
    return {"prompt_ids": prompt, "ids": ids[len(prompt) :], "margins": margins}


def merged(bank: torch.Tensor, names: list[str], stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """[E, R, C] of an expert's matrices, or of its two halves one after the other."""
    several = len(names) // len(bank)
    parts = [names[e * several : (e + 1) * several] for e in range(len(bank))]
    return torch.stack([torch.cat([stored[name].float() for name in of_expert]) for of_expert in parts])


def engine_perplexity(folder: Path, quant: str, text: str) -> float:
    with load(str(folder), quant=quant) as model:
        *_, last = perplexity(model, text, ctx=256)
    return last.ppl


def card(name: str, arm: str, summary: dict[str, Any], engine: dict[str, float], size: int) -> str:
    found, training = summary["arms"][arm], summary["config"]["training"]
    model, best = summary["config"]["model"], summary["arms"][arm]["best"]
    tokens = training["steps"] * training["batch"] * model["max_position_embeddings"]
    several = summary["seeds"] > 1
    chosen = f"the best of {summary['seeds']} by the held-out ends" if several else "the only one"
    lines = [
        f"# {name}", "",
        f"A language model of Jane Austen's novels, with {TITLES[arm]}. One of four siblings that differ in nothing "
        "else; it continues text, and was made for comparing them.", "",
        f"    lapinfer run -m {name} \"{PROMPT}\"", "",
        "| | |", "|---|---|",
        f"| parameters | {found['parameters']:,}, of which a token uses {found['active_parameters']:,} |",
        f"| shape | {model['num_hidden_layers']} layers, width {model['hidden_size']}, {model['num_attention_heads']} "
        f"query and {model['num_key_value_heads']} key/value heads, context {model['max_position_embeddings']}, "
        f"{model['vocab_size']:,} tokens (byte-level BPE of the training texts) |",
        f"| file | {size / 1e6:.1f} MB, float16 |",
        f"| data | {', '.join(summary['texts'])} (public domain), but the last {training['validation']:.0%} of each |",
        f"| training | {training['steps']:,} steps of {training['batch']} × {model['max_position_embeddings']} tokens, "
        f"{tokens / 1e6:.1f} M in all; AdamW, peak rate {training['learning_rate']:g}, cosine; seed {best['seed']}, "
        f"{chosen} |",
        f"| held-out perplexity | {best['validation']['ppl']:.2f} ± {best['validation']['error']:.2f} |",
        f"| perplexity on {summary['unseen_text']} | {best['unseen']['ppl']:.2f} in PyTorch; in the engine "
        + ", ".join(f"{value:.2f} as {quant}" for quant, value in engine.items()) + " |",
    ]  # fmt: skip
    if "soft_ppl" in best["unseen"]:
        lines.append(f"| the same, soft mixture of all leaves | {best['unseen']['soft_ppl']:.2f} |")
    lines += [
        f"| bits a byte of {summary['unseen_text']} | {best['unseen']['bits_per_byte']:.3f} |",
    ]
    if several:
        spread = f"{found['unseen_ppl']['mean']:.2f} ± {found['unseen_ppl']['sd']:.2f}"
        lines.append(f"| perplexity on {summary['unseen_text']}, all seeds | {spread} |")
    if layers := best["validation"].get("layers"):
        loads = ", ".join(f"{layer['max_load']:.2f}" for layer in layers)
        dead = sum(layer["dead"] for layer in layers)
        lines.append(f"| busiest expert or leaf, by layer | {loads} times the mean; {dead} dead |")
    lines += ["", "Held-out perplexity by step, of this model and its siblings:", "", "![curves](../siblings.svg)", "",
              "[How it was made](../README.md).", ""]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
