"""Two channels, overlapping regions and an ignore label: every method trains and segments, or says that it does not."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from test_methods import METHODS

pytestmark = pytest.mark.slow

REGIONS = {"labels": {"background": 0, "heart": [1, 2, 3], "cavity": [3], "ignore": 4}, "regions_class_order": [1, 3]}
FOR_CLASSES = ("nnUNetTrainerARCO", "nnUNetTrainerSSNet")
UNLABELED = ("pseudo", "consistency", "contrast", "smoothness", "separation", "displaced")
"""Beginnings of the names of terms that unlabelled images have a part in."""
CLASSES = {"labels": {"background": 0, "RV": 1, "MLV": 2, "LVC": 3, "ignore": 4}}


@pytest.fixture(scope="module")
def two_channels(home: Path, plan_dataset: Callable[[str], Path]) -> Path:
    """The phantoms with a second channel and, in each label, a strip of ignored voxels; planned with regions."""
    source, target = home / "raw" / "Dataset901_Phantom", home / "raw" / "Dataset902_TwoChannels"
    for folder in ("imagesTr", "imagesUl"):
        (target / folder).mkdir(parents=True)
        for file in (source / folder).glob("*_0000.nii.gz"):
            image = sitk.ReadImage(str(file))
            sitk.WriteImage(image, str(target / folder / file.name))
            negative = sitk.GetImageFromArray(-sitk.GetArrayFromImage(image).astype(np.float32))
            negative.CopyInformation(image)
            sitk.WriteImage(negative, str(target / folder / file.name.replace("_0000", "_0001")))
    (target / "labelsTr").mkdir()
    for file in (source / "labelsTr").glob("*.nii.gz"):
        label = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(label)
        array[:, :8] = 4
        strip = sitk.GetImageFromArray(array)
        strip.CopyInformation(label)
        sitk.WriteImage(strip, str(target / "labelsTr" / file.name))
    description = (
        json.loads((source / "dataset.json").read_text(encoding="utf-8"))
        | REGIONS
        | {"channel_names": {"0": "a", "1": "b"}}
    )
    (target / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    (target / "splits_final.json").write_text(
        (source / "splits_final.json").read_text(encoding="utf-8"), encoding="utf-8"
    )

    return plan_dataset(target.name)


TRAINERS = [
    "nnUNetTrainerVQSeg",
    *(pytest.param(name, marks=pytest.mark.nightly) for name in METHODS if name != "nnUNetTrainerVQSeg"),
]


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("labels", [REGIONS, CLASSES], ids=["regions", "classes"])
def test_trains_and_segments_with_two_channels_and_an_ignore_label(two_channels, results, labels, name):
    from nnunetv2_vqseg import trainers
    from nnunetv2_vqseg.core.errors import ConfigError

    plans = json.loads((two_channels / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    plans["continue_training"] = False
    if name != "nnUNetTrainerVQSeg":
        plans["configurations"]["2d"]["vqseg"] |= METHODS[name]
    dataset_json = json.loads((two_channels / "dataset.json").read_text(encoding="utf-8"))
    dataset_json = {key: value for key, value in dataset_json.items() if key != "regions_class_order"} | labels
    trainer = getattr(trainers, name)(plans, "2d", 0, dataset_json, torch.device("cpu"))
    if labels is REGIONS and name in FOR_CLASSES:
        with pytest.raises(ConfigError, match=r"overlapping regions .* use nnUNetTrainer"):
            trainer.initialize()
        return
    trainer.run_training()
    heads = 2 if labels is REGIONS else 4
    logits = trainer.method.predictor().eval()(torch.zeros(1, 2, 32, 32))
    assert (logits[0] if isinstance(logits, list) else logits[0][None]).shape[1] == heads
    assert all(math.isfinite(value) for value in trainer.curves.history["loss"])
    unlabeled = {key for key in trainer.curves.history if key.startswith(UNLABELED)}
    assert unlabeled or name in ("nnUNetTrainerUNet", "nnUNetTrainerNNFilterMatch", "nnUNetTrainerSelfTraining")
    assert any(trainer.curves.history[key][-1] != 0 for key in unlabeled) or not unlabeled


def test_paper_losses_are_refused_for_regions_at_the_start(two_channels, results):
    from nnunetv2_vqseg.trainers import nnUNetTrainerMeanTeacher

    plans = json.loads((two_channels / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    plans["continue_training"] = False
    plans["configurations"]["2d"]["vqseg"]["supervised_loss"] = "ce"
    dataset_json = json.loads((two_channels / "dataset.json").read_text(encoding="utf-8"))
    trainer = nnUNetTrainerMeanTeacher(plans, "2d", 0, dataset_json, torch.device("cpu"))
    with pytest.raises(NotImplementedError, match=r"'ce' is not implemented for region-based labels"):
        trainer.initialize()


def test_pseudo_labels_of_regions_are_drawn_as_regions_and_nothing_of_them_is_ignored(two_channels, results):
    from nnunetv2_vqseg.trainers import nnUNetTrainerSelfTraining

    plans = json.loads((two_channels / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    plans["continue_training"] = False
    plans["configurations"]["2d"]["vqseg"]["rounds"] = 2
    dataset_json = json.loads((two_channels / "dataset.json").read_text(encoding="utf-8"))
    trainer = nnUNetTrainerSelfTraining(plans, "2d", 0, dataset_json, torch.device("cpu"))
    trainer.run_training()
    store = trainer.pool.labels
    assert {int(label) for case in store.files for label in np.unique(store.read(case))} <= {-1, 0, 1, 3}
    batch = trainer._join(next(trainer.dataloader_train), 0.9)
    assert batch.unlabeled_target[0].shape[1:] == batch.target[0].shape[1:] == (3, 32, 32)
    assert not any(level[:, 2].any() for level in batch.unlabeled_target)
    assert any(level[:, 2].any() for level in batch.target)
    assert all(math.isfinite(value) for value in trainer.curves.history["loss"])
