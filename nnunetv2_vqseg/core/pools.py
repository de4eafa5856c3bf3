"""The same function over many cases, in this process or in a pool, with a progress bar."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from tqdm import tqdm

from nnunetv2_vqseg.core.errors import DatasetError, UserError

MAX_MESSAGES = 20

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
        num_processes: 0 or 1 stays in this process, because a spawned one imports everything anew (about 10 s for
            nnU-Net).
        fewer: how one asks for fewer processes, the end of the error's sentence.

    Raises:
        WorkerKilled: a process was killed.
    """
    if num_processes <= 1:
        yield _in_this_process
        return
    pool = ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield partial(_in_pool, pool)
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
    pool: ProcessPoolExecutor, function: Callable[..., Any], arguments: Mapping[str, tuple]
) -> Iterator[tuple[str, Any]]:
    futures = {pool.submit(function, *values): case for case, values in arguments.items()}
    for future in as_completed(futures):
        yield futures[future], _outcome(future.result)


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except UserError as error:
        return error
