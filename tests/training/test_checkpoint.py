"""Writing checkpoints where the operating system refuses."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_vqseg.trainer.checkpoint_files import (
    BackgroundWriter,
    copied_to_host,
    newest_checkpoint,
    read_checkpoint,
    remove_leftovers,
    save_atomically,
)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writing more than `size` bytes into a file fails with an OSError of the operating system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(value: float) -> dict[str, Any]:
    return {"weights": torch.full((200_000,), value)}  # 800 kB


@pytest.mark.parametrize("limit", [0, 1000, 400_000, 799_999])
def test_disk_that_fills_up_during_a_write_leaves_the_old_checkpoint(tmp_path: Path, limit: int) -> None:
    file = tmp_path / "checkpoint_latest.pth"
    save_atomically(content(1.0), file)
    # The message names the file and says what the operating system said.
    with files_limited_to(limit), pytest.raises(OSError, match=r"checkpoint_latest.*File too large"):
        save_atomically(content(2.0), file)
    assert torch.equal(torch.load(file, weights_only=True)["weights"], content(1.0)["weights"])
    assert list(tmp_path.iterdir()) == [file], "nothing half-written stays behind"
    save_atomically(content(2.0), file)
    assert torch.load(file, weights_only=True)["weights"][0] == 2.0


@pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
def test_folder_that_cannot_be_written_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    # Tests often run as root, whom permissions do not stop.
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    file = tmp_path / "checkpoint_latest.pth"
    save_atomically(content(1.0), file)
    owner = os if moment == "fsync" else Path
    with monkeypatch.context() as patched:
        patched.setattr(owner, moment, refuse)
        with pytest.raises(OSError, match="Read-only"):
            save_atomically(content(2.0), file)
    assert torch.load(file, weights_only=True)["weights"][0] == 1.0


class Code:
    """An object whose unpickling makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    file, trace = tmp_path / "checkpoint_latest.pth", tmp_path / "trace"
    torch.save({"network_weights": {}, "current_epoch": Code(trace)}, file)
    with pytest.raises(RuntimeError, match=r"checkpoint_latest.pth cannot be read .* written by other software"):
        read_checkpoint(file, "cpu")
    assert not trace.exists()
    torch.load(file, weights_only=False)  # as nnU-Net does
    assert trace.exists(), "or the test proves nothing"


def test_leftovers_of_a_killed_write_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint_latest.pth.123.tmp").write_bytes(b"half")
    for name in ("checkpoint_latest.pth", "notes.tmp"):
        (tmp_path / name).write_bytes(b"mine")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_latest.pth", "notes.tmp"]


def test_newest_checkpoint_is_the_one_written_last(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for age, name in enumerate(("best", "latest", "final")):
        file = tmp_path / f"checkpoint_{name}.pth"
        file.write_bytes(b"")
        os.utime(file, (1000 - age, 1000 - age))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_best.pth"


def test_a_file_that_is_written_behind_the_training_has_the_state_of_its_moment(tmp_path):
    weight = torch.ones(3, requires_grad=True)
    state = {"weight": weight, "same": weight, "lr": [{"lr": 1.0}], "other": weight[:2]}
    writer, go = BackgroundWriter(), threading.Event()

    def slowly(kept):
        go.wait()
        save_atomically(kept, tmp_path / "checkpoint_best.pth")

    writer.write(state, slowly)
    with torch.no_grad():
        weight.zero_()
    state["lr"][0]["lr"] = 2.0
    assert not (tmp_path / "checkpoint_best.pth").exists()
    go.set()
    assert writer.wait() is None
    found = torch.load(tmp_path / "checkpoint_best.pth", weights_only=True)
    assert found["weight"].tolist() == [1.0] * 3
    assert found["lr"] == [{"lr": 1.0}]
    assert found["same"].data_ptr() == found["weight"].data_ptr(), "written once"
    assert writer.wait() is None


def test_a_copy_keeps_what_a_state_dict_says_of_itself():
    state = torch.nn.Linear(2, 2).state_dict()
    kept, event = copied_to_host({"network": state, "empty": (torch.empty(0), torch.empty(0)), "name": "a"})
    assert event is None
    assert kept["network"]._metadata == state._metadata
    assert kept["network"]["weight"].data_ptr() != state["weight"].data_ptr()
    assert kept["name"] == "a"


@pytest.mark.parametrize("error", [OSError, ValueError, RuntimeError])
def test_what_went_wrong_behind_the_training_is_told_once(error):
    def full(kept):
        raise error("full")

    writer = BackgroundWriter()
    writer.write({}, full)
    assert str(writer.wait()) == "full"
    assert writer.wait() is None


CRASH = """
import os, sys, time
import torch
from pathlib import Path
from nnunetv2_vqseg.trainer.checkpoint_files import BackgroundWriter, save_atomically
file = Path(sys.argv[1])
save_atomically({"step": torch.tensor(1)}, file)
writer = BackgroundWriter()
writer.write({"step": torch.tensor(2), "large": torch.zeros(10**8)}, lambda kept: save_atomically(kept, file))
while not list(file.parent.glob(".*.tmp")):
    time.sleep(0.001)
os._exit(1)
"""


def test_a_crash_while_it_is_written_leaves_the_file_from_before(tmp_path):
    file = tmp_path / "checkpoint_best.pth"
    assert subprocess.run([sys.executable, "-c", CRASH, str(file)], check=False).returncode == 1
    assert int(torch.load(file, weights_only=True)["step"]) == 1
    assert list(tmp_path.glob(".*.tmp"))
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_best.pth"]
