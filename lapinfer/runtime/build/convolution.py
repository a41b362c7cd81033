"""The ops of a gated short convolution."""

from __future__ import annotations

import numpy as np

from lapinfer.kernels.operands import ONE, STORE
from lapinfer.quant import GROUP
from lapinfer.runtime.build.model_ops import ModelOps
from lapinfer.runtime.cost import Cost, Remembered
from lapinfer.runtime.kv import convolution_state
from lapinfer.runtime.sizes import padded
from lapinfer.spec import ConvolutionSpec, NormSpec

GROUPS_PER_CHUNK = 4
"""Groups of columns: enough to read whole cache lines of each token's row, few enough that all threads have some."""


def convolution(
    build: ModelOps, layer: int, spec: ConvolutionSpec, norm: NormSpec | None, post: NormSpec | None
) -> None:
    """Norm, the matrix to gates and inputs, the convolution, and the matrix that returns to the residual stream."""
    p, D, groups = f"layers.{layer}.", build.spec.hidden, padded(build.spec.hidden) // GROUP
    build.norm(p + "attn_norm", norm, layer, "convolution", build.activation_kind(p + "conv_in"))
    bias = build.vector(p + "conv_in.bias", 3 * D) if spec.bias else None
    build.matmul(p + "conv_in", layer, "convolution", build.tiles, STORE, out=build.qkv, bias=bias, logical=(3 * D, D))
    weight = np.zeros((spec.kernel, padded(D)), np.float32)
    weight[:, :D] = build.weights.tensor(p + "conv.weight").T
    build.add(
        "convolve", "convolve", "kv", layer, ONE, -(-groups // GROUPS_PER_CHUNK), x=build.qkv,
        x_stride=build.qkv.strides[0], width=D, weight=weight,
        bias=build.vector(p + "conv.bias", D) if spec.bias else 0, taps=spec.kernel, pos=build.step.pos,
        slot=build.step.slot, state=convolution_state(spec, D, build.limits.slots), out=build.tiles, groups=groups,
        out_kind=build.activation_kind(p + "conv_out"), unit=GROUPS_PER_CHUNK, shape=f"{D} × {spec.kernel}",
        cost=Cost(
            weight_bytes=4 * D * (spec.kernel + spec.bias), macs=D * spec.kernel,
            remembered=Remembered(spec.kernel, 4 * D),
        ),
    )  # fmt: skip
    bias = build.vector(p + "conv_out.bias", D) if spec.bias else None
    build.sublayer_end(p + "conv_out", p + "attn_post_norm", post, layer, "convolution", build.tiles, bias, (D, D))
