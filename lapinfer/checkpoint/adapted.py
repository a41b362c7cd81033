"""A checkpoint with adapters: tensors that these change are merged as they are read, the others are as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.identity import Contents, Together
from lapinfer.checkpoint.lora import CONFIG, WEIGHTS, Adapter, adapter_of
from lapinfer.errors import CheckpointError, UnsupportedError, quoted
from lapinfer.families import head_name, spec_from_config
from lapinfer.quant.groups import Grouped

HEAD = "lm_head.weight"
Step = Callable[[np.ndarray, int], np.ndarray]
"""Changes rows of a tensor, of which the first is that one."""


class AdaptedCheckpoint:
    """`Checkpoint` of another one's weights with adapters merged into them, one after the other, in float32."""

    def __init__(self, base: Checkpoint, adapters: Sequence[Adapter]) -> None:
        self.path, self.folder, self._base = base.path, base.folder, base
        self.name = "+".join([base.name, *(adapter.name for adapter in adapters)])
        self._names = base.names()
        self._steps: dict[str, list[Step]] = {}
        for adapter in adapters:
            self._enter_replaced(adapter)
        for adapter in adapters:
            self._enter_changes(adapter)
        self._check_head(adapters)
        # In the order of the files' digests, with the place of each: of two adapters, either may have either scale.
        places = sorted(range(len(adapters)), key=lambda place: adapters[place].file.path)
        described = [[adapters[place].config, adapters[place].scale, place] for place in places]
        added = Contents(described, [adapter.file for adapter in adapters])
        self.contents: Contents = Together(base.contents, added)
        self.notices = (*base.notices, *map(_notice, adapters))

    @property
    def config(self) -> dict[str, Any]:
        return self._base.config

    def names(self) -> list[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def stored_as(self, name: str) -> str:
        return "F32" if name in self._steps else self._base.stored_as(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        values = self._base.read(name, start, stop)
        if name in self._steps:
            first = range(self.shape(name)[0])[start:stop].start
            for step in self._steps[name]:
                values = step(values, first)
        return values

    def read_grouped(self, name: str, start: int = 0, stop: int | None = None) -> Grouped | None:
        return None if name in self._steps else self._base.read_grouped(name, start, stop)

    def _enter_replaced(self, adapter: Adapter) -> None:
        for wanted in adapter.replaces:
            if wanted.endswith(HEAD) and wanted not in self._names:  # it is the embedding, see `_check_head`
                continue
            name = self._stored(adapter, wanted)
            self._steps.setdefault(name, []).append(self._replacing(adapter, wanted, name))

    def _enter_changes(self, adapter: Adapter) -> None:
        for module in adapter.modules:
            name = self._stored(adapter, f"{module}.weight")
            self._steps.setdefault(name, []).append(adapter.change(module, self.shape(name)).of_rows)

    def _replacing(self, adapter: Adapter, wanted: str, name: str) -> Step:
        values = adapter.replaced(wanted)
        if values.shape != self.shape(name):
            raise UnsupportedError(
                f"{adapter.path / WEIGHTS}: tensor {quoted(wanted)} has shape {values.shape}, the model's has "
                f"{self.shape(name)}; merge it with PEFT (merge_and_unload), which changes config.json, too"
            )
        return lambda rows, start: values[start : start + len(rows)]

    def _stored(self, adapter: Adapter, wanted: str) -> str:
        """The stored tensor of that name, whatever the model around it was called when the adapter was trained."""
        if wanted in self._names:
            return wanted
        alike = [name for name in self._names if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
        if len(alike) != 1:
            trained = f" (it was trained on {adapter.trained_on[:100]!r})" if adapter.trained_on else ""
            raise CheckpointError(
                f"{adapter.path / WEIGHTS}: changes {quoted(wanted)}, which {self.path} does not have; is it an "
                f"adapter of this model{trained}?"
            )
        return alike[0]

    def _check_head(self, adapters: Sequence[Adapter]) -> None:
        """UnsupportedError where a head would have to differ from the embedding that it is."""
        spec = spec_from_config(self.config, str(self.path))
        stored = frozenset(self._names)
        if not spec.tied:
            return
        head = head_name(spec, stored)
        for adapter in adapters:
            changed = {f"{module}.weight" for module in adapter.modules}
            ends = (HEAD, "embed_tokens.weight", "wte.weight")
            if touched := [name for name in changed if name.endswith(ends) or name == head]:
                raise UnsupportedError(
                    f"{adapter.path / CONFIG}: changes {quoted(touched[0])}, but this model's head is its embedding, "
                    "which cannot be changed alone; merge it with PEFT (merge_and_unload)"
                )
            whole = [name for name in adapter.replaces if name.endswith(ends)]
            if whole and not self._same(adapter, whole):
                raise UnsupportedError(
                    f"{adapter.path / WEIGHTS}: has {quoted(whole[0])}, but this model's head is its embedding, and "
                    "both were trained apart; merge it with PEFT (merge_and_unload)"
                )

    @staticmethod
    def _same(adapter: Adapter, names: Sequence[str]) -> bool:
        """Whether an embedding and its head were replaced by the same numbers."""
        first, *others = (adapter.replaced(name) for name in names)
        return bool(others) and all(np.array_equal(first, other) for other in others)


def _notice(adapter: Adapter) -> str:
    count = len(adapter.modules) + len(adapter.replaces)
    trained = f", trained on {adapter.trained_on[:100]}" if adapter.trained_on else ""
    return f"note: with the adapter {adapter.name} ({count} tensors{trained})"


def adapted(checkpoint: Checkpoint | Path, lora: Sequence[str]) -> Checkpoint | Path:
    """A checkpoint with the adapters that `PATH` or `PATH:SCALE` name; the same one where there are none.

    UnsupportedError for a packed folder: its weights are rounded already.
    """
    if not lora:
        return checkpoint
    if isinstance(checkpoint, Path):
        raise UnsupportedError(
            f"{checkpoint}: is packed already, so no adapter can be merged into it; name the checkpoint that it was "
            "made from"
        )
    return AdaptedCheckpoint(checkpoint, [adapter_of(each) for each in lora])
