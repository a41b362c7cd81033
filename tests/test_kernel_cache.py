"""The folder of compiled kernels: used again; what is damaged or could be somebody else's is compiled anew."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lapinfer.kernels import cache
from lapinfer.kernels.store import MAGIC, Store, open_store
from lapinfer.private import CHECKED
from lapinfer.quant.names import format_names

ROOT = Path(__file__).parent.parent
LOAD = (
    "import sys; from lapinfer.kernels import cache, library; library.load(sys.argv[1:]); print(cache.compiled_fresh)"
)
BEGIN = len(MAGIC) + 32
ONLY_POSIX = pytest.mark.skipif(not CHECKED, reason="Windows has no owners and modes of files")


def load(folder: Path, *kernels: str, code: str = LOAD, **environment: str) -> str:
    """What a new process had to compile."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *(kernels or ["read_clock"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the machine code of one kernel."""
    folder = tmp_path_factory.mktemp("stored")
    assert load(folder) == "['read_clock']"
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpickled would make a file here."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def copied(stored: Path, home: Path) -> Path:
    """The folder of a version in a copy."""
    shutil.copytree(stored, home, dirs_exist_ok=True)
    (folder,) = (home / "kernels").iterdir()
    return folder


def store_in(home: Path, version: str = "1") -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(home))
        return open_store.__wrapped__(version)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_second_process_compiles_nothing_and_adds_no_file(tmp_path: Path) -> None:
    """Of kernels that are functions of their own, that choose by an operand, and that are stamped for a format."""
    kernels = ["descend", "read_clock", "router_f16"]
    assert load(tmp_path, *kernels) == str(kernels)
    before = files(tmp_path)
    assert before
    assert load(tmp_path, *kernels) == "[]"
    assert files(tmp_path) == before


def test_machine_code_depends_on_all_that_becomes_part_of_it() -> None:
    names = {"/".join(source.parts[-3:]) for source in cache.sources()}
    packages = ("kernels/formats", "quant/formats")
    assert names >= {f"{package}/{name}.py" for package in packages for name in format_names()}
    assert names >= {"lapinfer/kernels/simd.py", "lapinfer/quant/__init__.py"}


def cut(data: bytes) -> bytes:
    return data[:-1]


def flipped(data: bytes) -> bytes:
    """A bit of the machine code is another."""
    return data[:-500] + bytes([data[-500] ^ 1]) + data[-499:]


def zeroed(data: bytes) -> bytes:
    return data[:4096] + bytes(4096) + data[8192:]


