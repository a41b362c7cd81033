"""Experts that come from the file when they are chosen: the same bits, the counters, who leaves, and the bound."""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from random_weights import RandomWeights
from safetensors.numpy import save_file

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.errors import CheckpointError, InputError
from lapinfer.families import spec_from_config
from lapinfer.kernels.operands import POLICIES
from lapinfer.loading import MARGIN, SHORT_STEP, WANTED, load_model
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.packing.entries import BankEntry, packed_entries
from lapinfer.packing.reader import PackedFile, read_packed
from lapinfer.packing.writer import PackedWriter
from lapinfer.runtime import pool as pools
from lapinfer.runtime.ops import Limits
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pread and madvise")

CASES = ["mixtral-plain", "qwen2_moe-dense_layer", "deepseek_v3-groups", "gpt_oss-yarn"]
"""All layers alike; a dense layer and gated shared experts; groups, a selection bias, latent attention; biases."""

STEP = 21


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


@cache
def packed(name: str, folder: Path, fmt: str = "q8") -> PackedFile:
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{name}.npz")
    source = folder / name
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    save_file(stored, source / "model.safetensors")
    return read_packed(pack_calibrated(FolderCheckpoint(source), folder / f"{name}-{fmt}", fmt))[1]


def spec_of(name: str) -> ModelSpec:
    return spec_from_config(tiny.read_golden(tiny.GOLDEN / f"{name}.npz")[0], name)


@contextmanager
def model_of(name: str, folder: Path, **limits: Any) -> Iterator[Model]:
    options: dict[str, Any] = {"ctx": 64, "step": STEP, "threads": 2}
    model = Model(spec_of(name), packed(name, folder), Limits(**options | limits))
    try:
        yield model
    finally:
        model.close()


def sizes(spec: ModelSpec) -> tuple[int, int, int]:
    """Experts of a layer, those that a token gets, experts of all layers: routed ones."""
    routers = [layer.feed_forward.router for layer in spec.layers if layer.feed_forward.router]
    return routers[0].n_experts, routers[0].top_k, sum(router.n_experts for router in routers)


