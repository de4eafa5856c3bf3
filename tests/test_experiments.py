"""The experiments' files: every run must be one that its trainer accepts, before hours are spent on the first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nnunetv2_vqseg.config import VQSegConfig
from nnunetv2_vqseg.training import variants

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import run_experiment as runner  # noqa: E402

NAMES = sorted(file.stem for file in (SCRIPTS / "experiments").glob("*.yaml") if file.stem != "profiles")


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
@pytest.mark.parametrize("name", NAMES)
def test_every_run_is_accepted_by_its_trainer(name: str, profile: str) -> None:
    _, settings, runs = runner.read_experiment(name, profile)
    assert runs
    for run in runs:
        for training in runner.trainings_of(run, settings, [0]):
            trainer = getattr(variants, run.trainer)
            config = getattr(trainer, "default_config", VQSegConfig.default)()
            config.override(training.block, getattr(trainer, "locked", frozenset()))


def test_a_configuration_is_named_by_its_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "results")
    profile = {"settings": {"num_epochs": 2}}
    run, same, other = (
        runner.Run(name, "nnUNetTrainerVQSeg", 3, settings=settings)
        for name, settings in (("a", {"epsilon": 0.3}), ("b", {"epsilon": 0.3}), ("c", {"epsilon": 0.5}))
    )
    first, second = runner.trainings_of(run, profile, [0, 1])
    assert first.folder == runner.trainings_of(same, profile, [0])[0].folder
    assert first.folder not in (second.folder, runner.trainings_of(other, profile, [0])[0].folder)


def test_a_training_with_other_defaults_is_not_taken_for_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "results")
    run = runner.Run("a", "nnUNetTrainerVQSegQPM", 3, settings={"epsilon": 0.3})
    training = runner.trainings_of(run, {"settings": {}}, [0])[0]
    trained_with = variants.nnUNetTrainerVQSegQPM.default_config().override(training.block).as_dict()
    runner.check_defaults(training, trained_with)
    runner.check_defaults(training, {})
    with pytest.raises(runner.ExperimentError, match=r"other defaults \(commitment 9.0, now 0.25\)"):
        runner.check_defaults(training, trained_with | {"commitment": 9.0})
    with pytest.raises(runner.ExperimentError, match="perturbed_view 'weak', now 'strong'"):
        runner.check_defaults(training, trained_with | {"perturbed_view": "weak"})


def test_a_default_of_what_a_training_does_without_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "results")
    training = runner.trainings_of(runner.Run("a", "nnUNetTrainerMeanTeacher", 3), {"settings": {}}, [0])[0]
    trained_with = variants.nnUNetTrainerMeanTeacher.default_config().override(training.block).as_dict()
    runner.check_defaults(training, trained_with | {"perturbed_view": "weak"})


def test_rows_are_compared_over_the_seeds_that_both_have() -> None:
    def scores(dice: dict[str, float]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        row = {"Jaccard": 0.5, "HD95": 1.0, "ASD": 1.0, "n_pred": 5, "n_ref": 5}
        return {
            seed: {f"patient00{patient}_frame01": {"1": row | {"Dice": value + patient / 100}} for patient in range(5)}
            for seed, value in dice.items()
        }

    baseline = scores({"0": 0.5, "1": 0.9})
    test = runner._test_shared_seeds(baseline, scores({"0": 0.6, "2": 0.1}), ["1"])
    assert test is not None
    assert test["difference"] == pytest.approx(0.1)
    assert test["n"] == 5
    assert runner._test_shared_seeds(baseline, scores({"2": 0.6}), ["1"]) is None


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(runner.ExperimentError, match=r"no experiment 'tabel2'; there are .*modules"):
        runner.read_experiment("tabel2", "cpu")
    with pytest.raises(runner.ExperimentError, match="no profile 'tpu'; there are cpu, gpu"):
        runner.read_experiment("modules", "tpu")


def test_page_keeps_what_was_written_around_the_results(tmp_path: Path) -> None:
    page = tmp_path / "modules-cpu.md"
    experiment = {"title": "Modules", "question": "Which?"}
    runner.write_page(page, experiment, "modules", "cpu", ["first table"])
    page.write_text(page.read_text(encoding="utf-8") + "\nWhat we read from it.\n", encoding="utf-8")
    runner.write_page(page, experiment, "modules", "cpu", ["second table"])
    text = page.read_text(encoding="utf-8")
    assert "first table" not in text
    assert text.index("Which?") < text.index("second table") < text.index("What we read from it.")
