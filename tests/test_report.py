"""What reports say about a model: predicted bytes against the meter."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.packed import PackedFile
from lapinfer.families import spec_from_config
from lapinfer.kernels.control import COUNTER
from lapinfer.pack import pack_checkpoint
from lapinfer.quant import FORMATS
from lapinfer.runtime.build import Builder, Limits
from lapinfer.runtime.kv import DTYPES
from lapinfer.runtime.meter import Meter
from lapinfer.runtime.predict import predict_bytes
from lapinfer.spec import ModelSpec, is_matrix, tensors

LIMITS = {"ctx": 32, "slots": 3, "step": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@cache
def packings(name: str, folder: Path) -> tuple[ModelSpec, dict[str, PackedFile]]:
    """A golden case packed in every format."""
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{name}.npz")
    source = folder / name
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    save_file(stored, source / "model.safetensors")
    checkpoint = FolderCheckpoint(source)
    files = {f: PackedFile(pack_checkpoint(checkpoint, folder / f"{name}-{f}", f)) for f in FORMATS}
    return spec_from_config(config, name), files


class Mixed:
    """Weights whose matrices have a format each."""

    def __init__(self, files: dict[str, PackedFile], formats: dict[str, str]):
        self.files, self.formats = files, formats

    def tensor(self, name: str) -> np.ndarray:
        return self.files[self.format(name)].tensor(name)

    def format(self, name: str) -> str:
        return self.formats.get(name, "f32")


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """(slot, pos) of a step: up to three sequences, each at a place of its own."""
    slot, pos = [], []
    for s in draw(st.permutations(range(LIMITS["slots"])))[: draw(st.integers(1, LIMITS["slots"]))]:
        start = draw(st.integers(0, LIMITS["ctx"] - 1))
        length = draw(st.integers(1, min(5, LIMITS["ctx"] - start)))
        slot += [s] * length
        pos += range(start, start + length)
    return slot, pos


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kv=st.sampled_from(sorted(DTYPES)), step=runs())
def test_predicted_bytes_are_the_metered_ones(folder: Path, data: st.DataObject, kv: Any, step) -> None:
    name = data.draw(st.sampled_from([str(case) for case in tiny.CASES]))
    spec, files = packings(name, folder)
    matrices = [n for n in tensors(spec) if is_matrix(n)]
    if data.draw(st.booleans()):
        formats = dict.fromkeys(matrices, data.draw(st.sampled_from(sorted(FORMATS))))
    else:
        drawn = data.draw(st.lists(st.sampled_from(sorted(FORMATS)), min_size=len(matrices), max_size=len(matrices)))
        formats = dict(zip(matrices, drawn, strict=True))
    # A stored format of "q4" may have been raised for some matrices: what the file says counts.
    formats = {n: str(files[f].format(n)) for n, f in formats.items()}
    built = Builder(spec, Mixed(files, formats), Limits(**LIMITS, kv=kv)).build()
    meter = Meter(SimpleNamespace(ops=built.ops), kv, lambda: 1.0)  # type: ignore[arg-type]
    slot, pos = step
    wanted = data.draw(st.integers(0, len(pos)))
    meter.record(np.array(slot), np.array(pos), wanted, np.zeros((len(built.ops), COUNTER), np.int64), 0)
    metered = {key.removeprefix("bytes_"): n for key, n in meter.totals().items() if key.startswith("bytes_")}
    assert predict_bytes(spec, formats, kv, slot, pos, wanted) == metered
    assert sum(metered.values()) == meter.totals()["bytes"]
