"""The small world of `comparison_world` as fixtures."""

from __future__ import annotations

import pytest
from comparison_world import build_world, enter_world, set_folders


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
