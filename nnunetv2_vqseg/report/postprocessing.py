"""nnU-Net's postprocessing in a comparison: each training's predictions with the steps its validation cases ask for.

nnU-Net's `determine_postprocessing` starts a pool of processes for each of its questions and waits for ever where one
is killed. Here is its rule alone, on nnU-Net's own functions; a test compares both.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_vqseg.core.files import replace_bytes
from nnunetv2_vqseg.core.json import read_json, read_object, write_json
from nnunetv2_vqseg.core.locks import exclusive
from nnunetv2_vqseg.core.pools import Workers, workers
from nnunetv2_vqseg.report.classes import EvaluationClasses
from nnunetv2_vqseg.report.prediction import UNFINISHED
from nnunetv2_vqseg.report.scoring import FEWER_PROCESSES, ScoreSettings, read_pair, results
from nnunetv2_vqseg.report.statistics import mean_of, without_nan
from nnunetv2_vqseg.report.trained_models import TrainedModel
from nnunetv2_vqseg.report.volumes import Reader

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

RECORD_FILE = "record.json"
PICKLE = "postprocessing.pkl"
"""For `nnUNetv2_apply_postprocessing`."""
NO_STEPS = "none"

Labels = int | list[Any]
"""A label, a region's labels, or a list of such: what of a segmentation a step looks at."""


@dataclass(frozen=True)
class Postprocessing:
    """What was chosen for a training.

    Attributes:
        steps: the largest component of each of these alone is kept, one after the other.
        lacking: keys of the classes that no validation case has. nnU-Net then has no mean Dice to make better and never
            keeps the foreground's largest component.
    """

    steps: list[Labels]
    lacking: list[str]


