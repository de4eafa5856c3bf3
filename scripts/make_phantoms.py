"""Write a small synthetic cardiac dataset: few labelled patients, more unlabelled, validation and test patients.

    python scripts/make_phantoms.py            # nnUNet_raw/Dataset901_Phantom

Same layout and labels as the ACDC conversion (imagesTr, labelsTr, imagesUl, imagesTs, labelsTs, splits_final.json), two
frames per patient. No real data is involved; the same seed gives the same dataset.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from phantom import Patient
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dataset_conversion"))
from common import IMAGE_FOLDERS, LABEL_FOLDERS, Case, Report, announce, fail, finish_dataset, new_dataset

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.data.splits_file import Fold

LABELS = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}


def make_dataset(
    dataset: Path, roles: Sequence[str], seed: int, size: tuple[int, int]
) -> tuple[list[Case], Fold, Report]:
    """Write the phantoms of all patients.

    Args:
        dataset: an existing folder.
        roles: of each patient in turn, "train", "val", "unlabeled" or "test".
        seed: a patient depends on it and on the place in `roles` only.
        size: range of the images' sides in voxels.
    """
    places = {"train": "Tr", "val": "Tr", "unlabeled": "Ul", "test": "Ts"}
    cases: list[Case] = []
    fold: Fold = {"train": [], "val": []}
    report = Report()
    for number, role in enumerate(tqdm(roles, desc="drawing phantoms", unit="patient"), start=1):
        patient = Patient((seed, number), size)
        for frame, systole in ((1, False), (2, True)):
            scan = patient.scan(systole)
            name, place = f"phantom{number:03d}_frame{frame:02d}", places[role]
            target = dataset / IMAGE_FOLDERS[place] / f"{name}_0000.nii.gz"
            _write(scan.image, patient.spacing, target)
            if place in LABEL_FOLDERS:
                _write(scan.label, patient.spacing, dataset / LABEL_FOLDERS[place] / f"{name}.nii.gz")
            if role in fold:
                fold[role].append(name)
            cases.append(Case(name, place, target))
            report.slices[name] = scan.image.shape[0]
    return cases, fold, report


def _write(array: np.ndarray, spacing: tuple[float, float, float], target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(target), useCompression=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-d", dest="dataset_id", type=int, default=901, metavar="ID", help="dataset ID (default: 901)")
    parser.add_argument("--labeled", type=int, default=3, metavar="N", help="labelled patients (default: 3)")
    parser.add_argument("--unlabeled", type=int, default=20, metavar="N", help="unlabelled patients (default: 20)")
    parser.add_argument("--val", type=int, default=2, metavar="N", help="validation patients (default: 2)")
    parser.add_argument("--test", type=int, default=6, metavar="N", help="test patients (default: 6)")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 80), metavar="PX", help="smallest and largest side")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the whole dataset (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists")
    args = parser.parse_args(argv)
    if min(args.labeled, args.val) < 1 or min(args.unlabeled, args.test) < 0 or args.seed < 0:
        parser.error("--labeled and --val need at least one patient, and no number may be negative")
    if not 32 <= args.size[0] <= args.size[1]:
        parser.error("--size takes the smallest and the largest side in voxels, from 32 up")
    # Test and validation come first, so that they stay the same when the training patients get more or fewer.
    counts = {"test": args.test, "val": args.val, "train": args.labeled, "unlabeled": args.unlabeled}
    roles = [role for role, count in counts.items() for _ in range(count)]
    try:
        with new_dataset(args.dataset_id, "Phantom", args.overwrite) as dataset:
            cases, fold, report = make_dataset(dataset, roles, args.seed, tuple(args.size))
            about = {"dataset_name": "Phantom", "license": "CC0", "description": f"synthetic, seed {args.seed}"}
            finish_dataset(dataset, cases, [fold], channel="cineMRI", labels=LABELS, **about)
        announce(f"Dataset{args.dataset_id:03d}_Phantom", cases, fold, report)
    except DatasetError as error:
        raise fail(error) from None


if __name__ == "__main__":
    main()
