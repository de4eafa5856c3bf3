"""The experiment runner's trainings: a kill at any time loses nothing, and no folder is trained in twice at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_world import (
    ROOT,
    VARIABLES,
    add_scores,
    record_of,
    runner,
    starts_of,
    use_fake_trainer,
    wait_for,
)

SETTINGS = {"num_epochs": 2}


def training_of(seed: int = 0) -> runner.Training:
    return runner.Training(runner.Run("a", "nnUNetTrainerMeanTeacher", 3, settings=SETTINGS), seed)


def experiment_arguments(home: Path) -> list[str]:
    names = ["stock nnU-Net", "mean teacher"]
    where = ["--home", str(home), "--results", str(home / "results")]
    return ["modules", *where, "--only", *names, "--seeds", "0", "--jobs", "2"]


def trainings_of_modules() -> list[runner.Training]:
    runs = runner.select(runner.read_experiment("modules", "cpu").runs, ["stock nnU-Net", "mean teacher"], None)
    return [runner.Training(run, 0) for run in runs]


def signal_once_ready(number: signal.Signals, trainings: list[runner.Training]) -> threading.Thread:
    def send() -> None:
        for training in trainings:
            wait_for(training.fold / "ready")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def give_scores(monkeypatch: pytest.MonkeyPatch, *splits: str) -> None:
    """Let every training that has ended have scores, which are computed of predictions elsewhere."""
    gather = runner.gather

    def with_scores(trainings: Iterable[runner.Training], *others: Any, **named: Any) -> Any:
        trainings = list(trainings)
        for training in trainings:
            if training.done:
                add_scores(training, 0.5, splits)
        return gather(trainings, *others, **named)

    monkeypatch.setattr(runner, "gather", with_scores)


def name_classes(home: Path, training: runner.Training) -> None:
    raw = home / "nnUNet_raw" / training.dataset
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "RV": 1, "LV": 2}}), encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_trainings_save_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    use_fake_trainer(tmp_path, monkeypatch, "slow")
    trainings = trainings_of_modules()
    thread = signal_once_ready(number, trainings)
    with pytest.raises(SystemExit) as stopped:
        runner.main(experiment_arguments(tmp_path))
    thread.join()
    assert stopped.value.code == 75
    assert "2 of 2 trainings still to do" in capfd.readouterr().out
    for training in trainings:
        assert (training.fold / "checkpoint_latest.pth").read_text() == "saved"
        assert record_of(training)["exit_code"] is None
        assert not training.done

    name_classes(tmp_path, trainings[0])
    give_scores(monkeypatch, "val")
    before = [record_of(training)["seconds"] for training in trainings]
    runner.main(experiment_arguments(tmp_path))
    for training, seconds in zip(trainings, before, strict=True):
        first, second = starts_of(training)
        assert not first.endswith("--c")
        assert second.endswith("--c")
        assert record_of(training)["seconds"] > seconds
        assert record_of(training)["exit_code"] == 0
    assert "| 3 | mean teacher | 0.515 |" in (tmp_path / "results" / "modules-cpu.md").read_text(encoding="utf-8")


def test_a_result_is_kept_when_its_training_ends_and_the_training_is_not_repeated_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = trainings_of_modules()
    homes = [tmp_path / name for name in ("here", "there")]
    arguments = [[*experiment_arguments(home), "--results", str(tmp_path / "results")] for home in homes]
    for home in homes:
        home.mkdir()
        name_classes(home, first)
    use_fake_trainer(homes[0], monkeypatch)
    give_scores(monkeypatch, "val")
    kept = [runner.kept_file(tmp_path / "results" / "trainings" / "cpu", training) for training in (first, second)]
    there_before = []
    train = runner.train

    def noting(training: runner.Training, *others: Any) -> str:
        there_before.append(kept[0].is_file())
        return train(training, *others)

    monkeypatch.setattr(runner, "train", noting)
    runner.main([*arguments[0], "--jobs", "1"])
    assert there_before == [False, True]
    assert kept[1].is_file()

    use_fake_trainer(homes[1], monkeypatch, "broken")
    kept[1].unlink()
    with pytest.raises(SystemExit, match="1 trainings failed: mean teacher"):
        runner.main(arguments[1])
    assert "1 of 2 trainings still to do" in capsys.readouterr().out
    assert not first.fold.exists()


def test_what_is_known_of_a_training_is_written_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch, "slow")
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_NOTES", 0.05)
    training, children = training_of(), runner.Children()
    thread = threading.Thread(target=runner.train, args=(training, "cpu", tmp_path / "log.txt", children))
    thread.start()
    wait_for(training.fold / "ready")
    wait_for(training.fold / "experiment.json")
    early = record_of(training)
    assert early["machines"] == [runner.machine("cpu")]
    assert early["machines"][0]["cores"] == os.cpu_count()
    assert early["machines"][0]["gpu"] is None
    assert len(early["commits"]) == 1
    while record_of(training)["seconds"] == early["seconds"]:
        pass
    (training.fold / "go").touch()
    thread.join()
    assert record_of(training)["exit_code"] == 0


def test_notes_that_cannot_be_written_do_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_NOTES", 0.05)
    notes: list[int] = []

    def note() -> None:
        notes.append(len(notes))
        if len(notes) == 1:
            raise OSError(28, "No space left on device")

    with (tmp_path / "lock").open("w") as lock:
        words = ["-c", "import time; time.sleep(1)"]
        assert runner.Children().run(words, lock.fileno(), note=note) == 0
    assert len(notes) > 2
    assert "could not be written ([Errno 28] No space left on device); make room." in capsys.readouterr().out


def test_a_training_that_outlives_its_runner_is_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_trainer(tmp_path, monkeypatch, "slow")
    training = training_of()
    driver = f"""
