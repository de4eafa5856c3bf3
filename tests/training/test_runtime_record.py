"""What reports read about a training that nnU-Net does not record."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from nnunetv2_vqseg import __version__
from nnunetv2_vqseg.core import versions
from nnunetv2_vqseg.report.training_records import read_training_record

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["nnUNetTrainerSupervised", "nnUNetTrainerVQSeg", "nnUNetTrainerVQSegQPMDB"])
def test_memory_labelled_cases_seed_and_version_are_recorded_for_stock_and_ours_alike(make_trainer, monkeypatch, name):
    trainer = make_trainer(name, seed=3)
    with monkeypatch.context() as patch:  # of a checkout that moves on while it trains
        patch.setattr(versions, "git_commit", lambda folder: "0123456789 with uncommitted changes")
        trainer.initialize()
    train, _ = trainer.do_split()
    checkpoint = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(checkpoint))
    record = read_training_record(checkpoint)
    assert record.unreadable is None
    assert record.runtime["labeled_cases"] == len(train) == 4
    assert record.runtime["seed"] == 3
    assert record.runtime["peak_gpu_memory_bytes"] is None
    assert record.runtime["package"] == f"nnunetv2_vqseg {__version__}, 0123456 with uncommitted changes"
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0.5 * peak < record.runtime["peak_resident_memory_bytes"] <= peak
    assert record.without_alignment is None, "off unless a plan asks for it, so that nobody lacks it"
