"""Files are the old ones or the new ones, never a part."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nnunetv2_vqseg.core.files import replace_text


def test_a_text_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "page.md"
    replace_text(file, "old ±\r\n")
    assert file.read_bytes() == "old ±\r\n".encode()
    write = Path.write_bytes

    def full_disk(path, content):
        write(path, content[:2])
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left") as stopped:
        replace_text(file, "new")
    assert stopped.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
    assert file.read_bytes() == "old ±\r\n".encode()
    monkeypatch.undo()
    replace_text(file, "new")
    assert file.read_text(encoding="utf-8") == "new"
