"""What reports say: predicted bytes against the meter, the table of a plan, bandwidth, the doctor."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import RandomWeights
from safetensors.numpy import save_file

from lapinfer import machine
from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.families import spec_from_config
from lapinfer.loading import load_model
from lapinfer.options import LoadOptions
from lapinfer.quant.formats import FORMATS
from lapinfer.report import bandwidth, doctor, roofline
from lapinfer.report.against import Figures, against_dense, ratio
from lapinfer.report.explain import explain
from lapinfer.report.random_weights import shape_model
from lapinfer.report.shapes import shape_spec
from lapinfer.report.sizes import KINDS, SIZES
from lapinfer.runtime.build.model import build_model
from lapinfer.runtime.kv import DTYPES
from lapinfer.runtime.meter import Meter
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.predict import expected_reads, predict_bytes
from lapinfer.spec import ModelSpec
from lapinfer.tensors import active_parameters, parameters, tensors

LIMITS = Limits(ctx=32, slots=3, step=16)


@cache
def spec_of(name: str) -> ModelSpec:
    return spec_from_config(tiny.read_golden(tiny.GOLDEN / f"{name}.npz")[0], name)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """(slot, pos) of a step: up to three sequences, each at a place of its own."""
    slot, pos = [], []
    for s in draw(st.permutations(range(LIMITS.slots)))[: draw(st.integers(1, LIMITS.slots))]:
        start = draw(st.integers(0, LIMITS.ctx - 1))
        length = draw(st.integers(1, min(5, LIMITS.ctx - start)))
        slot += [s] * length
        pos += range(start, start + length)
    return slot, pos


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kv=st.sampled_from(sorted(DTYPES)), step=runs())
def test_predicted_bytes_are_the_metered_ones(data: st.DataObject, kv: Any, step) -> None:
    spec = spec_of(data.draw(st.sampled_from([str(case) for case in tiny.CASES])))
    matrices = [n for n, t in tensors(spec).items() if t.is_matrix and t.role != "router"]
    if data.draw(st.booleans()):
        formats = dict.fromkeys(matrices, data.draw(st.sampled_from(sorted(FORMATS))))
    else:
        drawn = data.draw(st.lists(st.sampled_from(sorted(FORMATS)), min_size=len(matrices), max_size=len(matrices)))
        formats = dict(zip(matrices, drawn, strict=True))
    weights = RandomWeights(spec, "q4", formats=formats)
    formats = {n: str(weights.format(n)) for n, t in tensors(spec).items() if t.is_matrix}
    built = build_model(spec, weights, replace(LIMITS, kv=kv))
    meter = Meter(SimpleNamespace(ops=built.ops), lambda: 1.0)  # type: ignore[arg-type]
    slot, pos = step
    wanted = data.draw(st.integers(0, len(pos)))
    meter.record(np.array(slot), np.array(pos), wanted, 0, *expected_reads(spec, len(pos)))
    metered = {key.removeprefix("bytes_"): n for key, n in meter.totals().items() if key.startswith("bytes_")}
    assert predict_bytes(spec, formats, kv, slot, pos, wanted) == metered
    assert sum(metered.values()) == meter.totals()["bytes"]


@pytest.mark.parametrize("analyze", [False, True])
def test_explain(tmp_path: Path, analyze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = roofline.Roofline(2, {2: 1e10}, {"int8": 1e11, "float32": 1e10})
    monkeypatch.setattr(roofline, "measure", lambda threads, **options: measured)
    monkeypatch.setattr(roofline, "weights_bandwidth", lambda format, threads: 9e9)
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / "gemma2-options.npz")
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    save_file(stored, source / "model.safetensors")
    packed = pack_calibrated(FolderCheckpoint(source), tmp_path / "packed", "q4")
    model = load_model(packed, LoadOptions(ctx=40, threads=2))
    try:
        before = model.usage.totals()
        text = explain(model, analyze)
        assert model.usage.totals()["steps"] - before["steps"] == (1 if analyze else 0)  # the prompt before the token
        assert ("MBU" in text) == analyze
        assert max(map(len, text.splitlines()[1:])) <= 100  # the first line is the model's name
        for line in text.splitlines():
            if line.startswith("predicted"):
                predicted, metered = (word for word in line.split() if word[0].isdigit())
                assert predicted == metered
        tables = text.split("\n\n")[1:-1]
        assert [table.split(":")[0] for table in tables] == ["decode", "prefill"]
        rows = [line.split()[0] for line in tables[0].splitlines()[3:-1]]
        for op in ("embed", "qkv", "gate_up", "attn_post_norm", "head", "kv", "step"):
            assert op in rows
        # Windowed and full layers read different numbers of keys: two rows.
        assert sum(line.startswith("attention  ") for line in tables[0].splitlines()) >= 2
        assert "2.gate_up" in explain(model, layers=True)
    finally:
        model.close()


def test_bandwidth_and_scaling_are_plausible() -> None:
    assert 1e8 < bandwidth.read_bandwidth(1, megabytes=8, seconds=0.02) < 1e13
    assert 1e8 < bandwidth.read_bandwidth(2, megabytes=8, seconds=0.02) < 1e13
    assert 0 < bandwidth.thread_scaling(repeats=3) < 3


def test_the_roofline_is_plausible() -> None:
    found = roofline.measure(2, seconds=0.02)
    assert sorted(found.bandwidth) == [1, 2]
    assert all(1e8 < peak < 1e14 for peak in found.peaks.values())
    assert found.seconds(1e9, 0) == pytest.approx(1e9 / found.best_bandwidth)
    assert found.seconds(0, 1e9, "float32") == pytest.approx(1e9 / found.peaks["float32"])
    assert 1e8 < roofline.weights_bandwidth("q4", 2, seconds=0.02) < 1e13


def test_shapes_have_equal_totals_and_equal_active_sizes() -> None:
    for size in SIZES:
        total = {kind: parameters(shape_spec(size, kind)) for kind in KINDS}
        active = {kind: active_parameters(shape_spec(size, kind)) for kind in KINDS}
        assert max(total[k] for k in ("dense", "moe", "fff")) < 1.01 * total["dense"]
        assert max(active[k] for k in ("moe", "fff")) < 1.01 * active["dense-active"]
        assert total["dense"] > 2 * total["dense-active"]
    model = shape_model("100m", "fff", "q4", Limits(8, step=8))
    try:
        model.step([1], [0], [0], [True])
        formats = {n: str(model.weights.format(n)) for n, t in tensors(model.spec).items() if t.is_matrix}
        assert model.usage.totals()["bytes"] == sum(predict_bytes(model.spec, formats, "f16", [0], [0], 1).values())
    finally:
        model.close()


def test_probe_reads_the_whole_buffer() -> None:
    buffer = np.arange(4 * 256 // 4, dtype=np.float32)
    with closing(bandwidth.probe(2, buffer, chunks=4, bytes=256, stride=256, rounds=3)) as runner:
        runner.run()
        sums = runner.plan.ops[0].operands["out"]
        assert isinstance(sums, np.ndarray)
        np.testing.assert_array_equal(sums[:, 0], 3 * buffer.reshape(4, -1).sum(axis=1))


def test_measured_memory_exceeds_the_largest_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, expected in ((0, 256 << 20), (32 << 20, 256 << 20), (260 << 20, 1040 << 20), (1 << 30, 2 << 30)):
        monkeypatch.setattr(machine, "largest_cache", lambda size=size: size)
        assert machine.beyond_caches() == expected


def test_against_dense() -> None:
    dense = Figures("dense", 1000, 1000, 10e6, 8e6, [5.0] * 5, 30.0)
    small = Figures("small", 400, 400, 4e6, 3e6, [12.0] * 5, 40.0)
    moe = Figures("moe", 1010, 405, 11e6, 4e6, [10.0] * 5, 33.0)
    other = Figures("other", 5000, 600, 50e6, 6e6, [2.0] * 5, None)
    assert against_dense([dense, small, moe, other]) == [
        "A token of moe touches 4.00 MB, 2.0 times less than one of dense, which has as many parameters. It decodes "
        "2.00 times as fast (2.00 to 2.00). Its weights take 1.1 times the memory. Perplexity is 33.0 against 30.0 "
        "(lower is better).",
        "A token of moe touches 4.00 MB, 1.3 times as much as one of small, which has as many parameters as a token "
        "uses. It decodes 0.83 times as fast (0.83 to 0.83). Its weights take 2.8 times the memory. Perplexity is 33.0 "
        "against 40.0 (lower is better).",
    ]
    assert against_dense([dense, small]) == []
    alike = Figures("alike", 1000, 500, 10.1e6, 8.1e6, [5.0] * 5, None)
    (line,) = against_dense([dense, alike])
    assert "touches 8.10 MB, about as much (1.01 times) as one of dense" in line
    assert "Its weights take the same memory (1.01 times)." in line
    assert "Perplexity" not in line


DENSE = [5.0, 5.2, 4.9, 5.1, 5.0]


@pytest.mark.parametrize(
    ("speeds", "paired", "told"),
    [
        ([1.1 * v for v in DENSE], True, "decodes 1.10 times as fast (1.10 to 1.10)"),
        ([5.5, 5.3, 5.4, 5.6, 5.5], True, "decodes 1.10 times as fast (1.02 to 1.10)"),
        ([4.0, 4.1, 4.0, 4.2, 4.1], True, "decodes 0.82 times as fast"),
        ([7.0, 6.0, 4.8, 9.0, 8.0], True, "Which one decodes faster cannot be told"),  # one turn says the opposite
        ([10.0] * 4, True, "not compared: 4 of at least 5 turns"),
        ([10.0] * 5, False, "not compared: they were not measured in turns"),
    ],
)
def test_a_ratio_that_may_be_chance_is_withheld(speeds: list[float], paired: bool, told: str) -> None:
    dense = Figures("dense", 1000, 1000, 10.0, 8.0, DENSE, None)
    moe = Figures("moe", 1010, 405, 11.0, 4.0, speeds, None, paired)
    assert told in against_dense([dense, moe])[0]


def test_a_range_of_many_ratios_leaves_out_the_outermost() -> None:
    """As many as the sign test lets it: of 8, one at either end."""
    found = ratio([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 9.0], [1.0] * 8)
    assert (found.low, found.high, found.told) == (1.1, 1.6, True)
    assert found.middle == pytest.approx(1.35)


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(doctor, "read_bandwidth", lambda threads: 2e10)
    monkeypatch.setattr(doctor, "thread_scaling", lambda: 1.2)
    monkeypatch.setattr(doctor.roofline, "peak", lambda format, threads: 5e11)
    (tmp_path / "home" / "packed").mkdir(parents=True)
    (tmp_path / "home" / "packed" / "a").write_bytes(bytes(2_000_000))
    monkeypatch.setattr(doctor, "default_threads", lambda: 2)
    found = doctor.doctor()
    assert found["read_bandwidth"] == {"on 1 thread": "20.0 GB/s", "on 2 threads": "20.0 GB/s"}
    assert found["arithmetic"]["int8, 2 threads"] == "500 G multiply-adds/s"
    assert found["two_thread_scaling"].startswith("1.20 (")
    assert "2 MB" in found["packed_models"]
    assert "not there yet" in found["pulled_models"]
    assert "not writable" not in found["pulled_models"]
    monkeypatch.setattr(doctor, "default_threads", lambda: 1)
    assert doctor.doctor()["two_thread_scaling"].startswith("not measured")


@pytest.mark.parametrize(
    ("features", "isa"),
    [
        ({"x86", "avx2", "avx512f", "avx512bw", "avx512vnni", "avxvnni"}, "AVX512-VNNI"),
        ({"x86", "avx2", "avxvnni"}, "AVX-VNNI"),
        ({"x86", "avx2", "avx512f", "avx512bw"}, "AVX-512"),
        ({"x86", "avx2"}, "AVX2"),
        ({"x86"}, "generic x86-64"),
        ({"aarch64", "dotprod"}, "NEON dot product"),
        ({"aarch64"}, "generic"),
    ],
)
def test_the_instruction_of_byte_products(features: set[str], isa: str) -> None:
    assert doctor.byte_dot_product(features)[0] == isa
