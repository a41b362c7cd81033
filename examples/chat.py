"""Talk with a model, and read its answer while it is written.

    python examples/chat.py                            smollm2 where it was pulled, else austen-fff, which comes along
    python examples/chat.py MODEL                      a folder, a .gguf file, or a name: `lapinfer ls` lists them
    python examples/chat.py MODEL "What is a fox?"     one question, one answer

A model that was trained to answer gets the whole conversation each time, through its chat template; what it has read
before stays in its cache and is not read again. A model without a template just continues the text.
"""

import argparse
import sys
from collections.abc import Iterable

import lapinfer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: smollm2 where it was pulled, else austen-fff")
    parser.add_argument("question", nargs="*", help="default: a conversation, which Ctrl-D ends")
    parser.add_argument("--tokens", type=int, default=200, help="longest answer (default 200)")
    args = parser.parse_args()
    with load(args.model) as model:
        messages: list[dict[str, str]] = []
        for question in [" ".join(args.question)] if args.question else typed():
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer(model, messages, args.tokens)})


def load(name: str | None) -> lapinfer.LanguageModel:
    """The named model; without a name the one that answers, if it is here, else one that comes with the package."""
    if name is not None:
        return lapinfer.load(name)
    try:
        return lapinfer.load("smollm2")
    except lapinfer.LapinferError:
        print("smollm2 is not here (lapinfer pull smollm2): austen-fff continues what you write")
        return lapinfer.load("austen-fff")


def typed() -> Iterable[str]:
    """What is typed, line by line, until Ctrl-D."""
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            return
        if line:
            yield line


def answer(model: lapinfer.LanguageModel, messages: list[dict[str, str]], most: int) -> str:
    """Print the answer piece by piece, then what it took; the whole text."""
    model.usage.reset()
    if model.template is not None:
        tokens = model.stream_chat(messages, max_tokens=most)
    else:
        tokens = model.stream(messages[-1]["content"], max_tokens=most)
    pieces, last = [], None
    for last in tokens:
        print(last.text, end="", flush=True)
        pieces.append(last.text)
    if last is not None:
        took, read = last.timings, model.usage.totals()["bytes"] / 1e6
        print(f"\n[{took.prompt_tokens} tokens read, {took.reused_tokens} of them known; first word after "
              f"{took.ttft_ms:.0f} ms, then {took.tokens_per_second:.0f} tokens/s; {read:,.0f} MB touched]",
              file=sys.stderr)  # fmt: skip
    return "".join(pieces)


if __name__ == "__main__":
    try:
        main()
    except (lapinfer.LapinferError, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
