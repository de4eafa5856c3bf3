"""Curves of a training: epochs, weighted terms, and the Dice of teacher and student on the same patches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunetv2_vqseg.trainer.curves import EpochCurves, weighted
from nnunetv2_vqseg.trainer.online_dice import OnlineDice, deep_supervision


def test_values_of_a_closed_epoch_are_added_to_it():
    curves = EpochCurves({})
    curves.add({"loss": 1.0})
    curves.close_epoch(0, {})
    curves.complete(0, {"dice_teacher": 0.5})
    curves.add({"loss": 2.0})
    curves.close_epoch(1, {})
    assert curves.history["loss"] == [1.0, 2.0]
    assert curves.history["dice_teacher"] == pytest.approx([0.5, math.nan], nan_ok=True)
    curves.complete(1, {"dice_teacher": 0.6, "dice_student": 0.7})
    assert curves.history["dice_teacher"] == [0.5, 0.6]
    assert curves.history["dice_student"] == pytest.approx([math.nan, 0.7], nan_ok=True)


def test_terms_are_multiplied_by_their_weights():
    assert weighted({"supervised": 1.0, "pseudo": 0.3}, {"supervised": 2.0, "pseudo": 10.0, "loss": 5.0}) == {
        "weighted_supervised": 2.0,
        "weighted_pseudo": pytest.approx(3.0),
    }


def test_terms_of_some_steps_add_up_to_the_loss_of_all():
    curves = EpochCurves({})
    curves.add({"loss": 2.0, "weighted_supervised": 2.0, "confidence": 0.5})
    curves.add({"loss": 3.0, "weighted_supervised": 2.0, "weighted_pseudo": 1.0})
    means = curves.close_epoch(0, {})
    assert means == {"loss": 2.5, "weighted_supervised": 2.0, "weighted_pseudo": 0.5, "confidence": 0.5}


def test_the_log_says_each_term_once():
    assert EpochCurves.summary_line({"vq": 1.0, "weighted_vq": 0.5}) == "vqseg: vq 1"


def test_online_dice_is_over_all_pixels_without_absent_classes():
    dice = OnlineDice()
    for _ in range(2):
        dice.add("student", {"tp_hard": [3, 0], "fp_hard": [1, 0], "fn_hard": [1, 0]})
    dice.add("teacher", {"tp_hard": np.zeros(2), "fp_hard": np.zeros(2), "fn_hard": np.zeros(2)})
    curves = dice.close(torch.device("cpu"))
    assert curves["dice_student"] == pytest.approx(2 * 6 / (2 * 6 + 2 + 2))
    assert math.isnan(curves["dice_teacher"])
    assert dice.close(torch.device("cpu")) == {}, "the next epoch begins anew"


def test_deep_supervision_is_put_back_as_it_was():
    network = torch.nn.Module()
    network.deep_supervision = False
    with deep_supervision(network, True):
        assert network.deep_supervision
    assert network.deep_supervision is False


@pytest.fixture
def validated(make_trainer):
    """validated(name, **keys) -> a trainer after a step and a validation of two steps, and the networks' outputs."""

    def run(name, **keys):
        trainer = make_trainer(name, **keys)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        step = trainer.train_step(next(trainer.dataloader_train))
        with torch.no_grad():  # the teacher differs from the student, and one class is the teacher's whole answer
            trainer.method.teacher.module.decoder.seg_layers[-1].bias[1] += 100
        trainer.on_train_epoch_end([step])
        before = [weights(trainer.network), weights(trainer.method.teacher.module)]
        batches = [next(trainer.dataloader_val) for _ in range(trainer.num_val_iterations_per_epoch)]
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            state = torch.get_rng_state()
            outputs = [trainer.validation_step(batch) for batch in batches]
            assert torch.equal(state, torch.get_rng_state()), "a validation draws nothing"
            trainer.on_validation_epoch_end(outputs)
        assert all(map(torch.equal, before, [weights(trainer.network), weights(trainer.method.teacher.module)]))
        return trainer, batches

    return run


def weights(network):
    return torch.cat([value.detach().flatten() for value in network.state_dict().values()]).clone()


def dice_of(trainer, network, batches):
    """nnU-Net's pseudo Dice of a network, computed here."""
    scores = []
    for label in trainer.label_manager.foreground_labels:
        tp = wrong = 0
        for batch in batches:
            target = batch["target"][0][:, 0]
            with torch.no_grad(), deep_supervision(network, False):
                found = network(batch["data"]).argmax(1)
            tp += int(((found == label) & (target == label)).sum())
            wrong += int(((found == label) != (target == label)).sum())
        if tp + wrong:
            scores.append(2 * tp / (2 * tp + wrong))
    return sum(scores) / len(scores)


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["teacher", "student"])
def test_teacher_and_student_are_validated_on_the_same_patches_with_their_own_weights(validated, saved):
    name, keys = ("nnUNetTrainerMeanTeacher", {}) if saved == "teacher" else ("nnUNetTrainerUAMT", {"passes": 1})
    trainer, batches = validated(name, val_share_all_networks=0.5, val_iterations_per_epoch=3, **keys)
    trainer.network.eval()
    networks = {"teacher": trainer.method.teacher.module, "student": trainer.method.main}
    for network, module in networks.items():
        found = trainer.curves.history[f"dice_{network}"]
        assert found == pytest.approx([dice_of(trainer, module, batches[:2])], rel=1e-5), network
    assert trainer.curves.history["dice_teacher"] != trainer.curves.history["dice_student"]
    assert trainer.curves.saved == saved


@pytest.mark.slow
def test_without_a_share_only_the_saved_network_is_validated_in_every_step(validated):
    trainer, batches = validated("nnUNetTrainerMeanTeacher", val_share_all_networks=0.0)
    assert "dice_student" not in trainer.curves.history
    expected = dice_of(trainer, trainer.method.teacher.module, batches)
    assert trainer.curves.history["dice_teacher"] == pytest.approx([expected], rel=1e-5)
    assert trainer.logger.get_value("mean_fg_dice", -1) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_weighted_terms_add_up_to_the_loss_and_stand_in_one_panel(make_trainer):
    trainer = make_trainer(reconstruct=True)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)])
    history = trainer.curves.history
    parts = [name for name in history if name.startswith("weighted_")]
    assert len(parts) >= 5
    assert sum(history[name][0] for name in parts) == pytest.approx(history["loss"][0], rel=1e-4)
    assert trainer.curves.panels["loss and its terms, each times its weight"] == ["loss", *parts]
    assert "qpm_effective_neighbors" not in history, "by its calibration it is constant"
