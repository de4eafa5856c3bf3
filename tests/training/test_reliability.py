"""A training that is killed, stopped or short of disk space loses at most the epoch it is in."""

from __future__ import annotations

import contextlib
import errno
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_vqseg.core.errors import CheckpointError
from nnunetv2_vqseg.trainer.checkpoint_files import save_atomically
from nnunetv2_vqseg.trainer.stopping import EXIT_INTERRUPTED

pytestmark = pytest.mark.slow

STEPS = 3  # an epoch, as in the fixture's plan


@pytest.fixture(autouse=True)
def _no_training_outlives_its_test() -> Iterator[None]:
    yield
    from real_training import kill_all

    kill_all()


def wait_for(text: str, log: Path, process: Any, seconds: float = 300) -> bool:
    """Until the log has a line that ends in `text`; False if the process ends before."""
    deadline = time.monotonic() + seconds
    while not re.search(rf"{text} *$", log.read_text(encoding="utf-8") if log.exists() else "", re.MULTILINE):
        assert time.monotonic() < deadline, f"{log} never said {text}"
        if not process.is_alive():
            return False
        time.sleep(0.02)
    return True


def assert_complete(folder: Path, epochs: int, steps: int | None = None) -> None:
    """The final checkpoint is there, and neither its curves nor the log files lack an epoch or have one twice."""
    saved = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert not (folder / "checkpoint_latest.pth").exists()
    assert list(folder.glob(".*.tmp")) == []
    assert saved["current_epoch"] == epochs
    assert {name: len(values) for name, values in saved["logging"].items()} == dict.fromkeys(saved["logging"], epochs)
    starts = saved["logging"]["epoch_start_timestamps"]
    assert starts == sorted(set(starts))
    curves = saved["vqseg"]["curves"]
    assert {len(values) for values in curves.values()} == {epochs}
    assert all(math.isfinite(value) for name in ("loss", "utilization") for value in curves[name])
    logs = "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("training_log_*.txt")))
    assert sorted({int(number) for number in re.findall(r": Epoch (\d+) *$", logs, re.MULTILINE)}) == [*range(epochs)]
    if steps is not None:
        assert saved["vqseg"]["step"] == steps


@pytest.mark.parametrize("kills", [2, pytest.param(19, marks=pytest.mark.nightly)])
def test_training_killed_at_random_moments_is_continued_to_its_end(home, results, tmp_path, kills: int) -> None:
    from real_training import finish, fold_folder, nnunet_train, start, write_plan

    epochs = 5 + 3 * kills
    arguments = write_plan(home, "KilledPlans", num_epochs=epochs)
    folder = fold_folder(home, "KilledPlans")

    log = tmp_path / "in_write"
    process = start(nnunet_train, *arguments, log=log, environment={"KILL_IN_WRITE": "4"})
    assert finish([process]) == [-signal.SIGKILL]
    (half,) = folder.glob(".*.tmp")
    with pytest.raises(RuntimeError):
        torch.load(half, weights_only=True)
    good = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    assert good["current_epoch"] in (1, 2)
    epoch = good["logging"]["epoch_end_timestamps"][0] - good["logging"]["epoch_start_timestamps"][0]

    moments = random.Random(kills)
    for number in range(kills):
        log = tmp_path / str(number)
        process = start(nnunet_train, *arguments, "--c", log=log)
        if number % 4 != 3:  # one in four dies while it starts
            assert wait_for(r": Epoch \d+", log, process)
        time.sleep(moments.uniform(0, 2 * epoch))
        assert process.is_alive(), "the training must be long enough for all kills"
        process.kill()
        assert finish([process]) == [-signal.SIGKILL]

    assert finish([start(nnunet_train, *arguments, "--c", log=tmp_path / "last")]) == [0]
    assert_complete(folder, epochs, steps=epochs * STEPS)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a worker that its parent died")
