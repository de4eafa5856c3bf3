"""Files are the old ones or the new ones, never a part."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest

from nnunetv2_vqseg.core import files
from nnunetv2_vqseg.core.files import NowAndThen, replace_text


def test_a_text_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "page.md"
    replace_text(file, "old ±\r\n")
    assert file.read_bytes() == "old ±\r\n".encode()

    class FullDisk(io.BytesIO):
        def writelines(self, pieces):
            raise OSError(errno.ENOSPC, "no space left on device")

    def on_full_disk(path, mode):
        path.touch()
        return FullDisk()

    with monkeypatch.context() as disk:
        disk.setattr(Path, "open", on_full_disk)
        with pytest.raises(OSError, match="no space left") as stopped:
            replace_text(file, "new")
    assert stopped.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
    assert file.read_bytes() == "old ±\r\n".encode()
    replace_text(file, "new")
    assert file.read_text(encoding="utf-8") == "new"


def test_what_takes_longer_to_save_is_saved_more_rarely(monkeypatch):
    now = [0.0]
    saved = []

    def save():
        saved.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    save_now_and_then = NowAndThen(save)
    while now[0] < 100:
        save_now_and_then()
        now[0] += 1.0
    assert saved == [5.0, 47.0, 89.0], "after 5 s, then so that 2 s are a twentieth of the time"
