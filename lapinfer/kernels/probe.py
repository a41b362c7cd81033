"""What the machine can do: a kernel that only reads, and the features that code is generated for."""

import numpy as np
from numba.core.registry import cpu_target

from lapinfer.kernels.cache import kernel
from lapinfer.kernels.codegen import features
from lapinfer.kernels.simd import load_f32x16, reduce_sum, splat_f32, store_f32


@kernel
def probe(o, step, chunk, thread):
    """Sum `bytes` (a multiple of 256) of float32 at buffer + chunk · stride, `rounds` times, into out[16 · chunk]."""
    begin = o.buffer + chunk * o.stride
    end = begin + o.bytes
    # Four sums hide the latency of an addition, and fit the registers of every processor.
    a = b = c = d = splat_f32(np.float32(0.0))
    for _ in range(o.rounds):
        for place in range(begin, end, 256):
            a = a + load_f32x16(place)
            b = b + load_f32x16(place + 64)
            c = c + load_f32x16(place + 128)
            d = d + load_f32x16(place + 192)
    store_f32(o.out + 64 * chunk, reduce_sum((a + b) + (c + d)))


def target_features() -> set[str]:
    """Features that code is generated for, as LLVM names them, and 'x86' or 'aarch64'."""
    return features(cpu_target.target_context)
