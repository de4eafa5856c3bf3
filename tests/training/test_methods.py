"""Every method trains, goes on where it was stopped, predicts and trains on two processes, inside nnU-Net."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainings import DATASET, variables

pytestmark = pytest.mark.slow

CHANGES = {
    "strong_view_count": 2,
    "turn_probability": 0.5,
    "copy_paste": "organs",
    "largest_component": True,
    "class_thresholds": "freematch",
    "pseudo_loss": "nnunet",
    "guard": True,
    "guard_supervised": 0.25,
    "guard_every": 2,
    "guard_foreground": 0.01,
}
METHODS: dict[str, dict[str, Any]] = {
    "nnUNetTrainerMeanTeacher": CHANGES,
    "nnUNetTrainerVQSeg": {
        **CHANGES,
        "copy_paste": "box",
        "class_thresholds": "flexmatch",
        "code_agreement": 0.1,
        "vq_more_stages": [0],
        "restart_after": 2,
        "restart_every": 1,
    },
    "nnUNetTrainerABD": {"pretrain_share": 0.5, "saved_network": "teacher"},
    "nnUNetTrainerABDCrossTeaching": {},
    "nnUNetTrainerBCP": {"pretrain_share": 0.5},  # the second stage begins where the training was stopped
    "nnUNetTrainerCPS": {},
    "nnUNetTrainerARCO": {
        "anchors": 32,
        "negatives": 32,
        "queue_size": 64,
        "queue_push": 16,
        "representation_dim": 8,
        "saved_network": "teacher",  # whose heads are left behind
    },
    "nnUNetTrainerSSNet": {"pixels_per_class": 64},
    "nnUNetTrainerMCNet": {},
    "nnUNetTrainerNNFilterMatch": {"filter_at": [0.25, 0.75], "warm_up": 0.2},
    "nnUNetTrainerSelfTraining": {"rounds": 2},  # the second begins where the training was stopped
    "nnUNetTrainerUAMT": {"passes": 2},
    "nnUNetTrainerUNet": {},
    "nnUNetTrainerUniMatch": {},
    "nnUNetTrainerUniMatchV2": {},
}


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Of nested dictionaries, lists, tensors and values, bit for bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            assert_same(value, second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second or first != first, where


@pytest.mark.parametrize("name", METHODS)
def test_a_training_goes_on_from_its_middle_as_in_one_go_and_predicts(make_trainer, monkeypatch, name):
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

    # nnU-Net's blur picks its algorithm by timing, which no two runs do alike.
    monkeypatch.setattr(GaussianBlurTransform, "_apply_to_image", lambda self, image, **_: image)
    settings = METHODS[name] | {"num_epochs": 4, "save_every": 2}
    whole = make_trainer(name, **settings)
    folder = Path(whole.output_folder)
    keep_the_middle(whole, folder / "middle.pth")
    whole.run_training()
    (folder / "checkpoint_final.pth").rename(folder / "whole.pth")
    (folder / "checkpoint_best.pth").unlink()  # newer than the middle
    resumed = make_trainer(name, continue_training=True, **settings)
    resumed.load_checkpoint(str(folder / "middle.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()

    mine, theirs = (comparable(folder / file) for file in ("whole.pth", "checkpoint_final.pth"))
    assert mine["vqseg"]["step"] == 12
    assert_same(mine, theirs)
    middle = torch.load(folder / "middle.pth", weights_only=True)["network_weights"]
    assert any(not torch.equal(value, middle[key]) for key, value in mine["network_weights"].items())

    assert_predicts_strictly(resumed, 32)


def test_epochs_that_were_stopped_in_their_middle_and_repeated_end_no_training(make_trainer):
    """Their steps count twice, and ARCO's share of sure pixels must not become negative in the end."""
    settings = METHODS["nnUNetTrainerARCO"] | {"num_epochs": 2, "guard": True, "guard_supervised": 0.5}
    stopped = make_trainer("nnUNetTrainerARCO", **settings)
    stopped.on_train_start()
    stopped.on_epoch_start()
    stopped.on_train_epoch_start()
    stopped.train_step(next(stopped.dataloader_train))
    stopped.train_step(next(stopped.dataloader_train))
    folder = Path(stopped.output_folder)
    assert stopped.checkpoints.save(str(folder / "checkpoint_latest.pth"), epochs_done=0)
    stopped.stop_loaders()
    resumed = make_trainer("nnUNetTrainerARCO", continue_training=True, **settings)
    resumed.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert (resumed.stepper.step, resumed.current_epoch) == (2, 0)
    resumed.run_training()
    final = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert final["vqseg"]["step"] == 2 + 2 * 3
    assert resumed.progress == 1.0
    assert resumed.method.guard.best_dice is not None, "of the supervised phase, which is the first epoch"


