"""Load on our server and on llama.cpp's, with the same GGUF file, in turns: A B A B.

    python bench/serve_against_llamacpp.py TEXT --gguf FILE --llama-server BINARY [--clients 1,8,32] [--slots 8]
        [--kinds short,200,800] [--each 6] [--tokens 64] [--stall] [-t 2] [-r 3] [-o FILE]

BINARY is a native build (`cmake -DGGML_NATIVE=ON -DLLAMA_BUILD_SERVER=ON … --target llama-server`) of the sources that
come with llama-cpp-python. A turn starts a server, warms it up, loads it and ends it, so nothing is in a cache that a
turn before has left. Both get the same questions. Each turn begins with a probe of how well two threads scale.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from statistics import median
from typing import Any

import serve_load
from harness import argument_parser, print_result, probe, write_result
from server_process import Server, cpu_seconds, free_port, llama_server, memory, ours

SIDES = ("ours", "peer")


def turn(options: argparse.Namespace, side: str, seed: int) -> dict[str, Any]:
    """One server's life."""
    port = free_port()
    size: dict[str, Any] = {"slots": options.slots, "ctx": options.ctx, "threads": options.threads, "port": port}
    if side == "ours":
        command = ours(options.gguf, **size, more=options.ours.split())
    else:
        command = llama_server(options.llama_server, options.gguf, **size, more=options.peer.split())
    with Server(command, port) as server:
        common = [str(options.text), "--server", server.url, "--kinds", options.kinds]
        warm = [*common, "--clients", "2", "--each", "3", "--tokens", "8", "--seed", "1000000"]
        asyncio.run(serve_load.measure(serve_load.parser().parse_args(warm)))
        began = cpu_seconds(server.pid)
        wanted = [*common, "--clients", options.clients, "--each", str(options.each), "--tokens", str(options.tokens)]
        found = asyncio.run(serve_load.measure(serve_load.parser().parse_args([*wanted, "--seed", str(seed)])))
        found["cpu_seconds"] = round(cpu_seconds(server.pid) - began, 2)
        if options.stall:
            stall = [*common, "--stall", "--turns", "3", "--seed", str(seed)]
            found |= asyncio.run(serve_load.measure(serve_load.parser().parse_args(stall)))
        return found | {"start_seconds": round(server.seconds, 2), "memory": memory(server.pid)}


def compared(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each level: medians of both sides and of paired ratios, and how much more a side gives than to one client."""
    rows = []
    for index, level in enumerate(turns[0]["ours"]["levels"]):
        pairs = [[each[side]["levels"][index] for side in SIDES] for each in turns]
        row: dict[str, Any] = {"clients": level["clients"]}
        for place, side in enumerate(SIDES):
            own = [pair[place] for pair in pairs]
            row[side] = median(level["tokens_per_second"] for level in own)
            row[f"{side}_to_one"] = round(
                median(each[side]["levels"][index]["tokens_per_second"] / each[side]["levels"][0]["tokens_per_second"]
                       for each in turns), 2
            )  # fmt: skip
            row[f"{side}_gap_p99"] = median(level["gap_ms"]["p99"] for level in own)
            row[f"{side}_bad"] = sum(level["errors"] + level["lost"] for level in own)
        row["ratio"] = round(median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs), 3)
        rows.append(row)
    return rows


def main() -> None:
    parser = argument_parser(__doc__, repetitions=3)
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--llama-server", type=Path, required=True, metavar="BINARY")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--ctx", type=int, default=3072, help="tokens of a slot")
    parser.add_argument("--kinds", default="short,200,800")
    parser.add_argument("--each", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--stall", action="store_true", help="measure also what a prompt of 2,000 tokens does to others"
    )
    parser.add_argument("--ours", default="", metavar="OPTIONS", help="more options of our server, in one word")
    parser.add_argument("--peer", default="", metavar="OPTIONS", help="more options of llama-server")
    options = parser.parse_args()
    turns: list[dict[str, Any]] = []
    for seed in range(options.repetitions):
        row: dict[str, Any] = {"probe": probe(options.threads)}
        for side in SIDES:
            print(f"turn {seed + 1}, {side}", flush=True)
            row[side] = turn(options, side, seed)
        turns.append(row)
    rows = compared(turns)
    for row in rows:
        print(
            f"{row['clients']:3} clients: {row['ours']:.1f} / {row['peer']:.1f} tok/s = {row['ratio']:.2f}×; "
            f"to one client {row['ours_to_one']:.2f}× / {row['peer_to_one']:.2f}×; "
            f"gap p99 {row['ours_gap_p99']:.1f} / {row['peer_gap_p99']:.1f} ms"
        )
    result = {
        "gguf": options.gguf.name, "text": options.text.name, "threads": options.threads, "slots": options.slots,
        "ctx": options.ctx, "kinds": options.kinds, "tokens": options.tokens, "options": [options.ours, options.peer],
        "compared": rows, "turns": turns,
    }  # fmt: skip
    write_result(result, options.output)
    if options.output is None:
        print_result(result)


if __name__ == "__main__":
    main()