def decoded(model: Model, ids: list[int]) -> np.ndarray:
    """Logits of a prompt, and of some tokens behind it."""
    rows = [model.forward(ids)]
    for i in range(12):
        best = int(rows[-1][-1].argmax())
        rows.append(model.step([best], [0], [len(ids) + i], [True]).values.copy())
    return np.concatenate(rows)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_as_with_all_in_memory(name: str, policy: Any, folder: Path) -> None:
    E, k, total = sizes(spec_of(name))
    ids = tiny.prompt(101)
    with model_of(name, folder) as model:
        expected = decoded(model, ids)
    for slots in (k, E - 1, E, total):
        step = STEP if slots >= E else max(slots // k, 1)
        with model_of(name, folder, experts="pool", slots_of_pool=slots, policy=policy, step=step) as model:
            for _ in range(2):  # with empty slots, and with those of the first time
                np.testing.assert_array_equal(decoded(model, ids), expected, f"{slots} slots")
            if slots == total:
                assert model.pool is not None
                assert model.pool.stats()["misses"] <= total
    with model_of(name, folder, experts="mapped") as model:
        np.testing.assert_array_equal(decoded(model, ids), expected)


def test_logits_of_a_few_tokens_a_step(folder: Path) -> None:
    """forward runs in pieces of as many; a step that wants more is refused, and the next one is right."""
    ids = tiny.prompt(101)
    with model_of("mixtral-plain", folder) as model:
        expected = model.forward(ids)
    with model_of("mixtral-plain", folder, wanted=3) as model:
        assert (model.max_step, model.max_wanted) == (STEP, 3)
        np.testing.assert_array_equal(model.forward(ids), expected)
        places, want = np.arange(STEP), np.zeros(STEP, bool)
        want[[0, 5, 6, 9]] = True
        with pytest.raises(InputError, match="at most 3 tokens, 4 were wanted"):
            model.step(ids[:STEP], np.zeros(STEP, int), places, want)
        want[6] = False
        got = model.step(ids[:STEP], np.zeros(STEP, int), places, want).values
        np.testing.assert_array_equal(got, expected[want])


def test_large_experts_are_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By several threads; a piece ends anywhere."""
    ids = tiny.prompt(101)
    with model_of("mixtral-plain", folder) as model:
        expected = decoded(model, ids)
    monkeypatch.setattr(pools, "PIECE", 1000)
    for threads in (1, 4):
        with model_of("mixtral-plain", folder, experts="pool", slots_of_pool=5, threads=threads) as model:
            np.testing.assert_array_equal(decoded(model, ids), expected)


class Simulated:
    """A pool in plain Python."""

    def __init__(self, policy: str, slots: int, half_life: float) -> None:
        self.policy, self.half_life = policy, half_life
        self.owner: list[tuple[int, int] | None] = [None] * slots
        self.rank: dict[tuple[int, int], float] = {}
        self.uses: dict[tuple[int, int], int] = {}
        self.now = 0

    def use(self, layer: int, experts: list[int]) -> tuple[list[int], list[int]]:
        """(experts that were there, experts that were not) of one layer in one step."""
        self.now += 1
        keys = [(layer, e) for e in experts]
        for key in keys:
            fresh = self.now / self.half_life
            if self.policy == "lru":
                self.rank[key] = self.now
            elif self.policy == "lfu":
                self.rank[key] = self.uses.get(key, 0) + 1
            elif key in self.rank:
                high, low = max(self.rank[key], fresh), min(self.rank[key], fresh)
                self.rank[key] = high + math.log2(1 + 2 ** (low - high))
            else:
                self.rank[key] = fresh
            self.uses[key] = self.uses.get(key, 0) + 1
        there = [key for key in keys if key in self.owner]
        for key in keys:
            if key in there:
                continue
            free = [slot for slot, held in enumerate(self.owner) if held is None]
            leaving = [slot for slot, held in enumerate(self.owner) if held not in keys]
            self.owner[free[0] if free else min(leaving, key=lambda s: self.rank[self.owner[s]])] = key  # type: ignore[index]
        return [e for _, e in there], [e for e in experts if (layer, e) not in there]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "slots"), [("deepseek_v3-groups", 8), ("qwen2_moe-dense_layer", 7)])
def test_who_leaves_and_what_is_counted(
    name: str, slots: int, policy: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step after step as in plain Python, with one token or two."""
    monkeypatch.setattr(pools, "HALF_LIFE", 20)
    spec, rng = spec_of(name), np.random.default_rng(0)
    k = sizes(spec)[1]
    plain = Simulated(policy, slots, 20 * sum(layer.feed_forward.router is not None for layer in spec.layers))
    options = {"experts": "pool", "slots_of_pool": slots, "policy": policy, "step": slots // k}
    with model_of(name, folder, **options) as model:
        pool = model.pool
        assert pool is not None
        shared = sum(layer.feed_forward.shared for layer in spec.layers)
        size = {layer: bank.expert_bytes for layer, bank in zip(model.chosen_experts, pool.banks, strict=True)}
        steps = hits = misses = read = pos = 0
        stats: dict[str, Any] = {}
        while pos + 2 < 64:
            n = int(rng.integers(1, slots // k + 1))
            model.step(rng.integers(0, 101, n), [0] * n, np.arange(pos, pos + n), [False] * n)
            pos, steps = pos + n, steps + 1
            for layer, chosen in model.chosen_experts.items():
                there, absent = plain.use(layer, sorted(set(chosen[chosen >= 0].tolist())))
                hits, misses, read = hits + len(there), misses + len(absent), read + len(absent) * size[layer]
            stats = pool.stats()
            assert (stats["hits"], stats["misses"], stats["bytes_read"]) == (hits, misses, read), f"step {steps}"
            layers = list(model.chosen_experts)
            held = [-1 if key is None else pool.first[layers.index(key[0])] + key[1] for key in plain.owner]
            assert pool.owner.tolist() == held
            for slot, expert in enumerate(held):
                assert expert < 0 or pool.slot_of[expert] == slot
        assert hits + misses == model.usage.totals()["experts"] - steps * shared
        assert hits > 0
        assert misses > slots
        pool.reset()
        assert not any(pool.stats()[name] for name in ("hits", "misses", "bytes_read"))


@pytest.mark.parametrize("experts", ["pool", "mapped"])
def test_what_the_system_is_asked_for(experts: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped: whole experts, all that were chosen, in requests that the system does not refuse. Pool: nothing."""
    asked: list[tuple[int, int, int]] = []
    madvise = ctypes.CDLL(None, use_errno=True).madvise

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    def recorded(address: int, size: int, advice: int) -> int:
        asked.append((address, size, madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)))
        return 0

    real = pools._address
    address = ctypes.cast(recorded, ctypes.c_void_p).value
    monkeypatch.setattr(pools, "_address", lambda name: address if name == "madvise" else real(name))
    name = "deepseek_v3-groups"
    with model_of(name, folder, experts=experts, slots_of_pool=18, threads=1) as model:
        pool = model.pool
        assert pool is not None
        model.prefill(tiny.prompt(101))
        for i in range(8):
            asked.clear()
            model.step([i], [0], [STEP + i], [True])
            assert all(result == 0 for *_, result in asked)
            if experts == "pool":
                assert not asked
                continue
            places = {}
            for position, bank in enumerate(pool.banks):
                for e in range(len(bank.mapped)):
                    places[position, e] = bank.mapped.ctypes.data + e * bank.mapped.strides[0], bank.expert_bytes
            experts_of_requests = [
                {key for key, (start, n) in places.items() if begin <= start and start + n <= begin + size}
                for begin, size, _ in asked
            ]
            assert all(experts_of_requests)
            needed = {
                (p, int(e))
                for p, chosen in enumerate(model.chosen_experts.values())
                for e in [*chosen[0][chosen[0] >= 0], *range(pool.experts[p], len(pool.banks[p].mapped))]
            }
            assert needed <= set().union(*experts_of_requests)


def test_a_smaller_bound_leaves_fewer_slots_and_shorter_steps(folder: Path) -> None:
    """load_model(memory=…): with fewer slots than a layer has experts, a chunk of a prompt is short enough for them."""
    name = "deepseek_v3-groups"
    source = packed(name, folder).path.parent
    E, k, _ = sizes(spec_of(name))
    ids = tiny.prompt(101)
    resident = load_model(source, LoadOptions(threads=2, ctx=64))
    expected = decoded(resident, ids)
    resident.close()
    bounded = load_model(source, LoadOptions(threads=2, ctx=64, memory=4))
    assert bounded.pool is not None
    assert bounded.max_step == 64
    np.testing.assert_array_equal(decoded(bounded, ids), expected)
    bounded.close()
    for slots in (E - 1, k):
        model = load_model(source, LoadOptions(threads=2, ctx=64, memory=4))
        assert model.pool is not None
        model.pool.shrink(slots)
        model.max_step = max(slots // k, 1)
        np.testing.assert_array_equal(decoded(model, ids), expected)
        assert model.pool.stats()["misses"] > slots
        assert np.count_nonzero(model.pool.owner >= 0) == slots
        model.close()


def test_a_read_that_fails_leaves_nothing_wrong_behind(folder: Path, tmp_path: Path) -> None:
    """An error that names file and layer, whatever the garbage in the slots does to later layers; then all is right.

    The file is there again afterwards: nothing that was not read may be taken for an expert.
    """
    (tmp_path / "empty").touch()
    ids = tiny.prompt(101)
    for name, slots in (("mixtral-plain", 10), ("qwen2_moe-dense_layer", 6), ("deepseek_v3-groups", 9)):
        with model_of(name, folder) as model:
            expected = decoded(model, ids)
        with model_of(name, folder, experts="pool", slots_of_pool=slots) as model:
            pool = model.pool
            assert pool is not None
            first = next(iter(model.chosen_experts))
            whole, empty = os.dup(pool.fd), os.open(tmp_path / "empty", os.O_RDONLY)
            for garbage in (0, 255):
                pool.forget()
                pool.memory[:] = garbage
                os.dup2(empty, pool.fd)
                for _ in range(2):
                    with pytest.raises(CheckpointError, match=rf"{FILE_NAME}: experts of layer {first} could not"):
                        model.forward(ids)
                os.dup2(whole, pool.fd)
                np.testing.assert_array_equal(decoded(model, ids), expected)
            os.close(whole)
            os.close(empty)


# ---- the bound ----


LARGE: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 16384, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "num_local_experts": 64,
    "num_experts_per_tok": 4,
}  # fmt: skip
FEW = 2


def write_large(folder: Path) -> int:
    """A packed folder whose experts repeat, so that it is quickly made; returns the bytes of all experts."""
    spec = spec_from_config(LARGE, "large")
    few = RandomWeights(spec_from_config(LARGE | {"num_local_experts": FEW, "num_experts_per_tok": FEW}, "few"), "q8")
    formats = {name: str(few.format(name)) for name, tensor in tensors(spec).items() if tensor.is_matrix}
    entries = packed_entries(tensors(spec).values(), formats)
    rng = np.random.default_rng(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LARGE))
    total = 0
    with PackedWriter(folder / FILE_NAME, entries, {"quant": "q8", "source": "a test"}) as writer:
        for entry in entries:
            name = entry.name
            if name.endswith(".router"):
                dtype, shape = entry.stored
                assert dtype == "U8"
                writer.write(name, rng.standard_normal((*shape[:-1], shape[-1] // 4)).astype(np.float32).view(np.uint8))
            elif isinstance(entry, BankEntry):
                total += entry.experts * entry.stride
                for _ in range(entry.experts // FEW):
                    writer.write(name, few.tensor(name))
            else:
                writer.write(name, few.tensor(name))
        writer.finish()
    return total


WITHIN_A_BOUND = """
import json, re, sys
import numpy as np
from lapinfer.errors import DoesNotFitError
from lapinfer.loading import load_model
from lapinfer.options import LoadOptions

def peak():
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

options = {"threads": 2, "ctx": 512, "kv": "f32"}
try:
    load_model(sys.argv[1], LoadOptions(memory=0.01, **options))
except DoesNotFitError as error:
    least = float(re.search(r"needs at least ([0-9.]+) GB", str(error)).group(1))
with open("/proc/self/clear_refs", "w") as file:  # a first run compiles kernels, which takes more
    file.write("5")
memory = least + float(sys.argv[2])
model = load_model(sys.argv[1], LoadOptions(memory=memory, **options))
ids = np.random.default_rng(0).integers(0, 300, 400)
model.prefill(ids)
for i in range(60):
    model.step([i], [0], [400 + i], [True])
most = min(model.max_step, model.max_wanted)
model.step(ids[:most], [0] * most, range(most), [True] * most)
found = {"memory": memory, "peak": peak(), **model.pool.stats(), "max_step": model.max_step, "wanted": most,
         "step": model.limits.step}
model.close()
print(json.dumps(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("more", [0.025, 0.065])
def test_the_process_stays_below_its_bound(tmp_path: Path, more: float) -> None:
    """With slots for a part of a layer's experts, hence short steps and small buffers, and for all of one layer."""
    experts = write_large(tmp_path / "large")
    command = [sys.executable, "-c", WITHIN_A_BOUND, str(tmp_path / "large"), str(more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["peak"] <= 1e9 * found["memory"]
    assert (4 <= found["slots"] < 64) if more < 0.05 else (64 <= found["slots"] < 128)
    assert found["slots"] * found["slot_bytes"] < experts / 2
    assert found["misses"] > found["slots"]  # all slots are filled
    assert found["hits"] > 0
    assert found["step"] == (SHORT_STEP if found["slots"] < 64 else 512)
    assert found["max_step"] == (max(found["slots"] // 4, 1) if found["slots"] < 64 else 512)
    assert found["wanted"] == min(found["max_step"], WANTED)
    if found["max_step"] == 512:  # nearly all buffers are touched: no room is kept for the 34 MB of a prompt's logits
        assert found["peak"] > 1e9 * found["memory"] - MARGIN - 20e6
