"""Trainings of a ViT with DPT, and nnU-Net's commands on them where the pretrained weights are no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_trainings import DATASET
from vit_trainings import ENCODER, PLANS, plan_vit, set_block, write_weights

from nnunetv2_vqseg.core.errors import ConfigError, FoundationModelUnavailable
from nnunetv2_vqseg.modules.foundation import FIRST_LAYER

pytestmark = pytest.mark.slow

UNET = ("nnUNetTrainerMeanTeacher", "nnUNetVQSegPlans")
Command = Callable[..., None]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    write_weights(file, half=True)
    return file


@pytest.fixture(scope="module")
def planned(home: Path, weights: Path) -> Path:
    return plan_vit(home, encoder_checkpoint=str(weights))


@pytest.fixture
def plan(planned: Path) -> Iterator[Path]:
    """The plans file, which a test may change."""
    text = planned.read_text(encoding="utf-8")
    yield planned
    planned.write_text(text, encoding="utf-8")


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """command(name, *words): run a console script of this environment in a process of its own."""
    from real_training import console_script, finish, kill_all, start

    def run(name: str, *words: str | Path) -> str:
        log = tmp_path / f"{name}.log"
        log.unlink(missing_ok=True)
        process = start(partial(console_script, name), *map(str, words), log=log, shortened=False)
        assert finish([process]) == [0], log.read_text(encoding="utf-8", errors="replace")[-3000:]
        return log.read_text(encoding="utf-8", errors="replace")

    yield run
    kill_all()


def model(which: tuple[str, str]) -> list[str]:
    return ["-tr", which[0], "-p", which[1]]


def predict(command: Command, home: Path, output: Path, which: tuple[str, str], *options: str) -> dict[str, np.ndarray]:
    images = home / "raw" / DATASET / "imagesTs"
    where = ["-d", "901", "-c", "2d", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
    command("nnUNetv2_predict", "-i", images, "-o", output, *where, *model(which), *options)
    return {file.name: sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in output.glob("*.nii.gz")}


def dice(fold: Path) -> float:
    return json.loads((fold / "validation/summary.json").read_text(encoding="utf-8"))["foreground_mean"]["Dice"]


def ensemble(*which: tuple[str, str]) -> dict:
    """nnU-Net's search for the best of these models and their ensemble; its command takes one plan for all trainers."""
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    models = tuple({"trainer": trainer, "plans": plans, "configuration": "2d"} for trainer, plans in which)
    return find_best_configuration(901, models, num_processes=1, folds=(0,), strict=True)


@pytest.mark.parametrize(
    "trainer", ["nnUNetTrainerVQSegViT", pytest.param("nnUNetTrainerMeanTeacherViT", marks=pytest.mark.nightly)]
)
def test_nnunets_commands_without_the_weights_and_with_a_unet_beside(
    command: Command, home: Path, results: Path, plan: Path, weights: Path, tmp_path: Path, trainer: str
):
    vit = (trainer, PLANS)
    own = tmp_path / "own.safetensors"
    shutil.copy(weights, own)
    set_block(plan, encoder_checkpoint=str(own), num_epochs=1)
    train = ["901", "2d", "0", "-device", "cpu"]
    log = command("nnUNetv2_train", *train, *model(vit), "--npz")
    assert f"The encoder {ENCODER} starts from weights of the file {own} (fingerprint " in log

    own.unlink()  # from here on nothing may ask for it
    fold = results / DATASET / f"{'__'.join(vit)}__2d" / "fold_0"
    (fold / "validation" / "summary.json").unlink()
    set_block(plan, num_epochs=2)
    command("nnUNetv2_train", *train, *model(vit), "--c", "--npz")
    saved = torch.load(fold / "checkpoint_final.pth", weights_only=True)["vqseg"]
    assert saved["step"] == 6
    assert saved["encoder"] in log
    scored = dice(fold)
    shutil.rmtree(fold / "validation")
    command("nnUNetv2_train", *train, *model(vit), "--val", "--npz")
    assert dice(fold) == pytest.approx(scored, abs=1e-3)

    command("nnUNetv2_train", *train, *model(UNET), "--npz")
    command("nnUNetv2_find_best_configuration", "901", "-c", "2d", "-f", "0", "-np", "1", *model(vit))
    best = json.loads((results / DATASET / "inference_information.json").read_text(encoding="utf-8"))
    assert best["best_model_or_ensemble"]["selected_model_or_models"][0]["trainer"] == trainer
    assert set(ensemble(vit, UNET)["all_results"]) > {f"{'__'.join(which)}__2d" for which in (vit, UNET)}

    first = predict(command, home, tmp_path / "vit", vit, "--save_probabilities")
    assert len(first) == 2
    predict(command, home, tmp_path / "unet", UNET, "--save_probabilities")
    joined = tmp_path / "joined"
    command("nnUNetv2_ensemble", "-i", tmp_path / "vit", tmp_path / "unet", "-o", joined, "-np", "1")
    assert {file.name for file in joined.glob("*.nii.gz")} == first.keys()

    archive = tmp_path / "model.zip"
    command("nnUNetv2_export_model_to_zip", "-d", "901", "-o", archive, "-c", "2d", "-f", "0", *model(vit))
    shutil.rmtree(results / DATASET)
    command("nnUNetv2_install_pretrained_model_from_zip", archive)
    second = predict(command, home, tmp_path / "second", vit)
    assert second.keys() == first.keys()
    assert all(np.array_equal(second[name], first[name]) for name in first)


