"""The training loop: AdamW, warm-up and cosine, clipped gradients; a run that is killed goes on where it was saved.

On one machine, with one number of threads, a run that was interrupted has the losses of one that was not, to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lapinfer.digits import number
from lapinfer.errors import InputError, TrainingError
from lapinfer.interrupts import held
from lapinfer.outputs import write_whole
from lapinfer.progress import Phase, Progress, silent
from lapinfer.tensors import active_parameters
from lapinfer.train import state
from lapinfer.train.config import Config, Training
from lapinfer.train.corpus import Batches, Corpus, digest, load_tokenizer, prepare
from lapinfer.train.decoder import Decoder
from lapinfer.train.evaluation import validate
from lapinfer.train.export import export
from lapinfer.train.routed import Balance, add_records, balances_of, penalty, routed_layers

TOKENIZING = "tokenizing"
SAVED_WITHIN = 60.0
"""Seconds of a run that a process which is killed loses at most, but for a step."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run: the trained model, its checkpoint's folder, and its last figures."""

    model: Decoder
    checkpoint: Path
    loss: float
    validation: dict[str, Any]
    parameters: int
    active_parameters: int


def train(config: Config, texts: Sequence[str], out: str | Path, *, progress: Progress | None = None) -> Trained:
    """Train on texts, in the folder `out`; call it again to go on with a run that was stopped.

    Ctrl-C is raised after the step at hand, which is saved first.

    InputError when the texts are too short, `out` holds another run, or another process trains there; TrainingError
    when the loss is no number.
    """
    if not texts or not all(text.strip() for text in texts):
        raise InputError("no text to train on: expected texts that are not empty")
    say, out, options = progress or silent, Path(out), config.training
    texts_digest = digest(texts)
    begun = state.find_run(out, config, texts_digest) and (out / "tokenizer.json").is_file()
    if begun:
        say(Phase(TOKENIZING), 0)
        tokenizer, corpus = prepare(texts, config, load_tokenizer(out / "tokenizer.json", config.model.vocab_size))
    else:  # nothing is written before all that can be wrong has been looked at
        say(Phase(TOKENIZING, said="training the tokenizer"), 0)
        tokenizer, corpus = prepare(texts, config)
    with state.only_run(out):
        if not begun:
            state.begin_run(out, config, texts_digest)
            write_whole(out / "tokenizer.json", tokenizer.to_str())
        torch.manual_seed(options.seed)
        model = Decoder(config).train()
        optimizer = adamw(model, options)
        step, records = state.restore(out / "state.safetensors", model, optimizer)
        if step:
            say(f"going on after step {step:,} of {options.steps:,}")
        records = _run(model, optimizer, corpus, out, step, records, say)
        checkpoint = export(model, out / "model", tokenizer, force=True)
    parameters = sum(p.numel() for name, p in model.named_parameters() if ".noise." not in name)
    return Trained(
        model.eval(), checkpoint, records["loss"], records["validation"], parameters, active_parameters(model.spec)
    )


