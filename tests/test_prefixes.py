"""Stored beginnings of texts: the longest one is found, what was stored is what comes back, and no file is trusted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_determinism import build, decoder, hybrid_decoder, prompt, recurrent_decoder
from test_range import LARGE, model_of

from lapinfer.errors import InputError
from lapinfer.locks import locked
from lapinfer.model import Model
from lapinfer.runtime.slots import SlotState, layout
from lapinfer.spec import ModelSpec
from lapinfer.text import prefix_files
from lapinfer.text.prefix_files import PrefixFiles
from lapinfer.text.prefix_writer import PrefixWriter
from lapinfer.text.prefixes import PrefixStore, model_key

IDS = prompt(120)
PLENTY = 1 << 30


def made(spec: ModelSpec | None = None, **options: Any) -> Model:
    """A model whose weights say what they are, as a packed file's do."""
    limits: dict[str, Any] = {"step": 64, "slots": 2}
    model = build(spec=spec or decoder(None), **limits | options)
    model.weights.content = "0" * 32  # type: ignore[attr-defined]
    return model


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = made()
    yield model
    model.close()


def state_of(model: Model, ids: list[int]) -> SlotState:
    model.prefill(ids)
    return model.save_slot(0, len(ids))


def find(store: PrefixStore, ids: list[int]) -> SlotState | None:
    """What the store has most of, from memory or from a file."""
    known = store.known(ids)
    return store.from_memory(ids) if known.memory >= known.disk else store.from_disk(ids)


def same(a: SlotState, b: SlotState) -> bool:
    pairs = zip(a.layers, b.layers, strict=True)
    return a.count == b.count and all(x.tobytes() == y.tobytes() for m, n in pairs for x, y in zip(m, n, strict=True))


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_longest_prefix_is_found(model: Model, tmp_path: Path, on_disk: bool) -> None:
    """Also as a part of a longer text, and by another store of the same folder."""
    folder = tmp_path / "prefixes" if on_disk else None
    store = PrefixStore(model, folder, PLENTY)
    assert find(store, IDS) is None
    other = [*IDS[:40], *prompt(50, 1)]
    states = {n: state_of(model, ids) for n, ids in ((34, IDS[:34]), (90, IDS[:90]), (89, other[:89]))}
    for n, ids in ((34, IDS), (90, IDS), (89, other)):
        assert store.add(ids[:n], states[n])
    if on_disk:
        assert store.flush()
        assert len([*tmp_path.glob("prefixes/*/*.prefix")]) == 2  # that of 34 is the beginning of another one
        store = PrefixStore(model, folder, PLENTY)
    for ids, count in ((IDS, 90), (IDS[:50], 50), (other, 89), ([*IDS[:70], 0, 0], 70), ([*other[:60], 0], 60)):
        found = find(store, ids)
        assert found is not None
        assert found.count == count
        if count in states:
            assert same(found, states[count])
    assert find(store, IDS[:34]) is not None
    assert find(store, [0, 1]) is None
    found = find(store, IDS)
    assert found is not None
    expected = model.prefill(IDS).values.copy()
    model.restore_slot(1, found)
    np.testing.assert_array_equal(model.prefill(IDS[found.count :], 1, found.count).values, expected)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    "spec", [decoder(20), hybrid_decoder(), recurrent_decoder()], ids=["window", "convolutions", "recurrences"]
)
def test_what_has_moved_on_is_found_whole_or_not(spec: Any, tmp_path: Path, on_disk: bool) -> None:
    model = made(spec)
    store = PrefixStore(model, tmp_path if on_disk else None, PLENTY, memory=0 if on_disk else None)
    for n in (60, 100):
        assert store.add(IDS[:n], state_of(model, IDS[:n]))
    assert store.flush()
    texts = (IDS, IDS[:80], IDS[:59])
    found = [find(store, ids) for ids in texts]
    assert [None if prefix is None else prefix.count for prefix in found] == [100, 60, None]
    known = [store.known(ids) for ids in texts]
    assert [max(each.memory, each.disk) for each in known] == [100, 60, 0]
    assert [each.agreeing for each in known] == [100, 80, 59]
    model.close()


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_was_used_longest_ago_goes_first(model: Model, tmp_path: Path, on_disk: bool) -> None:
    texts = [prompt(40, seed) for seed in range(4)]
    states = [state_of(model, ids) for ids in texts]
    limit = 3 * (states[0].nbytes + 400)
    store = PrefixStore(model, tmp_path if on_disk else None, limit, memory=0 if on_disk else None)
    for i in range(3):
        assert store.add(texts[i], states[i])
        assert store.flush()
        for path in tmp_path.glob("*/*"):  # clocks of file systems are coarse
            os.utime(path, (1, path.stat().st_mtime - 10))
    assert find(store, [*texts[0], 1]) is not None
    assert store.add(texts[3], states[3])
    assert store.flush()
    assert [bool(find(store, [*ids, 1])) for ids in texts] == [True, False, True, True]
    assert sum(store.nbytes()) <= limit
    long = prompt(200)
    store.add(long, state_of(model, long))
    assert store.flush()
    assert max(store.known(long).memory, store.known(long).disk) <= 40
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 3 * (states[0].nbytes + 400)


