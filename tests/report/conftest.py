"""The small world of `comparison_world` as fixtures."""

from __future__ import annotations

import pytest
from comparison_world import build_world, enter_world, set_folders
from matplotlib.figure import Figure

from nnunetv2_vqseg.report import compare


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The small world with nnU-Net's own predictor; returns the path that holds it."""
    build_world(tmp_path)
    set_folders(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def predictor(world, monkeypatch):
    """The small world with its predictor; returns the list of the predictor's calls."""
    return enter_world(world, monkeypatch)


@pytest.fixture
def without_report(monkeypatch):
    """Leave out the figures, which take most of the time; returns the list of summaries that would be written."""
    summaries = []
    monkeypatch.setattr(compare, "write_report", lambda summary, *arguments: summaries.append(summary))
    return summaries


@pytest.fixture
def without_pixels(monkeypatch):
    """Write figures without drawing them, which takes most of the time."""
    png = b"\x89PNG\r\n\x1a\n".ljust(24, b"\0")
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: file.write(png))
