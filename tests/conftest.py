"""Settings for every test: few threads, deterministic seeds, an empty nnU-Net home unless a test makes its own."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "0")
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import quick_nnunet
from filelock import FileLock


def pytest_configure(config: pytest.Config) -> None:
    multiprocessing.get_context = quick_nnunet.get_context  # type: ignore[assignment]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that quick ones are left to share out between processes at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make) -> a folder that `make(folder)` fills once a run, whichever of its processes comes first."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder = shared / f"once_{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = folder.with_name(f"{folder.name}_unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return folder_of


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every test, whatever ran before."""
    import numpy as np
    import torch

    np.random.seed(0)  # noqa: NPY002 nnU-Net draws from this one
    torch.manual_seed(0)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints of fewer voxels, for tests that plan."""
    quick_nnunet.few_samples(monkeypatch)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an empty cache and no way to the hub, whose client reads its variables when it is imported."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
