"""Asking a training to stop: SIGTERM and SIGUSR1, which clusters send before they kill a job."""

from __future__ import annotations

import atexit
import contextlib
import mmap
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75
"""Exit code of a training that was asked to stop, saved its state and can be continued (`EX_TEMPFAIL`)."""


@contextlib.contextmanager
def exit_when_asked(what_next: str) -> Iterator[None]:
    """Where there is nothing to save: SIGTERM and SIGUSR1 end the process at once, with a line saying what to do next.

    Does nothing outside the main thread. Processes forked inside the block end as without this.

    Raises:
        SystemExit: with `EXIT_INTERRUPTED`, after a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        os.write(2, f"{signal.Signals(number).name}: stopped; {what_next}.\n".encode())
        raise SystemExit(EXIT_INTERRUPTED)

    previous = {number: signal.signal(number, handle) for number in _cluster_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """Remembers that this process was asked to stop, so that the training can finish its step and save.

    Processes forked after `install` (the loaders' workers) inherit the handler. In them it ignores the signal as long
    as the training runs: clusters signal a job's every process, and without its loaders a training cannot finish a
    step. After `restore`, at interpreter exit, or once the training is dead, they end at SIGTERM as usual.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._owner = os.getpid()
        self._training_over = mmap.mmap(-1, 1)  # one byte that forked processes share

    def install(self) -> None:
        """Handle the signals from now on; does nothing outside the main thread, where Python does not allow it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _signals():
            self._previous[number] = signal.signal(number, self._handle)
        atexit.register(self._release_children)  # runs before multiprocessing ends and joins its daemons

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        self._release_children()
        atexit.unregister(self._release_children)
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _release_children(self) -> None:
        self._training_over[0] = 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if self._training_over[0] or os.getppid() != self._owner:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        # Not print: the signal may have interrupted one.
        os.write(2, f"{self.received.name}: the training finishes its step, saves and stops.\n".encode())


def _cluster_signals() -> list[signal.Signals]:
    return [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]  # Windows lacks the latter


def _signals() -> list[signal.Signals]:
    signals = _cluster_signals()
    if multiprocessing.parent_process() is not None:
        # torch.multiprocessing (nnU-Net's -num_gpus) sends its children SIGINT when their parent dies.
        signals.append(signal.SIGINT)
    return signals
