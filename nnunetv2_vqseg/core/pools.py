"""The same function over many cases, in this process or in a pool, with a progress bar and all errors at the end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from nnunetv2_vqseg.core.errors import DatasetError

MAX_MESSAGES = 20


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
        num_processes: 0 or 1 stays in this process, because a spawned one imports everything anew (about 10 s for
            nnU-Net).

    Raises:
        DatasetError: one line per case that could not be used, after all others have been dealt with.
        RuntimeError: a worker was killed.
    """
    failures: list[str] = []
    with tqdm(desc=description, total=len(arguments), disable=not show_progress) as progress:
        for case, outcome in _outcomes(function, arguments, min(num_processes, len(arguments))):
            if isinstance(outcome, DatasetError):
                failures.append(str(outcome))
            else:
                on_result(case, outcome)
            progress.update()
    if failures:
        more = len(failures) - MAX_MESSAGES
        tail = [f"({more} more cases cannot be used either.)"] if more > 0 else []
        raise DatasetError("\n".join(sorted(failures)[:MAX_MESSAGES] + tail))


def _outcomes(
    function: Callable[..., Any], arguments: Mapping[str, tuple], num_processes: int
) -> Iterator[tuple[str, Any]]:
    if num_processes <= 1:
        for case, values in arguments.items():
            try:
                outcome = function(case, *values)
            except DatasetError as error:
                outcome = error
            yield case, outcome
        return
    executor = ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = {executor.submit(function, case, *values): case for case, values in arguments.items()}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except DatasetError as error:
                outcome = error
            yield futures[future], outcome
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A background process was killed, most often because memory ran out; use fewer processes (-np, -npfp or "
            "the environment variable nnUNet_def_n_proc)."
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
