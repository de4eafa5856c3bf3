"""The memory that loaders may share is that of the machine, or less where the process is in a smaller group."""

import os
from pathlib import Path

import pytest

from nnunetv2_vqseg.core.memory import usable_memory

ALL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
UNLIMITED = "9223372036854771712"


def system(root: Path, groups: str, limits: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": groups, **limits}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n", encoding="utf-8")
    return root


def test_without_groups_it_is_the_machine_s(tmp_path):
    assert usable_memory(tmp_path) == ALL


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/", {"sys/fs/cgroup/memory.max": "5000"}, 5000),
        ("0::/", {"sys/fs/cgroup/memory.max": "max"}, ALL),
        ("0::/job/step", {"sys/fs/cgroup/job/memory.max": "7000", "sys/fs/cgroup/job/step/memory.max": "max"}, 7000),
        ("0::/job", {"sys/fs/cgroup/other/memory.max": "1"}, ALL),
        ("3:cpu:/x\n4:memory:/job", {"sys/fs/cgroup/memory/job/memory.limit_in_bytes": "6000"}, 6000),
        ("4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED}, ALL),
    ],
)
def test_the_smallest_limit_of_a_group_and_those_above_it_counts(tmp_path, groups, limits, expected):
    assert usable_memory(system(tmp_path, groups, limits)) == expected