def choose(
    model: TrainedModel,
    pairs: Mapping[str, tuple[Path, Path]],
    folder: Path,
    settings: ScoreSettings,
    num_processes: int,
    about: str = "Choosing the postprocessing",
) -> Postprocessing:
    """What nnU-Net's `determine_postprocessing` chooses on the validation cases of a training.

    The largest component of the foreground alone is kept where that makes the mean Dice better and no class worse, then
    that of each class where it makes the class better.

    Args:
        pairs: reference and prediction of each validation case.
        folder: where the choice is kept until one of these files is written anew, beside nnU-Net's
            `postprocessing.pkl`. Another run that chooses into it is waited for.

    Raises:
        UserError: as `read_pair`, or if a process was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = {str(file): file.stat().st_mtime_ns for files in pairs.values() for file in files}
    with exclusive(folder, print, f"choosing the postprocessing in {folder}"):
        record = read_object(folder / RECORD_FILE)
        kept = record.get("chosen") if record.get("asked") == asked and (folder / PICKLE).is_file() else None
        if isinstance(kept, dict) and set(kept) == {"steps", "lacking"}:
            return Postprocessing(**kept)
        with workers(min(num_processes, len(pairs)), FEWER_PROCESSES) as work:
            chosen = _choose(model, pairs, settings, work, about)
        # as nnU-Net's own commands write and read them
        steps = [_keep_largest()] * len(chosen.steps), [{"labels_or_regions": step} for step in chosen.steps]
        replace_bytes(folder / PICKLE, pickle.dumps(steps))
        write_json({"asked": asked, "chosen": asdict(chosen)}, folder / RECORD_FILE)
    return chosen


def apply_steps(
    model: TrainedModel,
    files: Mapping[str, tuple[Path, Path]],
    steps: Sequence[Labels],
    num_processes: int,
    about: str = "Postprocessing",
) -> None:
    """Do the steps to the first file of each case and write the second, which appears as a whole.

    Args:
        files: the second ones of all cases lie in one folder, whose other files are removed.

    Raises:
        WorkerKilled: a process was killed.
    """
    target = next(iter(files.values()))[1].parent
    target.mkdir(parents=True, exist_ok=True)
    with exclusive(target, print, f"postprocessing into {target}"):
        unfinished = target / UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        reader = _plans(model).image_reader_writer_class
        arguments = {
            case: (source, unfinished / result.name, reader, list(steps)) for case, (source, result) in files.items()
        }
        with workers(min(num_processes, len(files)), FEWER_PROCESSES) as work:
            results(work, _write_postprocessed, arguments, about)
        made = {file.name for file in unfinished.iterdir()}  # beside a TIFF nnU-Net writes its spacing
        for file in list(unfinished.iterdir()):
            file.replace(target / file.name)
        unfinished.rmdir()
        for file in target.iterdir():
            if file.name not in made:
                file.unlink()


def describe(steps: Sequence[Labels], classes: EvaluationClasses) -> str:
    """The steps in words, as in 'largest component of the foreground, then of LV', or `NO_STEPS`."""
    foreground = classes.values - {0, classes.ignore_label}
    names = {_values(label): classes.names[key] for key, label in classes.labels.items()}
    told = []
    for step in steps:
        values = _values(step)
        told.append("the foreground" if values == foreground else names.get(values, str(sorted(values))))
    return f"largest component of {', then of '.join(told)}" if told else NO_STEPS


def _choose(
    model: TrainedModel,
    pairs: Mapping[str, tuple[Path, Path]],
    settings: ScoreSettings,
    work: Workers,
    about: str,
) -> Postprocessing:
    manager = _plans(model).get_label_manager(read_json(model.folder / "dataset.json", "train again", dict))
    foreground = [int(label) for label in manager.foreground_labels]
    classes = [_plain(label) for label in (manager.foreground_regions if manager.has_regions else foreground)]

    def dice_after(steps: list[Labels]) -> list[float]:
        arguments = {case: (*files, settings, classes, steps) for case, files in pairs.items()}
        of_cases = np.array(list(results(work, _dice_of_case, arguments, about).values()))
        return [mean_of(without_nan(dice)) for dice in of_cases.T]

    steps: list[Labels] = []
    before = dice_after(steps)
    lacked = {_values(label) for label, dice in zip(classes, before, strict=True) if np.isnan(dice)}
    lacking = [key for key, label in settings.classes.labels.items() if _values(label) in lacked]
    after = dice_after([foreground])
    if np.mean(after) > np.mean(before) and not any(new < old for new, old in zip(after, before, strict=True)):
        steps, before = [foreground], after
    for index, label in enumerate(classes if len(classes) > 1 else ()):
        after = dice_after([*steps, label])
        if after[index] > before[index]:
            steps, before = [*steps, label], after
    return Postprocessing(steps, lacking)


def _dice_of_case(
    reference: Path, prediction: Path, settings: ScoreSettings, classes: Sequence[Labels], steps: Sequence[Labels]
) -> list[float]:
    """Dice of each class after the steps, as nnU-Net counts it: NaN where there is no voxel of the class."""
    from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask

    truth, guess = read_pair(reference, prediction, settings)
    voxels = _after(guess.voxels, steps)
    ignored = None if settings.classes.ignore_label is None else truth.voxels == settings.classes.ignore_label
    dice = []
    for label in classes:
        masks = [region_or_label_to_mask(array, label) for array in (truth.voxels, voxels)]
        both, extra, missed, _ = compute_tp_fp_fn_tn(*masks, ignored)
        total = 2 * both + extra + missed
        dice.append(float(2 * both / total) if total else float("nan"))
    return dice


def _write_postprocessed(source: Path, target: Path, reader: Reader, steps: Sequence[Labels]) -> None:
    labels, properties = reader().read_seg(str(source))
    reader().write_seg(_after(labels[0], steps), str(target), properties)


def _after(voxels: np.ndarray, steps: Sequence[Labels]) -> np.ndarray:
    keep_largest = _keep_largest()
    for step in steps:
        voxels = keep_largest(voxels, step)
    return voxels


def _keep_largest() -> Callable[[np.ndarray, Labels], np.ndarray]:
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    return remove_all_but_largest_component_from_segmentation


def _plans(model: TrainedModel) -> PlansManager:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(str(model.folder / "plans.json"))


def _plain(label: Any) -> Labels:
    """A label or region as JSON keeps it; a list of a region's labels covers what a tuple does."""
    return [int(value) for value in label] if isinstance(label, (tuple, list)) else int(label)


def _values(labels: int | Sequence[Any]) -> frozenset[int]:
    return frozenset({labels}) if isinstance(labels, int) else frozenset().union(*map(_values, labels))