def test_nnunet_s_loss_of_the_literature_s_unet_is_that_of_its_only_output(make_trainer):
    stock, other = make_trainer("nnUNetTrainerSupervised"), make_trainer("nnUNetTrainerUNet", supervised_loss="nnunet")
    for trainer in (stock, other):
        trainer.initialize()
    levels = len(stock.loss.weight_factors)
    target = [torch.randint(0, 2, (2, 1, 32 // 2**level, 32 // 2**level)) for level in range(levels)]
    logits = torch.randn(2, stock.label_manager.num_segmentation_heads, 32, 32)
    expected = stock.loss.loss(logits, target[0])
    torch.testing.assert_close(other.method.supervised([logits], target), expected)
    torch.testing.assert_close(other.loss([logits], target), expected)


@pytest.fixture(scope="module")
def residual_plan(home) -> Iterator[str]:
    """Name of the plan with residual encoders."""
    folder = home / "preprocessed" / DATASET
    plans = json.loads((folder / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    architecture = plans["configurations"]["2d"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    file = folder / "nnUNetResEncVQSegPlans.json"
    file.write_text(json.dumps({**plans, "plans_name": file.stem}), encoding="utf-8")
    yield file.stem
    file.unlink()


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_with_residual_encoders_predicts_strictly(make_trainer, residual_plan, name):
    trainer = make_trainer(name, plans_name=residual_plan, **METHODS[name] | {"num_epochs": 2})
    trainer.run_training()
    kinds = {type(module).__name__ for module in trainer.method.predictor().modules()}
    assert ("StackedResidualBlocks" in kinds) == (name != "nnUNetTrainerUNet"), "which has a network of its own"
    assert_predicts_strictly(trainer, 32)


@pytest.mark.parametrize(
    ("name", "changed"),
    [("nnUNetTrainerARCO", {"representation_dim": 4, "queue_size": 32}), ("nnUNetTrainerSSNet", {"prototype_dim": 16})],
)
def test_with_other_heads_a_training_is_validated_and_not_continued(make_trainer, name, changed):
    from nnunetv2_vqseg.core.errors import CheckpointError

    settings = METHODS[name] | {"num_epochs": 1}
    trained = make_trainer(name, **settings)
    trained.run_training()
    final = Path(trained.output_folder) / "checkpoint_final.pth"
    continued = make_trainer(name, continue_training=True, **settings | changed | {"num_epochs": 2})
    with pytest.raises(
        CheckpointError, match=f"was trained with {next(iter(changed))} \\d+, now .*; set the old value"
    ):
        continued.load_checkpoint(str(final))
    validated = make_trainer(name, **settings | changed)  # as --val does
    validated.load_checkpoint(str(final))
    saved = torch.load(final, weights_only=True)["network_weights"]
    assert_same(saved, dict(validated.method.predictor().state_dict()))
    validated.perform_actual_validation()
    assert (Path(trained.output_folder) / "validation" / "summary.json").is_file()


def assert_predicts_strictly(trainer: Any, side: int) -> None:
    """nnU-Net's predictor loads the final checkpoint strictly and gives what the trained network gives."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0], strict=True)
    image = torch.randn(1, 1, side, side)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        expected = trainer.method.predictor().eval()(image)
        torch.testing.assert_close(predictor.network.eval()(image), expected, rtol=0, atol=0)


def comparable(file: Path) -> dict[str, Any]:
    """A checkpoint without what differs between two trainings that are the same."""
    saved = torch.load(file, weights_only=True)
    for key in ("logging", "init_args", "_best_ema"):  # times of day, and a number that was read as another kind
        saved.pop(key)
    for key in ("runtime", "foundation_model"):
        saved["vqseg"].pop(key, None)
    for key, values in list(saved["vqseg"]["curves"].items()):  # NaN is not NaN
        saved["vqseg"]["curves"][key] = torch.tensor(values).nan_to_num(-1.0)
    return saved


def keep_the_middle(trainer: Any, file: Path) -> None:
    """Copy the checkpoint that a training writes after two epochs, before a later one replaces it."""
    save = trainer.save_checkpoint

    def save_and_copy(filename: str) -> None:
        save(filename)
        if trainer.current_epoch == 1 and filename.endswith("latest.pth"):
            shutil.copy(filename, file)

    trainer.save_checkpoint = save_and_copy


@pytest.fixture(scope="module")
def on_two_processes(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what two processes have seen and become, of all methods."""
    from real_training import finish, kill_all, start_ranks, steps_of_methods, write_plan

    folder = tmp_path_factory.mktemp("ranks")
    trainings = [write_plan(home, f"{name}Plans", trainer=name, **METHODS[name]) for name in METHODS]
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in variables(home).items():
            patch.setenv(variable, value)
        try:
            processes = start_ranks(steps_of_methods, str(folder), *trainings, world=2, log=folder / "log")
            codes = finish(processes, seconds=600)
        finally:
            kill_all()
    if codes != [0, 0]:
        print(*((folder / f"log.{rank}").read_text(encoding="utf-8")[-3000:] for rank in range(2)))
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_equal_on_two_processes_after_different_images(on_two_processes, name):
    first, second = (torch.load(on_two_processes / f"{name}.{rank}.pt", weights_only=True) for rank in range(2))
    assert not set(first.pop("seen")) & set(second.pop("seen")), "the processes must have had different images"
    assert_same(first, second)
