"""Decoding speed as `lapinfer info` foresees it, beside what is measured a moment later, for models of random weights.

python bench/foreseen.py [--size 1b] [--quants q4,q8] [-t 2] [-r 4] [-o FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lapinfer.machine import description
from lapinfer.report.fit import decode_seconds
from lapinfer.report.random_weights import shape_model
from lapinfer.report.roofline import weights_bandwidth
from lapinfer.report.sizes import KINDS
from lapinfer.report.timing import Watch
from lapinfer.runtime.ops import Limits

START, TOKENS = 100, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1b")
    parser.add_argument("--quants", default="q4,q8")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for quant in arguments.quants.split(","):
        for kind in KINDS:
            model = shape_model(arguments.size, kind, quant, Limits(256, step=128, threads=arguments.threads))
            ids = np.arange(START + TOKENS) % model.spec.vocab
            model.prefill(ids[:START])
            for _ in range(arguments.repetitions):
                rate = weights_bandwidth(quant, arguments.threads)
                watch = Watch(model)
                measured = TOKENS / watch.decode(ids, START, TOKENS)
                foreseen = 1 / decode_seconds(model.spec, watch.meter.totals()["bytes"] / TOKENS, rate)
                rows.append({"model": f"{arguments.size}-{kind}", "quant": quant, "weights_gb_s": rate / 1e9,
                             "measured": measured, "foreseen": foreseen})  # fmt: skip
                print(f"{kind} {quant}: {rate / 1e9:.0f} GB/s, foreseen {foreseen:.1f}, measured {measured:.1f} tok/s, "
                      f"ratio {foreseen / measured:.2f}", flush=True)  # fmt: skip
            model.close()
        ratios = [row["foreseen"] / row["measured"] for row in rows if row["quant"] == quant]
        print(f"{quant}: median ratio {median(ratios):.2f}")
    if arguments.output is not None:
        told = {"machine": description(), "threads": arguments.threads, "rows": rows}
        arguments.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
