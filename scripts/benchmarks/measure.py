"""Time and memory of things that are compared: in one run, in turns, after warm-up."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]


def clock(device: torch.device) -> float:
    """Seconds, for differences: wall time on a GPU, the process's processor time on a CPU.

    The latter does not count what other work takes of a shared machine; with one thread it is the wall time of an idle
    one.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def compare(
    runs: Mapping[str, Run],
    device: torch.device,
    repeats: int = 5,
    seconds: float = 20.0,
    compiled: bool = False,
) -> dict[str, float]:
    """Median seconds of each run; they take turns, so that all meet the same state of the machine.

    Args:
        repeats: measured rounds, after one of warm-up.
        seconds: soft limit for one run in all; two measurements there are in any case, and where one alone takes a
            quarter of the limit its warm-up counts as the first, unless it compiles or loads kernels.
        compiled: the first round compiles.
    """
    first_counts = device.type == "cpu" and not compiled
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            if len(times[name]) >= 2 and sum(times[name]) > seconds:
                continue
            started = clock(device)
            run()
            elapsed = clock(device) - started
            if number > 0 or (first_counts and elapsed > seconds / 4):
                times[name].append(elapsed)
    return {name: statistics.median(measured) for name, measured in times.items()}


def in_the_kernel(run: Run) -> tuple[float, int]:
    """Seconds of the process's time that the operating system took during the run, and page faults.

    Both are large where an allocator hands memory back after every use and gets it anew, empty, for the next.
    """
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt


def peak_memory(run: Run, device: torch.device) -> int:
    """Bytes that torch's allocator held at most during the run, above what it held before.

    CUDA's caching allocator keeps that count itself; on the CPU it is summed up from the profiler's record of every
    allocation. Memory outside tensors (NumPy, libraries' work spaces) is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    recorder = profiler.profiler
    assert recorder is not None
    assert recorder.kineto_results is not None
    changes = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """b of the least-squares fit value = a * size^b."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope
