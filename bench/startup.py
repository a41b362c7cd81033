"""How long a start takes: import, the first run ever (compiling and packing), and later runs.

    python bench/startup.py MODEL > startup.json

Whole processes of `lapinfer run -m MODEL -n 1 --temp 0 Hi` from a fresh LAPINFER_HOME. Wanted: first run under 25 s,
later ones under 1.5 s, import under 0.15 s, and no compiled kernel added by a second process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import argument_parser, print_result

WANTED = {"cold_s": 25.0, "warm_s": 1.5, "import_s": 0.15}
REPEATS = 5
IMPORT = "import time; began = time.perf_counter(); import lapinfer; print(time.perf_counter() - began)"


def run(arguments: list[str], home: Path) -> tuple[float, str]:
    """(seconds, stdout) of a whole Python process with its own LAPINFER_HOME; its errors end this one."""
    environment = os.environ | {"LAPINFER_HOME": str(home)}
    for name in ("NUMBA_CACHE_DIR", "PYTHONDONTWRITEBYTECODE"):  # as for somebody who just installed it
        environment.pop(name, None)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return spent, done.stdout


def files(folder: Path) -> dict[str, int]:
    """Every file below with its time of change."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def main() -> None:
    parser = argument_parser(__doc__, threads=False, output=False)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--quant", default="auto")
    options = parser.parse_args()
    cli = "from lapinfer.__main__ import main; main()"
    command = ["-c", cli, "run", "-m", options.model, "--quant", options.quant, "-n", "1", "--temp", "0", "Hi"]
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        run(["-c", IMPORT], home)  # writes bytecode
        imports = [float(run(["-c", IMPORT], home)[1]) for _ in range(REPEATS)]
        cold, answer = run(command, home)
        kept = files(home / "kernels")
        warm = []
        for _ in range(REPEATS):
            seconds, again = run(command, home)
            warm.append(seconds)
            assert again == answer
        grown = files(home / "kernels") != kept
        sizes = {folder.name: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                 for folder in home.iterdir() if folder.is_dir()}  # fmt: skip
    figures = {"cold_s": cold, "warm_s": median(warm), "import_s": median(imports)}
    report = {
        "model": options.model,
        **{name: round(value, 3) for name, value in figures.items()},
        "warm_samples_s": [round(s, 3) for s in warm],
        "kernel_cache_files": len(kept),
        "later_runs_changed_the_kernel_cache": grown,
        "cache_bytes": sizes,
        "wanted": WANTED,
        "ok": not grown and all(figures[name] < limit for name, limit in WANTED.items()),
    }
    print_result(report)


if __name__ == "__main__":
    main()
