"""Run a feed-forward layer of your own: NumPy arrays or a state dict in, NumPy arrays out, without a model around it.

    python examples/own_layer.py                        dense, experts and a tree of 4,096 neurons, width 768
    python examples/own_layer.py --neurons 16384 --quant q8

A dense layer computes all its neurons; a mixture those of the experts that its router chooses; a tree (fast
feedforward, FFF) those of one leaf, which as many decisions as the tree is deep lead to. You see what each reads and
how long it takes, and what it costs a tree to follow one leaf alone where training saw the mixture of all.
"""

import argparse
import sys
from time import perf_counter

import numpy as np

import lapinfer
from lapinfer.layers import FFF, Dense, Layer, MoE

WIDTH, PARTS, DEPTH = 768, 32, 5  # numbers of a token; experts, or leaves of a tree of that depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=4096, help="of a whole layer (default 4096)")
    parser.add_argument("--quant", default="f32", help="format of the weights: f32, q8, q4 … (default f32)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    each = args.neurons // PARTS

    def weights(*shape: int) -> np.ndarray:
        return rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    # Matrices lie as in torch.nn.Linear: [outputs, inputs].
    dense = Dense(up=weights(args.neurons, WIDTH), down=weights(WIDTH, args.neurons), quant=args.quant)
    up, down = weights(PARTS, each, WIDTH), weights(PARTS, WIDTH, each)
    moe = MoE(router=weights(PARTS, WIDTH), up=up, down=down, top_k=2, quant=args.quant)
    # A state dict's tensors may be torch's, and their names begin with prefix="layers.3.mlp.", say.
    state = {"nodes.weight": weights(PARTS - 1, WIDTH), "up": up, "down": down}
    tree = FFF.from_state_dict(state, quant=args.quant)
    tokens = weights(64, WIDTH) * WIDTH**0.5

    print(f"{'':8} {'in memory':>12} {'read for a token':>18} {'µs a token':>12} {'µs, 64 at once':>16}")
    for name, layer in {"dense": dense, "experts": moe, "tree": tree}.items():
        touched = bytes_of(layer, tokens[:1])
        print(f"{name:8} {layer.weights.nbytes / 1e6:>9.2f} MB {touched / 1e3:>15,.0f} KB "
              f"{best_time(layer, tokens[:1]):>12.1f} {best_time(layer, tokens) / 64:>16.1f}")  # fmt: skip
    print(f"\nThe tree: {tree.explain()}\nleaves of ten tokens: {tree.leaves(tokens[:10])[:, 0]}")

    print("\nTrained as a mixture of all leaves (soft), run as one leaf (hard): with surer nodes, less lies between.")
    for factor in (1, 4, 16, 64):
        surer = FFF.from_state_dict(state | {"nodes.weight": factor * state["nodes.weight"]})
        hard, soft = surer(tokens), surer(tokens, mode="soft")
        gap, used = np.linalg.norm(hard - soft) / np.linalg.norm(hard), surer.usage()
        print(f"nodes × {factor:<3} difference {gap:>6.1%}, a decision's entropy {used['node_entropy']:.3f} nats, "
              f"weight of the chosen leaf {used['leaf_mass']:>4.0%}")  # fmt: skip


def bytes_of(layer: Layer, x: np.ndarray) -> int:
    """What one call reads of the weights, as metered."""
    layer.runner.meter.reset()
    layer(x)
    return layer.runner.meter.totals()["bytes"]


def best_time(layer: Layer, x: np.ndarray, calls: int = 50) -> float:
    """Microseconds of a call, the fastest of some: others on this machine only make it slower."""
    times = []
    for _ in range(calls):
        start = perf_counter()
        layer(x)
        times.append(perf_counter() - start)
    return 1e6 * min(times)


if __name__ == "__main__":
    try:
        main()
    except lapinfer.LapinferError as error:
        sys.exit(str(error))
