"""What a container allows: processors and memory, as control groups of Linux tell it (versions 1 and 2, nested).

A process is bounded by its own group and by all groups around it, so the effective limit is the least of them. Where
the group's path is not to be found below the mounted folder (namespaces, bind mounts), the mounted folder is the group.
Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html, cgroup-v1/memory.html, proc_pid_mountinfo(5).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

NO_LIMIT = 1 << 60
"""Version 1 writes the largest multiple of a page instead of the word "max"."""
ROOT = Path("/")


def processors(root: Path = ROOT) -> float | None:
    """How many processors' time this process may use, e.g. 0.5; None without a limit."""
    found = [quota for group in _groups(root, "cpu") if (quota := _quota(group)) is not None]
    found += [count for group in _groups(root, "cpuset") if (count := _cpus(group))]
    return min(found, default=None)


def memory(root: Path = ROOT) -> int | None:
    """Bytes that this process may still take, its groups' file caches counted as free; None without a limit."""
    left = [room for group in _groups(root, "memory") if (room := _room(group)) is not None]
    return None if not left else max(min(left), 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and of those around it, in each hierarchy that has the controller."""
    paths = _paths(root)
    for mounted, source, kind in _mounts(root, controller):
        path = paths.get("" if kind == "cgroup2" else controller, PurePosixPath("/"))
        inside = path.relative_to(source) if path.is_relative_to(source) else PurePosixPath()
        if ".." in inside.parts:  # outside of this namespace
            inside = PurePosixPath()
        for part in (inside, *inside.parents):
            folder = mounted / part
            if folder.is_dir():
                yield folder


def _paths(root: Path) -> dict[str, PurePosixPath]:
    """This process's group by controller; that of version 2 under ''."""
    found = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        found |= {name: PurePosixPath(path or "/") for name in names.split(",")}
    return found


def _mounts(root: Path, controller: str) -> list[tuple[Path, PurePosixPath, str]]:
    """(folder, what of the hierarchy is mounted there, file system), the usual places included."""
    usual = root / "sys/fs/cgroup"
    found = {usual: (PurePosixPath("/"), "cgroup2"), usual / controller: (PurePosixPath("/"), "cgroup")}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), [*after.split(), "", "", ""][:3]
        has_it = kind == "cgroup2" or (kind == "cgroup" and controller in options.split(","))
        if has_it and len(fields) > 4:
            found[root / fields[4].lstrip("/")] = PurePosixPath(fields[3]), kind
    return [(folder, source, kind) for folder, (source, kind) in found.items()]


def _quota(group: Path) -> float | None:
    quota, period = [*_text(group / "cpu.max").split(), "", ""][:2]  # "max 100000" without one
    if not quota:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")  # -1 without one
    return int(quota) / int(period) if _is_count(quota) and _is_count(period) and int(period) else None


def _cpus(group: Path) -> int:
    """Processors named by a list like 0-3,8; 0 where there is none."""
    names = _text(group / "cpuset.cpus.effective") or _text(group / "cpuset.effective_cpus")
    count = 0
    for part in names.split(","):
        first, _, last = part.partition("-")
        if _is_count(first) and _is_count(last or first):
            count += int(last or first) - int(first) + 1
    return count


def _room(group: Path) -> int | None:
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [int(text) for name in names if _is_count(text := _text(group / name))]
    limit = min(limits, default=NO_LIMIT)
    if limit >= NO_LIMIT:
        return None
    used = _text(group / "memory.current") or _text(group / "memory.usage_in_bytes")
    return limit - max(int(used) - _file_cache(group), 0) if _is_count(used) else limit


def _file_cache(group: Path) -> int:
    """Bytes of files that the system drops when memory is wanted."""
    stat = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    total = "total_" if "total_inactive_file" in stat else ""  # of version 1: with the groups inside
    counts = [stat.get(f"{total}{name}", "") for name in ("inactive_file", "active_file")]
    return sum(int(count) for count in counts if _is_count(count))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return ""
