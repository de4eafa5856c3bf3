"""What all converters share: checked cases, and an nnU-Net dataset folder that appears complete or not at all."""

from __future__ import annotations

import gzip
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from volumes import grid_difference, label_values, read_image, read_volume

from nnunetv2_vqseg.core.errors import DatasetError, some
from nnunetv2_vqseg.core.folders import VARIABLES, folder_or_none, nnunet_folder
from nnunetv2_vqseg.core.pools import for_each_case
from nnunetv2_vqseg.data.splits_file import Fold, write_splits

ENDING = ".nii.gz"
IMAGE_FOLDERS = {"Tr": "imagesTr", "Ul": "imagesUl", "Ts": "imagesTs"}
LABEL_FOLDERS = {"Tr": "labelsTr", "Ts": "labelsTs"}
# nnU-Net finds datasets by the first letters of a folder's name, so an unfinished folder must not begin with 'Dataset'.
UNFINISHED, REPLACED = "tmp-", "old-"


@dataclass(frozen=True)
class LabelRule:
    """What a label file may hold.

    Attributes:
        values: allowed values; None asks for a binary mask, whose one foreground value becomes 1.
        resample: put a mask from another grid onto the image's (nearest neighbour) instead of refusing it.
    """

    values: tuple[int, ...] | None
    resample: bool = False


@dataclass(frozen=True)
class Case:
    """One image and where it goes.

    Attributes:
        name: of the case in the dataset.
        place: "Tr" (training and validation), "Ul" (unlabelled) or "Ts" (test).
        image: a file, or a folder with one DICOM series.
        label: a file, or None; never read for unlabelled cases.
    """

    name: str
    place: str
    image: Path
    label: Path | None = None


@dataclass
class Report:
    """Counts for the summary: cases and slices by place, and cases worth a look."""

    slices: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert_cases(cases: Sequence[Case], dataset: Path, rule: LabelRule, processes: int = 1) -> Report:
    """Check every case and write it into the dataset folder.

    Raises:
        DatasetError: one line for each bad case.
    """
    names = [case.name for case in cases]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DatasetError(f"The case names {some(repeated)} occur more than once; rename the files.")
    report = Report()

    def count(name: str, result: tuple[int, str]) -> None:
        report.slices[name] = result[0]
        report.notes.extend(note for note in result[1:] if note)

    arguments = {case.name: (case, dataset, rule) for case in cases}
    for_each_case(_convert_case, arguments, processes, "converting", True, count)
    return report


def _convert_case(name: str, case: Case, dataset: Path, rule: LabelRule) -> tuple[int, str]:
    """Number of slices and, if there is something to say, a note."""
    image = read_image(case.image)
    slices = image.GetSize()[2]
    _store(case.image, image, dataset / IMAGE_FOLDERS[case.place] / f"{name}_0000{ENDING}")
    if case.label is None or case.place not in LABEL_FOLDERS:
        return slices, ""
    label, changed = _checked_label(case.label, image, rule)
    target = dataset / LABEL_FOLDERS[case.place] / f"{name}{ENDING}"
    if changed:
        target.parent.mkdir(exist_ok=True)
        sitk.WriteImage(label, str(target), useCompression=True)
    else:
        _store(case.label, label, target)
    return slices, "" if sitk.GetArrayViewFromImage(label).any() else f"{case.label} has no foreground"


