"""lm-eval through the server, and the same through the library: accuracy and log-likelihoods of one task's samples.

    lm_eval --model local-completions --model_args model=NAME,base_url=URL/v1/completions,tokenizer=FOLDER \\
        --tasks TASK --log_samples --output_path OUT
    python bench/lm_eval_check.py MODEL OUT/NAME/samples_TASK_….jsonl [--quant q4]

Of each logged sample of a multiple-choice task, context and continuation are made into tokens as lm-eval does, and
scored by `LanguageModel.score`. Told are the largest difference between log-likelihoods, how many differ at all, and
both accuracies. lm-eval adds the log-probabilities of a continuation in float64, in their order; so does this.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lapinfer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("samples", type=Path)
    parser.add_argument("--quant", default="auto")
    given = parser.parse_args()
    samples = [json.loads(line) for line in given.samples.read_text(encoding="utf-8").splitlines()]
    count = differing = 0
    largest, right = 0.0, [0, 0]
    with lapinfer.load(given.model, quant=given.quant, slots=4) as model:
        for sample in samples:
            served = [float(answer[0][0]) for answer in sample["resps"]]
            pairs = [(each["arg_0"], each["arg_1"]) for each in sample["arguments"].values()]
            ours = likelihoods(model, pairs)
            for a, b in zip(served, ours, strict=True):
                count, differing, largest = count + 1, differing + (a != b), max(largest, abs(a - b))
            for i, values in enumerate((served, ours)):
                right[i] += values.index(max(values)) == int(sample["target"])
    print(f"{count} log-likelihoods: {differing} differ, by {largest:g} at most")
    print(f"accuracy: {right[0] / len(samples):.4f} served, {right[1] / len(samples):.4f} by the library")


def likelihoods(model: lapinfer.LanguageModel, pairs: list[tuple[str, str]]) -> list[float]:
    """Log-likelihoods of continuations after their contexts."""
    texts, starts = [], []
    for context, continuation in pairs:
        spaces = len(context) - len(context.rstrip())
        if spaces:  # lm-eval moves them to the continuation
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        texts.append(model.encode(context + continuation, special=False))
        starts.append(len(model.encode(context, special=False)))
    found = []
    for scored, start in zip(model.score(texts), starts, strict=True):
        found.append(sum(logprob for logprob in scored.logprobs[start:] if logprob is not None))
    return found


if __name__ == "__main__":
    main()
