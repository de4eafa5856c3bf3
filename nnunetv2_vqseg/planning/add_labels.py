"""Newly annotated cases join the labelled ones of a project that is planned: images move, nothing else is made anew.

Fingerprint and plans stay, and with them everything that is preprocessed and every trained model. The same call
completes what was interrupted: preprocessed files come first, then label and images, splits, number of cases.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_vqseg.core.errors import DatasetError, UserError, some
from nnunetv2_vqseg.core.files import replace_bytes, replace_text
from nnunetv2_vqseg.core.folders import preprocessed_folder, raw_folder
from nnunetv2_vqseg.core.pools import for_each_case
from nnunetv2_vqseg.data.cases import UNLABELED_FOLDER, TrainingCase, channel_files
from nnunetv2_vqseg.data.checks.dataset_json import load_dataset_json
from nnunetv2_vqseg.data.checks.labeled import RECORD_FILE, check_labeled_cases
from nnunetv2_vqseg.data.patients import group_by_patient
from nnunetv2_vqseg.data.side_files import TIFF, data_files, spacing_file, with_side_files
from nnunetv2_vqseg.data.splits_file import LISTS, SPLITS_FILE, Fold, load_splits, patient_pattern
from nnunetv2_vqseg.planning.nnunet_steps import preprocess_case
from nnunetv2_vqseg.planning.plans import load_plans


@dataclass(frozen=True)
class Added:
    """What was done.

    cases: that have a label now.
    prepared: folders of preprocessed cases that have them now.
    folds: number of folds that train on them.
    validating: cases that a fold validates on, because it validates on other scans of their patients.
    """

    cases: list[str]
    prepared: list[Path]
    folds: int
    validating: list[str]


def add_labels(
    name: str, labels: Path, num_processes: int = 4, show_progress: bool = True, patient_regex: str | None = None
) -> Added:
    """Move cases from `imagesUl` to `imagesTr` and their labels to `labelsTr`, in raw and preprocessed folders.

    Args:
        name: `DatasetXXX_NAME`.
        labels: folder with a file `CASE.ending` for each newly annotated case; it is left as it is.
        patient_regex: finds the patient in a case's name; None for what each fold was made with.

    Raises:
        DatasetError: a label has no image in `imagesUl`, does not fit it, another label is there already, or a name has
            no patient. Then nothing was changed.
    """
    raw, base = raw_folder(name), preprocessed_folder(name)
    dataset_json = load_dataset_json(raw / "dataset.json")
    if "dataset" in dataset_json:
        raise DatasetError(
            f'{raw / "dataset.json"} lists its cases under "dataset"; add the new ones there, then plan again.'
        )
    ending = dataset_json["file_ending"]
    new = _new_cases(raw, labels, ending)
    example = next(iter(new.values()))["images"][0]
    reader = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)
    splits = {folder: load_splits(folder) for folder in (raw, base)}
    validating = {
        case for of in splits.values() for fold in of for case in _add_to_fold(fold, list(new), patient_regex)
    }
    with tempfile.TemporaryDirectory() as scratch:
        check_labeled_cases(new, dataset_json, reader, Path(scratch) / RECORD_FILE, num_processes, show_progress)

    prepared = [
        _prepare(base, *plan, new, dataset_json, num_processes, show_progress) for plan in _prepared_plans(base)
    ]
    for entry in new.values():
        if (base / "gt_segmentations").is_dir():
            _copy_label(Path(entry["label"]), base / "gt_segmentations")
        _copy_label(Path(entry["label"]), raw / "labelsTr")
        for image in with_side_files(entry["images"]):
            if image.parent == raw / UNLABELED_FOLDER and image.is_file():
                Path(image).replace(raw / "imagesTr" / image.name)
    for folder, folds in splits.items():
        if folds:
            replace_text(folder / SPLITS_FILE, json.dumps(folds, indent=4) + "\n")
    for file in (raw / "dataset.json", base / "dataset.json"):
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            content["numTraining"] = len(channel_files(raw / "imagesTr", ending))
            replace_text(file, json.dumps(content, indent=4))
    return Added(sorted(new), prepared, max(map(len, splits.values())), sorted(validating))


def _new_cases(raw: Path, labels: Path, ending: str) -> dict[str, TrainingCase]:
    """The cases of these labels, with their images in `imagesUl`, or where an interrupted call has moved them to."""
    if not labels.is_dir():
        raise DatasetError(f"{labels} is not a folder; give the one with the new labels, CASE{ending}.")
    names = sorted(file.name for file in labels.iterdir() if file.is_file() and not file.name.startswith("."))
    cases = [name[: -len(ending)] for name in names if name.endswith(ending)]
    if not cases:
        raise DatasetError(f"{labels} has no file CASE{ending}; labels are named like their case in imagesUl.")
    found: dict[str, dict[str, str]] = {}
    for folder in ("imagesTr", UNLABELED_FOLDER):
        for case, files in channel_files(raw / folder, ending).items():
            found.setdefault(case, {}).update({Path(file).name: file for file in files})
    without = [case for case in cases if case not in found]
    if without:
        raise DatasetError(
            f"{some(without)} in {labels} has no image in {raw / UNLABELED_FOLDER}; name a label like its case there, "
            f"without the channel number (CASE{ending} for CASE_0000{ending})."
        )
    for case in cases:
        there = raw / "labelsTr" / f"{case}{ending}"
        if there.is_file() and there.read_bytes() != (labels / there.name).read_bytes():
            raise DatasetError(
                f"{there} is another label of this case than that in {labels}; nothing was changed. To correct a "
                f"label, replace it there yourself and plan again."
            )
    return {
        case: TrainingCase(images=[*dict(sorted(found[case].items())).values()], label=str(labels / f"{case}{ending}"))
        for case in cases
    }


def _prepared_plans(base: Path) -> Iterator[tuple[PlansManager, str]]:
    """Plan and configuration of each folder with preprocessed labelled cases."""
    seen = set()
    for file in sorted(base.glob("*.json")):
        try:
            plans = load_plans(file)
        except UserError:  # another file
            continue
        manager = PlansManager(plans)
        for configuration in plans["configurations"]:
            identifier = manager.get_configuration(configuration).data_identifier
            if identifier not in seen and (base / identifier).is_dir():
                seen.add(identifier)
                yield manager, configuration


def _prepare(
    base: Path,
    manager: PlansManager,
    configuration: str,
    new: Mapping[str, TrainingCase],
    dataset_json: dict[str, Any],
    num_processes: int,
    show_progress: bool,
) -> Path:
    """Preprocess the cases as nnU-Net does, beside those that are there; each is put in place whole."""
    settings = manager.get_configuration(configuration)
    output = base / settings.data_identifier
    with tempfile.TemporaryDirectory(dir=base) as scratch:
        jobs = {case: (entry, scratch, (manager, settings, dataset_json), False) for case, entry in new.items()}
        what = f"Preprocessing for {settings.data_identifier}"
        for_each_case(preprocess_case, jobs, num_processes, what, show_progress, lambda *_: None)
        # nnU-Net finds a case by its image: that comes last.
        for file in sorted(Path(scratch).iterdir(), key=lambda file: file.stem in new and file.suffix != ".pkl"):
            Path(file).replace(output / file.name)
    return output


def _copy_label(label: Path, folder: Path) -> None:
    """Copy a label with what is read with it: a TIFF's spacing, the voxels of a header. The label comes last."""
    spacing = [spacing_file(label, of_label=True)] if label.suffix.lower() in TIFF else []
    for file in (*spacing, *data_files(label), label):
        if file.is_file():
            replace_bytes(folder / file.name, file.read_bytes())


def _add_to_fold(fold: Fold, cases: Sequence[str], patient_regex: str | None) -> set[str]:
    """Train on the cases; where the fold validates on other scans of their patients, validate on them: these."""
    known = {case for key in LISTS for case in fold.get(key) or ()}
    patients = group_by_patient([*known, *cases], patient_regex or patient_pattern(fold))
    validated = {patient for patient, names in patients.items() if set(names) & set(fold["val"])}
    alone = len(patients) == 1  # names that tell no patients apart
    val = {case for patient in validated for case in patients[patient] if case in cases} if not alone else set()
    fold["val"] = sorted({*fold["val"], *(val - known)})
    fold["train"] = sorted({*fold["train"], *({*cases} - known - val)})
    return val - known
