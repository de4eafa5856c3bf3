"""The same function over many cases, in this process or in a pool, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from tqdm import tqdm

from nnunetv2_vqseg.core.errors import DatasetError, UserError

MAX_MESSAGES = 20

# A worker gets several small cases at a time, few enough that all workers are busy until the end.
SHARES_PER_PROCESS = 16
LARGEST_SHARE = 32

Workers = Callable[[Callable[..., Any], Mapping[str, tuple]], Iterator[tuple[str, Any]]]
"""`(function, arguments of each case) -> each case with its result, or the UserError instead, as they finish`."""


class WorkerKilled(UserError, RuntimeError):
    """A background process was killed, most often because memory ran out."""


@contextmanager
def workers(
    num_processes: int, fewer: str = "(-np, -npfp or the environment variable nnUNet_def_n_proc)"
) -> Iterator[Workers]:
    """Work for many cases, with processes that stay for several rounds.

    Args:
        num_processes: 0 or 1 stays in this process, because others import everything anew (about 10 s for nnU-Net,
            once for all of them where the system can fork).
        fewer: how one asks for fewer processes, the end of the error's sentence.

    Raises:
        WorkerKilled: a process was killed.
    """
    if num_processes <= 1:
        yield _in_this_process
        return
    pool = ProcessPoolExecutor(num_processes, mp_context=_context(), initializer=_end_with_parent)
    try:
        yield partial(_in_pool, pool, num_processes)
    except BrokenProcessPool as error:
        raise WorkerKilled(
            f"A background process was killed, most often because memory ran out; use fewer processes {fewer}."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def for_each_case(
    function: Callable[..., Any],
    arguments: Mapping[str, tuple],
    num_processes: int,
    description: str,
    show_progress: bool,
    on_result: Callable[[str, Any], None],
) -> None:
    """Call `function(case, *arguments[case])` for every case and `on_result(case, result)` here as they finish.

    Args:
        function: picklable; raises `DatasetError` for a case that cannot be used, which does not stop the others.
        num_processes: as for `workers`.

    Raises:
        DatasetError: one line per case that could not be used, after all others have been dealt with.
        WorkerKilled: a process was killed.
    """
    failures: list[str] = []
    named = {case: (case, *values) for case, values in arguments.items()}
    with (
        workers(min(num_processes, len(arguments))) as work,
        tqdm(desc=description, total=len(arguments), disable=not show_progress) as progress,
    ):
        for case, outcome in work(function, named):
            if isinstance(outcome, UserError):
                failures.append(str(outcome))
            else:
                on_result(case, outcome)
            progress.update()
    if failures:
        more = len(failures) - MAX_MESSAGES
        tail = [f"({more} more cases cannot be used either.)"] if more > 0 else []
        raise DatasetError("\n".join(sorted(failures)[:MAX_MESSAGES] + tail))


def _in_this_process(function: Callable[..., Any], arguments: Mapping[str, tuple]) -> Iterator[tuple[str, Any]]:
    for case, values in arguments.items():
        yield case, _outcome(partial(function, *values))


def _in_pool(
    pool: ProcessPoolExecutor, num_processes: int, function: Callable[..., Any], arguments: Mapping[str, tuple]
) -> Iterator[tuple[str, Any]]:
    share = min(max(len(arguments) // (num_processes * SHARES_PER_PROCESS), 1), LARGEST_SHARE)
    rest = iter(arguments.items())
    running: dict[Future[list[Any]], list[str]] = {}
    while True:
        while len(running) < 2 * num_processes and (batch := dict(islice(rest, share))):
            running[pool.submit(_outcomes, function, list(batch.values()))] = list(batch)
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield from zip(running.pop(future), future.result(), strict=True)


def _context() -> Any:
    """Workers forked from a process that has imported what is imported of this package here, or else fresh ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    package = __name__.partition(".")[0]
    context.set_forkserver_preload([name for name in sys.modules if name.startswith(f"{package}.")])
    return context


def _end_with_parent() -> None:
    """A worker whose parent is killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _outcomes(function: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
    return [_outcome(partial(function, *values)) for values in arguments]


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except UserError as error:
        return error
