"""What a container allows, read from folders that look like those of the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lapinfer import limits
from lapinfer.machine import available_memory, default_threads
from lapinfer.parallel import in_threads

V1_NONE = str((1 << 63) - 4096)
"""What version 1 writes where there is no limit."""


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def v2(path: str, *, source: str = "/", at: str = "/sys/fs/cgroup") -> dict[str, str]:
    """A mounted hierarchy of version 2, in which this process has a group."""
    mount = f"29 23 0:26 {source} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
    return {"proc/self/cgroup": f"0::{path}", "proc/self/mountinfo": mount}


def v1(path: str, *, source: str = "/") -> dict[str, str]:
    groups = [f"{n}:{name}:{path}" for n, name in enumerate(("memory", "cpu,cpuacct", "cpuset"), 2)]
    mounts = [
        f"3{n} 25 0:3{n} {source} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}"
        for n, name in enumerate(("memory", "cpu,cpuacct", "cpuset"))
    ]
    return {"proc/self/cgroup": "\n".join(groups), "proc/self/mountinfo": "\n".join(mounts)}


CGROUP = "sys/fs/cgroup"
CPU = f"{CGROUP}/cpu,cpuacct"
PROCESSORS = {
    "nothing there": ({}, None),
    "no limit": (v2("/a") | {f"{CGROUP}/a/cpu.max": "max 100000"}, None),
    "half a processor": (v2("/a") | {f"{CGROUP}/a/cpu.max": "50000 100000"}, 0.5),
    "only the quota is written": (v2("/a") | {f"{CGROUP}/a/cpu.max": "150000"}, None),
    "the least of the groups around": (
        v2("/a/b/c")
        | {f"{CGROUP}/a/cpu.max": "300000 100000", f"{CGROUP}/a/b/cpu.max": "200000 100000"}
        | {f"{CGROUP}/a/b/c/cpu.max": "max 100000"},
        2,
    ),
    "the parent is narrower than the group": (
        v2("/kubepods/pod/x")
        | {f"{CGROUP}/kubepods/pod/cpu.max": "100000 100000", f"{CGROUP}/kubepods/pod/x/cpu.max": "800000 100000"},
        1,
    ),
    "a namespace: the path is the mounted folder": (v2("/") | {f"{CGROUP}/cpu.max": "120000 100000"}, 1.2),
    "a bind mount: the path begins with what is mounted": (
        v2("/docker/abc/inner", source="/docker/abc") | {f"{CGROUP}/inner/cpu.max": "250000 100000"},
        2.5,
    ),
    "a path that is not below the mount": (
        v2("/docker/abc") | {f"{CGROUP}/cpu.max": "100000 100000"},
        1,
    ),
    "outside of the namespace": (v2("/../../other") | {f"{CGROUP}/cpu.max": "400000 100000"}, 4),
    "mounted elsewhere": (v2("/a", at="/cg") | {"cg/a/cpu.max": "100000 50000"}, 2),
    "a set of processors": (v2("/a") | {f"{CGROUP}/a/cpuset.cpus.effective": "0-2,7"}, 4),
    "version 1": (
        v1("/x") | {f"{CPU}/x/cpu.cfs_quota_us": "150000", f"{CPU}/x/cpu.cfs_period_us": "100000"},
        1.5,
    ),
    "version 1, nested": (
        v1("/docker/x")
        | {f"{CPU}/docker/x/cpu.cfs_quota_us": "-1", f"{CPU}/docker/x/cpu.cfs_period_us": "100000"}
        | {f"{CPU}/docker/cpu.cfs_quota_us": "200000", f"{CPU}/docker/cpu.cfs_period_us": "100000"},
        2,
    ),
    "version 1 without a cgroup namespace": (
        v1("/docker/x", source="/docker/x")
        | {f"{CPU}/cpu.cfs_quota_us": "300000", f"{CPU}/cpu.cfs_period_us": "100000"},
        3,
    ),
    "nonsense": (v2("/a") | {f"{CGROUP}/a/cpu.max": "100000 0", f"{CGROUP}/a/cpuset.cpus.effective": "x-"}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", PROCESSORS)
def test_processors_of_a_container(tmp_path: Path, case: str) -> None:
    files, expected = PROCESSORS[case]
    assert limits.processors(system(tmp_path, files)) == expected
    threads = default_threads(tmp_path)
    assert 1 <= threads <= (os.cpu_count() or 1)
    if expected is not None:
        assert threads <= max(expected, 1)


MEMORY = {
    "nothing there": ({}, None),
    "no limit": (v2("/a") | {f"{CGROUP}/a/memory.max": "max", f"{CGROUP}/a/memory.high": "max"}, None),
    "a limit": (v2("/a") | {f"{CGROUP}/a/memory.max": "1000", f"{CGROUP}/a/memory.current": "300"}, 700),
    "throttled before the limit": (
        v2("/a")
        | {f"{CGROUP}/a/memory.max": "1000", f"{CGROUP}/a/memory.high": "900"}
        | {f"{CGROUP}/a/memory.current": "300"},
        600,
    ),
    "files in the cache can leave": (
        v2("/a")
        | {f"{CGROUP}/a/memory.max": "1000", f"{CGROUP}/a/memory.current": "950"}
        | {f"{CGROUP}/a/memory.stat": "anon 100\nfile 850\ninactive_file 600\nactive_file 200"},
        850,
    ),
    "the group around has less room": (
        v2("/a/b")
        | {f"{CGROUP}/a/memory.max": "2000", f"{CGROUP}/a/memory.current": "1900"}
        | {f"{CGROUP}/a/b/memory.max": "1000", f"{CGROUP}/a/b/memory.current": "300"},
        100,
    ),
    "more is used than is allowed": (
        v2("/a") | {f"{CGROUP}/a/memory.max": "1000", f"{CGROUP}/a/memory.current": "1200"},
        0,
    ),
    "version 1": (
        v1("/x")
        | {f"{CGROUP}/memory/x/memory.limit_in_bytes": "1000", f"{CGROUP}/memory/x/memory.usage_in_bytes": "400"}
        | {f"{CGROUP}/memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 50"},
        750,
    ),
    "version 1 without a limit": (v1("/x") | {f"{CGROUP}/memory/x/memory.limit_in_bytes": V1_NONE}, None),
    "version 1, the limit of the group around": (
        v1("/x/y")
        | {f"{CGROUP}/memory/x/memory.limit_in_bytes": "5000", f"{CGROUP}/memory/x/memory.usage_in_bytes": "1000"}
        | {f"{CGROUP}/memory/x/y/memory.limit_in_bytes": V1_NONE, f"{CGROUP}/memory/x/y/memory.usage_in_bytes": "1"},
        4000,
    ),
}  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
@pytest.mark.parametrize(("affinity", "quota", "threads"), [(3, None, 3), (3, "765000", 3), (16, "765000", 7)])
def test_processors_by_affinity_and_by_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: int, quota: str | None, threads: int
) -> None:
    """taskset and --cpuset-cpus leave a group's quota as it is, and a quota leaves all processors in sight."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    root = system(tmp_path, v2("/a") | ({f"{CGROUP}/a/cpu.max": f"{quota} 100000"} if quota else {}))
    assert default_threads(root) == threads


