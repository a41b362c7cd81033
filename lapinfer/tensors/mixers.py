"""The weights of what carries something from one position to another."""

from __future__ import annotations

from collections.abc import Iterator

from lapinfer.spec import AttentionSpec, ConvolutionSpec, LayerSpec, RecurrenceSpec
from lapinfer.tensors.tensor import Inputs, Part, Tensor, norm_tensors


def attention_tensors(layer: int, attention: AttentionSpec, D: int) -> Iterator[Tensor]:
    def matrix(module: str, *shape: int, inputs: Inputs | None = "own", inputs_vary: bool = False) -> Tensor:
        return Tensor(
            layer, module, shape, "attention", "matrix", packing="blocks", inputs=inputs, inputs_vary=inputs_vary
        )

    def bias(module: str, rows: int) -> Tensor:
        return Tensor(layer, module, (rows,), "attention", "bias", ".bias")

    yield matrix("qkv", attention.qkv_rows, D)
    if attention.qkv_bias:
        yield bias("qkv", attention.qkv_rows)
    if (latent := attention.latent) is not None:
        if latent.q_rank:
            yield from norm_tensors(layer, "q_a_norm", latent.norm, latent.q_rank, "attention")
            yield matrix("q_b", attention.q_rows, latent.q_rank)
        yield from norm_tensors(layer, "kv_norm", latent.norm, latent.rank, "attention")
        # A head's own matrices are packed along the other axis than their inputs are measured.
        yield matrix("k_up", attention.n_heads, latent.rank, latent.nope, inputs=None)
        yield matrix("v_up", attention.n_heads, latent.v_dim, latent.rank, inputs=None)
    if attention.sinks:
        yield Tensor(layer, "sinks", (attention.n_heads,), "attention", "scalars")
    if attention.qk_norm is not None:
        several = attention.qk_norm_full or attention.qk_norm_each
        heads = (attention.n_heads, attention.n_kv_heads) if several else (1, 1)
        for module, n in zip(("q_norm", "k_norm"), heads, strict=True):
            yield from norm_tensors(layer, module, attention.qk_norm, n * attention.k_dim, "attention")
    yield matrix("o", D, attention.out_width, inputs_vary=True)
    if attention.o_bias:
        yield bias("o", D)


def convolution_tensors(layer: int, convolution: ConvolutionSpec, D: int) -> Iterator[Tensor]:
    tensors = (
        Tensor(layer, "conv_in", (3 * D, D), "convolution", "matrix", packing="blocks", inputs="own"),
        Tensor(layer, "conv", (D, convolution.kernel), "kv", "table", ".weight"),
        Tensor(layer, "conv_out", (D, D), "convolution", "matrix", packing="blocks", inputs="own"),
    )
    for tensor in tensors:
        yield tensor
        if convolution.bias:
            yield Tensor(layer, tensor.module, tensor.shape[:1], tensor.part, "bias", ".bias")


def recurrence_tensors(layer: int, recurrence: RecurrenceSpec, D: int) -> Iterator[Tensor]:
    def matrix(module: str, *shape: int, inputs_vary: bool = False) -> Iterator[Tensor]:
        yield Tensor(
            layer, module, shape, "recurrence", "matrix", packing="blocks", inputs="own", inputs_vary=inputs_vary
        )
        if recurrence.bias:
            yield Tensor(layer, module, shape[:1], "recurrence", "bias", ".bias")

    H, C = recurrence.heads, recurrence.channels
    yield from matrix("mix_in", recurrence.in_rows, D)
    yield Tensor(layer, "conv", (C, recurrence.kernel), "kv", "table", ".weight")
    if recurrence.kernel_bias:
        yield Tensor(layer, "conv", (C,), "kv", "bias", ".bias")
    yield Tensor(layer, "decay", (H,), "recurrence", "scalars")
    yield Tensor(layer, "step", (H,), "recurrence", "scalars")
    if recurrence.rule == "state_space":
        yield Tensor(layer, "skip", (H,), "kv", "scalars")
    width = recurrence.norm_width if recurrence.norm_shared else recurrence.values
    yield from norm_tensors(layer, "mix_norm", recurrence.norm, width, "recurrence")
    yield from matrix("mix_out", D, recurrence.values, inputs_vary=True)


def mixer_part(layer: LayerSpec) -> Part:
    """What a layer's first sublayer is accounted as."""
    match layer.mixer:
        case AttentionSpec():
            return "attention"
        case ConvolutionSpec():
            return "convolution"
        case RecurrenceSpec():
            return "recurrence"