class Evil:
    """What unpickling would run."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def unpickled(data: bytes) -> bytes:
    return pickle.dumps(Evil())


def unpickled_behind_the_digest(data: bytes) -> bytes:
    """As by somebody who can write there and read our sources."""
    return MAGIC + data[len(MAGIC) : BEGIN] + pickle.dumps(Evil())


@pytest.mark.parametrize("change", [flipped, unpickled])
def test_damaged_files_are_compiled_anew(tmp_path: Path, stored: Path, change) -> None:
    path = copied(stored, tmp_path) / "read_clock.nbi"
    path.write_bytes(change(path.read_bytes()))
    assert load(tmp_path) == "['read_clock']"
    assert load(tmp_path) == "[]"
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"", lambda data: data[:10], lambda data: data[:BEGIN], lambda data: data * 2,
        cut, flipped, zeroed, unpickled, unpickled_behind_the_digest,
    ],
)  # fmt: skip
def test_damage_is_found_before_anything_is_unpickled(tmp_path: Path, change) -> None:
    store = store_in(tmp_path)
    assert store.write("one", "void()", bytes(range(256)) * 50)
    path = store.path("one")
    path.write_bytes(change(path.read_bytes()))
    assert store.read("one", "void()") is None
    assert store.write("one", "void()", b"code")
    assert store.read("one", "void()") == b"code"


def test_a_file_under_the_name_of_another_kernel_is_not_read(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert store.write("one", "void()", b"code")
    assert store.read("one", "void()") == b"code"
    assert store.read("one", "void(int64)") is None
    os.replace(store.path("one"), store.path("two"))
    assert store.read("two", "void()") is None


def test_a_file_of_other_sources_is_not_read(tmp_path: Path) -> None:
    assert store_in(tmp_path, "1").write("one", "void()", b"code")
    (tmp_path / "kernels" / "1").rename(tmp_path / "kernels" / "2")
    assert store_in(tmp_path, "2").read("one", "void()") is None


def as_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@ONLY_POSIX
@pytest.mark.parametrize(
    "change", [as_link, as_folder, as_pipe, as_device, lambda path: path.chmod(0o666), lambda path: path.chmod(0o660)]
)
def test_what_is_no_file_of_ours_is_not_read(tmp_path: Path, change) -> None:
    store = store_in(tmp_path)
    assert store.write("one", "void()", b"code")
    change(store.path("one"))
    assert store.read("one", "void()") is None
    assert store.write("one", "void()", b"code") is not (change is as_folder)


@ONLY_POSIX
def test_files_and_folders_are_made_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = store_in(tmp_path / "deep" / "home")
        assert store.write("one", "void()", b"code")
    finally:
        os.umask(before)
    made = [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in made} == {
        "deep": "0o700", "home": "0o700", "kernels": "0o700", "1": "0o700", "one.nbi": "0o600",
    }  # fmt: skip


@ONLY_POSIX
def test_a_folder_of_ours_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "kernels" / "1").mkdir(parents=True)
    (tmp_path / "kernels").chmod(0o777)
    (tmp_path / "kernels" / "1").chmod(0o775)
    store = store_in(tmp_path)
    assert store.folder == tmp_path / "kernels" / "1"
    assert (tmp_path / "kernels").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "kernels" / "1").stat().st_mode & 0o777 == 0o700


def written_by_all(home: Path) -> None:
    home.chmod(0o777)


def written_by_a_group(home: Path) -> None:
    os.chown(home, -1, 12345)
    home.chmod(0o770)


def kernels_behind_a_link(home: Path) -> None:
    (home / "elsewhere").mkdir()
    (home / "kernels").symlink_to(home / "elsewhere")


def a_file_instead(home: Path) -> None:
    home.rmdir()
    home.write_text("")


@ONLY_POSIX
@pytest.mark.parametrize("change", [written_by_all, written_by_a_group, kernels_behind_a_link, a_file_instead])
def test_a_folder_that_others_could_change_is_done_without(tmp_path: Path, monkeypatch, change) -> None:
    """The user's own cache folder is used instead, and the notice says why."""
    if change is written_by_a_group and os.geteuid() != 0:
        pytest.skip("only root gives a folder to any group")
    home = tmp_path / "home"
    home.mkdir()
    change(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    store = store_in(home)
    assert store.folder is not None
    assert not store.folder.is_relative_to(home)
    assert store.notice is not None
    assert str(home) in store.notice


@ONLY_POSIX
@pytest.mark.parametrize("foreign", ["home", "home/kernels", "home/kernels/1", "home/kernels/1/one.nbi"])
def test_what_another_user_owns_is_not_read(tmp_path: Path, monkeypatch, foreign: str) -> None:
    """As root in a user's home, or in a home that two users share."""
    home = tmp_path / "home"
    assert store_in(home).write("one", "void()", b"code")
    real = os.lstat
    theirs = tmp_path / foreign
    inode = real(theirs).st_ino

    def owned(status: os.stat_result) -> os.stat_result:
        if status.st_ino != inode:
            return status
        return os.stat_result([*status[:4], 54321, *status[5:]])

    real_fstat = os.fstat
    monkeypatch.setattr(os, "lstat", lambda path, **more: owned(real(path, **more)))
    monkeypatch.setattr(os, "fstat", lambda descriptor: owned(real_fstat(descriptor)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    store = store_in(home)
    assert store.read("one", "void()") is None
    if foreign == "home":  # nothing is made there
        assert store_in(home, "2").folder != home / "kernels" / "2"
        assert not (home / "kernels" / "2").exists()
    if not foreign.endswith("nbi"):
        assert store.notice is not None
        assert "another user (uid 54321)" in store.notice


@ONLY_POSIX
def test_no_folder_at_all_is_told_and_done_without(tmp_path: Path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(tempfile, "tempdir", str(blocked))
    store = store_in(blocked)
    assert store.folder is None
    assert store.read("one", "void()") is None
    assert not store.write("one", "void()", b"code")
    assert store.notice is not None
    assert "Not a directory" in store.notice


def test_a_process_without_a_folder_compiles(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    elsewhere = {"XDG_CACHE_HOME": str(blocked), "HOME": str(blocked), "TMPDIR": str(blocked)}
    code = LOAD.replace("import sys;", f"import sys, tempfile; tempfile.tempdir = {str(blocked)!r};")
    assert load(blocked, code=code, **elsewhere) == "['read_clock']"


@ONLY_POSIX
@pytest.mark.skipif(not CHECKED or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("planted", ["read_clock.nbi", "probe.read_clock-1.py311.nbi"])
def test_an_index_of_another_user_in_a_shared_folder_runs_nothing(tmp_path: Path, stored: Path, planted: str) -> None:
    home = tmp_path / "home"
    folder = copied(stored, home)
    home.chmod(0o777)
    (folder / planted).write_bytes(pickle.dumps(Evil()))
    os.chown(folder / planted, 65534, 65534)
    (folder / planted).chmod(0o666)
    load(home, XDG_CACHE_HOME=str(tmp_path / "user"))
    assert not Path("unpickled").exists()


SETTINGS = {
    "NUMBA_DISABLE_JIT": "1", "NUMBA_OPT": "0", "NUMBA_BOUNDSCHECK": "1", "NUMBA_CPU_NAME": "generic",
    "NUMBA_ENABLE_AVX": "0", "NUMBA_NUM_THREADS": "0", "NUMBA_DEBUGINFO": "1", "NUMBA_DUMP_ASSEMBLY": "1",
    "NUMBA_LOOP_VECTORIZE": "wrong",
}  # fmt: skip


def test_settings_of_numba_change_neither_code_nor_output(stored: Path, tmp_path: Path) -> None:
    """Of the environment, and of a file in the folder where the program runs; a program's own functions have them."""
    own = "; import numba; own = lambda x: x; print(numba.njit(own) is own)"
    assert load(tmp_path, code=LOAD + own, **SETTINGS) == "['read_clock']\nTrue"
    (first,), (second,) = (sorted(folder.rglob("*.nbi")) for folder in (stored, tmp_path))
    assert (first.parent.name, first.read_bytes()) == (second.parent.name, second.read_bytes())
    Path(".numba_config.yaml").write_text("disable_jit: 1\nboundscheck: 1\n")
    assert load(tmp_path) == "[]"
