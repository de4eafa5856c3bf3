import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_vqseg.core.errors import ConfigError, DatasetError
from nnunetv2_vqseg.data.patients import PATIENT_PATTERN

pytestmark = pytest.mark.slow


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.plots
def test_trains_saves_the_teacher_and_predicts_what_validation_scored(make_trainer, home):
    """The whole path: train, final validation, nnUNetv2_predict from the model folder."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = make_trainer()
    trainer.run_training()
    folder = home / "results" / "Dataset901_Phantom" / "nnUNetTrainerVQSeg__nnUNetVQSegPlans__2d"
    final = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(final, weights_only=True)
    teacher = trainer.method.teacher.module.state_dict()
    assert same(checkpoint["network_weights"], teacher)
    assert not same(checkpoint["network_weights"], trainer.method.net.state_dict())
    for name in ("progress.png", "progress_vqseg.png", "preview.png"):
        assert (folder / "fold_0" / name).stat().st_size > 1000

    before = {key: value.clone() for key, value in trainer.method.net.state_dict().items()}
    trainer.perform_actual_validation()
    assert same(before, trainer.method.net.state_dict()), "validation must give the student its weights back"

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    assert not hasattr(predictor.network, "foundation_model")
    assert predictor.network.image_decoder is None
    raw = home / "raw" / "Dataset901_Phantom"
    differing = total = 0
    for case in json.loads((raw / "splits_final.json").read_text(encoding="utf-8"))[0]["val"]:
        image, properties = SimpleITKIO().read_images([str(raw / "imagesTr" / f"{case}_0000.nii.gz")])
        predicted = predictor.predict_single_npy_array(image, properties)
        validated, _ = SimpleITKIO().read_seg(str(folder / "fold_0" / "validation" / f"{case}.nii.gz"))
        differing += int((predicted != validated[0]).sum())
        total += predicted.size
    assert differing <= 1e-3 * total


def test_scans_of_a_validation_patient_that_are_trained_on_are_told(make_trainer, monkeypatch):
    from nnunetv2_vqseg.trainer import trainer as module

    asked = []
    monkeypatch.setattr(module, "shared_patients", lambda *lists: asked.append(lists) or [("P_ED", "P_ES")] * 2)
    trainer = make_trainer()
    trainer.on_train_start()
    trainer.stop_loaders()
    train, val = trainer.do_split()
    assert asked == [({*train, *trainer.unlabeled_identifiers}, val, PATIENT_PATTERN)]
    assert trainer.unlabeled_identifiers
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    assert "WARNING: The case P_ED is trained on and P_ES in the validation cases of fold 0 looks like" in log
    assert "one of 2 such patients" in log
    trainer.fold = "all"  # validates on what it trains on, and says so by its name
    trainer._tell_of_shared_patients()
    assert len(asked) == 1


def test_resumed_training_equals_one_in_one_go_bit_for_bit(make_trainer, monkeypatch):
    # nnU-Net's blur picks its algorithm by timing, which no two runs do alike.
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

    monkeypatch.setattr(GaussianBlurTransform, "_apply_to_image", lambda self, image, **_: image)
    # Codes are restarted, and the scale of the loss grows, before and after the interruption.
    plan = {"num_epochs": 4, "save_every": 2, "num_codes": 512, "restart_after": 2}

    def make(continue_training: bool = False):
        trainer = make_trainer(continue_training=continue_training, **plan)
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=5)
        return trainer

    whole = make()
    whole.run_training()
    Path(f"{whole.output_folder}/checkpoint_final.pth").rename(f"{whole.output_folder}/whole.pth")

    first = make()
    first.on_train_start()
    stop_after(first, epochs=2)
    assert first.grad_scaler.state_dict() == whole.grad_scaler.state_dict() | {"scale": 4.0, "_growth_tracker": 1}

    resumed = make(continue_training=True)
    resumed.load_checkpoint(f"{first.output_folder}/checkpoint_latest.pth")
    assert resumed.current_epoch == 2
    resumed.run_training()

    assert same(whole.method.net.state_dict(), resumed.method.net.state_dict())
    assert same(whole.method.teacher.state_dict(), resumed.method.teacher.state_dict())
    assert whole.stepper.step == resumed.stepper.step == 12
    mine, theirs = (trainer.optimizer.state_dict() for trainer in (whole, resumed))
    assert mine["param_groups"] == theirs["param_groups"]
    assert mine["state"].keys() == theirs["state"].keys() != set()
    assert all(same(mine["state"][index], theirs["state"][index]) for index in mine["state"])
    assert whole.grad_scaler.state_dict() == resumed.grad_scaler.state_dict()
    assert whole.grad_scaler.get_scale() == 8.0
    assert whole.curves.history.keys() == resumed.curves.history.keys()
    for name, values in whole.curves.history.items():
        assert values == pytest.approx(resumed.curves.history[name], rel=0, abs=0, nan_ok=True), name
    assert whole.logger.get_value("train_losses", None) == resumed.logger.get_value("train_losses", None)

    mine, theirs = (
        torch.load(f"{trainer.output_folder}/{name}.pth", weights_only=True)["vqseg"]
        for trainer, name in ((whole, "whole"), (resumed, "checkpoint_final"))
    )
    assert torch.equal(mine["quantizer"]["steps_since_use"], theirs["quantizer"]["steps_since_use"])
    for name in ("python", "torch", "numpy"):
        assert equal(mine["random_states"][name], theirs["random_states"][name]), name


def test_continuing_takes_the_optimiser_s_settings_of_now(make_trainer, trained, capsys):
    """As the log says: what changed is named as changed."""
    again = make_trainer(continue_training=True, num_epochs=8, weight_decay=0.05, momentum=0.5)
    again.load_checkpoint(str(trained / "checkpoint_final.pth"))
    assert "weight_decay 0.003, now 0.05" in capsys.readouterr().out
    assert {(group["weight_decay"], group["momentum"]) for group in again.optimizer.param_groups} == {(0.05, 0.5)}
    assert again.optimizer.state_dict()["state"], "momentum goes on"


def test_a_finished_training_goes_on_with_more_epochs(make_trainer, trained, capsys):
    """Rate and ramp are those of a training that had the new length from the start, at the epoch that is reached."""
    before = torch.load(trained / "checkpoint_final.pth", weights_only=True)
    longer = make_trainer(continue_training=True, num_epochs=8, ramp_up=0.8)
    longer.load_checkpoint(str(trained / "checkpoint_final.pth"))
    assert "num_epochs was 2 and is 8" in capsys.readouterr().out
    assert longer.current_epoch == 2
    assert longer.progress == pytest.approx(2 / 8)
    assert same(longer.method.teacher.state_dict(), before["vqseg"]["teacher"])
    longer.on_train_start()
    longer.on_epoch_start()
    longer.on_train_epoch_start()
    rate = longer.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-2 * (1 - 2 / 8) ** 0.9)
    assert longer.method.schedule(longer.progress)["ramp"] == pytest.approx(math.exp(-5 * (1 - 0.25 / 0.8) ** 2))
    assert longer.optimizer.state_dict()["state"], "momentum goes on"


def test_a_training_with_its_length_in_the_name_goes_on_as_the_readme_says(make_trainer):
    """README: train `_30epochs`, then raise `num_epochs` in the plan and add `--c`."""
    name = "nnUNetTrainerMeanTeacher_1epoch"
    first = make_trainer(name, num_epochs=1)
    first.run_training()
    final = Path(first.output_folder) / "checkpoint_final.pth"
    before = final.read_bytes()

    for continue_training in (False, True):  # nnU-Net starts anew with --c, too, where there is no checkpoint
        anew = make_trainer(name, num_epochs=3, continue_training=continue_training)
        with pytest.raises(
            ConfigError, match=r"for 1 epochs, .* num_epochs = 3: add --c .*-tr nnUNetTrainerMeanTeacher "
        ):
            anew.on_train_start()
    assert final.read_bytes() == before

    longer = make_trainer(name, num_epochs=3, continue_training=True)
    longer.load_checkpoint(str(final))
    assert longer.current_epoch == 1
    longer.run_training()
    done = torch.load(final, weights_only=True)
    assert done["current_epoch"] == 3
    assert done["vqseg"]["step"] == 3 * longer.num_iterations_per_epoch

    validating = make_trainer(name, num_epochs=3)
    validating.load_checkpoint(str(final))
    assert validating.only_validates


def equal(first, second) -> bool:
    """Of nested tuples of numbers and tensors."""
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def stop_after(trainer, epochs: int) -> None:
    """nnU-Net's own loop, left after some epochs as by a kill."""
    for _ in range(epochs):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(trainer.num_iterations_per_epoch)]
        trainer.on_train_epoch_end(outputs)
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            values = [
                trainer.validation_step(next(trainer.dataloader_val))
                for _ in range(trainer.num_val_iterations_per_epoch)
            ]
            trainer.on_validation_epoch_end(values)
        trainer.on_epoch_end()


