"""Predicts the cases of a comparison with nnU-Net's predictor, only those that are missing or out of date."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.json import read_object, write_json
from nnunetv2_vqseg.core.locks import exclusive
from nnunetv2_vqseg.report.case_files import Case
from nnunetv2_vqseg.report.trained_models import TrainedModel

RECORD_FILE = "prediction_record.json"
UNFINISHED = "unfinished"
"""Folder that the predictor writes into, so that a file outside it is a whole one."""


def predict_missing(
    model: TrainedModel, cases: dict[str, Case], output: Path, ending: str, device: str, num_processes: int
) -> dict[str, Any]:
    """Make `output/CASE.ending` for every case, as `nnUNetv2_predict` with its defaults would.

    A prediction is kept if it was made from this very checkpoint file and is newer than it and its images. Another run
    that predicts into the same folder is waited for.

    Returns:
        What `output/prediction_record.json` tells: checkpoint, device, seconds, number of cases and, on CUDA, peak
        memory of the last time that something was predicted.
    """
    if (output / UNFINISHED).exists() or _outdated(model, cases, output, ending):
        output.mkdir(parents=True, exist_ok=True)
        with exclusive(output, print, f"predicting into {output}"):
            _keep_whole_files(output / UNFINISHED, output, ending)
            if outdated := _outdated(model, cases, output, ending):
                _predict(model, outdated, output, ending, device, num_processes)
    return read_object(output / RECORD_FILE)


def _stamp(model: TrainedModel) -> dict[str, Any]:
    return {"checkpoint": str(model.checkpoint), "modified_ns": model.checkpoint.stat().st_mtime_ns}


def _is_of_checkpoint(model: TrainedModel, output: Path) -> bool:
    return _stamp(model).items() <= read_object(output / RECORD_FILE).items()


def _outdated(model: TrainedModel, cases: dict[str, Case], output: Path, ending: str) -> dict[str, Case]:
    """The cases without a prediction that can be kept."""
    if not _is_of_checkpoint(model, output):
        return dict(cases)
    return {
        case: files
        for case, files in cases.items()
        if not _is_newer(output / f"{case}{ending}", (model.checkpoint, *files.images))
    }


def _predict(
    model: TrainedModel, outdated: dict[str, Case], output: Path, ending: str, device: str, num_processes: int
) -> None:
    """Replace these cases' predictions, and all others that another checkpoint made."""
    stamp, unfinished = _stamp(model), output / UNFINISHED
    others = [] if _is_of_checkpoint(model, output) else list(output.glob(f"*{ending}"))
    for file in [*others, *(output / f"{case}{ending}" for case in outdated)]:
        file.unlink(missing_ok=True)
    # the stamp first: a run that is killed while predicting continues where it was
    write_json(stamp, output / RECORD_FILE)
    unfinished.mkdir()
    started = time.perf_counter()
    peak = run_predictor(model, outdated, unfinished, device, num_processes)
    for file in list(unfinished.iterdir()):
        file.replace(output / file.name)
    unfinished.rmdir()
    about = {
        "device": device,
        "seconds": time.perf_counter() - started,
        "n_cases": len(outdated),
        "peak_cuda_memory_bytes": peak,
    }
    write_json(stamp | about, output / RECORD_FILE)


def run_predictor(
    model: TrainedModel, cases: dict[str, Case], output: Path, device: str, num_processes: int
) -> int | None:
    """nnU-Net's predictor on some cases; 0 or 1 processes: without worker processes.

    Returns:
        Peak CUDA memory in bytes, None on other devices.
    """
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    target = torch.device(device)
    if target.type == "cuda":
        torch.cuda.init()  # without which there are no statistics to reset
        torch.cuda.reset_peak_memory_stats(target)
    predictor = nnUNetPredictor(device=target)
    predictor.initialize_from_trained_model_folder(str(model.folder), (model.fold,), model.checkpoint_name)
    images = [[str(image) for image in files.images] for files in cases.values()]
    targets = [str(output / case) for case in cases]
    if num_processes <= 1:
        predictor.predict_from_files_sequential(images, targets)
    else:
        predictor.predict_from_files(
            images, targets, num_processes_preprocessing=num_processes // 2, num_processes_segmentation_export=1
        )
    return torch.cuda.max_memory_allocated(target) if target.type == "cuda" else None


def _keep_whole_files(unfinished: Path, output: Path, ending: str) -> None:
    """Take over what a killed run left, but for the newest file: they are written one by one, the last is cut off.

    Beside a TIFF nnU-Net writes its spacing into CASE.json.
    """
    times = {file: file.stat().st_mtime_ns for file in unfinished.glob(f"*{ending}")}
    for file, written in times.items():
        if written < max(times.values()):
            spacing = file.with_name(f"{file.name.removesuffix(ending)}.json")
            if spacing.is_file():
                spacing.replace(output / spacing.name)
            file.replace(output / file.name)
    shutil.rmtree(unfinished, ignore_errors=True)


def _is_newer(prediction: Path, sources: tuple[Path, ...]) -> bool:
    if not prediction.is_file():
        return False
    made = prediction.stat().st_mtime_ns
    return all(made >= source.stat().st_mtime_ns for source in sources)
