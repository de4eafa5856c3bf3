"""Rounds of self-training inside nnU-Net: labels on disk, what a round begins with, and going on in the middle."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_methods import assert_same, comparable

pytestmark = pytest.mark.slow

NAME = "nnUNetTrainerSelfTraining"
SETTINGS = {"rounds": 2, "num_epochs": 2, "save_every": 1}


@pytest.fixture
def second_round(make_trainer):
    """A trainer after three steps of the first round, at the start of the second, with the logits of its labels."""
    trainer = make_trainer(NAME, **SETTINGS)
    trainer.on_train_start()
    folder = trainer.pool._own_folder()
    (folder / "round_1").mkdir(parents=True, exist_ok=True)
    (folder / "round_1" / "half.b2nd").write_bytes(b"of a pass that was killed")
    trainer.on_train_epoch_start()
    for _ in range(3):
        batch = trainer._join(next(trainer.dataloader_train), 0.0)
        assert batch.unlabeled is batch.unlabeled_target is None
        trainer.train_step(next(trainer.dataloader_train))
    trainer.logits = {}
    trainer.pool.predict(lambda case, logits: trainer.logits.update({case: logits.clone()}) or 0.0)
    trainer.end_of_first = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    assert trainer.optimizer.state
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    yield trainer
    trainer.stop_loaders()


def test_labels_on_disk_are_the_prediction_and_nothing_else_is_written(second_round, home):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    store, cases = second_round.pool.labels, second_round.pool.found
    assert len(cases) == 4
    assert store.files.keys() == set(cases)
    assert store.folder.parents[1] == Path(f"{second_round.cases.unlabeled_folder}_labels")
    assert {path.name for path in store.folder.iterdir()} == {
        f"{case}{end}" for case in cases for end in (".pkl", "_seg.b2nd")
    }
    dataset = nnUNetDatasetBlosc2(second_round.cases.unlabeled_folder, list(cases))
    for case in cases:
        outside = dataset.load_case(case)[1][0] < 0
        expected = second_round.logits[case].float().argmax(0).numpy()
        labels = store.read(case)
        assert np.array_equal(np.maximum(labels[0], 0), expected)
        assert np.array_equal(labels[0] < 0, outside & (expected == 0))
    raw = home / "raw" / "Dataset901_Phantom"
    assert not {path.name for path in (raw / "labelsTr").iterdir()} & {f"{case}.nii.gz" for case in cases}


def test_a_round_begins_anew_and_learns_the_labels_as_labelled_images(second_round):
    after = second_round.network.state_dict()
    assert all(
        not torch.equal(value, after[key]) for key, value in second_round.end_of_first.items() if value.std() > 0
    )
    assert not second_round.optimizer.state
    assert second_round.optimizer.param_groups[0]["lr"] == second_round.initial_lr
    batch = second_round._join(next(second_round.dataloader_train), 0.5)
    assert len(batch.labeled) == len(batch.unlabeled) == 2
    assert [level.shape for level in batch.target] == [level.shape for level in batch.unlabeled_target]
    assert {level.dtype for level in batch.unlabeled_target} == {level.dtype for level in batch.target}
    found = {
        int(label)
        for _ in range(8)
        for label in second_round._join(next(second_round.dataloader_train), 0.5).unlabeled_target[0].unique()
    }
    predicted = {int(label) for logits in second_round.logits.values() for label in logits.float().argmax(0).unique()}
    assert found <= predicted
    assert len(found) > 1
    second_round.train_step(next(second_round.dataloader_train))
    assert second_round.optimizer.state


def test_goes_on_in_the_middle_of_a_round_refuses_changed_labels_and_validates(make_trainer, monkeypatch):
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

    from nnunetv2_vqseg.core.errors import CheckpointError

    monkeypatch.setattr(GaussianBlurTransform, "_apply_to_image", lambda self, image, **_: image)
    settings = {"rounds": 3, "num_epochs": 6, "iterations_per_epoch": 2, "save_every": 1, "unstable_share": 0.3}
    whole = make_trainer(NAME, **settings)
    folder = Path(whole.output_folder)
    save = whole.save_checkpoint

    def save_and_copy(filename):
        save(filename)
        if whole.current_epoch == 2 and filename.endswith("latest.pth"):
            shutil.copy(filename, folder / "middle.pth")

    whole.save_checkpoint = save_and_copy
    whole.run_training()
    (folder / "checkpoint_final.pth").rename(folder / "whole.pth")
    (folder / "checkpoint_best.pth").unlink()

    def resume():
        resumed = make_trainer(NAME, continue_training=True, **settings)
        resumed.load_checkpoint(str(folder / "middle.pth"))
        assert (resumed.current_epoch, resumed.method.round) == (3, 1)
        return resumed

    resumed = resume()
    resumed.run_training()
    mine, theirs = (comparable(folder / name) for name in ("whole.pth", "checkpoint_final.pth"))
    assert (mine["vqseg"]["round"], mine["vqseg"]["cases"]["labels"]["number"]) == (2, 2)
    assert len(mine["vqseg"]["cases"]["dropped"]) == 1
    assert_same(mine, theirs)

    (folder / "checkpoint_final.pth").rename(folder / "done.pth")  # from which it would go on instead
    (folder / "checkpoint_best.pth").unlink()
    place = resumed.pool.labels.folder.parent
    assert sorted(path.name for path in place.iterdir()) == ["round_1", "round_2"]
    case = resumed.pool.found[0]
    (place / "round_1" / f"{case}.pkl").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=f"pseudo-labels of 1 cases in .*round_1 are not those .* \\({case}\\)"):
        resume().on_train_start()

    validated = make_trainer(NAME, **settings)  # as --val does; the labels are not needed
    validated.load_checkpoint(str(folder / "done.pth"))
    validated.perform_actual_validation()
    assert (folder / "validation" / "summary.json").is_file()


def test_a_label_that_cannot_be_written_is_a_sentence(make_trainer, monkeypatch):
    from nnunetv2_vqseg.core.errors import DatasetError
    from nnunetv2_vqseg.data import label_store

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    trainer = make_trainer(NAME, **SETTINGS)
    trainer.on_train_start()
    monkeypatch.setattr(label_store, "replace_bytes", full)
    trainer.current_epoch = 1
    with pytest.raises(DatasetError, match="cannot be used \\(No space left on device\\)"):
        trainer.on_train_epoch_start()
    assert trainer.pool.labels is None
    assert trainer.method.round == 0
    trainer.stop_loaders()
