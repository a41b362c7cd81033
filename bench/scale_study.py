"""What models would cost on 1 to 8 nodes over several networks: `lapinfer scale`, steps measured once for all networks.

python bench/scale_study.py --shapes 1b -o bench/results/scale-1b-zen4.json
python bench/scale_study.py Qwen/Qwen3-30B-A3B -o bench/results/scale-qwen3-30b-zen4.json
python bench/scale_study.py … --hint          on a busy machine: the result says so, and so do tables made of it
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

from harness import argument_parser, print_result, write_result

from lapinfer.options import LoadOptions
from lapinfer.report import roofline
from lapinfer.scale.gather import Wanted, gather
from lapinfer.scale.network import NETWORKS
from lapinfer.scale.simulate import USUAL
from lapinfer.scale.study import Options, Study, crossings, rows
from lapinfer.scale.subject import Subject
from lapinfer.scale.words import found

NODES, BATCHES = (1, 2, 4, 8), (1, 4, 16, 64, 256)
KEPT = ("model", "kind", "arrangement", "nodes", "batch", "tokens_per_second", "cost", "latency", "waiting", "bytes",
        "messages", "expert_batch", "memory")  # fmt: skip


def simulated(subjects: tuple[Subject, ...], network: str) -> dict[str, Any]:
    options = Options(NODES, BATCHES, NETWORKS[network])
    study = Study(subjects, options, rows(subjects, options), {}, "")
    return {
        "network": asdict(options.network),
        "load": asdict(options.load),
        "price": options.price,
        "rows": [{name: value for name, value in asdict(row).items() if name in KEPT} for row in study.rows],
        "crossings": [asdict(crossing) for crossing in crossings(study)],
        "found": found(study),
    }


def about(subject: Subject) -> dict[str, Any]:
    """Without the tape."""
    tape = subject.tape
    kept = asdict(replace(subject, tape=replace(tape, chosen=tape.chosen[:0])))
    return kept | {"tape": {"source": tape.source, "skew": tape.skew, "experts": tape.experts}}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--shapes", action="append", default=[], help="a size with random weights")
    parser.add_argument("--hint", action="store_true", help="the machine is busy: figures are only hints")
    args = parser.parse_args()
    measured = cache(partial(roofline.measure, args.threads))
    subjects = tuple(gather(Wanted(args.models, args.shapes, LoadOptions(threads=args.threads), USUAL), measured))
    studies = [simulated(subjects, network) for network in NETWORKS]
    for study in studies:
        print("\n".join([study["network"]["name"], *(f"  {line}" for line in study["found"])]))
    result = {
        "hint": args.hint,
        "threads": args.threads,
        "bandwidth": measured().best_bandwidth,
        "subjects": list(map(about, subjects)),
        "studies": studies,
    }
    write_result(result, args.output) if args.output else print_result(result)


if __name__ == "__main__":
    main()