import sys
sys.path[:0] = [{str(ROOT / "scripts")!r}]
import run_experiment as runner
training = runner.Training(runner.Run("a", "nnUNetTrainerMeanTeacher", 3, settings={SETTINGS!r}), 0)
command = runner.training_command
runner.training_command = lambda t, d: [{str(tmp_path / "trainer.py")!r}, str(t.fold), "slow", *command(t, d)]
runner.train(training, "cpu", runner.Path({str(tmp_path / "log.txt")!r}), runner.Children())
"""
    environment = os.environ | {name: str(tmp_path / name) for name in VARIABLES}
    with subprocess.Popen([sys.executable, "-c", driver], env=environment) as first:
        wait_for(training.fold / "ready")
        first.kill()
    assert runner.train(training, "cpu", tmp_path / "log.txt", runner.Children()) == "elsewhere"
    assert "is left to another process, which trains in it" in capsys.readouterr().out
    (training.fold / "go").touch()
    wait_for(training.fold / "validation" / "summary.json")
    assert runner.train(training, "cpu", tmp_path / "log.txt", runner.Children()) == "done"
    assert len(starts_of(training)) == 1


def test_a_failed_training_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_trainer(tmp_path, monkeypatch, "broken")
    with pytest.raises(SystemExit) as failed:
        runner.main(experiment_arguments(tmp_path))
    message = "Error: 2 trainings failed: stock nnU-Net, 3 labelled, seed 0; mean teacher, 3 labelled, seed 0."
    assert failed.value.code == message  # Python prints it and exits with 1
    assert "FAILED (3), see" in capsys.readouterr().err
    page = (tmp_path / "results" / "modules-cpu.md").read_text(encoding="utf-8")
    assert "| 3 | mean teacher | failed (seed 0) |" in page
    not_run = next(line for line in page.splitlines() if line.startswith("Not run: "))
    assert "Base, decoder reads q(z) (3 labelled)" in not_run
    assert "mean teacher" not in not_run
    training = trainings_of_modules()[0]
    use_fake_trainer(tmp_path, monkeypatch)
    assert runner.train(training, "cpu", tmp_path / "log.txt", runner.Children()) == "done"
    assert record_of(training)["exit_code"] == 0


def test_only_one_program_prepares_data(tmp_path: Path) -> None:
    with (
        runner.lock_file(tmp_path / "experiment.lock") as first,
        runner.lock_file(tmp_path / "experiment.lock") as lock,
    ):
        assert first is not None
        assert lock is None
    with runner.lock_file(tmp_path / "experiment.lock") as lock:
        assert lock is not None


def test_data_are_prepared_once_and_own_plans_keep_their_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / name))
    calls: list[list[str]] = []

    def run(self: runner.Children, words: list[object], lock: int) -> int:
        calls.append([str(word) for word in words])
        return 0

    monkeypatch.setattr(runner.Children, "run", run)
    raw = tmp_path / "nnUNet_raw" / "Dataset503_ACDC"
    raw.mkdir(parents=True)
    (raw / "splits_final.json").write_text("[]", encoding="utf-8")
    experiment = runner.read_experiment("modules", "cpu")
    vit = runner.Run("ViT", "nnUNetTrainerSupervisedViT", 3, "nnUNetViTPlans")
    runs = [vit, *runner.select(experiment.runs, ["stock nnU-Net", "stock nnU-Net, own plan"], None)]
    for run_of_two in runs:
        plan = tmp_path / "nnUNet_preprocessed" / "Dataset503_ACDC" / f"{run_of_two.plans}.json"
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text('{"configurations": {}}', encoding="utf-8")
    trainings = [runner.Training(run_of_two, seed) for run_of_two in runs for seed in (0, 1)]
    for _ in range(2):
        runner.prepare_all(trainings, None, experiment, tmp_path, runner.Children())
    of_vit, ours, own = (call for call in calls if call[0].endswith("small_plan.py"))
    assert "--batch-size" in ours
    assert "--batch-size" in of_vit
    planned = [call for call in calls if "--no_pp" in call]
    assert [call[-2:] == ["-pl", "nnUNetPlannerViT"] for call in planned] == [True, False, False]
    assert "--batch-size" not in own
    assert ours[ours.index("--patch") :][:2] == own[own.index("--patch") :][:2] == ["--patch", "80"]
    assert len(calls) == 9
    (planning,) = (call for call in calls if "plan_and_preprocess_entry as main" in call[1])
    assert planning[1].startswith("import os; os.environ['nnUNet_n_proc_DA'] = '1'; "), "nnU-Net's planner fails at 0"
    configurations = json.loads(plan.read_text(encoding="utf-8"))["configurations"]
    assert configurations["2d_39804443"]["vqseg"]["seed"] == 0
    assert len(configurations) == 2


def test_each_dataset_has_its_converter(tmp_path: Path) -> None:
    def words(dataset: str, labeled: int) -> list[str]:
        script, *rest = runner.conversion(runner.Run("a", "nnUNetTrainer", labeled, dataset=dataset), tmp_path)
        return [script.name, *map(str, rest[2:])]

    protocol = ["--protocol", str(ROOT / "dataset_conversion" / "acdc_protocol")]
    assert words("acdc", 7) == ["Dataset027_ACDC.py", "-d", "507", *protocol, "--labeled", "7"]
    patients = ["--labeled-list", str(ROOT / "scripts" / "experiments" / "labeled" / "acdc-b.txt")]
    assert words("acdc-b", 3) == ["Dataset027_ACDC.py", "-d", "513", *protocol, *patients]
    assert words("acdc", 70) == ["Dataset027_ACDC.py", "-d", "570", *protocol]
    assert words("lung", 5) == ["DatasetXXX_LC.py", "-d", "605", "--name", "Lung", "--labeled-percent", "5"]
    (tmp_path / "imagesTr").mkdir()
    assert words("lung", 10) == ["DatasetXXX_MSD_Lung.py", "-d", "610", "--labeled-percent", "10"]


def test_unknown_runs_are_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="--only base: this profile of the experiment has only stock nnU-Net"):
        runner.main(["modules", "--home", str(tmp_path), "--only", "base"])


def test_what_cannot_be_run_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="has no run on this profile; give another one with --profile"):
        runner.main(["budget", "--profile", "gpu", "--home", str(tmp_path), "--results", str(tmp_path / "results")])
    with pytest.raises(SystemExit):
        runner.main(["budget", "--jobs", "0"])
    assert "--jobs 0: give the number of trainings at a time, 1 or more." in capsys.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        children = runner.Children()
        with children.handling_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not children.stopping.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert children.stopping.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_scoring_has_as_many_threads_as_the_profile_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads beside a training on two cores wait for each other at every layer."""
    use_fake_trainer(tmp_path, monkeypatch)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        runner.main([*experiment_arguments(tmp_path), "--report-only"])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_damaged_file_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    training = trainings_of_modules()[0]
    training.fold.mkdir(parents=True)
    (training.fold / "experiment.json").write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"Error: .*experiment\.json"):
        runner.main([*experiment_arguments(tmp_path), "--report-only"])
