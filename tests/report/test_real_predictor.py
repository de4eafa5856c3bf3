"""Comparison with nnU-Net's own planner, network and predictor; the weights are as initialised."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from comparison_world import DATASET, TRAINERS

from nnunetv2_vqseg.report.compare import Comparison

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_samples")]


@pytest.mark.parametrize("num_processes", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_predictions_are_those_of_nnunets_own_command(world, num_processes, monkeypatch):
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    extract_fingerprints([901], num_processes=1)
    plan_experiments([901])
    plans = json.loads((world / "preprocessed" / DATASET / "nnUNetPlans.json").read_text(encoding="utf-8"))
    dataset_json = json.loads((world / "raw" / DATASET / "dataset.json").read_text(encoding="utf-8"))
    shutil.rmtree(world / "results")
    preprocessed = world / "preprocessed" / DATASET / "nnUNetPlans_2d"
    preprocessed.mkdir()
    (preprocessed / "case0.b2nd").touch()  # initialize() looks at the endings of what is there, and reads nothing
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "2d", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))  # noqa: PTH118
    model = world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d"
    (model / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (model / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")

    summary = Comparison(901, TRAINERS[:1], world / "out", device="cpu", num_processes=num_processes).run()

    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    images = world / "raw" / DATASET / "imagesTs" / "patient003_frame01_0000.nii.gz"
    predictor.predict_from_files_sequential([[str(images)]], [str(world / "patient003_frame01")])
    made = world / "out/predictions" / DATASET / "test/nnUNetTrainer__nnUNetPlans__2d/fold_0_checkpoint_final"
    expected = (world / "patient003_frame01.nii.gz").read_bytes()
    assert (made / "patient003_frame01.nii.gz").read_bytes() == expected
    assert summary["n_cases"] == 14
    assert summary["methods"]["nnU-Net"]["prediction"]["0"]["seconds"] > 0
    assert (world / "out/report/index.html").is_file()
