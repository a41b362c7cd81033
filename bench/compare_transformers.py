"""Speed side by side with transformers, in one process: prefill of 512 tokens, and decode of 64 tokens after them.

    python bench/compare_transformers.py MODEL [--variants q4:bfloat16,f32:float32] [-t 2] [-r 5] [-o FILE]

MODEL is a Hugging Face folder that both load; a variant is our format : torch's dtype. transformers runs with its own
KV cache, without gradients, one token a call: `generate` without its bookkeeping. The two take turns (A B A B …);
every turn begins with a probe of how well two threads scale right now and of how fast they read memory, stored with the
result. Figures are medians, and medians of the paired ratios, over the turns with a scaling of at least 1.8.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from compare_llamacpp import Ours
from harness import ANSWER, PROMPT, argument_parser, paired, paired_line, take_turns, write_result


class Transformers:
    """A model of transformers."""

    def __init__(self, folder: str, dtype: str, threads: int) -> None:
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


def main() -> None:
    parser = argument_parser(__doc__, repetitions=5)
    parser.add_argument("model")
    parser.add_argument("--variants", default="q4:bfloat16,f32:float32")
    options = parser.parse_args()
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    results: list[dict[str, Any]] = []
    for quant, dtype in (variant.split(":") for variant in options.variants.split(",")):
        ours = Ours(Path(options.model), quant, options.threads)
        theirs = Transformers(options.model, dtype, options.threads)
        ids = np.random.default_rng(0).integers(0, ours.model.spec.vocab, PROMPT + ANSWER)
        sides = {
            "ours": lambda ours=ours, ids=ids: ours.measure(ids),
            "theirs": lambda theirs=theirs, ids=ids: theirs.measure(ids),
        }
        turns = take_turns(sides, options.repetitions, options.threads)
        ours.model.close()
        row = {"ours": quant, "theirs": dtype, **paired(turns, "ours", "theirs", options.threads)}
        results.append(row | {"turns": turns})
        print(f"{quant} against {dtype}: {paired_line(row, 'ours', 'theirs', len(turns))}", flush=True)
    write_result(
        {"versions": versions, "model": Path(options.model).name, "threads": options.threads, "results": results},
        options.output,
    )


if __name__ == "__main__":
    main()