def test_best_checkpoint_can_be_continued_too(make_trainer, trained):
    resumed = make_trainer(continue_training=True)
    resumed.load_checkpoint(str(trained / "checkpoint_best.pth"))
    assert 1 <= resumed.current_epoch <= 2
    resumed.on_train_start()
    resumed.on_train_epoch_start()
    loss = resumed.train_step(next(resumed.dataloader_train))["loss"]
    assert math.isfinite(loss)


def test_online_validation_scores_the_teacher(make_trainer):
    trainer = make_trainer()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(3):
        trainer.train_step(next(trainer.dataloader_train))
    student = {key: value.clone() for key, value in trainer.method.net.state_dict().items()}
    trainer.on_validation_epoch_start()
    assert same(trainer.method.net.state_dict(), trainer.method.teacher.module.state_dict())
    with pytest.raises(RuntimeError, match="Never save"):
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    batch = next(trainer.dataloader_val)
    trainer.on_validation_epoch_end([trainer.validation_step(batch)])
    assert same(trainer.method.net.state_dict(), student)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("nnUNetTrainerVQSegBase", {"pseudo_strong", "vq", "entropy"}),
        ("nnUNetTrainerVQSegQPM", {"pseudo_perturbed", "vq", "entropy", "feature"}),
        (
            "nnUNetTrainerVQSegQPMDB",
            {
                "pseudo_perturbed",
                "vq",
                "entropy",
                "feature",
                "reconstruction",
                "reconstruction_unlabeled",
            },
        ),
        ("nnUNetTrainerMeanTeacher", {"pseudo_strong"}),
        ("nnUNetTrainerMeanTeacherDropout", {"pseudo_perturbed"}),
        ("nnUNetTrainerSupervisedEMA", set()),
        ("nnUNetTrainerSupervisedVQ", {"vq", "entropy"}),
    ],
)
def test_each_variant_trains_with_its_own_terms(make_trainer, name, terms):
    trainer = make_trainer(name)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    assert all(math.isfinite(output["loss"]) for output in outputs)
    trainer.on_train_epoch_end(outputs)
    known = {
        "pseudo_strong", "pseudo_perturbed", "vq", "entropy", "reconstruction", "reconstruction_unlabeled", "alignment",
        "feature",
    }  # fmt: skip
    assert known & trainer.curves.history.keys() == terms
    assert (trainer.dataloader_unlabeled is None) == name.startswith("nnUNetTrainerSupervised")


