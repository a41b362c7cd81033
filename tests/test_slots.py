"""What a slot holds, copied, saved and restored: steps after it have the same bits, and no byte is copied too much."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from test_determinism import build, decoder, hybrid_decoder, prompt, recurrent_decoder, routed_decoder
from test_range import LARGE, model_of

from lapinfer.errors import InputError
from lapinfer.model import Model
from lapinfer.runtime.kv import DTYPES, bytes_per_position, bytes_per_slot
from lapinfer.runtime.slots import SlotState, layout, shortened
from lapinfer.spec import STATES, ModelSpec

SPECS = {
    "dense": decoder(None), "window": decoder(20), "latent": routed_decoder(True), "convolutions": hybrid_decoder(),
    "recurrences": recurrent_decoder(),
}  # fmt: skip
IDS = prompt()


def rest(model: Model, slot: int, count: int) -> np.ndarray:
    """The logits of a chunk and a token that follow `count` positions."""
    logits = [model.prefill(IDS[count:-1], slot, count).values.copy()]
    logits.append(model.step(IDS[-1:], [slot], [len(IDS) - 1], [True]).values.copy())
    return np.stack(logits)


def predicted(spec: ModelSpec, kv: Any, count: int) -> int:
    """Bytes of `count` positions, by what each layer is said to keep of one."""
    return sum(
        bytes_per_position(layer, spec.hidden, kv) * min(count, layer.seen or count)
        + bytes_per_slot(layer) * min(count, STATES)
        for layer in spec.layers
    )


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("name", SPECS)
def test_steps_after_what_was_restored_have_the_same_bits(name: str, kv: Any) -> None:
    """In another slot, and in another model with rings of other sizes, over what is left there of other sequences."""
    spec, count = SPECS[name], 277
    model, other = build(kv=kv, spec=spec, slots=3, step=64), build(kv=kv, spec=spec, slots=2, step=17, threads=2)
    model.prefill(IDS[:count], 1)
    state = model.save_slot(1, count)
    assert state.nbytes == predicted(spec, kv, count)
    model.prefill(prompt(200, 5), 2)
    other.prefill(prompt(300, 6), 0)
    model.copy_slot(1, 2, count)
    other.restore_slot(0, state)
    expected = rest(model, 1, count)
    np.testing.assert_array_equal(rest(model, 2, count), expected)
    np.testing.assert_array_equal(rest(other, 0, count), expected)
    again = other.save_slot(0, len(IDS))
    for mine, theirs in zip(model.save_slot(1, len(IDS)).layers, again.layers, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.tobytes() == b.tobytes()
    model.close()
    other.close()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [1, 3, 31, 33])
def test_short_sequences(name: str, count: int) -> None:
    """Shorter than a block of keys, a window or a convolution; the last position may be read again."""
    model = build(spec=SPECS[name], slots=2, step=16)
    model.prefill(IDS[:count])
    model.copy_slot(0, 1, count)
    start = max(count - 1, 1)
    expected = model.prefill(IDS[start:40], 0, start).values.copy()
    np.testing.assert_array_equal(model.prefill(IDS[start:40], 1, start).values, expected)
    model.close()


def test_a_widened_layer_is_kept_as_it_is() -> None:
    """A model in which it is not, refuses it."""
    model, other = model_of(decoder(20), LARGE, "f16"), model_of(decoder(20), LARGE, "f16")
    ids = IDS[:40]
    model.prefill(ids)
    assert model.kv == ["f16", "f32"]
    model.copy_slot(0, 1, 40)
    logits = model.step([7], [0], [40], [True]).values.copy()
    np.testing.assert_array_equal(model.step([7], [1], [40], [True]).values, logits)
    with pytest.raises(InputError, match="layer 1 keeps keys and values as f16, the state has them as f32"):
        other.restore_slot(0, model.save_slot(1, 41))
    other.prefill(ids)
    other.restore_slot(0, model.save_slot(1, 41))
    model.close()
    other.close()


def test_rings_only_give_what_they_have() -> None:
    model = build(spec=decoder(20), slots=2, step=16)
    model.prefill(IDS[:299])
    with pytest.raises(InputError, match="no longer has those before position 150"):
        model.save_slot(0, 150)
    with pytest.raises(InputError, match="slot 0 has 299 positions, 300 were asked for"):
        model.save_slot(0, 300)
    model.copy_slot(0, 1, 299)
    with pytest.raises(InputError, match="no longer has"):
        model.save_slot(1, 298)
    model.prefill(IDS[:30], 1)
    assert model.save_slot(1, 25).count == 25
    model.close()


def test_a_step_that_fails_leaves_the_positions_before_it() -> None:
    model = model_of(decoder(None), LARGE, "f16")
    with pytest.raises(InputError, match="too large"):
        model.step([5, 6], [0, 0], [0, 1], [True, True], guessed=True)
    with pytest.raises(InputError, match="slot 0 has 0 positions"):
        model.save_slot(0, 1)
    model.prefill([5, 6, 7])
    model.step([9], [0], [1], [True])
    with pytest.raises(InputError, match="slot 0 has 2 positions"):
        model.save_slot(0, 3)
    model.close()


@pytest.mark.parametrize("name", SPECS)
def test_shortened(name: str) -> None:
    """What the slot held earlier, where nothing has been lost since."""
    model = build(spec=SPECS[name], slots=2, step=64)
    model.prefill(IDS[:100])
    early = model.save_slot(0, 100)
    model.prefill(IDS[100:200], 0, 100)
    assert shortened(SPECS[name], early, 100) is not None
    cut = shortened(SPECS[name], model.save_slot(0, 200), 100)
    assert (cut is None) == (name != "dense")
    if cut is not None:
        assert [a.tobytes() for x in cut.layers for a in x] == [a.tobytes() for x in early.layers for a in x]
    model.close()


def test_states_of_other_models_are_refused() -> None:
    model, spec = build(), decoder()
    model.prefill(IDS[:5])
    state = model.save_slot(0, 5)
    shapes = layout(spec, "f16", 6)
    longer = tuple(tuple(np.zeros(shape, kind) for shape, kind in layer) for layer in shapes)
    for wrong, word in (
        (dataclasses.replace(state, layers=longer), "other shapes"),
        (dataclasses.replace(state, kinds=("f16",)), "1 layers, the model 2"),
        (SlotState(999, state.kinds, state.layers), "300 positions cannot take 999"),
    ):
        with pytest.raises(InputError, match=word):
            model.restore_slot(0, wrong)
    with pytest.raises(InputError, match="slot"):
        model.restore_slot(1, state)
    model.close()
