"""Speed side by side with llama.cpp, in one run: prefill of 512 tokens, and decode of 64 tokens after them.

    python bench/compare_llamacpp.py MODEL --peer PYTHON [--variants q4:Q4_0,q4:Q4_K_M,q8:Q8_0] [-t 2] [-r 5] [-o FILE]
        [--text FILE --tokenizer FOLDER]

MODEL is a Hugging Face folder (llama, granitemoe, olmoe, qwen3_moe) or a .gguf file; PYTHON is an interpreter with a
native build of llama-cpp-python (`CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python
llama-cpp-python`). GGUF files of the peer's types are made once in --work by llama.cpp's own quantizer. A variant is
ours:theirs; ours may name the activations after a plus (q4+q8 for int8, as llama.cpp has them; by default small models
have q16).

Both engines stay loaded and take turns (A B A B …); every turn begins with a probe of how well two threads scale right
now and of how fast two threads read memory, stored with the result. Figures are medians, and medians of the paired
ratios, over the turns with a scaling of at least 1.8.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    ANSWER,
    PROMPT,
    argument_parser,
    paired,
    paired_line,
    prefill_and_decode,
    take_turns,
    text_ids,
    write_result,
)
from llamacpp import Peer, peer_file


class Ours:
    """lapinfer, measured the same way: the logits of every answer token are computed, the tokens are given."""

    def __init__(self, source: Path, variant: str, threads: int) -> None:
        from lapinfer.loading import load_model
        from lapinfer.options import LoadOptions

        quant, _, activations = variant.partition("+")
        settings: dict[str, Any] = {"quant": quant, "activations": activations or "auto"}  # checked by LoadOptions
        self.model = load_model(source, LoadOptions(threads=threads, ctx=PROMPT + ANSWER, **settings))

    def measure(self, ids: np.ndarray) -> dict[str, float]:
        return prefill_and_decode(self.model, ids)


def token_ids(text: Path | None, tokenizer: Path | None) -> np.ndarray:
    """The first tokens of a text, or random ones."""
    if text is None:
        return np.random.default_rng(0).integers(5, 40000, PROMPT + ANSWER)
    return np.array(text_ids(tokenizer, text, PROMPT + ANSWER))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    ids = token_ids(options.text, options.tokenizer)
    result: dict[str, Any] = {
        "text": options.text.name if options.text else "random ids", "model": options.model.name,
        "threads": options.threads, "repetitions": options.repetitions, "variants": [],
    }  # fmt: skip
    engines: dict[str, Ours] = {}
    for quant, kind in (pair.split(":") for pair in options.variants.split(",")):
        if quant not in engines:
            engines[quant] = Ours(options.model, quant, options.threads)
        peer = Peer(options.peer, peer_file(options.model, kind, options.work, options.peer), options.threads)
        result["peer"] = peer.about
        sides = {"ours": lambda quant=quant: engines[quant].measure(ids), "peer": lambda peer=peer: peer.measure(ids)}
        turns = take_turns(sides, options.repetitions, options.threads)
        peer.close()
        row = {"ours": quant, "peer": kind, "turns": turns, **paired(turns, "ours", "peer", options.threads)}
        result["variants"].append(row)
        print(f"{quant} against {kind}: {paired_line(row, 'ours', 'peer', len(turns))}", flush=True)
    return result


def main() -> None:
    parser = argument_parser(__doc__, repetitions=5)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", default=sys.executable, help="Python interpreter with llama-cpp-python")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="folder for the peer's files")
    parser.add_argument("--variants", default="q4:Q4_0,q4:Q4_K_M,q8:Q8_0")
    parser.add_argument("--text", type=Path, help="its first tokens are run; random ones when not given")
    parser.add_argument("--tokenizer", type=Path, help="folder with the tokenizer.json for it (of the same vocabulary)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    write_result(compare(options), options.output)


if __name__ == "__main__":
    main()
