"""A layer whose keys or values do not fit the format of its cache goes over to a wider one, in the middle of a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lapinfer.kernels.operands import BF16, KEY_LANES, KV_GROUP, KV_KINDS, KernelId
from lapinfer.options import KVName
from lapinfer.quant.formats.bf16 import from_bf16
from lapinfer.quant.search import HALF_MAX
from lapinfer.runtime.buffers import zeros
from lapinfer.runtime.kv import DTYPES, bytes_per_key
from lapinfer.runtime.plan import Op
from lapinfer.runtime.runner import Runner
from lapinfer.spec import AttentionSpec, ModelSpec


def widen(runner: Runner, layer: int, attention: AttentionSpec, kind: KVName) -> KVName:
    """Keep a layer's keys and values as `kind`, float16 or float32, from here on; what it holds keeps its value.

    The kind that it is now: float32 where float16 does not hold what is there already.
    """
    ops = [(i, op) for i, op in enumerate(runner.plan.ops) if op.layer == layer and "k_cache" in op.operands]
    old = ops[0][1].operands
    keys, values, key_scales, value_scales = (
        _array(old[name]) for name in ("k_cache", "v_cache", "k_scale", "v_scale")
    )
    none = np.zeros(1, BF16)
    with np.errstate(all="ignore"):  # what is not finite is told when a step computes with it
        if keys.dtype == np.int8:
            by_lanes = _spread(key_scales, attention.k_dim).reshape(*keys.shape[:2], attention.k_dim, -1, KEY_LANES)
            keys = keys * by_lanes.swapaxes(2, 3)
            values = values * _spread(value_scales, values.shape[-1]).swapaxes(2, 3)
        if not max(float(np.abs(keys).max()), float(np.abs(values).max())) <= HALF_MAX:
            kind = "f32"
        wide = {
            "k_cache": _copy(keys, kind), "v_cache": _copy(values, kind),
            "k_scale": none, "v_scale": none,
        }  # fmt: skip
    for i, op in ops:
        runner.replace(i, _widened(op, wide, attention, kind))
    return kind


def cache_kinds(spec: ModelSpec, runner: Runner, asked: KVName) -> list[KVName]:
    """The format in which each layer keeps keys and values now; `asked` for those that keep none."""
    return [asked if layer.attention is None else cache_kind(runner, i) for i, layer in enumerate(spec.layers)]


def cache_kind(runner: Runner, layer: int) -> KVName:
    """The format in which a layer keeps keys and values now."""
    kernels = [op.kernel for op in runner.plan.ops if op.layer == layer and op.kernel.kind == "attention"]
    return next(kind for kind in KV_KINDS if kind == kernels[0].format)


def _array(operand: object) -> np.ndarray:
    assert isinstance(operand, np.ndarray)
    return operand


def _copy(numbers: np.ndarray, kind: KVName) -> np.ndarray:
    copy = zeros(numbers.shape, DTYPES[kind])
    copy[:] = numbers
    return copy


def _spread(scales: np.ndarray, width: int) -> np.ndarray:
    """The scale of each number, float32 [slot, head, width, capacity]."""
    return np.repeat(from_bf16(scales), KV_GROUP, axis=2)[:, :, :width]


def _widened(op: Op, wide: dict[str, np.ndarray], attention: AttentionSpec, kind: KVName) -> Op:
    operands = {**op.operands, **wide}
    if "kv" in operands:
        operands["kv"] = KV_KINDS.index(kind)
    if op.kernel.kind != "attention" or op.cost.remembered is None:
        return replace(op, operands=operands)
    cost = replace(op.cost, remembered=replace(op.cost.remembered, bytes=bytes_per_key(attention, kind)))
    return replace(op, kernel=KernelId("attention", kind), operands=operands, cost=cost)