def test_no_worker_outlives_a_training_that_is_killed(home, results, tmp_path) -> None:
    from real_training import finish, nnunet_train, start, write_plan

    arguments = write_plan(home, "KilledPlans", num_epochs=50)
    process = start(nnunet_train, *arguments, log=tmp_path / "log", environment={"nnUNet_n_proc_DA": "2"})
    assert wait_for(": Epoch 0", tmp_path / "log", process)
    workers = children(process.pid)
    assert len(workers) == 4, "two for labelled images, one each for validation and unlabelled ones"
    process.kill()
    assert finish([process]) == [-signal.SIGKILL]
    deadline = time.monotonic() + 20
    try:
        while any(map(runs, workers)):
            assert time.monotonic() < deadline, f"{[pid for pid in workers if runs(pid)]} still run"
            time.sleep(0.1)
    finally:
        for pid in filter(runs, workers):
            os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """A dead process that nobody has asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGUSR1, 1, marks=pytest.mark.nightly),
        (signal.SIGTERM, 0),
        # A child of -num_gpus gets it when its parent dies; the trainings of these tests are children too.
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.nightly),
    ],
)
def test_signal_saves_and_stops_and_the_training_can_be_continued(
    home, results, tmp_path, number: signal.Signals, workers: int
) -> None:
    from real_training import finish, fold_folder, nnunet_train, start, write_plan

    arguments = write_plan(home, "StoppedPlans", num_epochs=3, iterations_per_epoch=20)
    folder = fold_folder(home, "StoppedPlans")
    environment = {"nnUNet_n_proc_DA": str(workers)}
    process = start(nnunet_train, *arguments, log=tmp_path / "stopped", environment=environment)
    assert wait_for(": Epoch 1", tmp_path / "stopped", process)
    loaders = children(process.pid)
    assert len(loaders) == 3 * workers
    for pid in (*loaders, process.pid):  # a cluster signals all of a job
        os.kill(pid, number)
    assert finish([process]) == [EXIT_INTERRUPTED]
    assert not any(Path(f"/proc/{pid}").exists() for pid in loaders)
    said = (tmp_path / "stopped").read_text(encoding="utf-8")
    assert re.search(r"Stopped in epoch 1: saved \S+checkpoint_latest.pth. To continue, .* --c\.", said)

    saved = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    assert saved["current_epoch"] == 1
    assert {len(values) for values in saved["logging"].values()} == {1}
    assert {len(values) for values in saved["vqseg"]["curves"].values()} == {1}
    assert 20 < saved["vqseg"]["step"] <= 40, "the steps of the unfinished epoch are not lost"

    assert finish([start(nnunet_train, *arguments, "--c", log=tmp_path / "continued")]) == [0]
    assert_complete(folder, 3)


def test_signal_that_kills_the_loaders_workers_too_still_saves(make_trainer, monkeypatch) -> None:
    """As where workers are spawned instead of forked: they know nothing of our handlers."""
    trainer = make_trainer()
    step = trainer.train_step

    def loaders_die(batch: dict) -> dict:
        if trainer.stepper.step < 4:
            return step(batch)
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("One or more background workers are no longer alive.")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(trainer, "train_step", loaders_die)
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == EXIT_INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) is before
    saved = torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=True)
    assert (saved["current_epoch"], saved["vqseg"]["step"]) == (1, 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_during_preprocessing_ends_with_the_code_and_a_line(make_trainer, monkeypatch, capfd, number) -> None:
    from nnunetv2_vqseg.trainer import cases

    trainer = make_trainer()
    monkeypatch.setattr(cases, "prepare_unlabeled_cases", lambda *_, **__: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == EXIT_INTERRUPTED
    assert signal.getsignal(number) is before
    expected = f"{number.name}: stopped; nothing was trained or saved yet; run the same command again.\n"
    assert capfd.readouterr().err.count(expected) == 1


def test_signal_during_the_final_validation_ends_it_and_its_processes(make_trainer, monkeypatch, capfd) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = make_trainer()
    trainer.initialize()
    student = {key: value.clone() for key, value in trainer.method.net.state_dict().items()}
    for parameter in trainer.method.teacher.parameters():
        parameter.add_(1)
    monkeypatch.setattr(
        nnUNetPredictor, "predict_sliding_window_return_logits", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(SystemExit) as stopped:
        trainer.perform_actual_validation()
    assert stopped.value.code == EXIT_INTERRUPTED
    assert "to repeat the validation, run the same command with --val or --c.\n" in capfd.readouterr().err
    assert multiprocessing.active_children() == []
    assert all(torch.equal(value, student[key]) for key, value in trainer.method.net.state_dict().items())


def test_signal_after_the_last_step_stops_before_the_validation(make_trainer, monkeypatch) -> None:
    trainer = make_trainer(num_epochs=1)
    end = trainer.on_train_end
    monkeypatch.setattr(trainer, "on_train_end", lambda: (os.kill(os.getpid(), signal.SIGTERM), end()))
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == EXIT_INTERRUPTED
    assert torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=True)["current_epoch"] == 1
    assert "run the same command with --val or --c." in Path(trainer.log_file).read_text(encoding="utf-8")


def test_signal_before_there_is_a_trainer_ends_the_command_with_the_code(home, results, monkeypatch, capfd) -> None:
    from real_training import write_plan

    from nnunetv2_vqseg.commands import train

    arguments = write_plan(home, "SignalPlans")
    monkeypatch.setattr(train, "get_trainer_from_args", lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR1))
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    assert stopped.value.code == EXIT_INTERRUPTED
    assert signal.getsignal(signal.SIGUSR1) is before
    assert "SIGUSR1: stopped; start the same command again, with --c if" in capfd.readouterr().err


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], bool]], None]:
    """full_disk(fails): writing a checkpoint fails where `fails(file name)` is true."""

    from nnunetv2_vqseg.trainer import checkpoints

    def install(fails: Callable[[str], bool]) -> None:
        def save(content: dict[str, Any], filename: str) -> None:
            if fails(Path(filename).name):
                raise OSError(f"Could not write {filename}: {os.strerror(errno.ENOSPC)}")
            save_atomically(content, filename)

        monkeypatch.setattr(checkpoints, "save_atomically", save)

    return install


def test_training_goes_on_while_the_disk_is_full(make_trainer, full_disk, monkeypatch) -> None:
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer = make_trainer(num_epochs=3)
    good = Path(trainer.output_folder) / "checkpoint_latest.pth"
    written: list[str] = []

    def full_after_the_first_epoch(name: str) -> bool:
        written.append(name)
        return trainer.current_epoch == 1

    full_disk(full_after_the_first_epoch)
    monkeypatch.setattr(MetaLogger, "plot_progress_png", no_space)
    monkeypatch.setattr(trainer, "_draw_preview", no_space)
    states: list[Any] = []
    begin = trainer.on_epoch_start

    def look_and_begin() -> None:
        states.append(good.exists() and torch.load(good)["current_epoch"])
        begin()

    monkeypatch.setattr(trainer, "on_epoch_start", look_and_begin)
    trainer.run_training()
    assert states == [False, 1, 1], "epoch 1 could not be saved, the checkpoint of epoch 0 is still there"
    assert "checkpoint_latest.pth" in written
    final = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == 3
    assert not good.exists(), "nnU-Net deletes it once the final one is there"
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    assert re.search(r"WARNING: Could not write \S+checkpoint_latest.pth: No space left on device; the last good", log)
    assert re.search(r"WARNING: progress.png could not be written", log)
    assert re.search(r"WARNING: progress_vqseg.png or preview.png could not be written", log)


@pytest.fixture
def small_disk(home: Path, results: Path) -> Iterator[Path]:
    """A file system of 16 MB in place of the results folder."""
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", results], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system")
    yield results
    subprocess.run(["umount", "--lazy", results], check=True)


@pytest.mark.parametrize(
    "reason", ["No space left on device", pytest.param("Read-only file system", marks=pytest.mark.nightly)]
)
def test_training_survives_a_file_system_that_takes_nothing(
    small_disk: Path, make_trainer, monkeypatch, capsys, reason: str
) -> None:
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    monkeypatch.setattr(nnUNetTrainer, "sleep", lambda seconds: None)  # between tries to write a line of the log
    trainer = make_trainer(num_epochs=3)
    latest, filler = Path(trainer.output_folder) / "checkpoint_latest.pth", small_disk / "filler"
    saved_before: list[int] = []
    begin = trainer.on_train_epoch_start

    def remount(option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", small_disk], check=True)

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(small_disk).free == 0

    full = reason.startswith("No space")

    def spoil_or_mend_and_begin() -> None:
        if trainer.current_epoch == 1:
            fill() if full else remount("ro")
        if trainer.current_epoch == 2:
            filler.unlink() if full else remount("rw")
        saved_before.append(torch.load(latest, weights_only=True)["current_epoch"] if latest.exists() else 0)
        begin()

    monkeypatch.setattr(trainer, "on_train_epoch_start", spoil_or_mend_and_begin)
    trainer.run_training()
    assert saved_before == [0, 1, 1], "epoch 1 cannot be saved, the checkpoint of epoch 0 stays good"
    final = torch.load(latest.with_name("checkpoint_final.pth"), weights_only=True)
    assert (final["current_epoch"], final["vqseg"]["step"]) == (3, 3 * STEPS)
    assert f"{reason}; the last good checkpoint is untouched" in capsys.readouterr().out


@pytest.mark.parametrize("space_returns", [True, False])
def test_final_checkpoint_waits_for_space_and_latest_stays_until_then(
    make_trainer, full_disk, monkeypatch, space_returns
) -> None:
    from nnunetv2_vqseg.trainer import checkpoints

    trainer = make_trainer()
    tries: list[str] = []

    def full(name: str) -> bool:
        tries.append(name)
        return name == "checkpoint_final.pth" and (len(tries) < 5 or not space_returns)

    full_disk(full)
    monkeypatch.setattr(checkpoints, "SECONDS_FOR_FINAL", 60.0 if space_returns else 0.2)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_TRIES", 0.05)
    folder = Path(trainer.output_folder)
    if space_returns:
        trainer.run_training()
        assert torch.load(folder / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 2
        return
    with pytest.raises(OSError, match=r"^Could not write \S+checkpoint_final.pth: .*continue with --c"):
        trainer.run_training()
    assert not (folder / "checkpoint_final.pth").exists()
    assert torch.load(folder / "checkpoint_latest.pth", weights_only=True)["current_epoch"] == 1
    assert tries.count("checkpoint_final.pth") > 2


def test_an_error_in_validation_leaves_the_students_weights_in_the_network(make_trainer, monkeypatch) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = make_trainer()
    monkeypatch.setattr(nnUNetTrainer, "on_validation_epoch_end", lambda *_: 1 / 0)
    student: dict[str, torch.Tensor] = {}
    start = trainer.on_validation_epoch_start

    def remember() -> None:
        student.update({key: value.clone() for key, value in trainer.method.net.state_dict().items()})
        start()

    trainer.on_validation_epoch_start = remember
    with pytest.raises(ZeroDivisionError):
        trainer.run_training()
    assert list(Path(trainer.output_folder).glob("*.pth")) == []
    assert trainer.save_unfinished_epoch(f"{trainer.output_folder}/checkpoint_latest.pth")
    saved = torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=True)
    assert all(torch.equal(saved["vqseg"]["student"][key], value) for key, value in student.items())
    assert not all(
        torch.equal(saved["vqseg"]["student"][key], value) for key, value in saved["network_weights"].items()
    )


def test_continuing_prefers_the_checkpoint_written_last(make_trainer) -> None:
    """An earlier training's final checkpoint must not win over the interrupted one's latest."""
    trainer = make_trainer(num_epochs=1)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    trainer.current_epoch = 0
    assert trainer.save_unfinished_epoch(str(folder / "checkpoint_latest.pth"))
    os.utime(folder / "checkpoint_final.pth", (1, 1))

    def epoch_from(name: str, continue_training: bool) -> int:
        other = make_trainer(num_epochs=1, continue_training=continue_training)
        other.load_checkpoint(str(folder / f"checkpoint_{name}.pth"))
        return other.current_epoch

    assert epoch_from("final", continue_training=True) == 0
    assert epoch_from("final", continue_training=False) == 1, "--val means the final one"
    assert epoch_from("best", continue_training=True) == 1, "so does --val_best"


def test_continuing_prefers_the_furthest_checkpoint_of_one_training(make_trainer, trained) -> None:
    """Copying a folder may make its best checkpoint the newest file."""
    folder = trained
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    content["current_epoch"] = 1
    content["logging"] = {name: values[:1] for name, values in content["logging"].items()}

    def epoch_from(asked: str, newer: str) -> int:
        save_atomically(content, folder / "checkpoint_best.pth")
        os.utime(folder / f"checkpoint_{asked}.pth", (1, 1))
        os.utime(folder / f"checkpoint_{newer}.pth", (2, 2))
        other = make_trainer(num_epochs=2, continue_training=True)
        other.load_checkpoint(str(folder / f"checkpoint_{asked}.pth"))
        return other.current_epoch

    assert epoch_from("final", newer="best") == 2
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
    assert epoch_from("latest", newer="best") == 2
    content["logging"]["epoch_start_timestamps"] = [1.0]
    assert epoch_from("latest", newer="best") == 1, "another training's"

    # The latest is saved every few epochs, the best one may be ahead of it.
    content = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    behind = {name: values[:1] for name, values in content["logging"].items()}
    save_atomically({**content, "current_epoch": 1, "logging": behind}, folder / "checkpoint_latest.pth")
    os.utime(folder / "checkpoint_best.pth", (1, 1))
    assert epoch_from("latest", newer="latest") == 2


@pytest.mark.parametrize("name", ["nnUNetTrainerVQSeg", "nnUNetTrainerSupervised"])
def test_continuing_a_prolonged_training_keeps_its_unfinished_epoch(make_trainer, name) -> None:
    """Final and latest then name the same epochs."""
    trainer = make_trainer(name, num_epochs=1)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    content = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    if name == "nnUNetTrainerVQSeg":
        content["vqseg"]["step"] += 2
        expected = content["vqseg"]["step"]
    else:  # of a later training in the same folder
        content["logging"]["epoch_start_timestamps"] = [1.0]
    save_atomically(content, folder / "checkpoint_latest.pth")
    os.utime(folder / "checkpoint_final.pth", (1, 1))
    other = make_trainer(name, num_epochs=2, continue_training=True)
    other.load_checkpoint(str(folder / "checkpoint_final.pth"))
    if name == "nnUNetTrainerVQSeg":
        assert other.stepper.step == expected
    else:
        assert other.logger.get_checkpoint()["epoch_start_timestamps"] == [1.0]


def test_damaged_checkpoint_is_refused_by_name(make_trainer) -> None:
    trainer = make_trainer(continue_training=True)
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    save_atomically({"weights": torch.ones(100_000)}, file)
    os.truncate(file, 1000)
    with pytest.raises(RuntimeError, match=r"checkpoint_latest.pth cannot be read .*move it away"):
        trainer.load_checkpoint(str(file))


def test_checkpoint_of_another_configuration_is_refused_by_name(make_trainer) -> None:
    trainer = make_trainer()
    trainer.initialize()
    file = f"{trainer.output_folder}/checkpoint_latest.pth"
    assert trainer.save_unfinished_epoch(file)
    other = make_trainer(continue_training=True, num_codes=32)
    with pytest.raises(CheckpointError, match=rf"^{file} was trained with num_codes 64, now 32; set the old value"):
        other.load_checkpoint(file)
    damaged = torch.load(file, weights_only=True)
    del damaged["vqseg"]["student"]["quantizer.codebook"]
    with pytest.raises(CheckpointError, match=r"^This checkpoint does not fit this .* \(.*quantizer.codebook"):
        make_trainer(continue_training=True).load_checkpoint(damaged)


@pytest.mark.parametrize("had", [True, False])
def test_the_image_decoder_stays_where_training_goes_on_and_is_not_needed_to_validate(make_trainer, had: bool) -> None:
    """The default had it once."""
    trainer = make_trainer(reconstruct=had)
    trainer.initialize()
    file = f"{trainer.output_folder}/checkpoint_latest.pth"
    assert trainer.save_unfinished_epoch(file)
    with pytest.raises(CheckpointError, match=rf"was trained with reconstruct {had}, now {not had}; set the old value"):
        make_trainer(reconstruct=not had, continue_training=True).load_checkpoint(file)
    validating = make_trainer(reconstruct=not had)
    validating.load_checkpoint(file)
    saved = torch.load(file, weights_only=True)["network_weights"]
    loaded = validating.method.teacher.module.state_dict()
    assert all(torch.equal(loaded[key], weights) for key, weights in saved.items())


def test_optimiser_s_settings_are_the_plan_s_where_training_goes_on(make_trainer) -> None:
    trainer = make_trainer(optimizer="adamw", head_lr_scale=40.0)
    trainer.initialize()
    file = f"{trainer.output_folder}/checkpoint_latest.pth"
    assert trainer.save_unfinished_epoch(file)
    other = make_trainer(optimizer="adamw", head_lr_scale=10.0, continue_training=True)
    other.load_checkpoint(file)
    assert [group["lr_scale"] for group in other.optimizer.param_groups] == [1.0, 10.0]
    with pytest.raises(CheckpointError, match=r"was trained with optimizer 'adamw', now 'sgd'; set the old value"):
        make_trainer(optimizer="sgd", head_lr_scale=40.0, continue_training=True).load_checkpoint(file)
