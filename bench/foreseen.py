"""Decoding speed as `lapinfer info` foresees it, beside what is measured a moment later, for models of random weights.

python bench/foreseen.py [--size 1b] [--quants q4,q8] [-t 2] [-r 4] [-o FILE]
"""

from __future__ import annotations

from statistics import median

import numpy as np
from harness import argument_parser, write_result

from lapinfer.report.fit import decode_seconds
from lapinfer.report.random_weights import shape_model
from lapinfer.report.roofline import weights_bandwidth
from lapinfer.report.sizes import KINDS
from lapinfer.report.timing import Watch
from lapinfer.runtime.ops import Limits

START, TOKENS = 100, 40


def main() -> None:
    parser = argument_parser(__doc__, repetitions=4)
    parser.add_argument("--size", default="1b")
    parser.add_argument("--quants", default="q4,q8")
    options = parser.parse_args()
    rows = []
    for quant in options.quants.split(","):
        for kind in KINDS:
            model = shape_model(options.size, kind, quant, Limits(256, step=128, threads=options.threads))
            ids = np.arange(START + TOKENS) % model.spec.vocab
            model.prefill(ids[:START])
            for _ in range(options.repetitions):
                rate = weights_bandwidth(quant, options.threads)
                watch = Watch(model)
                measured = TOKENS / watch.decode(ids, START, TOKENS)
                foreseen = 1 / decode_seconds(model.spec, watch.meter.totals()["bytes"] / TOKENS, rate)
                rows.append({"model": f"{options.size}-{kind}", "quant": quant, "weights_gb_s": rate / 1e9,
                             "measured": measured, "foreseen": foreseen})  # fmt: skip
                print(f"{kind} {quant}: {rate / 1e9:.0f} GB/s, foreseen {foreseen:.1f}, measured {measured:.1f} tok/s, "
                      f"ratio {foreseen / measured:.2f}", flush=True)  # fmt: skip
            model.close()
        ratios = [row["foreseen"] / row["measured"] for row in rows if row["quant"] == quant]
        print(f"{quant}: median ratio {median(ratios):.2f}")
    write_result({"threads": options.threads, "rows": rows}, options.output)


if __name__ == "__main__":
    main()
