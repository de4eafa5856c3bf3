"""`-pretrained_weights`: which checkpoints our trainers start from, and that none of them can run code."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_vqseg.modules.ema import unwrap

pytestmark = pytest.mark.slow

DATASET = "Dataset901_Phantom"
DEFAULTS = {"foundation_policy": "off", "num_epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1}


@pytest.fixture
def plan(home: Path) -> str:
    """Name of a plan whose `vqseg` block leaves the trainers' own configuration but for the length."""
    folder = home / "preprocessed" / DATASET
    content = json.loads((folder / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    content["plans_name"] = "DefaultPlans"
    content["configurations"]["2d"]["vqseg"] = DEFAULTS
    (folder / "DefaultPlans.json").write_text(json.dumps(content), encoding="utf-8")
    return "DefaultPlans"


@pytest.fixture
def new(plan: str, results: Path) -> Callable[[str], Any]:
    """new(trainer) -> one that is initialised, with the plan of `plan`."""

    def make(name: str) -> Any:
        from nnunetv2.run.run_training import get_trainer_from_args

        trainer = get_trainer_from_args("901", "2d", 0, name, plan, device=torch.device("cpu"))
        trainer.initialize()
        return trainer

    return make


@pytest.fixture(params=["nnUNetTrainer", "nnUNetTrainerVQSeg"])
def saved(request: pytest.FixtureRequest, new: Callable[[str], Any], tmp_path: Path) -> str:
    """A checkpoint of stock nnU-Net, or of a VQ-Seg trainer."""
    source = new(request.param)
    network = unwrap(source.method.student) if request.param == "nnUNetTrainerVQSeg" else source.network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    if request.param == "nnUNetTrainer":  # saves NumPy's scalars beside the weights
        source._best_ema = np.float64(0.1)
        source.logger.log("train_losses", np.float32(2.0), 0)
    else:
        source.method.teacher.module.load_state_dict(network.state_dict())
    file = tmp_path / f"{request.param}.pth"
    source.save_checkpoint(str(file))
    return str(file)


def assert_started_from(trainer: Any, file: str, fresh: dict[str, torch.Tensor]) -> None:
    """Every weight is the file's, but for the output layers and what the file does not have."""
    weights = torch.load(file, weights_only=False)["network_weights"]
    found = unwrap(trainer.method.student).state_dict()
    taken = {key for key in found if key in weights and ".seg_layers." not in key}
    assert len(taken) > 20
    for key, value in found.items():
        assert torch.equal(value, weights[key] if key in taken else fresh[key]), key


def state_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in unwrap(trainer.method.student).state_dict().items()}


@pytest.mark.parametrize(
    ("name", "heads"), [("nnUNetTrainerVQSeg", []), ("nnUNetTrainerVQSegQPMDB", ["image_decoder"])]
)
def test_trainers_start_from_stock_and_from_their_own_kind(new, saved: str, name: str, heads: list[str]) -> None:
    from nnunetv2_vqseg.trainer.pretrained import load_pretrained_weights

    trainer = new(name)
    fresh = state_of(trainer)
    load_pretrained_weights(trainer, saved)
    assert_started_from(trainer, saved, fresh)
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    missing = heads if "VQSeg" in saved else ["quantizer", *heads]
    without = f", but for what it does not have: {', '.join(missing)}" if missing else ""
    assert log.count(f"Starting from the weights of {saved}{without}.") == 1


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_numpy_1_and_2_are_read(new, saved: str, tmp_path: Path, core: str) -> None:
    """Each unpickles them with a function in a module that the other calls differently."""
    from nnunetv2_vqseg.report.training_records import read_training_record
    from nnunetv2_vqseg.trainer.pretrained import load_pretrained_weights

    other = tmp_path / "other.pth"
    named = 0
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(other, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                content, named = re.subn(rb"cnumpy\._?core\.", f"cnumpy.{core}.".encode(), content)
            target.writestr(entry.filename, content)
    assert (named > 0) == ("VQSeg" not in saved), "ours are plain"
    trainer = new("nnUNetTrainerVQSeg")
    fresh = state_of(trainer)
    load_pretrained_weights(trainer, str(other))
    assert_started_from(trainer, saved, fresh)
    assert read_training_record(other).unreadable is None


def test_converted_checkpoint_is_taken_by_nnunets_own_loader(new, plan: str, saved: str, tmp_path: Path) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights as nnunets

    from nnunetv2_vqseg.commands.convert_weights import main

    trainer_name = "nnUNetTrainerVQSegQPMDB"  # whose image decoder no file has
    trainer = new(trainer_name)
    with pytest.raises(AssertionError, match="is missing in the pretrained model"):
        nnunets(trainer.network, saved)
    fresh = state_of(trainer)
    output = tmp_path / "converted.pth"
    before = sorted(Path(trainer.output_folder).iterdir())
    arguments = ["-i", saved, "-d", "901", "-c", "2d", "-tr", trainer_name, "-p", plan, "-o", str(output)]
    main(arguments)
    assert sorted(Path(trainer.output_folder).iterdir()) == before, "results are for trainings"
    nnunets(trainer.network, str(output), verbose=False)
    fresh |= {key: value for key, value in torch.load(output)["network_weights"].items() if ".seg_layers." not in key}
    assert_started_from(trainer, saved, fresh)

    content = output.read_bytes()
    with pytest.raises(SystemExit, match=r"Error: .*converted.pth exists; give another name with -o."):
        main(arguments)
    assert output.read_bytes() == content


def test_teacher_starts_from_the_pretrained_weights_too(new, tmp_path: Path) -> None:
    """They are loaded after the teacher was made, by nnU-Net as by us."""
    trainer = new("nnUNetTrainerMeanTeacher")
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(0.01)
    trainer.on_train_start()
    trainer.stop_loaders()
    teacher = trainer.method.teacher.module.state_dict()
    assert all(torch.equal(value, teacher[key]) for key, value in unwrap(trainer.method.student).state_dict().items())


@pytest.mark.parametrize("what", ["lacks a weight", "has a wider one"])
def test_unet_that_does_not_fit_is_one_sentence(new, tmp_path: Path, what: str) -> None:
    from nnunetv2_vqseg.core.errors import CheckpointError
    from nnunetv2_vqseg.trainer.pretrained import load_pretrained_weights

    trainer = new("nnUNetTrainerVQSeg")
    before, weights = state_of(trainer), state_of(trainer)
    first = next(iter(weights))
    value = weights.pop(first)
    if what == "has a wider one":
        weights[first] = torch.cat((value, value))
    torch.save({"network_weights": weights}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"other.pth has no weights of shape .* for {first}; -pretrained"):
        load_pretrained_weights(trainer, str(tmp_path / "other.pth"))
    assert all(torch.equal(value, before[key]) for key, value in state_of(trainer).items())


class Trap:
    """Unpickled carelessly it touches a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("trap", [True, False])
def test_training_command_runs_no_code_from_the_file(plan: str, results: Path, tmp_path: Path, trap: bool) -> None:
    from nnunetv2_vqseg.commands.train import EXIT_REFUSED, main

    file, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    if trap:
        torch.save({"network_weights": {}, "logging": Trap(sprung)}, file)
        torch.load(file, weights_only=False)
        assert sprung.exists(), "the trap must work"
        sprung.unlink()
    arguments = ["901", "2d", "0", "-p", plan, "-device", "cpu", "-pretrained_weights", str(file)]
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == EXIT_REFUSED
    assert not sprung.exists()
    said = printed.getvalue().rpartition("ERROR: ")[2]
    assert ("cannot be read as a checkpoint" if trap else "cannot be opened (No such file or directory)") in said
    assert said.count("\n") == 1
