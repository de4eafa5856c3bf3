"""A process that steps when it is asked to; see `against.py`.

It runs with the scripts and the package of whichever commit is in its path, and is not part of them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve() -> None:
    """Make a trainer, then do as many steps as each line of the input says; an answer a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
    import benchmark
    import torch

    import nnunetv2_vqseg
    from benchmarks import step, workbench
    from benchmarks.measure import clock

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    args = benchmark.parse(["step", *sys.argv[1:-1]])
    progress = [args.progress] if hasattr(args, "progress") else []  # not all commits have it
    device = torch.device(args.device)
    with workbench.workbench(args, device) as bench:
        trainer = step._start(bench, sys.argv[-1], *progress)
        for _ in range(2):
            step._step(trainer)
        say(package=nnunetv2_vqseg.__file__)
        for line in sys.stdin:
            started = clock(device)
            for _ in range(int(line)):
                step._step(trainer)
            say(seconds=clock(device) - started)
        workbench.stop_loaders(trainer)


if __name__ == "__main__":  # not in the processes that preprocessing starts
    serve()
