"""Work is handed out in small shares, comes back complete, and nobody goes on working for a command that was killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import ItemsView, Iterator
from pathlib import Path

import pytest

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.pools import for_each_case, workers

KILLED = """
import os, time
from nnunetv2_vqseg.core.pools import workers

if __name__ == "__main__":
    with workers(2) as work:
        pids = {pid for _, pid in work(os.getpid, {str(case): () for case in range(200)})}
        print(*pids, flush=True)
        for _ in work(time.sleep, {str(case): (600,) for case in range(200)}):
            pass
"""


class Counted(dict):
    """A dictionary that knows how many of its items were taken."""

    taken = 0

    def items(self) -> ItemsView:
        def taken_one_by_one() -> Iterator:
            for item in super(Counted, self).items():
                self.taken += 1
                yield item

        return taken_one_by_one()  # type: ignore[return-value]


@pytest.mark.parametrize("number", [1, 3, 500])
def test_every_case_comes_back_once(number: int):
    arguments = {str(case): (case**2,) for case in range(number)}
    with workers(2) as work:
        found = list(work(math.sqrt, arguments))
    assert sorted(found) == sorted((str(case), float(case)) for case in range(number))


def test_only_a_few_cases_wait_in_the_pool():
    arguments = Counted({str(case): (case,) for case in range(5000)})
    with workers(2) as work:
        next(work(math.sqrt, arguments))
    assert 0 < arguments.taken <= 200


def test_a_case_that_cannot_be_used_does_not_stop_the_others_of_its_share():
    found: dict[str, str] = {}
    cases = {str(case): (str(Path(__file__).parent) if case == 7 else __file__,) for case in range(300)}
    with pytest.raises(DatasetError, match=r"^7 is a folder\.$"):
        for_each_case(refuse_folders, cases, 2, "Looking", False, found.__setitem__)
    assert len(found) == 299


def refuse_folders(case: str, file: str) -> str:
    if Path(file).is_dir():
        raise DatasetError(f"{case} is a folder.")
    return file


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_leaves_no_worker(tmp_path: Path, how: signal.Signals):
    script = tmp_path / "killed.py"
    script.write_text(KILLED, encoding="utf-8")
    command = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    pids = [int(pid) for pid in command.stdout.readline().split()]
    assert pids
    assert all(map(is_running, pids))
    os.kill(command.pid, how)
    command.wait()
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
