"""What makes nnU-Net quick on tiny data.

Spawned processes import nnU-Net anew, 10 s each. Here one fork server a test process imports it once, and each process
is a fork of that server, which knows as little of the tests as a spawned one does.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

PRELOADED = ["nnunetv2.run.run_training", "nnunetv2.inference.predict_from_raw_data", "real_training"]
_get_context: Callable[..., BaseContext] = multiprocessing.get_context


class Worker(ForkServerProcess):
    """A process with the environment of where it is started, not of where the fork server was."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class QuickSpawn(ForkServerContext):
    """In place of the context "spawn"."""

    Process = Worker  # type: ignore[assignment]


def get_context(method: str | None = None) -> BaseContext:
    """As `multiprocessing.get_context`, quicker for "spawn"."""
    if method != "spawn":
        return _get_context(method)
    preload()
    return QuickSpawn()


def preload() -> None:
    """Say what the fork server imports when it starts."""
    folder = str(Path(__file__).parent / "training")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, *paths)))
    multiprocessing.set_forkserver_preload(PRELOADED)


def few_samples(patch: pytest.MonkeyPatch) -> None:
    """Let a fingerprint be of 10^5 voxels in place of 10^8, which take 8 s and 2 GB."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    run = DatasetFingerprintExtractor.run

    def run_with_few(self: DatasetFingerprintExtractor, *arguments: Any, **options: Any) -> dict:
        self.num_foreground_voxels_for_intensitystats = 1e5
        return run(self, *arguments, **options)

    patch.setattr(DatasetFingerprintExtractor, "run", run_with_few)
