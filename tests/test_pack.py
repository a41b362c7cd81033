"""From a checkpoint to the packed form: the bytes against plain loops, interruptions, and what files can get wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tiny

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.errors import CheckpointError, InputError
from lapinfer.loading import convert, load_model
from lapinfer.options import LoadOptions
from lapinfer.packing.copies import cached_folder
from lapinfer.packing.integrity import damaged
from lapinfer.packing.reader import PackedFile, read_packed
from lapinfer.quant.blocks import unpack
from lapinfer.quant.formats import group_format
from lapinfer.quant.groups import Grouped
from lapinfer.quant.quantize import quantize
from lapinfer.report.costs import Costs


def write(folder: Path, case: str = "llama-odd", **changed: np.ndarray | None) -> FolderCheckpoint:
    """A golden case's checkpoint; `changed` tensors are replaced, or left out (None)."""
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{case}.npz")
    stored |= {name.replace("__", "."): value for name, value in changed.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    kept = {name: np.ascontiguousarray(value) for name, value in stored.items() if value is not None}
    safetensors.numpy.save_file(kept, folder / "model.safetensors")
    return FolderCheckpoint(folder)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


def logical(file: PackedFile, name: str) -> np.ndarray:
    entry = file[name]
    return unpack(str(entry.format), file.tensor(name), (entry.shape[0], entry.shape[1]))


@pytest.mark.parametrize("format", ["f32", "q8", "q4_1", "q4"])
def test_rows_of_gate_and_up_alternate_and_missing_rows_are_zero(tmp_path, format):
    checkpoint = write(tmp_path / "model")
    file = read_packed(pack_calibrated(checkpoint, tmp_path / "packed", format))[1]
    prefix = "model.layers.0.mlp."
    gate, up = checkpoint.read(prefix + "gate_proj.weight"), checkpoint.read(prefix + "up_proj.weight")
    packed = logical(file, "layers.0.gate_up")
    width = len(gate)
    assert width == 90
    assert packed.shape == (2 * 96, 40)
    tolerance = {"f32": 0.0, "q8": 0.01, "q4_1": 0.15, "q4": 0.15}[format] * max(np.abs(gate).max(), np.abs(up).max())
    for row in range(96):
        place = row // 16 * 32 + row % 16
        for side, weights in enumerate((gate, up)):
            got = packed[place + 16 * side]
            if row < width:
                assert np.abs(got - weights[row]).max() <= tolerance
            else:
                assert not got.any()
    embed = logical(file, "embed")
    assert embed.shape == (144, 40)
    assert not embed[131:].any()
    qkv = np.concatenate([checkpoint.read(f"model.layers.1.self_attn.{n}_proj.weight") for n in "qkv"])
    tolerance = {"f32": 0.0, "q8": 0.01, "q4_1": 0.15, "q4": 0.15}[format] * np.abs(qkv).max()
    assert np.abs(logical(file, "layers.1.qkv")[: len(qkv)] - qkv).max() <= tolerance


def test_bytes_are_the_same_every_time_and_for_the_official_library(tmp_path):
    checkpoint = write(tmp_path / "model")
    folders = [pack_calibrated(checkpoint, tmp_path / f"packed{i}", "q4") for i in range(2)]
    first, second = ((folder / FILE_NAME).read_bytes() for folder in folders)
    assert first == second
    with safetensors.safe_open(folders[0] / FILE_NAME, "np") as file:
        assert file.metadata()["calibration"] == "random"
        assert {"embed", "layers.0.gate_up", "norm.weight"} <= set(file.keys())
        ours = read_packed(folders[0])[1]
        for name in ours.names():
            np.testing.assert_array_equal(file.get_tensor(name), ours.tensor(name))
    assert not list((tmp_path / "home" / "calibration").iterdir())  # the q8 copy is gone


def test_the_copy_for_calibration_is_let_go_before_it_is_removed(tmp_path, kept_while_open):
    pack_calibrated(write(tmp_path / "model"), tmp_path / "packed", "q4")
    assert not list((tmp_path / "home" / "calibration").iterdir())
    assert sorted(os.listdir(tmp_path / "packed")) == ["config.json", FILE_NAME]


KILLED = """
import sys, time
from pathlib import Path
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.packing.writer import PackedWriter
from lapinfer.calibration import pack_calibrated
write = PackedWriter.write
def slow(self, name, data):
    write(self, name, data)
    if "calibration" not in str(self.path):
        print(name, flush=True)
        time.sleep(0.1)
PackedWriter.write = slow
pack_calibrated(FolderCheckpoint(Path(sys.argv[1])), Path(sys.argv[2]), "q4")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_goes_on_after_a_kill_with_the_same_bytes(tmp_path):
    checkpoint = write(tmp_path / "model")
    whole = pack_calibrated(checkpoint, tmp_path / "whole", "q4")
    target = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "model"), str(target)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for _ in range(5):
        assert child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (target / FILE_NAME).exists()
    journal = (target / f"{FILE_NAME}.journal").read_text().splitlines()
    assert len(journal) > 4
    began = time.time()
    pack_calibrated(checkpoint, target, "q4")
    assert (target / FILE_NAME).read_bytes() == (whole / FILE_NAME).read_bytes()
    assert (target / FILE_NAME).stat().st_mtime >= began - 1
    assert not list((tmp_path / "home" / "calibration").iterdir())


UP = "model__layers__1__mlp__up_proj__weight"


def test_a_changed_source_belongs_to_another_folder(tmp_path):
    before = cached_folder(write(tmp_path / "model"), "q4", tmp_path)
    assert cached_folder(FolderCheckpoint(tmp_path / "model"), "q4", tmp_path) == before
    assert cached_folder(FolderCheckpoint(tmp_path / "model"), "q8", tmp_path) != before
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    changed = cached_folder(FolderCheckpoint(tmp_path / "model"), "q4", tmp_path)
    assert changed != before
    other = write(tmp_path / "model", **{UP: np.zeros((90, 40), np.float32)})
    assert cached_folder(other, "q4", tmp_path) not in (before, changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (None, "'model.layers.1.mlp.up_proj.weight' is missing"),
        (np.zeros((90, 41), np.float32), "has shape (90, 41), config.json says (90, 40)"),
        (np.zeros((89, 40), np.float32), "rows"),
        (np.full((90, 40), np.nan, np.float32), "'model.layers.1.mlp.up_proj.weight' has values that are not numbers"),
    ],
)
@pytest.mark.parametrize("format", ["q8", "q4"])
def test_bad_tensors_are_named_in_one_line(tmp_path, changed, said, format):
    checkpoint = write(tmp_path / "model", **{UP: changed})
    with pytest.raises(CheckpointError) as caught:
        pack_calibrated(checkpoint, tmp_path / "packed", format)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "packed" / FILE_NAME).exists()


@pytest.mark.parametrize(("quant", "wider"), [("f16", "f32"), ("q8", "bf16"), ("q4", "bf16")])
def test_what_is_too_large_becomes_a_wider_format(tmp_path, quant, wider):
    checkpoint = write(tmp_path / "model", **{UP: np.full((90, 40), 1e20, np.float32)})
    said = []
    packed = pack_calibrated(checkpoint, tmp_path / "packed", quant, notice=said.append)
    assert read_packed(packed)[1].format("layers.1.gate_up") == wider
    assert read_packed(packed)[1].format("layers.0.gate_up") == quant
    assert said[-1].endswith(f"too large for {quant}; kept in {wider}: layers.1.gate_up")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_target(tmp_path):
    write(tmp_path / "model")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(tmp_path / "model", tmp_path / "closed" / "packed", "q8")


def test_target_or_its_parent_is_a_file(tmp_path):
    write(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        convert(tmp_path / "model", tmp_path / "file", "q8")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(tmp_path / "model", tmp_path / "file" / "packed", "q8")


class Stored:
    """A checkpoint whose matrices are stored in q4_1 groups, but those named in `otherwise`."""

    def __init__(self, checkpoint: FolderCheckpoint, otherwise: tuple[str, ...] = ()):
        self.path, self.folder, self.config = checkpoint.path, checkpoint.folder, checkpoint.config
        self.contents = checkpoint.contents
        self._checkpoint, self._otherwise = checkpoint, otherwise
        self.names, self.shape = checkpoint.names, checkpoint.shape

    def stored_as(self, name: str) -> str:
        matrix = len(self.shape(name)) == 2 and not name.endswith(self._otherwise)
        return "Q4_1" if matrix else "F32"

    def groups(self, name: str) -> Grouped:
        return quantize("q4_1", self._checkpoint.read(name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        matrix = self.stored_as(name) == "Q4_1"
        return (self.groups(name).weights() if matrix else self._checkpoint.read(name))[start:stop]

    def read_grouped(self, name: str, start: int = 0, stop: int | None = None) -> Grouped | None:
        if self.stored_as(name) != "Q4_1":
            return None
        g = self.groups(name)
        assert g.minimum is not None
        return Grouped(group_format("q4_1"), g.codes[start:stop], g.scale[start:stop], g.minimum[start:stop])


def test_stored_groups_are_kept_and_not_calibrated(tmp_path):
    checkpoint = Stored(write(tmp_path / "model", "llama-plain"), otherwise=())
    phases = set()
    folder = pack_calibrated(
        checkpoint, tmp_path / "packed", "q4", progress=lambda phase, done, total: phases.add(phase)
    )
    assert phases == {"packing"}
    file = read_packed(folder)[1]
    assert file.metadata["calibration"] == "none"
    for name, source in (("layers.0.o", "model.layers.0.self_attn.o_proj.weight"),):
        np.testing.assert_array_equal(logical(file, name), checkpoint.read(source))
    with pytest.raises(InputError, match="nothing becomes q4 with a loss"):
        pack_calibrated(checkpoint, tmp_path / "again", "q4", text=tmp_path / "text")


def test_stored_groups_are_kept_beside_others_in_one_matrix(tmp_path):
    checkpoint = Stored(write(tmp_path / "model", "llama-plain"), otherwise=("v_proj.weight",))
    file = read_packed(pack_calibrated(checkpoint, tmp_path / "packed", "q4"))[1]
    assert file.metadata["calibration"] == "random"
    q = checkpoint.read("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(logical(file, "layers.0.qkv")[: len(q)], q)


def test_a_head_gets_a_coarse_copy_of_what_it_multiplies_with(tmp_path, monkeypatch):
    monkeypatch.setattr("lapinfer.packing.coarse.coarse_format", lambda *head: "q4")
    monkeypatch.setattr("lapinfer.packing.coarse.SLICE", 1)  # a band at a time
    checkpoint = write(tmp_path / "model")
    folder = pack_calibrated(checkpoint, tmp_path / "packed", "q8")
    spec, file = read_packed(folder)
    head = logical(file, "embed" if spec.tied else "head")[: spec.vocab]
    copy = logical(file, "head.coarse")[: spec.vocab]
    assert np.array_equal(copy, quantize("q4", head).weights())
    lacking = np.linalg.norm(head - copy, axis=1)
    norms = file.tensor("head.coarse.norms")
    assert (norms > lacking).all()
    assert norms == pytest.approx(lacking + 2**-16 * np.linalg.norm(head, axis=1), rel=1e-5)
    assert damaged(file.stored) == []
    model = load_model(folder, LoadOptions(ctx=16, threads=1))
    whole, best = (model.step([3], [0], [0], [True], best=k).values[0].copy() for k in (None, 1))
    assert whole.argmax() == best.argmax()
    assert Costs.of(model).weight_bytes == sum(file.tensor(n).nbytes for n in file.names())
    model.close()