def vq(weights: Path) -> dict:
    return {
        "foundation_policy": "required",
        "foundation_model": ENCODER,
        "foundation_checkpoint": str(weights),
        "foundation_image_size": 64,
        "encoder_checkpoint": None,
    }


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainerVQSegViT",
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name in ("nnUNetTrainerUniMatchV2ViT", "nnUNetTrainerMeanTeacherViT", "nnUNetTrainerSupervisedViT")
        ),
    ],
)
def test_a_training_goes_on_from_its_middle_as_in_one_go_and_predicts(make_trainer, plan, weights, monkeypatch, name):
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from test_methods import assert_predicts_strictly, assert_same, comparable, keep_the_middle

    # nnU-Net's blur picks its algorithm by timing, which no two runs do alike.
    monkeypatch.setattr(GaussianBlurTransform, "_apply_to_image", lambda self, image, **_: image)
    settings = {"plans_name": PLANS, "num_epochs": 4, "save_every": 2} | (vq(weights) if "VQ" in name else {})
    settings |= {"encoder_checkpoint": str(weights)}
    whole = make_trainer(name, **settings)
    assert not whole.enable_deep_supervision
    folder = Path(whole.output_folder)
    keep_the_middle(whole, folder / "middle.pth")
    whole.run_training()
    assert [group["lr_scale"] for group in whole.optimizer.param_groups] == [1.0, 40.0]
    assert isinstance(whole.optimizer, torch.optim.AdamW)
    (folder / "checkpoint_final.pth").rename(folder / "whole.pth")
    (folder / "checkpoint_best.pth").unlink()  # newer than the middle
    nowhere = {"encoder_checkpoint": "/nowhere.pth"}
    resumed = make_trainer(name, continue_training=True, **settings | nowhere)
    resumed.load_checkpoint(str(folder / "middle.pth"))
    resumed.run_training()
    mine, theirs = (comparable(folder / file) for file in ("whole.pth", "checkpoint_final.pth"))
    for checkpoint in (mine, theirs):
        checkpoint["vqseg"]["config"].pop("encoder_checkpoint")
    assert_same(mine, theirs)

    assert_predicts_strictly(resumed, 64)


def test_the_paper_s_trainer_is_the_paper_s_network_with_its_settings(make_trainer, plan):
    trainer = make_trainer("nnUNetTrainerVQSegPaper", plans_name=PLANS, confidence_threshold=0.0)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([5e-6, 2e-4])
    assert trainer.network.stage == 3
    assert trainer.network.quantizer.code_dim == 64, "codes have the width of the features"
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert np.isfinite(loss)
    trainer.stop_loaders()
    by_default = make_trainer("nnUNetTrainerVQSegViT", plans_name=PLANS)
    assert (by_default.config.decoder_input, by_default.config.initial_lr) == ("quantized", 5e-6)


