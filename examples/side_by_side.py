"""Dense, experts and trees side by side: what a token costs in memory traffic and time, and what it brings.

    python examples/side_by_side.py                              the four siblings that come with the package
    python examples/side_by_side.py MODEL MODEL2 --text novel.txt

The siblings differ in their feed-forwards alone: dense, dense and small, a mixture of experts, and trees (FFF). Bytes
are metered while text is generated, one token after the other; perplexity is of a text's beginning (lower is better).
The default text is a page that the siblings were trained on, so it flatters them: weights/README.md has a novel's.
"""

import argparse
import sys
from pathlib import Path

import lapinfer
from lapinfer.report.perplexity import perplexity
from lapinfer.report.texts import passage
from lapinfer.tensors import active_parameters, parameters

SIBLINGS = ["austen-dense", "austen-dense-active", "austen-moe", "austen-fff"]
FEED_FORWARD = ("feed-forward", "router", "experts")  # the parts of a step in which the siblings differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=SIBLINGS)
    parser.add_argument("--text", type=Path, help="default: a passage that comes with lapinfer")
    parser.add_argument("--tokens", type=int, default=100, help="how many are generated to measure (default 100)")
    args = parser.parse_args()
    text = passage() if args.text is None else args.text.read_text(encoding="utf-8")
    rows = []
    for name in args.models:
        with lapinfer.load(name) as model:
            rows.append((name, *measured(model, text, args.tokens)))
    print(f"{'':20} {'parameters':>20} {'KB touched by a token':>36}")
    print(f"{'':20} {'all':>10} {'a token':>9} {'feed-forwards':>26} {'all':>9} {'tok/s':>7} {'perplexity':>12}")
    most = max(row[3] for row in rows)
    for name, total, active, own, touched, speed, ppl, error in rows:
        bar = "█" * round(12 * own / most)
        print(f"{Path(name).name[:20]:20} {total / 1e6:>8.2f} M {active / 1e6:>7.2f} M {bar:>13}"
              f"{own / 1e3:>13,.0f} {touched / 1e3:>9,.0f} {speed:>7,.0f} {ppl:>6.1f} ± {error:.1f}")  # fmt: skip
    of = (
        "a passage of Pride and Prejudice, on which those that come along were trained"
        if args.text is None
        else args.text
    )
    print(f"\nperplexity: of {of}; lower is better")


def measured(model: lapinfer.LanguageModel, text: str, tokens: int) -> tuple[float, ...]:
    """Parameters, those of a token, bytes of the feed-forwards and of all, tokens per second, perplexity, its error."""
    ids = model.encode(text)
    model.generate(ids[:32], max_tokens=2)  # the first steps wake threads and fill caches
    last = None
    for last in model.stream(ids[:32], max_tokens=tokens, speculate=False, temperature=0):
        if last.timings.tokens_per_second == 0:  # the first token: the prompt was read, and from here on we count
            model.usage.reset()
    assert last is not None
    parts, steps = model.usage.parts(), model.usage.steps
    own = sum(parts.get(part, 0) for part in FEED_FORWARD) / steps
    *_, scored = perplexity(model, text, ctx=min(128, len(ids) // 2))
    return (parameters(model.spec), active_parameters(model.spec), own, sum(parts.values()) / steps,
            last.timings.tokens_per_second, scored.ppl, scored.error)  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (lapinfer.LapinferError, OSError) as error:
        sys.exit(str(error))
