"""Whole tiny trainings give the weights that they gave before, to the last bit on a machine of the same kind.

`golden.json` was written by the code as it was before trainer, methods and networks were taken apart:

    VQSEG_WRITE_GOLDEN=1 python -m pytest tests/training/test_golden.py

Write it anew only with a change that is meant to change a training, and say so in the CHANGELOG. It has the bits of the
machines that it was written on; `VQSEG_WRITE_GOLDEN=machine`, on a commit that is known to be good, adds those of one
more. `models_0_1_0.zip` holds models that version 0.1.0 (84b99a8) trained for one epoch of two; what became of them is
in `golden.json` too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_trainings import TINY

from nnunetv2_vqseg.methods.vqseg import PAPER

pytestmark = pytest.mark.slow

FILE = Path(__file__).with_name("golden.json")
WRITES = os.environ.get("VQSEG_WRITE_GOLDEN")
LITERAL = {key: value for key, value in PAPER.items() if key not in TINY}
BEFORE_RECIPE = {
    "ema_decay": 0.996,
    "weight_decay": None,
    "lambda_u": 0.3,
    "ramp_up": 0.8,
    "pseudo_loss": "ce_dice",
    "cutmix_probability": 0.5,
    "cutmix_area": [0.02, 0.4],
    "cutmix_aspect": [0.3, 1 / 0.3],
}
"""What else the trainers had by default when these trainings were recorded."""
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "VQ-Seg": ("nnUNetTrainerVQSeg", {}),
    "VQ-Seg with heads": ("nnUNetTrainerVQSegQPMDB", {"strong_view": True}),
    "VQ-Seg with restarts": (
        "nnUNetTrainerVQSeg",
        {"qpm": "literal", "restart_after": 2, "restart_every": 1, "num_codes": 512},
    ),
    "VQ-Seg base": ("nnUNetTrainerVQSegBase", {}),
    "VQ-Seg of the paper": ("nnUNetTrainerVQSeg", {**LITERAL, "confidence_threshold": 0.0}),
    "mean teacher": ("nnUNetTrainerMeanTeacher", {}),
    "mean teacher with dropout": ("nnUNetTrainerMeanTeacherDropout", {}),
    "supervised": ("nnUNetTrainerSupervised", {}),
    "supervised with EMA": ("nnUNetTrainerSupervisedEMA", {}),
    "supervised with VQ": ("nnUNetTrainerSupervisedVQ", {}),
}
OLD_MODELS = ("nnUNetTrainerVQSeg", "nnUNetTrainerMeanTeacher", "nnUNetTrainerSupervised")
# Float sums in another order, as another processor or version adds them up.
ELSEWHERE = 2e-3


def machine() -> str:
    """What decides the bits: the processor and the versions of what computes."""
    names = ("torch", "numpy", "scipy", "nnunetv2", "batchgeneratorsv2", "dynamic_network_architectures")
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    processor = [
        re.findall(rf"^{key}\s*:\s*(.*)$", about, re.MULTILINE)[:1] for key in ("cpu family", "model", "flags")
    ]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([*versions, hashlib.sha256(str(processor).encode()).hexdigest()[:12]])


def summary(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The bits of a state, and the norms of its parts for where bits differ."""
    digest, squares = hashlib.sha256(), defaultdict(float)
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(name.encode() + values.numpy().tobytes())
        squares[".".join(name.split(".")[:2])] += float(values.double().square().sum())
    return {"sha256": digest.hexdigest(), "norms": {part: square**0.5 for part, square in squares.items()}}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


@pytest.fixture(autouse=True)
def _plain_and_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, no plots, and no blur, which picks its algorithm by timing as no two runs do alike."""
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from nnunetv2_vqseg.trainer.curves import EpochCurves
    from nnunetv2_vqseg.trainer.trainer import MethodTrainer

    monkeypatch.setattr(GaussianBlurTransform, "_apply_to_image", lambda self, image, **_: image)
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, output_folder: None)
    monkeypatch.setattr(EpochCurves, "plot", lambda self, filename: None)
    monkeypatch.setattr(MethodTrainer, "_draw_preview", lambda self: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def what_became(trainer: Any) -> dict[str, Any]:
    """Of a training that was run to its end."""
    checkpoint = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    return {
        "predicted": summary(checkpoint["network_weights"]),
        "trained": summary(trainer.network.state_dict()),
        "losses": np.asarray(checkpoint["logging"]["train_losses"], float).tolist(),
    }


def assert_as_before(found: dict[str, Any], golden: dict[str, Any], name: str) -> None:
    expected = golden[name]
    for kind in ("predicted", "trained"):
        norms = found[kind]["norms"]
        assert norms.keys() == expected[kind]["norms"].keys()
        assert norms == pytest.approx(expected[kind]["norms"], rel=ELSEWHERE, abs=1e-6), kind
    assert found["losses"] == pytest.approx(expected["losses"], rel=ELSEWHERE)
    bits = golden["bits"].get(machine(), {}).get(name)
    if bits is None:
        warnings.warn(f"golden.json has no bits of {machine()}: compared to {ELSEWHERE} only", stacklevel=2)
    else:
        assert {kind: found[kind]["sha256"] for kind in bits} == bits


def remember(found: dict[str, Any], golden: dict[str, Any], name: str) -> None:
    if WRITES == "machine":
        assert_as_before(found, golden, name)
    else:
        bits = golden.get("bits", {})
        for other in bits.keys() - {machine()}:
            del bits[other]  # as the trainings were
        golden[name] = {
            key: {"norms": value["norms"]} if isinstance(value, dict) else value for key, value in found.items()
        }
    own = golden.setdefault("bits", {}).setdefault(machine(), {})
    own[name] = {kind: found[kind]["sha256"] for kind in ("predicted", "trained")}
    FILE.write_text(json.dumps(golden, indent=1), encoding="utf-8")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_gives_the_weights_it_gave_before(make_trainer, golden, name):
    trainer_name, block = TRAININGS[name]
    trainer = make_trainer(trainer_name, **BEFORE_RECIPE | block)
    trainer.run_training()
    (remember if WRITES else assert_as_before)(what_became(trainer), golden, name)


@pytest.mark.parametrize("name", OLD_MODELS)
def test_a_model_of_0_1_0_predicts_and_is_continued_as_by_itself(make_trainer, golden, tmp_path, name):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with zipfile.ZipFile(Path(__file__).with_name("models_0_1_0.zip")) as models:
        models.extractall(tmp_path, [file for file in models.namelist() if file.startswith(f"{name}/")])
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(tmp_path / name), (0,), "checkpoint_latest.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    with torch.no_grad():
        logits = predictor.network.eval()(torch.linspace(-1, 1, 32 * 32).view(1, 1, 32, 32))
    resumed = make_trainer(name, continue_training=True, **BEFORE_RECIPE)
    resumed.load_checkpoint(str(tmp_path / name / "fold_0" / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1
    resumed.run_training()
    found = what_became(resumed) | {"logits": float(logits.double().norm())}
    key = f"{name} of 0.1.0, continued"
    if WRITES:
        return remember(found, golden, key)
    assert_as_before(found, golden, key)
    assert found["logits"] == pytest.approx(golden[key]["logits"], rel=1e-5)
