"""What a slot holds of a sequence, taken out and put back: the same numbers in the order of their positions.

What is saved does not depend on where a cache keeps it: rings of other sizes, other slots and other processes take it
back, if their layers keep keys and values in the same format. Of layers with a window, of convolutions and of
recurrences, only the last positions are there: what the next token reads, and the one before, so that the last token
can be read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from lapinfer.errors import InputError
from lapinfer.kernels.operands import BF16, KEY_LANES
from lapinfer.options import KVName
from lapinfer.runtime.kv import DTYPES, KVKinds, groups, lanes, of_layer, state_shape
from lapinfer.runtime.runner import Runner
from lapinfer.runtime.widening import cache_kinds
from lapinfer.spec import STATES, ConvolutionSpec, LayerSpec, ModelSpec, RecurrenceSpec

KEEPERS = ("attention", "convolve", "convolve_silu", "recur")
"""Kernels that read what layers keep."""

Shape = tuple[tuple[int, ...], np.dtype]


@dataclass(frozen=True, slots=True)
class SlotState:
    """What a slot held after `count` positions.

    kinds: the format of each layer's keys and values. layers: the arrays of each layer, positions first, of its last
    positions (`layout` has their shapes): keys [n, K, k_dim], values [n, K, v_lanes] and, of q8, their scales
    [n, K, groups]; or a convolution's inputs [n, D]; or the inputs of a recurrence's convolution [n, C], and its states
    [n, …].
    """

    count: int
    kinds: tuple[KVName, ...]
    layers: tuple[tuple[np.ndarray, ...], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that were copied."""
        return sum(array.nbytes for layer in self.layers for array in layer)


def first_position(layer: LayerSpec, count: int) -> int:
    """The first of `count` positions that a layer still has."""
    return _first(count, layer.window)


def array_windows(layer: LayerSpec) -> Iterator[int | None]:
    """How many of the last positions each array of a layer has, one after the other (None: all)."""
    return repeat(layer.window) if layer.recurrence is None else iter((layer.recurrence.kernel, STATES))


def _first(count: int, window: int | None) -> int:
    return 0 if window is None else max(0, count - window)


def layout(spec: ModelSpec, kinds: KVKinds, count: int) -> list[list[Shape]]:
    """Shapes and types of the arrays of each layer in a SlotState of `count` positions."""
    return [_layer_layout(spec, i, of_layer(kinds, i), count) for i in range(len(spec.layers))]


def _layer_layout(spec: ModelSpec, layer: int, kind: KVName, count: int) -> list[Shape]:
    n, mixer, floats = count - first_position(spec.layers[layer], count), spec.layers[layer].mixer, np.dtype(np.float32)
    if isinstance(mixer, ConvolutionSpec):
        return [((n, spec.hidden), floats)]
    if isinstance(mixer, RecurrenceSpec):
        return [((min(count, mixer.kernel), mixer.channels), floats), ((n, *state_shape(mixer)), floats)]
    heads, numbers, scales = mixer.n_kv_heads, np.dtype(DTYPES[kind]), np.dtype(BF16)
    shapes = [((n, heads, mixer.k_dim), numbers), ((n, heads, lanes(mixer.v_dim)), numbers)]
    if kind == "q8":
        shapes += [((n, heads, groups(mixer.k_dim)), scales), ((n, heads, groups(mixer.v_dim)), scales)]
    return shapes


def shortened(spec: ModelSpec, state: SlotState, count: int) -> SlotState | None:
    """What the slot held after fewer positions; None where a ring has lost what that needs.

    The arrays are views of those of `state`.
    """
    if not can_shorten(spec, state.count, count):
        return None
    layers: list[tuple[np.ndarray, ...]] = []
    for layer, arrays in zip(spec.layers, state.layers, strict=True):
        layers.append(
            tuple(
                array[_first(count, window) - _first(state.count, window) : count - _first(state.count, window)]
                for array, window in zip(arrays, array_windows(layer), strict=False)
            )
        )
    return SlotState(count, state.kinds, tuple(layers))


