"""Valid datasets, made once; every case gets a copy to break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import worlds  # noqa: F401 puts the folders of scripts and of other tests on the path


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`templates(command, channels)` -> a folder with the valid dataset that a command works with."""
    from runs import Templates

    return Templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture
def copy_for(templates: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """As `templates`, but a copy in the test's own folder."""
    return lambda *wanted: Path(shutil.copytree(templates(*wanted), tmp_path / "world"))