def _checked_label(path: Path, image: sitk.Image, rule: LabelRule) -> tuple[sitk.Image, bool]:
    """The label on the image's grid with allowed values, and whether it differs from the file."""
    label = read_volume(path)
    values = label_values(path, label)
    changed = False
    if rule.values is None:
        foreground = [value for value in values if value != 0]
        if len(foreground) > 1:
            raise DatasetError(f"{path} is not a binary mask: it has the values {some([str(v) for v in values])}.")
        if foreground not in ([], [1]):
            label, changed = sitk.Cast(label != 0, sitk.sitkUInt8), True
    elif not set(values) <= set(rule.values):
        unknown = [str(value) for value in values if value not in rule.values]
        raise DatasetError(f"{path} has the unknown labels {some(unknown)}; allowed are {list(rule.values)}.")
    difference = grid_difference(image, label)
    if not difference:
        return label, changed
    if not rule.resample:
        advice = "add --resample-masks if both show the same place" if rule.values is None else "replace it"
        raise DatasetError(f"{path} {difference}; {advice}.")
    on_grid = sitk.Resample(label, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    if len(values) > 1 and not sitk.GetArrayViewFromImage(on_grid).any():
        raise DatasetError(
            f"{path} {difference}, and none of it falls into the image; check which files belong together."
        )
    return on_grid, True


def _store(source: Path, image: sitk.Image, target: Path) -> None:
    """Copy a NIfTI file as it is (its header too), write anything else through ITK."""
    target.parent.mkdir(exist_ok=True)
    if source.name.endswith(ENDING):
        shutil.copyfile(source, target)
    elif source.suffix == ".nii":
        with source.open("rb") as stream, gzip.open(target, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(stream, packed)
    else:
        array = sitk.GetArrayViewFromImage(image)
        short = np.iinfo(np.int16)
        whole = np.issubdtype(array.dtype, np.integer) or np.array_equal(array, np.round(array))
        fits = whole and short.min <= array.min() and array.max() <= short.max
        sitk.WriteImage(
            sitk.Cast(image, sitk.sitkInt16 if fits else sitk.sitkFloat32), str(target), useCompression=True
        )


@contextmanager
def new_dataset(dataset_id: int, name: str, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which becomes `nnUNet_raw/DatasetXXX_name` when the block ends well and vanishes when it fails.

    A killed run leaves a folder that nnU-Net does not see. The dataset being replaced stays in place to the very end.

    Raises:
        DatasetError: nnUNet_raw is not set, the ID is taken, or the dataset exists and `overwrite` is off.
    """
    raw = nnunet_folder("nnUNet_raw")
    if not 1 <= dataset_id <= 999:
        raise DatasetError(f"The dataset ID must be between 1 and 999, not {dataset_id}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise DatasetError(f"The dataset name '{name}' may have letters, digits, - and _ only.")
    target = raw / f"Dataset{dataset_id:03d}_{name}"
    parents = [parent for parent in map(folder_or_none, VARIABLES) if parent]
    others = [
        path for parent in parents for path in parent.glob(f"Dataset{dataset_id:03d}_*") if path.name != target.name
    ]
    if others:
        raise DatasetError(f"The dataset ID {dataset_id} is taken by {others[0]}; choose another with -d.")
    own = [parent / target.name for parent in (raw, folder_or_none("nnUNet_preprocessed")) if parent]
    _refuse_existing(own, overwrite)
    raw.mkdir(parents=True, exist_ok=True)
    for leftover in sorted(p for mark in (UNFINISHED, REPLACED) for p in raw.glob(f"{mark}{target.name}-*")):
        print(
            f"Note: {leftover} is left from a run that was interrupted (or is still going on); delete it if it is not."
        )

    building = raw / f"{UNFINISHED}{target.name}-{uuid.uuid4().hex[:8]}"
    replaced = raw / building.name.replace(UNFINISHED, REPLACED, 1)
    building.mkdir()
    try:
        yield building
        _refuse_existing(own, overwrite)  # another conversion may have been faster
        if target.exists():
            target.rename(replaced)
            building.rename(target)
            _remove(replaced)
        else:
            building.rename(target)
    except BaseException:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(building, ignore_errors=True)
        raise


def _remove(replaced: Path) -> None:
    """The new dataset is in place: what cannot be removed of the old one is no reason to stop."""
    if replaced.is_symlink():
        replaced.unlink()
        return
    shutil.rmtree(replaced, ignore_errors=True)
    if replaced.exists():
        print(f"Note: {replaced}, the dataset that was replaced, could not be removed as a whole; delete it.")


def _refuse_existing(folders: Sequence[Path], overwrite: bool) -> None:
    existing = [folder for folder in folders if folder.exists()]
    if existing and not overwrite:
        raise DatasetError(f"{existing[0]} exists already; add --overwrite to replace it or choose another ID with -d.")


def finish_dataset(
    dataset: Path, cases: Sequence[Case], folds: list[Fold], channel: str, labels: dict[str, int], **about: str
) -> None:
    """Write `dataset.json` (with nnU-Net's own function) and `splits_final.json` into a filled dataset folder."""
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    generate_dataset_json(
        str(dataset),
        {"0": channel},
        dict(labels),
        sum(case.place == "Tr" for case in cases),
        ENDING,
        converted_by="nnunetv2_vqseg",
        **about,
    )
    write_splits([dataset], folds)


def announce(dataset_name: str, cases: Sequence[Case], fold: Fold, report: Report) -> None:
    """Print what was written and what an `--overwrite` left behind, and renew the split of a preprocessed folder."""
    val, declared = set(fold["val"]), set(fold.get("unlabeled", []))
    groups = {
        "labelled": [case for case in cases if case.name in set(fold["train"])],
        "unlabelled": [case for case in cases if case.place == "Ul" or case.name in declared],
        "validation": [case for case in cases if case.name in val],
        "test": [case for case in cases if case.place == "Ts"],
    }
    print(f"{dataset_name} is complete:")
    for group, members in groups.items():
        print(f"  {group:<11}{len(members):>5} cases{sum(report.slices[case.name] for case in members):>7} slices")
    for note in report.notes:
        print(f"Note: {note}.")
    preprocessed = folder_or_none("nnUNet_preprocessed")
    if preprocessed is not None and (preprocessed / dataset_name).is_dir():
        write_splits([preprocessed / dataset_name], [fold], overwrite=True)
        print(
            f"Note: {preprocessed / dataset_name} was made from the previous data; "
            "run nnUNetv2_vqseg_plan_and_preprocess again before training."
        )
    results = folder_or_none("nnUNet_results")
    if results is not None and any((results / dataset_name).glob("*/fold_*/checkpoint_*.pth")):
        print(
            f"Note: {results / dataset_name} has models that were trained before this conversion, perhaps on patients "
            "who are now for validation or test; move it away, or train again before you compare."
        )


def fail(error: DatasetError) -> SystemExit:
    """The exit of a converter on bad input."""
    return SystemExit(f"Error: {error}")
