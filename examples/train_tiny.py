"""Train a tiny language model in about five minutes, without a GPU or a download, and let it talk.

    pip install "lapinfer[train]"
    python examples/train_tiny.py                       from the texts of Python's own help(), into tiny-fff/
    python examples/train_tiny.py novel.txt --kind moe --steps 3000 -o novel

The default text is the language reference that every Python brings along for help("for"). One million parameters and
as many tokens as fit into five minutes make a model that knows the manner and not the matter. Stopped, the same command
goes on where it was; afterwards the folder holds an ordinary checkpoint: lapinfer run -m tiny-fff/model "The".
"""

import argparse
import sys
from pathlib import Path
from pydoc_data.topics import topics
from time import perf_counter

import lapinfer

try:
    from lapinfer.train import Config, read_texts, train
except ImportError as error:  # PyTorch is an extra
    sys.exit(str(error))

FEED_FORWARDS = {  # of equal size: 512 neurons in each layer, all, a quarter, or a quarter of which a token computes
    "dense": {"intermediate_size": 512},
    "moe": {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32},
    "fff": {"trees": 4, "depth": 2, "leaf_width": 32},
}
BEGINNINGS = ("The", "If the object", "Changed in version")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", type=Path, help="default: what Python's help() says about the language")
    parser.add_argument("--kind", choices=FEED_FORWARDS, default="fff", help="feed-forwards (default fff: trees)")
    parser.add_argument("--steps", type=int, default=1000, help="of 2,048 tokens each (default 1000)")
    parser.add_argument("--vocabulary", type=int, default=1024, help="tokens to cut texts into (default 1024)")
    parser.add_argument("--width", type=int, default=128, help="of the model (default 128)")
    parser.add_argument("-o", "--output", type=Path, help="the run's folder; default: tiny-KIND")
    args = parser.parse_args()
    texts = read_texts(args.texts) if args.texts else ["\n\n".join(topics.values())]
    config = Config.from_dict({
        "model": {"vocab_size": args.vocabulary, "hidden_size": args.width, "num_hidden_layers": 4,
                  "max_position_embeddings": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
        args.kind: FEED_FORWARDS[args.kind],
        "training": {"steps": args.steps, "batch": 16, "learning_rate": 3e-3, "validate_every": 200},
    })  # fmt: skip
    result = train(config, texts, args.output or Path(f"tiny-{args.kind}"), progress=Progress())
    print(f"\n{result.parameters:,} parameters, of which a token uses {result.active_parameters:,}; perplexity of the "
          f"end of the text, which was held out: {result.validation['ppl']:.1f}")  # fmt: skip
    with lapinfer.load(result.checkpoint) as model:
        for beginning in BEGINNINGS:
            print(f"\n{beginning}", end="")
            for token in model.stream(beginning, max_tokens=60, temperature=0.7, seed=0):
                print(token.text, end="", flush=True)
            print()


class Progress:
    """One line that says how far the training is; what else is told goes above it."""

    def __init__(self) -> None:
        self.begun: tuple[int, float] | None = None

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        if not total:
            print(f"\r{what:78}", file=sys.stderr)
            return
        first, start = self.begun = self.begun or (done, perf_counter())
        if done > first:
            minutes = (perf_counter() - start) / (done - first) * (total - done) / 60
            print(f"\r{what} {done}/{total}, about {minutes:.1f} min left ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (lapinfer.LapinferError, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