@pytest.mark.parametrize("case", MEMORY)
def test_memory_of_a_container(tmp_path: Path, case: str) -> None:
    files, expected = MEMORY[case]
    assert limits.memory(system(tmp_path, files)) == expected
    system(tmp_path, {"proc/meminfo": "MemTotal: 16 kB\nMemAvailable: 8 kB"})
    assert available_memory(tmp_path) == min(8192, 8192 if expected is None else expected)


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_address_space_is_memory_too() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 28, 3 << 28));"
        "from lapinfer.machine import available_memory; print(available_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 3 << 28


def test_work_for_several_threads_is_done_by_those_that_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_threads(lambda n: n * n, range(9), 3) == [n * n for n in range(9)]
    start, allowed = threading.Thread.start, 1

    def limited(self: threading.Thread) -> None:
        nonlocal allowed
        allowed -= 1
        if allowed < 0:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert in_threads(lambda n: n * n, range(9), 3) == [n * n for n in range(9)]
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 1 // n, [1, 0, 2], 3)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")
def test_one_heap_serves_all_threads() -> None:
    code = """
import ctypes, sys, threading
from lapinfer.machine import keep_one_heap
if "keep" in sys.argv: keep_one_heap()
held, libc = threading.Barrier(5), ctypes.CDLL(None)
def allocate():
    kept = bytearray(9000)
    held.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads]
held.wait(); [thread.join() for thread in threads]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
"""

    def heaps(*arguments: str) -> int:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.count("<heap nr=")

    assert heaps("keep") == 1 < heaps()