def only_file(folder: Path) -> Path:
    (path,) = folder.glob(f"*/*{prefix_files.SUFFIX}")
    return path


def test_damaged_files_are_removed_with_one_note(model: Model, tmp_path: Path, kept_while_open: None) -> None:
    """A bit anywhere, a part missing, something added, another name, a count that would take all memory."""
    notes: list[str] = []
    state = state_of(model, IDS[:40])

    def write() -> tuple[Path, bytes]:
        store = PrefixStore(model, tmp_path, PLENTY)
        assert store.add(IDS[:40], state)
        store.close()
        path = only_file(tmp_path)
        return path, path.read_bytes()

    path, data = write()
    rng = np.random.default_rng(0)
    places = [*range(0, prefix_files.FIXED + 80, 7), *rng.integers(0, len(data), 20), len(data) - 1]
    changed = [data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :] for at in places]
    changed += [b"", data[:10], data[:-1], data + b"x", data[: prefix_files.FIXED]]
    changed += [data[: prefix_files.FIXED - 4] + b"\xff\xff\xff\xff" + data[prefix_files.FIXED :]]
    for damaged in changed:
        path.write_bytes(damaged)
        os.chmod(path, 0o600)
        notes.clear()
        store = PrefixStore(model, tmp_path, PLENTY, notice=notes.append)
        assert find(store, IDS) is None
        assert find(store, IDS) is None
        assert len(notes) == 1
        assert str(path) in notes[0]
        assert not path.exists()
    path, data = write()
    path.rename(path.with_name(path.name[: prefix_files.FIRST] + "-0" + prefix_files.SUFFIX))
    assert find(PrefixStore(model, tmp_path, PLENTY), IDS) is None
    assert not any(tmp_path.glob("*/*"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes")
def test_files_of_others_are_not_read(model: Model, tmp_path: Path) -> None:
    state = state_of(model, IDS[:40])
    store = PrefixStore(model, tmp_path / "a", PLENTY, memory=0)
    assert store.add(IDS[:40], state)
    assert store.flush()
    path = only_file(tmp_path / "a")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    assert find(store, IDS) is None
    assert not path.exists()
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    path.symlink_to(target)
    assert find(PrefixStore(model, tmp_path / "a", PLENTY), IDS) is None
    assert target.read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_is_told(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    notes: list[str] = []
    store = PrefixStore(model, tmp_path / "file", PLENTY, notice=notes.append)
    for n in (40, 60):
        assert store.add(IDS[:n], state_of(model, IDS[:n]))
        assert store.flush()
    assert len(notes) == 1
    found = find(store, IDS)  # in memory
    assert found is not None
    assert found.count == 60


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_could_not_be_written_is_not_tried_again() -> None:
    written: list[int] = []

    def add(ids: np.ndarray, state: SlotState) -> bool:
        if len(ids) == 1:
            raise RuntimeError("a mistake of this program")
        written.append(len(ids))
        return True

    files: Any = SimpleNamespace(add=add)
    writer = PrefixWriter(files)
    for count in (1, 2):
        assert writer.put(np.zeros(count, np.int32), SlotState(count, (), ()))
        assert writer._thread is not None
        if count == 1:
            writer._thread.join()
    writer.close()
    assert written == [2]


def test_models_are_told_apart(model: Model) -> None:
    others = [made(kv="q8"), made(activations="q16"), made(decoder(20))]
    others[0].weights.content = "1" * 32  # type: ignore[attr-defined]
    keys = {model_key(each) for each in (model, *others)}
    others[0].weights.content = "0" * 32  # type: ignore[attr-defined]
    keys |= {model_key(others[0])}
    assert len(keys) == 5
    same_one = made(ctx=200, step=8, slots=1)
    assert model_key(same_one) in keys
    for each in (*others, same_one):
        each.close()
    unknown = build()
    assert model_key(unknown) is None
    with pytest.raises(InputError, match="no digests"):
        PrefixStore(unknown, Path("x"), PLENTY)
    unknown.close()


def test_nothing_is_kept_of_a_widened_model() -> None:
    model = model_of(decoder(None), LARGE, "f16")
    store = PrefixStore(model, None, PLENTY)
    assert not store.add(IDS[:40], state_of(model, IDS[:40]))
    assert find(store, IDS) is None
    model.close()


WRITER = """
import contextlib, os, signal, sys
import numpy as np
from pathlib import Path
from test_determinism import decoder
from lapinfer.runtime.slots import SlotState, layout
from lapinfer.text import prefix_files

def state(count, seed):
    rng = np.random.default_rng(seed)
    layers = layout(decoder(None), "f16", count)
    return SlotState(count, ("f16",) * 2, tuple(
        tuple(rng.standard_normal(shape).astype(kind) for shape, kind in layer) for layer in layers))

def files(limit=1 << 30):
    return prefix_files.PrefixFiles(Path(sys.argv[1]), "key", decoder(None), "f16", limit, print)
"""


def writer(folder: Path, code: str, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", WRITER + code, str(folder), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    code = """
ids = np.arange(60, dtype=np.int32)
assert files().add(ids[:40], state(40, 0))
class Killed(prefix_files.PrefixFiles):
    def _write(self, file, ids, state):
        file.write(b"half")
        file.flush()
        print("writing", flush=True)
        signal.pause()
Killed(Path(sys.argv[1]), "key", decoder(None), "f16", 1 << 30, print).add(ids, state(60, 1))
"""
    process = writer(tmp_path, code)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    left = sorted(path.name for path in (tmp_path / "key").iterdir())
    assert len(left) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = PrefixFiles(tmp_path, "key", decoder(None), "f16", PLENTY, pytest.fail)
    ids = np.arange(60, dtype=np.int32)
    found = files.find(ids)
    assert found is not None
    assert found[0] == 40
    assert files.add(ids[5:45], random_state(40))
    assert all(path.suffix == prefix_files.SUFFIX for path in (tmp_path / "key").iterdir())


def random_state(count: int) -> SlotState:
    shapes = layout(decoder(None), "f16", count)
    return SlotState(count, ("f16", "f16"), tuple(tuple(np.ones(s, k) for s, k in layer) for layer in shapes))


def test_two_processes_write_and_read_together(tmp_path: Path) -> None:
    """They evict each other's files all the time: whatever is found is whole, and the limit is kept."""
    code = """
store = files(120_000)
added = 0
for i in range(40):
    ids = np.full(40, i, np.int32)
    ids[0] = int(sys.argv[2]) if i % 2 else 7
    added += store.add(ids, state(40, i))
    found = store.find(np.append(ids, 1))
    if found is not None and found[0] == 40:
        expected = state(40, i)
        assert all(a.tobytes() == b.tobytes() for x, y in zip(found[2].layers, expected.layers) for a, b in zip(x, y))
    sizes = []
    for path in Path(sys.argv[1]).glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # the other one has evicted it
            sizes.append(path.stat().st_size)
    assert sum(sizes) < 180_000
print(added > 0)
"""
    both = [writer(tmp_path, code, word) for word in "12"]
    assert [process.communicate()[0] for process in both] == ["True\n"] * 2
    assert all(process.returncode == 0 for process in both)
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 120_000


@pytest.mark.skipif(os.name == "nt", reason="no locks")
def test_while_another_process_writes_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_files, "PATIENCE", 0.0)
    monkeypatch.setattr(prefix_files, "LOOK", 0.0)
    files = PrefixFiles(tmp_path, "key", decoder(None), "f16", PLENTY, pytest.fail)
    ids = np.arange(40, dtype=np.int32)
    with open(tmp_path / "lock", "w") as held:
        assert locked(held.fileno())
        assert not files.add(ids, random_state(40))
    assert files.add(ids, random_state(40))