def can_shorten(spec: ModelSpec, had: int, count: int) -> bool:
    """Whether a state of `had` positions has what the slot held after `count` of them."""
    return 0 < count <= had and all(first_position(layer, had) <= first_position(layer, count) for layer in spec.layers)


class Slots:
    """The slots of a model: which positions each has, and where their numbers lie.

    A step says what it is about to write, and then that it has: one that fails leaves only the positions before it.
    kv: the format that layers were asked to keep keys and values in.
    """

    def __init__(self, spec: ModelSpec, runner: Runner, slots: int, kv: KVName) -> None:
        self._spec, self._runner = spec, runner
        self._kv: KVName = kv
        self._end = [0] * slots
        """Positions that the slot has: 0 to this, but for what rings have overwritten."""
        self._written = [0] * slots
        """As many positions as the longest end since position 0 was written: rings have lost what lies far behind."""
        self._least = [0] * slots
        """The fewest positions to which the slot can be taken back: what was restored had no earlier ones."""

    def begin(self, slot: Sequence[int], pos: Sequence[int]) -> None:
        """These positions are about to be written."""
        end, written = self._end, self._written
        for s, p in zip(slot, pos, strict=True):
            if p == 0:
                written[s] = self._least[s] = 0
            end[s], written[s] = min(end[s], p), max(written[s], p + 1)

    def done(self, slot: Sequence[int], pos: Sequence[int]) -> None:
        """They were: those that continue what a slot has are there."""
        end = self._end
        for s, p in zip(slot, pos, strict=True):
            if p == end[s]:
                end[s] = p + 1

    def continues(self, slot: int, count: int) -> bool:
        """Whether a step may go on at position `count`: the slot has what it reads of those before."""
        return self._has(slot, count, behind=1)

    def holds(self, slot: int, count: int) -> bool:
        """Whether `save` has something to copy."""
        return count > 0 and self._has(slot, count, behind=0)

    def _has(self, slot: int, count: int, *, behind: int) -> bool:
        """Whether all layers have their last positions of `count`; without the first `behind` of a window."""
        if not 0 <= count <= self._end[slot]:
            return False
        return count == 0 or all(
            layer.window is None
            or max(0, count - layer.window + behind) >= max(self._first(i, slot), self._written[slot] - self._ring(i))
            for i, layer in enumerate(self._spec.layers)
        )

    def _first(self, layer: int, slot: int) -> int:
        """The first position that what was restored had."""
        return first_position(self._spec.layers[layer], self._least[slot])

    def save(self, slot: int, count: int) -> SlotState:
        """A copy of what the slot held after `count` positions; InputError where it has not, or no longer has them."""
        self._check_held(slot, count)
        layers = tuple(
            tuple(np.ascontiguousarray(rows[index]) for rows, index in self._rows(i, slot, count))
            for i in range(len(self._spec.layers))
        )
        return SlotState(count, tuple(cache_kinds(self._spec, self._runner, self._kv)), layers)

    def restore(self, slot: int, state: SlotState, ctx: int) -> None:
        """Put a state into the slot, in place of what that has; InputError where it is none of this model's."""
        spec, kinds = self._spec, cache_kinds(self._spec, self._runner, self._kv)
        if not 1 <= state.count <= ctx:
            raise InputError(f"a slot of {ctx} positions cannot take {state.count}: load the model with a larger ctx")
        if len(state.kinds) != len(kinds):
            raise InputError(f"the state has {len(state.kinds)} layers, the model {len(kinds)}: restore another one")
        for i, (has, keeps) in enumerate(zip(state.kinds, kinds, strict=True)):
            if has != keeps and spec.layers[i].attention is not None:
                raise InputError(
                    f"layer {i} keeps keys and values as {keeps}, the state has them as {has}: compute it again"
                )
        shapes = [[(array.shape, array.dtype) for array in layer] for layer in state.layers]
        if shapes != layout(spec, kinds, state.count):
            raise InputError("the state is of a model with other shapes: restore one that this model has saved")
        self._end[slot] = 0
        for i, arrays in enumerate(state.layers):
            for (rows, index), array in zip(self._rows(i, slot, state.count), arrays, strict=True):
                rows[index] = array
        self._holds_only(slot, state.count)

    def copy(self, origin: int, target: int, count: int) -> None:
        """Let a slot hold the first `count` positions of another one: memory as it lies, and whole blocks of it."""
        self._check_held(origin, count)
        if origin == target:
            return
        self._end[target] = 0
        for i in range(len(self._spec.layers)):
            for array, positions in self._places(i, count):
                array[(target, *positions)] = array[(origin, *positions)]
        self._holds_only(target, count)

    def _holds_only(self, slot: int, count: int) -> None:
        """What a slot has now is what was saved after `count` positions."""
        self._end[slot] = self._written[slot] = count
        self._least[slot] = count if any(first_position(layer, count) for layer in self._spec.layers) else 0

    def _places(self, layer: int, count: int) -> list[tuple[np.ndarray, tuple[slice, ...]]]:
        """What a layer keeps, as (array, index of the places of a slot's first `count` positions, or of more)."""
        operands, every, n = self._operands(layer), slice(None), min(count, self._ring(layer))
        if self._spec.layers[layer].attention is None:
            kept = [operands[name] for name in ("state", "states") if name in operands]
            return [(array, (slice(min(count, array.shape[1])),)) for array in kept]
        places: list[tuple[np.ndarray, tuple[slice, ...]]] = [
            (operands["k_cache"], (every, slice(-(-n // KEY_LANES)))),
            (operands["v_cache"], (every, slice(n))),
        ]
        if operands["k_cache"].dtype == np.int8:
            places += [(operands[name], (every, every, slice(n))) for name in ("k_scale", "v_scale")]
        return places

    def _check_held(self, slot: int, count: int) -> None:
        if not 1 <= count <= self._end[slot]:
            raise InputError(f"slot {slot} has {self._end[slot]} positions, {count} were asked for")
        if not self.holds(slot, count):
            raise InputError(
                f"slot {slot}: a layer that has its last positions alone no longer has those before position {count}; "
                "save the slot when it has just as many positions as are wanted"
            )

    def _ring(self, layer: int) -> int:
        """Positions that a layer keeps of a slot before the first one is overwritten."""
        spec = self._spec.layers[layer]
        if spec.attention is None:
            assert spec.window is not None
            return spec.window
        return self._operands(layer)["capacity"]

    def _operands(self, layer: int) -> dict[str, Any]:
        """The operands of the ops that read what the layer keeps: they are others once it is widened."""
        ops = (op for op in self._runner.plan.ops if op.layer == layer and op.kernel.kind in KEEPERS)
        return {name: operand for op in ops for name, operand in op.operands.items()}

    def _rows(self, layer: int, slot: int, count: int) -> list[tuple[np.ndarray, Any]]:
        """Views of what a layer keeps of a slot, as (view, index): view[index] is an array of the SlotState."""
        operands, spec = self._operands(layer), self._spec.layers[layer]
        if spec.attention is None:
            width = self._spec.hidden if spec.recurrence is None else spec.recurrence.channels
            kept = [operands["state"][slot, :, :width], *([operands["states"][slot]] if "states" in operands else [])]
            return [(array, np.arange(_first(count, len(array)), count) % len(array)) for array in kept]
        at = np.arange(first_position(spec, count), count) % self._ring(layer)
        keys = operands["k_cache"][slot].transpose(1, 3, 0, 2)  # [capacity / KEY_LANES, KEY_LANES, K, k_dim]
        rows: list[tuple[np.ndarray, Any]] = [
            (keys, (at // KEY_LANES, at % KEY_LANES)),
            (operands["v_cache"][slot].swapaxes(0, 1), at),
        ]
        if operands["k_cache"].dtype == np.int8:
            rows += [(operands[name][slot].transpose(2, 0, 1), at) for name in ("k_scale", "v_scale")]
        return rows