@pytest.mark.parametrize("on_strong", [False, True])
def test_perturbed_view_is_the_weak_one_or_a_strong_one_of_its_own(make_trainer, on_strong):
    view = "strong" if on_strong else "weak"
    trainer = make_trainer(perturbed_view=view, strong_view=True, cutmix_probability=1.0)
    trainer.on_train_start()
    batch = trainer._join(next(trainer.dataloader_train), 0.5)
    views, _ = trainer.method.views(batch)
    images, labels, _, clean = views.perturbed
    assert torch.equal(images, clean) != on_strong
    assert not torch.equal(images, views.strong.images)
    # Another box than the strong view's, unless both are the same view.
    assert not torch.equal(clean, views.strong.clean)
    assert len(views.strong.images) == len(images) == len(labels)


def test_a_second_view_that_is_not_perturbed_can_be_asked_for(make_trainer):
    trainer = make_trainer("nnUNetTrainerVQSegQPM", strong_view=True)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    assert {"pseudo_perturbed", "pseudo_strong"} <= trainer.curves.history.keys()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("nnUNetTrainerVQSegBase", "perturbation", "qpm"),
        ("nnUNetTrainerVQSegBase", "decoder_input", "continuous"),
        ("nnUNetTrainerVQSegQPM", "use_unlabeled", False),
        ("nnUNetTrainerMeanTeacher", "strong_view", False),
        ("nnUNetTrainerSupervisedVQ", "quantize", False),
        ("nnUNetTrainerVQSegPaper", "perturbed_view", "strong"),
        ("nnUNetTrainerVQSegPaper", "optimizer", "sgd"),
        ("nnUNetTrainerVQSegPaper", "reconstruct", False),
    ],
)
def test_switches_that_define_a_variant_cannot_be_changed_in_the_plan(make_trainer, name, key, value):
    keys = {"confidence_threshold": 0.0} if name.endswith("Paper") else {}
    with pytest.raises(ConfigError, match=f"{key}.*defines this trainer"):
        make_trainer(name, **keys, **{key: value})