def test_a_model_that_the_paper_s_trainer_made_of_a_unet_predicts_and_validates_as_before(make_trainer, home):
    """Its plan has no ViT: the settings of then on the U-Net are those of the general trainer with the paper's."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from test_golden import LITERAL

    literal = {**LITERAL, "confidence_threshold": 0.0, "num_epochs": 1}
    before = make_trainer(**literal)
    before.run_training()
    then = Path(before.output_folder_base)
    now = then.rename(then.with_name(then.name.replace("VQSeg__", "VQSegPaper__")))
    file = now / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)
    content["trainer_name"] = "nnUNetTrainerVQSegPaper"
    torch.save(content, file)

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(now), (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0], strict=True)
    validating = make_trainer("nnUNetTrainerVQSegPaper", confidence_threshold=0.0, num_epochs=1)
    validating.load_checkpoint(str(file))
    image = torch.randn(1, 1, 32, 32)
    networks = (predictor.network, validating.method.predictor(), before.method.predictor())
    validating.set_deep_supervision_enabled(False)
    with torch.no_grad():
        first, second, third = (network.eval()(image) for network in networks)
    assert torch.equal(first, third)
    assert torch.equal(second, third)
    continuing = make_trainer("nnUNetTrainerVQSegPaper", continue_training=True, confidence_threshold=0.0)
    with pytest.raises(ConfigError, match="nnUNetTrainerVQSegPaper trains a ViT, and nnUNetVQSegPlans plans a U-Net"):
        continuing.load_checkpoint(str(file))


@pytest.mark.parametrize(
    ("name", "plans", "message"),
    [
        (
            "nnUNetTrainerVQSegViT",
            UNET[1],
            r"trains a ViT, and nnUNetVQSegPlans plans a U-Net; .* -d 901 -pl nnUNetPla",
        ),
        ("nnUNetTrainerBCP", PLANS, "nnUNetViTPlans plans a ViT, and nnUNetTrainerBCP trains U-Nets; use a trainer"),
    ],
)
def test_a_trainer_refuses_the_other_network(make_trainer, plan, name, plans, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(name, plans_name=plans).initialize()


def test_the_plan_s_encoder_and_the_foundation_model_may_have_one_file(make_trainer, plan, weights, offline):
    asked = {**vq(weights), "foundation_checkpoint": None, "encoder_checkpoint": str(weights)}
    trainer = make_trainer("nnUNetTrainerVQSegViT", plans_name=PLANS, **asked)
    trainer.initialize()
    foundation = trainer.method.foundation.model.state_dict()
    encoder = trainer.method.main.encoder.vit.state_dict()
    assert all(torch.equal(encoder[key], foundation[key]) for key in encoder if key not in ("pos_embed", FIRST_LAYER))


@pytest.mark.nightly
def test_a_vit_has_equal_weights_on_two_processes_after_different_images(home, results, plan, weights, tmp_path):
    from real_training import finish, kill_all, start_ranks, steps_of_methods
    from test_methods import assert_same

    set_block(plan, unlabeled_batch_size=4, **{**vq(weights), "encoder_checkpoint": str(weights)})
    name = "nnUNetTrainerVQSegViT"
    arguments = ["901", "2d", "0", "-tr", name, "-p", PLANS, "-device", "cpu"]
    try:
        codes = finish(start_ranks(steps_of_methods, str(tmp_path), arguments, world=2, log=tmp_path / "log"))
    finally:
        kill_all()
    assert codes == [0, 0], (tmp_path / "log.0").read_text(encoding="utf-8")[-3000:]
    first, second = (torch.load(tmp_path / f"{name}.{rank}.pt", weights_only=True) for rank in range(2))
    assert not set(first.pop("seen")) & set(second.pop("seen")), "the processes must have had different images"
    assert_same(first, second)


def test_missing_weights_stop_before_training_with_the_remedy(make_trainer, plan, offline):
    for file, message in (("/nowhere.pth", "does not exist"), (None, "neither in the cache")):
        trainer = make_trainer("nnUNetTrainerSupervisedViT", plans_name=PLANS, encoder_checkpoint=file)
        with pytest.raises(FoundationModelUnavailable, match=f"{message}.*give its path as encoder_checkpoint"):
            trainer.initialize()


def test_pretrained_weights_of_another_training_take_the_place_of_the_encoder_s(make_trainer, plan, tmp_path):
    from nnunetv2_vqseg.trainer.pretrained import load_pretrained_weights

    source = make_trainer("nnUNetTrainerSupervisedViT", plans_name=PLANS, encoder_weights="random")
    source.initialize()
    file = tmp_path / "source.pth"
    source.save_checkpoint(str(file))
    trainer = make_trainer("nnUNetTrainerVQSegViT", plans_name=PLANS, encoder_weights="random", seed=1)
    trainer.initialize()
    heads = trainer.network.decoder.seg_layers[0].weight.clone()
    load_pretrained_weights(trainer, str(file))
    theirs, mine = source.network.state_dict(), trainer.network.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs if ".seg_layers." not in key)
    assert torch.equal(trainer.network.decoder.seg_layers[0].weight, heads)
    assert trainer.method.state()["encoder"].startswith(f"Starting from the weights of {file}")


def test_pretrained_weights_of_another_training_need_no_weights_of_the_encoder(make_trainer, plan, tmp_path):
    from nnunetv2_vqseg.trainer.pretrained import load_pretrained_weights

    source = make_trainer("nnUNetTrainerSupervisedViT", plans_name=PLANS, encoder_weights="random")
    source.initialize()
    file = tmp_path / "source.pth"
    source.save_checkpoint(str(file))
    nowhere = str(tmp_path / "nowhere.pth")
    trainer = make_trainer("nnUNetTrainerMeanTeacherViT", plans_name=PLANS, encoder_checkpoint=nowhere, seed=1)
    load_pretrained_weights(trainer, str(file))
    theirs, mine = source.network.state_dict(), trainer.network.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs if ".seg_layers." not in key)
    assert not trainer.restores
