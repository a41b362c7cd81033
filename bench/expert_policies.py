"""Which policy keeps the right experts in memory: hit rates on recorded routing, for pools of several sizes.

    python bench/expert_policies.py MODEL TEXT [--tokens 1024] [--half-lives 32,128,256,1024] [-o FILE]

The text runs through the model once; every token's experts, layer after layer, are then looked up in simulated pools,
as decoding would: LRU, LFU, LRFU with several half-lives (in tokens), and the best possible choice (Belady's: the
expert whose next use is farthest away leaves), which no policy can know.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from harness import argument_parser, text_ids, write_result

SHARES = (0.25, 0.5, 0.75)


def accesses(model: str, text: Path, tokens: int) -> tuple[list[list[int]], int]:
    """For each token and layer, the experts chosen (numbered over all layers); and how many experts there are."""
    from lapinfer.loading import load_model
    from lapinfer.options import LoadOptions

    loaded = load_model(model, LoadOptions(ctx=512))
    ids = text_ids(loaded.texts, text, tokens)
    trace: list[list[int]] = []
    experts = 0
    for start in range(0, len(ids), 512):
        loaded.prefill(ids[start : start + 512])
        chosen = {layer: experts_of.copy() for layer, experts_of in loaded.chosen_experts.items()}
        E = max(loaded.spec.layers[layer].feed_forward.experts for layer in chosen)
        experts = E * len(chosen)
        for t in range(len(ids[start : start + 512])):
            trace += [[E * i + int(e) for e in experts_of[t]] for i, experts_of in enumerate(chosen.values())]
    loaded.close()
    return trace, experts


def hit_rate(trace: list[list[int]], slots: int, policy: str, half_life: float) -> float:
    """Share of accesses that find their expert; the experts of one layer and token are needed at once."""
    rank: dict[int, float] = {}
    resident: set[int] = set()
    uses: dict[int, list[int]] = {}
    if policy == "optimal":
        for now, needed in enumerate(trace):
            for e in needed:
                uses.setdefault(e, []).append(now)
        for times in uses.values():
            times.reverse()
    hits = total = 0
    for now, needed in enumerate(trace):
        for e in needed:
            total += 1
            hits += e in resident
            if policy == "lru":
                rank[e] = now
            elif policy == "lfu":
                rank[e] = rank.get(e, 0) + 1
            elif policy == "lrfu":
                fresh, old = now / half_life, rank.get(e, -1e9)
                rank[e] = max(fresh, old) + math.log2(1 + 2 ** -min(abs(fresh - old), 60))
            else:
                uses[e].pop()
                rank[e] = -(uses[e][-1] if uses[e] else len(trace))
        missing = [e for e in needed if e not in resident]
        resident.update(missing)
        if (excess := len(resident) - slots) > 0:
            leaving = sorted((e for e in resident if e not in needed), key=rank.__getitem__)[:excess]
            resident.difference_update(leaving)
    return hits / total


def main() -> None:
    parser = argument_parser(__doc__, threads=False)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--half-lives", default="32,128,256,1024")
    options = parser.parse_args()
    trace, experts = accesses(options.model, options.text, options.tokens)
    layers = len(trace) // options.tokens
    policies = [
        ("lru", 0.0),
        ("lfu", 0.0),
        *(("lrfu", float(h)) for h in options.half_lives.split(",")),
        ("optimal", 0.0),
    ]
    rows = []
    for policy, tokens in policies:
        rates = [hit_rate(trace, round(share * experts), policy, tokens * layers) for share in SHARES]
        name = policy + (f", half-life {tokens:.0f} tokens" if tokens else "")
        rows.append({"policy": name, "hit_rates": dict(zip(map(str, SHARES), rates, strict=True))})
        print(f"{name:32}" + "  ".join(f"{share:.0%}: {rate:.1%}" for share, rate in zip(SHARES, rates, strict=True)))
    loads = np.bincount(np.concatenate([np.array(e) for e in trace]), minlength=experts)
    most = loads.max() / loads.mean()
    print(f"{experts} experts, {layers} layers, {options.tokens} tokens; largest load {most:.2f} × mean")
    write_result(
        {"model": Path(options.model).name, "tokens": options.tokens, "experts": experts, "rows": rows}, options.output
    )


if __name__ == "__main__":
    main()
