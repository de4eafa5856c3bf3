"""Writing checkpoints where the operating system refuses."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_vqseg.trainer.checkpoint_files import (
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
