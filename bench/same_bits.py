"""Whether a change of the code has changed what is computed: digests of packed weights and of logits.

    python bench/same_bits.py -o before.json          # at the old commit
    python bench/same_bits.py --against before.json   # at the new one, on the same machine

Packs the shipped models, or the checkpoints that are named, in every format, and runs 70 random tokens with int8 and
16-bit activations and each kind of KV cache. Searches of scales go through NumPy, whose sums depend on the processor:
digests of two machines need not be equal. Exit 1 where digests differ.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import argument_parser, write_result

import lapinfer
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.checkpoint.shipped import SHIPPED
from lapinfer.errors import LapinferError
from lapinfer.loading import convert
from lapinfer.options import QUANTS, ActivationsName, KVName

TOKENS = 70
VARIANTS: tuple[tuple[ActivationsName, KVName], ...] = (("q8", "f16"), ("q16", "f16"), ("q16", "q8"), ("q16", "f32"))
"""Activations and KV cache."""


def digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def digests(model: str, quant: str, threads: int) -> dict[str, str]:
    """Of the packed tensors, and of the logits of each variant; of what cannot be packed, the message."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            packed = convert(model, Path(folder) / "packed", quant)
        except LapinferError as error:
            return {"refused": str(error).replace(folder, "")}
        file = SafetensorsFile(packed / "model.safetensors")
        tensors = hashlib.sha256()
        for name in file.tensors:
            tensors.update(name.encode())
            tensors.update(np.ascontiguousarray(file.view(name)).data)
        result = {"tensors": tensors.hexdigest()[:16]}
        for activations, kv in VARIANTS:
            with lapinfer.load(packed, activations=activations, kv=kv, threads=threads, ctx=256) as loaded:
                ids = np.random.default_rng(7).integers(0, loaded.spec.vocab, TOKENS)
                result[f"logits, {activations}, {kv}"] = digest(loaded.forward(ids.tolist()).data)
        return result


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Of what both have."""
    return [
        f"{cell}: {what} {before[cell].get(what)} -> {now[cell].get(what)}"
        for cell in before.keys() & now.keys()
        for what in sorted({*before[cell], *now[cell]})
        if before[cell].get(what) != now[cell].get(what)
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("models", nargs="*", default=list(SHIPPED))
    parser.add_argument("--quant", nargs="*", default=list(QUANTS), help="formats (default: all)")
    parser.add_argument("--against", type=Path, help="digests to compare with")
    options = parser.parse_args()
    cells = {
        f"{Path(model).name} {quant}": digests(model, quant, options.threads)
        for model in options.models
        for quant in options.quant
    }
    write_result({"digests": cells}, options.output)
    if options.against is not None:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        changed = differences(before["digests"], cells)
        print(*changed, f"{len(cells)} models and formats, {len(changed)} differences", sep="\n")
        sys.exit(bool(changed))


if __name__ == "__main__":
    main()