def _run(
    model: Decoder, optimizer: torch.optim.Optimizer, corpus: Corpus, out: Path, step: int, records: dict[str, Any],
    say: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The steps that are left; the last loss and validation."""
    options = model.config.training
    batches = Batches(corpus.ids, model.config.length, options.batch, options.seed)
    metrics = state.Metrics(out / "metrics.jsonl", step)
    bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16())
    before = records.get("seconds", 0.0)
    began, first, tokens = time.perf_counter(), step, options.batch * model.config.length
    saved, saved_at, whole = step, began, True
    said = f"training: {options.steps - step:,} steps of {tokens:,} tokens" if step < options.steps else ""
    say(Phase("training", "steps", said=said), step, options.steps)
    try:
        while step < options.steps:
            line = None
            with held():  # Ctrl-C comes when nothing is half done; pressed twice, it comes at once
                whole = False
                figures = train_step(model, optimizer, batches.at(step), step, bf16)
                step += 1
                seconds, last = before + time.perf_counter() - began, step == options.steps
                speed = tokens * (step - first) / (seconds - before)
                records = {**records, "loss": figures["loss"], "seconds": seconds}
                if step % options.log_every == 0 or last:
                    last_batch = balances_of(model)
                    add_records(last_batch, model)
                    metrics.write({"step": step, **figures, "seconds": round(seconds, 3), **_layers(last_batch)})
                if step % options.validate_every == 0 or last:
                    balances = balances_of(model)
                    records["validation"] = validate(model, corpus.held_out, corpus.held_out_bytes, balances)
                    records["validation"] |= _layers(balances)
                    metrics.write({"step": step, "validation": records["validation"]})
                    line = _line(step, options.steps, figures["loss"], records["validation"], speed)
                whole = True
                if step % options.save_every == 0 or last or time.perf_counter() - saved_at > SAVED_WITHIN:
                    state.save(out / "state.safetensors", model, optimizer, step, records)
                    saved, saved_at = step, time.perf_counter()
            if line is not None:
                say(line)
            say(Phase("training", "steps", beside=_beside(figures["loss"], records, speed)), step, options.steps)
    except KeyboardInterrupt:
        if whole and step > saved:
            state.save(out / "state.safetensors", model, optimizer, step, records)
        say(f"stopped after step {step:,} of {options.steps:,}: the same call goes on with it")
        raise
    return records


def train_step(
    model: Decoder, optimizer: torch.optim.Optimizer, windows: torch.Tensor, step: int, bf16: bool
) -> dict[str, float]:
    """One update by windows [B, length + 1]; TrainingError, and no update, when something is no number."""
    options = model.config.training
    rate = learning_rate(options, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    layers = routed_layers(model)
    for layer in layers:
        layer.set_progress(step / options.steps)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(windows[:, :-1])
    loss = cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
    added = penalty(model)
    (loss + added).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
    figures = {"loss": loss.item(), "penalty": added.item(), "gradient_norm": norm.item(), "learning_rate": rate}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step + 1}: {name} is {value}; what was saved is as it was. Try a lower learning_rate, a longer "
                "warmup or precision f32"
            )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for layer in layers:
        layer.after_step()
    return figures


def adamw(model: Decoder, options: Training) -> torch.optim.AdamW:
    """Decay for matrices alone: not for norms, biases, embeddings, and what chooses experts or leaves."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        chooses = any(part in name for part in ("router", "noise", "nodes", "node_out", "embed_tokens"))
        (others if parameter.ndim < 2 or chooses or name.endswith("_bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, options.learning_rate, (options.beta1, options.beta2), fused=True)


def learning_rate(options: Training, step: int) -> float:
    """Of the step that is the (step + 1)-th: linear to the peak, then half a cosine to `final` times the peak."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    done = (step - options.warmup) / max(options.steps - options.warmup, 1)
    return options.learning_rate * (options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * done)))


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16: elsewhere PyTorch does it by way of float32, more slowly."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _layers(balances: Sequence[Balance]) -> dict[str, Any]:
    return {"layers": [balance.as_dict() for balance in balances]} if balances else {}


def _beside(loss: float, records: dict[str, Any], speed: float) -> str:
    """What is shown beside the bar: the loss of this step, tokens per second so far, the last held-out perplexity."""
    held_out = f"  ppl {number(records['validation']['ppl'])}" if "validation" in records else ""
    return f"loss {loss:.3f}{held_out}  {speed:,.0f} tok/s"


def _line(step: int, steps: int, loss: float, validation: dict[str, Any], speed: float) -> str:
    """What is said after a validation."""
    line = f"step {step:,} of {steps:,}: loss {loss:.3f}, held-out perplexity {validation['ppl']:.2f}"
    if "soft_ppl" in validation:
        line += f" (soft {validation['soft_ppl']:.2f})"
    if layers := validation.get("layers"):
        line += f", max/mean load {max(layer['max_load'] for layer in layers):.2f}"
        line += f", {sum(layer['dead'] for layer in layers)} dead"
    return f"{line}, {speed:,.0f} tok/s"