@pytest.mark.parametrize(("scheme", "relative"), [("ZScore", False), ("CT", False), ("RGBTo01", True), ("No", True)])
def test_jitter_and_reconstruction_know_whether_images_are_z_scored(make_trainer, scheme, relative):
    trainer = make_trainer()
    trainer.configuration_manager.configuration["normalization_schemes"] = [f"{scheme}Normalization"]
    trainer.initialize()
    assert trainer.method.jitter.relative == (not trainer.method.context.z_scored) == relative
    assert trainer.method.context.plan.unit_range == (scheme == "RGBTo01")


@pytest.mark.parametrize(("key", "value"), [("epsilon", 0.3), ("lambda_u", 0.3), ("lambda_a", 1.0), ("num_codes", 32)])
def test_what_tables_3_and_5_vary_is_free_in_the_paper_s_settings(make_trainer, key, value):
    trainer = make_trainer("nnUNetTrainerVQSegPaper", **{"confidence_threshold": 0.0, key: value})
    assert getattr(trainer.config, key) == value


def test_base_reads_codes_and_the_mean_teacher_features(make_trainer):
    """Otherwise both would be the same training."""
    for name, quantized in (("nnUNetTrainerVQSegBase", True), ("nnUNetTrainerMeanTeacher", False)):
        trainer = make_trainer(name)
        trainer.initialize()
        network = trainer.network.eval()
        image = torch.randn(1, 1, 32, 32)
        with torch.no_grad():
            before = network(image)
            if quantized:
                network.quantizer.codebook.add_(torch.randn_like(network.quantizer.codebook))
            changed = not all(map(torch.equal, before, network(image)))
        assert changed == quantized


def test_labels_of_a_folds_unlabelled_cases_are_never_read(home, results, plan_dataset):
    """One of the labelled patients becomes unlabelled, and its label files are no images; trained to the end."""
    from nnunetv2_vqseg.trainers import nnUNetTrainerSupervised, nnUNetTrainerVQSeg

    raw = home / "raw" / "Dataset904_Hidden"
    shutil.copytree(home / "raw" / "Dataset901_Phantom", raw)
    shutil.rmtree(raw / "imagesUl")
    fold = json.loads((raw / "splits_final.json").read_text(encoding="utf-8"))[0]
    hidden, fold["train"] = fold["train"][:2], fold["train"][2:]
    (raw / "splits_final.json").write_text(json.dumps([fold | {"unlabeled": hidden}]), encoding="utf-8")
    for case in hidden:
        (raw / "labelsTr" / f"{case}.nii.gz").write_text("garbage", encoding="utf-8")
    folder = plan_dataset(raw.name)

    def make(trainer, fold):
        plans = json.loads((folder / "nnUNetVQSegPlans.json").read_text(encoding="utf-8")) | {
            "continue_training": False
        }
        dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        return trainer(plans, "2d", fold, dataset_json, torch.device("cpu"))

    trainer = make(nnUNetTrainerVQSeg, 0)
    trainer.run_training()
    assert sorted(trainer.unlabeled_identifiers) == sorted(hidden)
    assert trainer.stepper.step == 6
    for cls in (nnUNetTrainerVQSeg, nnUNetTrainerSupervised):
        for number in ("all", 1):
            with pytest.raises(DatasetError, match=f"Fold {number} cannot be used"):
                make(cls, number).do_split()


