"""Training with the alignment (PFA), with a small ViT whose weights the test writes."""

import math

import pytest
import timm
import torch

from nnunetv2_vqseg.core.errors import CheckpointError, FoundationModelUnavailable

pytestmark = pytest.mark.slow

NAME = "test_vit.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(NAME, pretrained=False).state_dict(), file)
    return str(file)


def settings(weights: str | None, policy: str = "required") -> dict:
    return {
        "foundation_policy": policy,
        "foundation_model": NAME,
        "foundation_image_size": 160,
        "foundation_checkpoint": weights,
        "num_epochs": 1,
    }


def test_alignment_is_trained_recorded_and_left_out_of_what_prediction_loads(make_trainer, weights):
    trainer = make_trainer(**settings(weights))
    trainer.run_training()
    assert math.isfinite(trainer.curves.history["alignment"][0])
    assert trainer.curves.history["alignment"][0] > 0
    frozen = [p.requires_grad for p in trainer.method.foundation.parameters()]
    assert not any(frozen)
    assert not trainer.method.foundation.training

    checkpoint = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=True)
    assert checkpoint["vqseg"]["alignment"] is True
    assert not [key for key in checkpoint["network_weights"] if key.startswith(("adapter.", "image_decoder."))]
    assert any(key.startswith("adapter.") for key in checkpoint["vqseg"]["student"])
    every_key = [*checkpoint["vqseg"]["student"], *checkpoint["vqseg"]["teacher"]]
    assert not [key for key in every_key if "foundation" in key]


@pytest.mark.parametrize("strong_view", [False, True])
def test_alignment_sees_one_view_of_the_unlabeled_images(make_trainer, weights, strong_view):
    trainer = make_trainer(**settings(weights), strong_view=strong_view)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    seen = []
    trainer.method.foundation.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    assert math.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert [len(images) for images in seen] == [trainer.labeled_batch_size + trainer.unlabeled_batch_size]


def test_run_that_began_with_the_alignment_never_goes_on_without_it(make_trainer, weights):
    trainer = make_trainer(**settings(weights))
    trainer.run_training()
    without = make_trainer(continue_training=True, **settings(None, "off"))
    without.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    with pytest.raises(CheckpointError, match="began with the foundation model and cannot go on without it"):
        without.on_train_start()
    # its weights still serve validation
    teacher = trainer.method.teacher.module.state_dict()
    loaded = without.method.teacher.module.state_dict()
    predicts = [key for key in teacher if not key.startswith("adapter.")]
    assert predicts
    assert all(torch.equal(teacher[key], loaded[key]) for key in predicts)


def test_validation_does_not_need_the_weights(make_trainer, weights, offline, capsys):
    trained = make_trainer("nnUNetTrainerVQSegPFARequired", **settings(weights))
    trained.run_training()
    final = f"{trained.output_folder}/checkpoint_final.pth"
    capsys.readouterr()
    validating = make_trainer("nnUNetTrainerVQSegPFARequired", **settings(None))
    validating.load_checkpoint(final)
    assert "WARNING" not in capsys.readouterr().out
    teacher = trained.method.teacher.module.state_dict()
    loaded = validating.method.teacher.module.state_dict()
    predicts = [key for key in teacher if not key.startswith("adapter.")]
    assert predicts
    assert all(torch.equal(teacher[key], loaded[key]) for key in predicts)
    continuing = make_trainer("nnUNetTrainerVQSegPFARequired", continue_training=True, **settings(None))
    with pytest.raises(FoundationModelUnavailable, match=NAME):
        continuing.load_checkpoint(final)


def test_without_weights_auto_trains_without_alignment_and_says_so_everywhere(make_trainer, offline, capsys):
    trainer = make_trainer(**settings(None, "auto"))
    trainer.run_training()
    assert "alignment" not in trainer.curves.history
    assert "WARNING" in capsys.readouterr().out
    state = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=True)["vqseg"]
    assert state["alignment"] is False
    assert NAME in state["foundation_model"]


def test_required_stops_before_training_with_the_remedy(make_trainer, offline):
    trainer = make_trainer(**settings(None, "required"))
    with pytest.raises(FoundationModelUnavailable, match=NAME):
        trainer.on_train_start()
