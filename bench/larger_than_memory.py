"""A mixture of experts under a memory limit that its file exceeds: speed, bytes read, hit rate, faults, and the text.

    python bench/larger_than_memory.py PACKED --limit 2 [--peer PYTHON --gguf FILE] [-n 64] [-r 2] [-o FILE]

Needs root and Linux: every run is a process of its own in a memory cgroup (version 1 or 2) of `--limit` GB, page cache
included, cold (the file's pages dropped before) and again warm (as the run before has left them). Variants: our pool
of slots with each policy (`--memory` of the same bound), our mapped file with requests (policy system), and
llama.cpp's mmap of a GGUF file (without repacking, which would copy it into memory). The tokens are given, random ones,
since a model of random weights would repeat itself, and with it its experts; the likeliest next token of every step is
compared with that of an unlimited run. What `lapinfer info` foresees of it is measured right before, with the disk that
has the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import argument_parser, write_result

if TYPE_CHECKING:
    from lapinfer.model import Model

from lapinfer.machine import major_faults, peak_resident_bytes

PROMPT = 32
VARIANTS = ("lrfu", "lru", "lfu", "system")
GROUPS = Path("/sys/fs/cgroup")


def limited(limit: float) -> Path:
    """A memory cgroup of `limit` GB."""
    if (GROUPS / "cgroup.controllers").exists():
        group, name = GROUPS / "lapinfer", "memory.max"
    else:
        group, name = GROUPS / "memory" / "lapinfer", "memory.limit_in_bytes"
    group.mkdir(exist_ok=True)
    (group / name).write_text(str(int(limit * 1e9)))
    return group


def drop_cache(path: Path) -> None:
    """The file's pages out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def usage() -> dict[str, float]:
    io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {"major_faults": major_faults() or 0, "peak_rss_mb": (peak_resident_bytes() or 0) / 1e6,
            "disk_mb": int(io["read_bytes"]) / 1e6}  # fmt: skip


def child(args: argparse.Namespace) -> None:
    """Runs inside the cgroup; prints one line of JSON."""
    import numpy as np

    given = [int(i) for i in np.random.default_rng(0).integers(5, 40000, PROMPT + args.tokens)]
    prompt = given[:PROMPT]
    result: dict[str, Any] = {"variant": args.child}
    ours: Model | None = None
    if args.child == "llama.cpp":
        from llamacpp import LlamaCpp

        began = time.perf_counter()
        peer = LlamaCpp(
            str(args.gguf), PROMPT + args.tokens, PROMPT, args.threads, use_mmap=True, use_extra_bufts=False
        )

        seen = 0

        def run(ids: list[int]) -> int:
            nonlocal seen
            peer.seconds(ids, seen)
            seen += len(ids)
            return peer.likeliest()
    else:
        from lapinfer.loading import load_model
        from lapinfer.options import LoadOptions

        policy = args.child
        began = time.perf_counter()
        bounded: dict[str, Any] = {} if policy == "unlimited" else {"policy": policy}
        if policy not in ("unlimited", "system"):
            bounded["memory"] = args.limit
        options = LoadOptions(threads=args.threads, ctx=PROMPT + args.tokens, activations="q8", **bounded)
        ours = model = load_model(args.packed, options)
        position = 0

        def run(ids: list[int]) -> int:
            nonlocal position
            logits = model.prefill(ids, 0, position)
            position += len(ids)
            return int(logits.values[-1].argmax())

    result["load_s"] = time.perf_counter() - began
    began = time.perf_counter()
    token = run(prompt)
    result["prefill_s"] = time.perf_counter() - began
    before = usage()
    pool = None if ours is None else ours.pool
    if pool is not None:
        pool.reset()
    tokens, began = [token], time.perf_counter()
    for i in range(PROMPT, PROMPT + args.tokens - 1):
        tokens.append(run([given[i]]))
    spent = time.perf_counter() - began
    after = usage()
    steps = args.tokens - 1
    result |= {
        "decode_tok_s": steps / spent, "tokens": tokens, "peak_rss_mb": after["peak_rss_mb"],
        "major_faults_a_token": (after["major_faults"] - before["major_faults"]) / steps,
        "disk_mb_a_token": (after["disk_mb"] - before["disk_mb"]) / steps,
    }  # fmt: skip
    if pool is not None:
        n = result["pool"] = pool.stats()
        result["hit_rate"] = n["hits"] / max(n["hits"] + n["misses"], 1) if pool.pooled else None
        result["read_mb_a_token"] = n["bytes_read"] / steps / 1e6
    print(json.dumps(result), flush=True)


def foreseen(args: argparse.Namespace) -> dict[str, Any] | None:
    """Experts kept, bytes read and speed, as `lapinfer info` tells them."""
    from lapinfer.report.disk import read_rate
    from lapinfer.report.info import info
    from lapinfer.report.roofline import weights_bandwidth

    rates: dict[str, Any] = {"disk": read_rate(args.packed, args.threads)}
    _, (fit,), _ = info(
        str(args.packed), ctx=PROMPT + args.tokens, memory=args.limit, disk=lambda: rates["disk"],
        bandwidth=lambda format: rates.setdefault("weights", weights_bandwidth(format, args.threads)),
    )  # fmt: skip
    told = None if fit.on_disk is None else asdict(fit.on_disk) | {"rates": rates}
    print(f"foreseen: {told}", flush=True)
    return told


def run_child(args: argparse.Namespace, variant: str, group: Path | None) -> dict[str, Any]:
    python = args.peer if variant == "llama.cpp" else sys.executable
    command = [python, __file__, str(args.packed), "--child", variant, "--limit", str(args.limit), "-n",
               str(args.tokens), "-t", str(args.threads), "--gguf", str(args.gguf)]  # fmt: skip

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    try:
        done = subprocess.run(command, preexec_fn=enter, capture_output=True, text=True, timeout=args.patience)
    except subprocess.TimeoutExpired:
        return {"variant": variant, "failed": f"not done after {args.patience} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]
        return {"variant": variant, "failed": last}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argument_parser(__doc__, repetitions=1)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--limit", type=float, default=2.0, help="GB")
    parser.add_argument("--peer", help="Python interpreter with llama-cpp-python")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("--patience", type=int, default=90, help="seconds for one run")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        return child(args)
    file = args.packed / "model.safetensors"
    result: dict[str, Any] = {"file_mb": file.stat().st_size / 1e6, "limit_gb": args.limit, "rows": []}
    expected = run_child(args, "unlimited", None)
    result["unlimited"] = expected
    print(f"unlimited: {expected['decode_tok_s']:.1f} tok/s, {result['file_mb']:.0f} MB file", flush=True)
    result["foreseen"] = foreseen(args)
    group = limited(args.limit)
    variants = [*args.variants.split(","), *(["llama.cpp"] if args.peer else [])]
    for _ in range(args.repetitions):
        for variant in variants:
            for start in ("cold", "warm"):
                if start == "cold":
                    drop_cache(args.gguf if variant == "llama.cpp" else file)
                row = run_child(args, variant, group) | {"start": start}
                if "failed" not in row and variant != "llama.cpp":
                    row["same_text"] = row["tokens"] == expected["tokens"]
                result["rows"].append(row)
                print(
                    {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "tokens"}, flush=True
                )
    for row in [result["unlimited"], *result["rows"]]:
        row.pop("tokens", None)
    write_result(result, args.output)


if __name__ == "__main__":
    main()
