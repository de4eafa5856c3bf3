"""Plots of a training, drawn by another process, so that the next epoch need not wait for Matplotlib.

`python -m nnunetv2_vqseg.trainer.plots` is that process: it draws what it reads from its standard input until that
ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SECONDS_FOR_LAST = 120.0
"""For what is still to be drawn when a training ends."""


class Plots:
    """Draws in a process that starts with the first plot and ends with the training, whichever way that ends.

    Args:
        warn: gets the name of a file that could not be drawn, and why.
        every: seconds between two drawings.
    """

    def __init__(self, warn: Callable[[str, str], None], every: float) -> None:
        self.warn = warn
        self.every = every
        self._last: float | None = None
        self._jobs: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._problems: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._waiting = 0
        self._drawn = 0
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen | None = None
        self._ended = False

    def is_due(self, always: bool = False) -> bool:
        """Whether to draw now: the first time, then every so many seconds, if what came before is drawn by then."""
        self._tell()
        now = time.monotonic()
        due = always or self._last is None or (now - self._last >= self.every and self._drawn == self._waiting)
        if due:
            self._last = now
        return due

    def draw(self, name: str, function: Callable[..., None], *arguments: Any) -> None:
        """Have `function(*arguments)` called, a function of a module with plain values; returns at once."""
        if self._thread is None:
            self._ended = False
            self._thread = threading.Thread(target=self._work, name="plots", daemon=True)
            self._thread.start()
        self._waiting += 1
        self._jobs.put((name, pickle.dumps((function, arguments))))

    def close(self) -> None:
        """Wait until all is drawn."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(SECONDS_FOR_LAST)
            if self._thread.is_alive():
                self._problems.put(("a plot", f"it took more than {SECONDS_FOR_LAST:.0f} s"))
        self.end()
        self._tell()

    def end(self) -> None:
        """Stop drawing at once."""
        self._ended, self._thread = True, None
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _tell(self) -> None:
        while not self._problems.empty():
            self.warn(*self._problems.get())

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._ended:
            name, content = job
            problem = None
            for _ in range(2):  # a cluster that stops a job ends this process, too, and the training goes on to save
                try:
                    problem = self._ask(content)
                    break
                except (OSError, ValueError) as error:
                    problem, self._process = f"the process that draws ended: {error}", None
                    if self._ended:
                        return
            if problem is not None:
                self._problems.put((name, problem))
            self._drawn += 1

    def _ask(self, content: bytes) -> str | None:
        if self._process is None:
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the training
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(content)
        process.stdin.flush()
        answer = process.stdout.readline()
        return json.loads(answer.decode())  # ValueError where the process is gone


def main() -> None:
    """Draw what comes in; an answer a line: null, or what went wrong."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        problem = None
        try:
            function(*arguments)
        except Exception as error:
            problem = str(error) or type(error).__name__
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps(problem) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
