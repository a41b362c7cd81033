"""Paint a text by the experts that its words get: an SVG picture in which each token has its expert's colour.

    python examples/experts_picture.py                           the package's passage, read by austen-moe
    python examples/experts_picture.py notes.txt -m MODEL -o picture.svg --layer 2

A router sends each token to a few experts of a layer. Words of one colour met the same expert first; point at a word to
see its experts in all layers. Below stands what each expert reads most. Leaves of trees (austen-fff) are experts, too.
"""

import argparse
import sys
from collections import Counter
from colorsys import hls_to_rgb
from html import escape
from pathlib import Path

import lapinfer
from lapinfer.report.texts import passage

LETTER, LINE, COLUMNS, EDGE = 8.4, 24, 96, 20  # width of a letter, height of a line, letters in it, room around it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", type=Path, help="default: a passage that comes with lapinfer")
    parser.add_argument("-m", "--model", default="austen-moe")
    parser.add_argument("--layer", type=int, help="default: in the middle")
    parser.add_argument("-o", "--output", type=Path, default=Path("experts.svg"))
    args = parser.parse_args()
    text = passage() if args.text is None else args.text.read_text(encoding="utf-8")
    with lapinfer.load(args.model) as model, model.watch_experts() as routing:
        ids = model.encode(text)[: model.model.max_step]
        model.model.prefill(ids)  # all tokens in one step
        chosen = {layer: experts.tolist() for layer, experts in model.model.chosen_experts.items()}
        words = [model.tokenizer.decode([token]) for token in ids]
    layer = list(chosen)[len(chosen) // 2] if args.layer is None else args.layer
    if layer not in chosen:
        raise lapinfer.InputError(f"--layer {layer}: expected one of {', '.join(map(str, chosen))}")
    args.output.write_text(picture(words, chosen, layer), encoding="utf-8")
    print(f"{args.output}: {len(words)} tokens by their experts in layer {layer}")
    loads = ", ".join(f"{row['max_over_mean']:.1f}" for row in routing.summary()["layers"])
    print(f"the busiest expert of each layer has {loads} times the mean load")


def picture(words: list[str], chosen: dict[int, list[list[int]]], layer: int) -> str:
    """SVG: the words in lines, each on its expert's colour; then the experts with the words that they read most."""
    shapes, column, row, last = [], 0, 0, 0
    for i, word in enumerate(words):
        tip = "\n".join(f"layer {at}: {', '.join(map(str, experts[i]))}" for at, experts in chosen.items())
        for part in word.splitlines(keepends=True):
            if column + len(part) > COLUMNS:
                column, row, part = 0, row + 1, part.lstrip(" ")
            shapes.append(cell(column, row, part.rstrip("\n"), colour(chosen[layer][i][0]), tip))
            column, row = (0, row + 1) if part.endswith("\n") else (column + len(part), row)
    for last, expert in enumerate(sorted({experts[0] for experts in chosen[layer]}), row + 2):
        own = [word.strip() for word, experts in zip(words, chosen[layer], strict=True) if experts[0] == expert]
        most = " ".join(word for word, _ in Counter(own).most_common(9))
        shapes += [cell(0, last, f" {expert:>2} ", colour(expert)), cell(5, last, f"{len(own):>3} tokens: {most}")]
    size = f'width="{COLUMNS * LETTER + 2 * EDGE:.0f}" height="{(last + 1) * LINE + 2 * EDGE}"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="14">'
            f'<rect width="100%" height="100%" fill="#fbfaf8"/>\n{"".join(shapes)}</svg>\n')  # fmt: skip


def cell(column: int, row: int, text: str, fill: str = "none", tip: str = "") -> str:
    x, y, width = EDGE + column * LETTER, EDGE + row * LINE, len(text) * LETTER
    return (f'<g><title>{escape(tip)}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{LINE - 3}" '
            f'fill="{fill}"/><text x="{x:.1f}" y="{y + 15}" textLength="{max(width, 1):.1f}" xml:space="preserve">'
            f"{escape(text)}</text></g>\n")  # fmt: skip


def colour(expert: int) -> str:  # eight hues, lighter and darker, black letters readable on all of them
    rgb = hls_to_rgb(expert * 3 % 8 / 8, 0.84 - 0.18 * (expert // 8 % 2), 0.7)
    return "#" + bytes(round(255 * part) for part in rgb).hex()


if __name__ == "__main__":
    try:
        main()
    except (lapinfer.LapinferError, OSError) as error:
        sys.exit(str(error))