def test_3d_configuration_is_refused_before_anything_is_written(home, results):
    from nnunetv2_vqseg.trainers import nnUNetTrainerVQSeg

    plans = json.loads((home / "preprocessed/Dataset901_Phantom/nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    plans["configurations"]["3d_fullres"] = {**plans["configurations"]["2d"], "patch_size": [8, 32, 32]}
    plans["continue_training"] = False
    with pytest.raises(NotImplementedError, match="2D configurations only"):
        nnUNetTrainerVQSeg(plans, "3d_fullres", 0, {}, torch.device("cpu"))
    assert list(results.iterdir()) == []


def test_loss_that_is_not_finite_is_skipped_counted_and_stops_training_by_name(make_trainer):
    trainer = make_trainer(max_bad_steps=2, num_epochs=1)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = {key: value.clone() for key, value in trainer.method.net.state_dict().items()}
    batch = next(trainer.dataloader_train)
    batch["data"][:] = np.nan
    trainer.train_step(batch)
    assert trainer.stepper.bad_steps == 1
    assert same(before, trainer.method.net.state_dict())
    with pytest.raises(RuntimeError, match="supervised was not finite for 2 steps in a row"):
        trainer.train_step(batch)


@pytest.mark.parametrize("scaled", [False, True])
def test_infinite_loss_with_a_finite_gradient_is_skipped_counted_and_remembered(make_trainer, scaled):
    """As the L1 of a reconstruction that overflowed has."""
    trainer = make_trainer(max_bad_steps=2, num_epochs=2, reconstruct=True)
    if scaled:
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = {key: value.clone() for key, value in trainer.method.net.state_dict().items()}
    terms = trainer.method.terms

    def overflown(*args):
        found, metrics = terms(*args)
        weight, value = found["reconstruction"]
        return found | {"reconstruction": (weight, value + math.inf)}, metrics

    trainer.method.terms = overflown
    batch = next(trainer.dataloader_train)
    loss = trainer.train_step(batch)
    assert trainer.stepper.bad_steps == trainer.stepper.skipped_steps == 1
    assert same(before, trainer.method.net.state_dict())
    trainer.method.terms = terms
    trainer.on_train_epoch_end([loss, trainer.train_step(batch)])
    assert (trainer.stepper.bad_steps, trainer.stepper.skipped_steps) == (0, 1)
    assert not same(before, trainer.method.net.state_dict())
    assert trainer.curves.history["skipped_steps"] == [1]
    assert trainer.save_unfinished_epoch(f"{trainer.output_folder}/checkpoint_latest.pth")
    resumed = make_trainer(continue_training=True, reconstruct=True)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    assert resumed.stepper.skipped_steps == 1

    trainer.method.terms = overflown
    trainer.train_step(batch)
    with pytest.raises(RuntimeError, match="Training stopped: reconstruction was not finite for 2 steps in a row"):
        trainer.train_step(batch)


def test_unlabeled_image_that_is_not_finite_is_blamed_on_a_loss(make_trainer):
    """Of the teacher's confidence, which is not finite either, nobody has heard."""
    trainer = make_trainer(max_bad_steps=1, num_epochs=1)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    unlabeled = next(trainer.dataloader_unlabeled)
    unlabeled["data"][:] = math.nan
    trainer.dataloader_unlabeled = iter([unlabeled])
    with pytest.raises(
        RuntimeError,
        match=r"Training stopped: (pseudo_perturbed|reconstruction_unlabeled|vq|feature) was",
    ):
        trainer.train_step(next(trainer.dataloader_train))


def test_gradient_that_stays_infinite_at_any_scale_of_amp_stops_training_too(make_trainer):
    trainer = make_trainer(max_bad_steps=2, num_epochs=1)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = {key: value.clone() for key, value in trainer.method.net.state_dict().items()}
    next(trainer.network.parameters()).register_hook(lambda gradient: gradient * math.inf)
    batch = next(trainer.dataloader_train)
    for counted in (0, 0, 1):  # 4 to 2 and 2 to 1 are AMP's own search for a scale
        assert math.isfinite(trainer.train_step(batch)["loss"])
        assert trainer.stepper.bad_steps == counted
    with pytest.raises(RuntimeError, match="gradient_norm was not finite for 2 steps in a row"):
        trainer.train_step(batch)
    assert same(before, trainer.method.net.state_dict())


def test_continuing_with_other_settings_is_said_and_with_another_network_refused(make_trainer):
    trainer = make_trainer()
    trainer.on_train_start()
    stop_after(trainer, epochs=1)
    latest = f"{trainer.output_folder}/checkpoint_latest.pth"

    changed = make_trainer(continue_training=True, epsilon=0.5)
    changed.load_checkpoint(latest)
    assert "was trained with other settings: epsilon 0.7, now 0.5" in Path(changed.log_file).read_text(encoding="utf-8")
    with pytest.raises(
        RuntimeError, match="trained with decoder_input 'continuous', now 'quantized'; set the old value"
    ):
        make_trainer(continue_training=True, decoder_input="quantized").load_checkpoint(latest)


def test_saved_plan_names_the_architecture_whatever_later_defaults_are(make_trainer):
    trainer = make_trainer()
    trainer.on_train_start()
    saved = json.loads(Path(trainer.output_folder_base, "plans.json").read_text(encoding="utf-8"))
    block = saved["configurations"]["2d"]["vqseg"]
    assert {key: block[key] for key in ("decoder_input", "code_dim", "vq_stage")} == {
        "decoder_input": "continuous",
        "code_dim": 16,
        "vq_stage": "auto",
    }


def test_trainers_can_be_pickled_as_classes():
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    first = recursive_find_trainer_class_by_name("nnUNetTrainerVQSeg_5epochs")
    again = recursive_find_trainer_class_by_name("nnUNetTrainerVQSeg_5epochs")
    assert first is again
    assert pickle.loads(pickle.dumps(first)) is first
    assert first.default_config().num_epochs == 5


@pytest.mark.parametrize(("strength", "shown"), [(0.25, False), (None, True)])
def test_qpms_step_is_a_curve_where_it_is_no_constant(make_trainer, strength, shown):
    trainer = make_trainer(qpm_strength=strength)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = trainer._join(next(trainer.dataloader_train), 0.0)
    trainer.method.before_step(0.0)
    metrics = trainer.method.terms(batch, 0.0)[1]
    assert ("qpm_step" in metrics) == shown
    assert "confidence" in metrics


def test_curves_reach_nnunets_other_loggers_such_as_wandb(make_trainer):
    class Recorder:
        def __init__(self):
            self.logged = []

        def log(self, key, value, step):
            self.logged.append((key, value, step))

        def update_config(self, config):
            pass

    trainer = make_trainer(num_epochs=1)
    trainer.on_train_start()
    recorder = Recorder()
    trainer.logger.loggers.append(recorder)
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    logged = {key: (value, step) for key, value, step in recorder.logged}
    for name in ("supervised", "pseudo_perturbed", "kept_share", "utilization", "utilization_tokens", "perplexity"):
        value, step = logged[f"vqseg/{name}"]
        assert value == trainer.curves.history[name][0]
        assert step == 0


def test_raw_folder_without_images_is_none(make_trainer, tmp_path, monkeypatch):
    """On a cluster it may be there for comparisons, with dataset.json and the test cases."""
    trainer = make_trainer()
    raw = tmp_path / trainer.plans_manager.dataset_name
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for name, expected in (("", None), ("imagesTs", None), ("imagesUl", raw)):
        (raw / name).mkdir(exist_ok=True)
        assert trainer.cases.raw_folder == expected
    (raw / "imagesUl").rmdir()
    trainer.dataset_json = {**trainer.dataset_json, "dataset": {}}
    assert trainer.cases.raw_folder == raw, "its images are wherever this list says"


@pytest.mark.parametrize("name", ["nnUNetTrainerSupervised", "nnUNetTrainerMeanTeacher"])
@pytest.mark.parametrize("block", [{"code_dim": None}, {"qpm_neighbors": 16}])
def test_keys_of_what_a_trainer_does_without_do_not_stop_it(make_trainer, name, block):
    """A plan is shared by the methods that are compared."""
    make_trainer(name, **block)
    with pytest.raises(ConfigError, match="num_epochs"):
        make_trainer(name, **block, num_epochs=0)


def test_cross_entropy_without_a_labelled_pixel_is_nothing_and_else_the_mean():
    from nnunetv2_vqseg.trainer.optimizers import FullResolutionCrossEntropy

    loss = FullResolutionCrossEntropy(ignore_label=3)
    outputs = [torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 2, 2, requires_grad=True)]
    nothing = loss(outputs, [torch.full((2, 1, 4, 4), 3)])
    nothing.backward()
    assert nothing == 0
    assert not outputs[0].grad.any()
    target = torch.randint(0, 4, (2, 1, 4, 4))
    torch.testing.assert_close(
        loss(outputs, [target]), torch.nn.functional.cross_entropy(outputs[0], target[:, 0], ignore_index=3)
    )
    target = target.clamp(max=2)
    torch.testing.assert_close(
        FullResolutionCrossEntropy(None)(outputs, [target]),
        torch.nn.functional.cross_entropy(outputs[0], target[:, 0]),
    )


def test_a_stage_that_the_plan_lacks_is_named_without_a_quantiser_too(make_trainer):
    trainer = make_trainer("nnUNetTrainerMeanTeacherDropout", vq_stage=9)
    with pytest.raises(ConfigError, match=r"vqseg.vq_stage = 9 is not valid; this plan has stages 0 to"):
        trainer.initialize()


def test_cutmix_without_a_partner_is_refused_and_can_be_switched_off(make_trainer):
    trainer = make_trainer(unlabeled_batch_size=1)
    with pytest.raises(ConfigError, match=r"With 1 unlabelled images a step on 1 process.* CutMix has no partner"):
        trainer.initialize()
    make_trainer(unlabeled_batch_size=1, cutmix_probability=0).initialize()
    trainer = make_trainer(unlabeled_batch_size=2)
    trainer.ranks.world_size = 2
    with pytest.raises(ConfigError, match=r"set vqseg.unlabeled_batch_size in the plan to 4 or more"):
        trainer.initialize()


@pytest.mark.parametrize("block", [{"labeled_batch_size": None, "batch_size_range": [3, 3]}, {"labeled_batch_size": 4}])
def test_stock_nnunet_for_comparisons_has_vq_seg_s_labelled_batch(make_trainer, block):
    ours, stock = (make_trainer(name, **block) for name in ("nnUNetTrainerVQSeg", "nnUNetTrainerSupervised"))
    assert ours.labeled_batch_size == stock.labeled_batch_size == stock.configuration_manager.batch_size
    assert ours.labeled_batch_size == (3 if "batch_size_range" in block else 4)


def test_a_plan_whose_auto_stage_has_moved_is_not_continued(make_trainer):
    trainer = make_trainer(min_tokens=8)
    trainer.initialize()
    assert trainer.save_unfinished_epoch(f"{trainer.output_folder}/checkpoint_latest.pth")
    moved = make_trainer(continue_training=True, min_tokens=8)
    moved.configuration_manager.configuration["patch_size"] = [64, 64]  # stages 2 and 3 are equally wide
    with pytest.raises(RuntimeError, match=r"quantised stage 2, and 'auto' takes stage 3 .* set vqseg.vq_stage = 2"):
        moved.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")


def test_channels_whose_background_is_masked_reach_the_strong_view(make_trainer):
    trainer = make_trainer(cutmix_probability=0.0)
    trainer.configuration_manager.configuration["use_mask_for_norm"] = [True]
    trainer.initialize()
    images = torch.randn(2, 1, 32, 32) + 5.0
    images[..., 16:] = 0.0
    labels, confidence = torch.zeros(2, 32, 32, dtype=torch.int64), torch.ones(2, 32, 32)
    view = trainer.method.strong(images, labels, confidence)
    assert (view.images[..., 16:] == 0).all()
    assert not torch.equal(view.images, images)


def test_cross_entropy_divides_by_the_labelled_pixels_of_all_processes(monkeypatch):
    from nnunetv2_vqseg.trainer import optimizers

    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 1, 4, 4))
    target[0, 0, 0] = 3  # 12 of 16 pixels have a label here, 4 on the other process
    loss = optimizers.FullResolutionCrossEntropy(ignore_label=3)
    alone = loss(logits, target)
    monkeypatch.setattr(optimizers, "mean_over_processes", lambda number: (number + 4) / 2)
    torch.testing.assert_close(loss(logits, target), alone * 12 / 8)
