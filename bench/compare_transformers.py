"""Speed side by side with transformers, in one process: prefill of 512 tokens, and decode of 64 tokens behind them.

    python bench/compare_transformers.py MODEL [--variants q4:bfloat16,f32:float32] [-t 2] [-r 5] [-o FILE]

MODEL is a Hugging Face folder that both load; a variant is our format : torch's dtype. transformers runs with its own
KV cache, without gradients, one token a call: `generate` without its bookkeeping. The two take turns (A B A B …);
every turn begins with a probe of how well two threads scale right now and of how fast they read memory, stored with the
result. Figures are medians, and medians of the paired ratios, over the turns with a scaling of at least 1.8.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from compare_llamacpp import ANSWER, PROMPT, Ours

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lapinfer.machine import description
from lapinfer.report.bandwidth import read_bandwidth, thread_scaling
from lapinfer.report.doctor import SCALING_WANTED


class Transformers:
    """A model of transformers."""

    def __init__(self, folder: str, dtype: str, threads: int):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def measure(self, ids: np.ndarray) -> dict[str, float]:
        tokens = self._torch.from_numpy(ids)[None]
        with self._torch.inference_mode():
            began = time.perf_counter()
            out = self.model(tokens[:, :PROMPT], use_cache=True, logits_to_keep=1)
            prefill = time.perf_counter() - began
            began = time.perf_counter()
            for i in range(PROMPT, PROMPT + ANSWER):
                out = self.model(tokens[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
            decode = time.perf_counter() - began
        return {"prefill": PROMPT / prefill, "decode": ANSWER / decode}


def compare(ours: Ours, theirs: Transformers, threads: int, repetitions: int) -> list[dict[str, Any]]:
    """Turns, the first of which warmed up and is not there."""
    ids = np.random.default_rng(0).integers(0, ours.model.spec.vocab, PROMPT + ANSWER)
    turns = []
    for turn in range(repetitions + 1):
        probe = {"scaling": thread_scaling(), "read_gb_s": read_bandwidth(threads, seconds=0.2) / 1e9}
        found = {"ours": ours.measure(ids), "theirs": theirs.measure(ids)}
        if turn:
            turns.append(probe | found)
    return turns


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    good = [turn for turn in turns if turn["scaling"] >= SCALING_WANTED]
    told: dict[str, Any] = {"good_turns": len(good), "turns": len(turns)}
    for test in ("prefill", "decode"):
        for side in ("ours", "theirs"):
            told[f"{test}_{side}"] = median(turn[side][test] for turn in good or turns)
        told[f"{test}_ratio"] = median(turn["ours"][test] / turn["theirs"][test] for turn in good or turns)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--variants", default="q4:bfloat16,f32:float32")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    results = []
    for variant in arguments.variants.split(","):
        quant, dtype = variant.split(":")
        ours = Ours(Path(arguments.model), quant, arguments.threads)
        theirs = Transformers(arguments.model, dtype, arguments.threads)
        turns = compare(ours, theirs, arguments.threads, arguments.repetitions)
        ours.model.close()
        found = {"ours": quant, "theirs": dtype, **summary(turns)}
        results.append(found | {"turns_measured": turns})
        print(json.dumps(found), flush=True)
    if arguments.output is not None:
        told = {"machine": description(), "versions": versions, "model": Path(arguments.model).name,
                "threads": arguments.threads, "results": results}  # fmt: skip
        arguments.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
