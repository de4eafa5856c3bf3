"""`step --against RESULTS.json`: the step of that file's commit and today's, in turns in one run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.output import Row

ROOT = Path(__file__).resolve().parents[2]
SERVER = "from benchmarks.against import serve; serve()"


def compared(file: Path, arguments: list[str], variants: list[str], rounds: int, steps: int) -> list[Row]:
    """Milliseconds a step of both commits, and the median of their ratios round by round.

    The scripts are today's for both, so that both are measured alike; the package is each commit's own.

    Args:
        file: JSON of an earlier measurement.
        arguments: of `step`, as for a plain measurement.
        steps: of a round.

    Raises:
        SystemExit: the file names no commit, or one that is not in this repository.
    """
    commit = json.loads(file.read_text(encoding="utf-8"))["machine"]["commit"]
    if commit is None:
        raise SystemExit(f"{file} does not say of which commit it is.")
    rows = []
    with checked_out(commit) as then:
        for variant in variants:
            with ExitStack() as stack:
                before, now = (stack.enter_context(server(root, [*arguments, variant])) for root in (then, ROOT))
                times = [(asked(before, steps), asked(now, steps)) for _ in range(rounds)]
            ratio = statistics.median(new / old for old, new in times)
            old, new = (statistics.median(values) * 1e3 for values in zip(*times, strict=True))
            rows.append({"variant": variant, "then": commit, "then_ms": old, "now_ms": new, "now / then": ratio})
    return rows


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A work tree of a commit, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "then"
        git = ["git", "-C", str(ROOT), "worktree"]
        done = subprocess.run([*git, "add", "--detach", str(tree), commit], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"Commit {commit} cannot be checked out: {done.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False, capture_output=True)


@contextmanager
def server(root: Path, arguments: list[str]) -> Iterator[subprocess.Popen]:
    """A process with the package of `root` that steps when it is asked to."""
    paths = os.pathsep.join([str(root), str(ROOT / "scripts")])
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        cwd=root,  # which comes first in the process's path
    )
    try:
        found = Path(answer(process)["package"]).resolve()
        if root.resolve() not in found.parents:
            raise SystemExit(f"The package of {root} was to be measured, and {found} was imported.")
        yield process
    finally:
        process.kill()
        process.wait()


def asked(process: Any, steps: int) -> float:
    """Seconds a step of a server."""
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    return answer(process)["seconds"] / steps


def answer(process: Any) -> dict[str, Any]:
    """Its next line of JSON.

    Raises:
        SystemExit: it has ended.
    """
    line = process.stdout.readline()
    if not line:
        raise SystemExit("A measurement ended early; what it printed above says why.")
    return json.loads(line)


def serve() -> None:
    """Make a trainer, then do as many steps as each line of the input says; an answer a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import benchmark
    import torch

    import nnunetv2_vqseg
    from benchmarks import step, workbench
    from benchmarks.measure import clock

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    args = benchmark.parse(["step", *sys.argv[1:-1]])
    device = torch.device(args.device)
    with workbench.workbench(args, device) as bench:
        trainer = step._start(bench, sys.argv[-1], args.progress)
        for _ in range(2):
            step._step(trainer)
        say(package=nnunetv2_vqseg.__file__)
        for line in sys.stdin:
            started = clock(device)
            for _ in range(int(line)):
                step._step(trainer)
            say(seconds=clock(device) - started)
        workbench.stop_loaders(trainer)
