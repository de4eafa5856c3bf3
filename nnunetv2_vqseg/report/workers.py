"""The same function over many cases, in this process or in a pool that stays for several rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from nnunetv2_vqseg.core.errors import EvaluationError

Workers = Callable[[Callable[..., Any], Mapping[str, tuple[Any, ...]], str], dict[str, Any]]
"""`(function, arguments of each case, description) -> result of each case`, with a progress bar."""


@contextmanager
def workers(num_processes: int) -> Iterator[Workers]:
    """Work for many cases; 0 or 1 processes: in this one.

    Raises:
        EvaluationError: a process was killed. What the function raises is raised here, and the other cases are dropped.
    """
    if num_processes <= 1:
        yield _in_this_process
        return
    pool = ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"))
    try:
        yield lambda function, arguments, about: _in_pool(pool, function, arguments, about)
    except BrokenProcessPool as error:
        raise EvaluationError(
            "A background process was killed, most often because memory ran out; use fewer processes with -np."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_this_process(
    function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], description: str
) -> dict[str, Any]:
    progress = tqdm(arguments.items(), desc=description, unit="case")
    return {case: function(*values) for case, values in progress}


def _in_pool(
    pool: Executor, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], description: str
) -> dict[str, Any]:
    futures = {pool.submit(function, *values): case for case, values in arguments.items()}
    results = {}
    for future in tqdm(as_completed(futures), total=len(futures), desc=description, unit="case"):
        results[futures[future]] = future.result()
    return {case: results[case] for case in arguments}
