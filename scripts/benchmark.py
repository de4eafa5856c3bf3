"""Measure what VQ-Seg costs, beside plain versions of its modules and beside stock nnU-Net on the same plan.

    python scripts/benchmark.py modules                        # lookup, entropy term, QPM
    python scripts/benchmark.py step --device cuda --compile   # a training step, part by part

Every sub-command prints tables and writes them as JSON. What is compared runs in turns in one process, after warm-up;
times are medians.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "modules": "lookup, entropy term and QPM against a plain version",
    "step": "a training step, part by part, against stock nnU-Net's",
    "predict": "a volume, against stock nnU-Net's network",
    "loading": "both data pipelines alone, against stock nnU-Net's",
    "scaling": "how time and memory grow with codes, tokens, batch and patch",
    "files": "planning and preparing many small unlabelled images",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from benchmarks import files, loading, modules, predict, scaling, step

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    modules_of = dict(zip(COMMANDS, (modules, step, predict, loading, scaling, files), strict=True))
    for name, module in modules_of.items():
        command = commands.add_parser(name, help=COMMANDS[name])
        command.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
        command.add_argument("--repeats", type=int, default=5, metavar="N", help="measured rounds (default: 5)")
        command.add_argument(
            "--seconds", type=float, default=20.0, metavar="S", help="soft limit a measurement (default: 20)"
        )
        command.add_argument("--out", type=Path, metavar="FILE", help="default: benchmark_<command>.json")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; comparisons want a quiet machine
    args = parse(argv)
    import torch
    from benchmarks.output import write_json

    device = torch.device(args.device)
    tables = args.run(args, device)
    if tables:
        write_json(args.out or Path(f"benchmark_{args.command}.json"), tables, device)


if __name__ == "__main__":
    main()
