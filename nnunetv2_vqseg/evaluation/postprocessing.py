"""nnU-Net's postprocessing in a comparison: each training's predictions with the steps its validation cases ask for."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_vqseg.data.locks import exclusive
from nnunetv2_vqseg.evaluation.datasets import Case
from nnunetv2_vqseg.evaluation.json_files import read_json, read_object, to_jsonable, write_json
from nnunetv2_vqseg.evaluation.labels import EvaluationClasses
from nnunetv2_vqseg.evaluation.models import TrainedModel

RECORD_FILE = "record.json"
KEPT = ("postprocessing.json", "postprocessing.pkl")
"""What nnU-Net writes: the scores with and without, and the file for `nnUNetv2_apply_postprocessing`."""
UNFINISHED = "unfinished"

NO_STEPS = "none"

Steps = list[dict[str, Any]]
"""`function` (its name in nnU-Net) and `labels_or_regions` of each step, in the order they are done."""


def chosen_steps(
    model: TrainedModel, cases: Mapping[str, Case], predictions: Path, folder: Path, ending: str, num_processes: int
) -> Steps:
    """What nnU-Net's `determine_postprocessing` chooses on the validation cases of a training.

    The largest component of the foreground alone is kept where that makes the mean Dice better and no class worse, then
    that of each class where it makes the class better. nnU-Net starts a pool of processes for each of these questions;
    the answer in `folder` is kept until a prediction or a reference is written anew.

    Args:
        cases: the validation cases.
        predictions: folder of their predictions.
        folder: for nnU-Net's `postprocessing.json` and `postprocessing.pkl`. Another run that chooses into it is waited
            for.
        num_processes: of the pools; at least one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = {
        str(file): file.stat().st_mtime_ns
        for case, files in cases.items()
        for file in (predictions / f"{case}{ending}", files.reference)
    }
    with exclusive(folder, print, f"choosing the postprocessing in {folder}"):
        record = read_object(folder / RECORD_FILE)
        whole = isinstance(record.get("steps"), list) and all((folder / name).is_file() for name in KEPT)
        if whole and record.get("asked") == asked:
            return record["steps"]
        scratch = _empty(folder / UNFINISHED)
        for case, files in cases.items():
            _copy(predictions / f"{case}{ending}", scratch / "predictions" / f"{case}{ending}", ending)
            _copy(files.reference, scratch / "references" / f"{case}{ending}", ending)
        steps = _determine(model, scratch / "predictions", scratch / "references", num_processes)
        for name in KEPT:
            (scratch / "predictions" / name).replace(folder / name)
        shutil.rmtree(scratch)
        write_json({"asked": asked, "steps": steps}, folder / RECORD_FILE)
        return steps


def apply_steps(
    model: TrainedModel, names: Iterable[str], source: Path, target: Path, ending: str, steps: Steps
) -> None:
    """Do the steps to the predictions `source/NAME.ending` and write them to `target`, anew each time."""
    from nnunetv2.postprocessing import remove_connected_components as functions
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    reader = PlansManager(str(model.folder / "plans.json")).image_reader_writer_class()
    chosen = [getattr(functions, step["function"]) for step in steps]
    keywords = [{"labels_or_regions": step["labels_or_regions"]} for step in steps]
    target.mkdir(parents=True, exist_ok=True)
    with exclusive(target, print, f"postprocessing into {target}"):
        for name in tqdm(list(names), desc="Postprocessing", unit="case"):
            files = (str(place / f"{name}{ending}") for place in (source, target))
            functions.load_postprocess_save(*files, reader, chosen, keywords)


def foreground_step(model: TrainedModel) -> Steps:
    """The first step that nnU-Net tries: the largest component of all classes together."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(model.folder / "plans.json"))
    labels = plans.get_label_manager(read_json(model.folder / "dataset.json", "train again")).foreground_labels
    return to_jsonable(
        [{"function": "remove_all_but_largest_component_from_segmentation", "labels_or_regions": labels}]
    )


def describe(steps: Steps, classes: EvaluationClasses) -> str:
    """The steps in words, as in 'largest component of the foreground, then of LV', or `NO_STEPS`."""
    foreground = classes.values - {0, classes.ignore_label}
    names = {_values(label): classes.names[key] for key, label in classes.labels.items()}
    told = []
    for step in steps:
        asked = _values(step["labels_or_regions"])
        told.append("the foreground" if asked == foreground else names.get(asked, str(sorted(asked))))
    return f"largest component of {', then of '.join(told)}" if told else NO_STEPS


def _determine(model: TrainedModel, predictions: Path, references: Path, num_processes: int) -> Steps:
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    functions, keywords = determine_postprocessing(
        str(predictions),
        str(references),
        str(model.folder / "plans.json"),
        str(model.folder / "dataset.json"),
        max(1, num_processes),
        keep_postprocessed_files=False,
    )
    steps = [{"function": function.__name__, **used} for function, used in zip(functions, keywords, strict=True)]
    return to_jsonable(steps)


def _values(labels: int | Sequence[Any]) -> frozenset[int]:
    """The labels of a step or class; a list may hold regions."""
    if isinstance(labels, int):
        return frozenset({labels})
    return frozenset().union(*(_values(item) for item in labels))


def _copy(source: Path, target: Path, ending: str) -> None:
    """A label map, and the spacing that nnU-Net writes beside a TIFF."""
    target.parent.mkdir(exist_ok=True)
    shutil.copy(source, target)
    spacing = source.with_name(f"{source.name.removesuffix(ending)}.json")
    if spacing.is_file():
        shutil.copy(spacing, target.with_name(f"{target.name.removesuffix(ending)}.json"))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
