"""Bad input that splitting, evaluation and conversion meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from cases import CORRECT, LABEL, REPLACE, Case, Refused, clear, dataset_json, label, nothing, raw_splits
from commands import convert, evaluate, split
from conversion_inputs import write_volume as write_acdc_volume
from worlds import (
    FOLDS,
    Damage,
    World,
    cut_voxels,
    empty,
    header,
    make_text,
    mirror,
    one_voxel,
    respace,
    truncate,
    voxels,
)


def _prediction(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(world.root / "predictions" / "A.nii.gz")


def _acdc(name: str) -> Callable[[World], Path]:
    return lambda world: world.root / "acdc" / "training" / "patient001" / name


def _acdc_image(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(_acdc("patient001_frame01.nii.gz")(world))


def _acdc_label(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(_acdc("patient001_frame01_gt.nii.gz")(world))


SPLIT = [
    Case(f"split: {what}", split, damage, Refused(file, problem, remedy), options=options, quotes=quotes)
    for what, damage, file, problem, remedy, options, quotes in (
        (
            "dataset.json is half a file",
            lambda world: truncate(world.raw / "dataset.json"),
            "dataset.json",
            "is not valid JSON",
            CORRECT,
            (),
            True,
        ),
        (
            "a labelled image without label",
            label(Path.unlink),
            "imagesTr",
            "A in",
            "move unlabelled images to imagesUl",
            (),
            False,
        ),
        (
            "no image",
            lambda world: clear(world.raw / "imagesTr"),
            "imagesTr",
            "has no file named",
            "needs its images there",
            (),
            False,
        ),
        ("other folds are there", raw_splits(FOLDS), "splits_final.json", "has other folds", "add --append", (), False),
        (
            "the folds that are there are half a file",
            lambda world: (raw_splits(FOLDS)(world), truncate(world.raw / "splits_final.json")),
            "splits_final.json",
            "is not valid JSON",
            CORRECT,
            (),
            True,
        ),
        (
            "more labelled patients than there are",
            nothing,
            "--labeled",
            "'9' must be more than 0",
            "at most all 2 patients",
            ("--labeled", "9"),
            False,
        ),
        (
            "every patient for validation",
            nothing,
            "All 3 patients",
            "are for validation",
            "leave some for training",
            ("--val", "3"),
            False,
        ),
    )
] + [
    Case(
        "split: nnUNet_raw is read only",
        split,
        nothing,
        Refused("splits_final.json", "cannot be used (Permission denied)", "make it writable"),
        sealed=lambda world: [world.raw],
    )
]

EVALUATE = [
    Case(
        f"prediction: {what}",
        evaluate,
        _prediction(damage),
        Refused("predictions/A.nii.gz", problem, remedy),
        quotes=quotes,
    )
    for what, damage, problem, remedy, quotes in (
        ("gzip data end in the middle", truncate, "is truncated", "write it again", False),
        ("zero bytes", empty, "has zero bytes", "write it again", False),
        ("text with the name of an image", make_text, "is not a valid gzip file", "write it again", True),
        ("the last voxels are missing", cut_voxels, "is truncated", "write it again", False),
        ("a NaN", one_voxel(np.nan), "holds NaN values", "replace them", False),
        ("a label that dataset.json does not know", one_voxel(7), "label(s) 7", "correct the label", False),
        ("probabilities instead of labels", voxels(lambda a: a * 0.5), "label(s) 0.5", "correct the label", False),
        ("4D", voxels(lambda a: np.stack([a] * 2, -1)), "has 2 channels", "write it with one", False),
        ("another shape", voxels(lambda a: a[:, :30]), "do not lie on the same grid", "predict from the image", False),
        ("another spacing", respace(1.5, 1.2, 10), "do not lie on the same grid", "predict from the image", False),
        ("mirrored", mirror, "do not lie on the same grid", "predict from the image", False),
    )
] + [
    Case(
        "prediction: missing",
        evaluate,
        _prediction(Path.unlink),
        Refused("A.nii.gz", "lacks the prediction of 1 of 3 cases", "give --chill"),
    ),
    Case("prediction: missing, with --chill", evaluate, _prediction(Path.unlink), options=("--chill",)),
    Case(
        "reference: gzip data end in the middle",
        evaluate,
        label(truncate),
        Refused(LABEL, "is truncated", "write it again"),
    ),
    Case(
        "reference: a label that dataset.json does not know",
        evaluate,
        label(one_voxel(7)),
        Refused(LABEL, "label(s) 7", "correct the label"),
    ),
    Case(
        "evaluation: a label in words in dataset.json",
        evaluate,
        dataset_json(labels={"background": 0, "block": "one"}),
        Refused("dataset.json", "the label 'block' the value 'one'", "write a whole number"),
    ),
    Case(
        "evaluation: the output folder is read only",
        evaluate,
        lambda world: (world.root / "out").mkdir(),
        Refused("scores.json", "cannot be used (Permission denied)", "make it writable"),
        options=("-o", "{root}/out/scores.json"),
        sealed=lambda world: [world.root / "out"],
    ),
]

CONVERT = [
    Case(f"conversion: {what}", convert, damage, Refused(file, problem, remedy), quotes=quotes)
    for what, damage, file, problem, remedy, quotes in (
        (
            "gzip data end in the middle",
            _acdc_image(truncate),
            "patient001_frame01.nii.gz",
            "is truncated",
            REPLACE,
            False,
        ),
        ("zero bytes", _acdc_image(empty), "patient001_frame01.nii.gz", "has zero bytes", REPLACE, False),
        (
            "the same value everywhere",
            _acdc_image(lambda file: write_acdc_volume(file, np.ones((3, 12, 10), np.int16))),
            "patient001_frame01.nii.gz",
            "is empty",
            "replace the file",
            False,
        ),
        (
            "4D",
            _acdc_image(lambda file: write_acdc_volume(file, np.ones((2, 3, 12, 10), np.int16))),
            "patient001_frame01.nii.gz",
            "4 dimensions",
            "give one 3D image",
            False,
        ),
        (
            "a spacing of 0",
            _acdc_image(header(80, "<f", 0.0)),
            "patient001_frame01.nii.gz",
            "not positive everywhere",
            "correct its header",
            False,
        ),
        (
            "a label that ACDC does not have",
            _acdc_label(lambda file: write_acdc_volume(file, np.full((3, 12, 10), 9, np.uint8))),
            "patient001_frame01_gt.nii.gz",
            "unknown labels 9",
            "allowed are",
            False,
        ),
        (
            "a label on another grid",
            _acdc_label(lambda file: write_acdc_volume(file, np.ones((3, 12, 9), np.uint8))),
            "patient001_frame01_gt.nii.gz",
            "9 x 12 x 3 voxels",
            "replace it",
            False,
        ),
        (
            "a missing label",
            _acdc_label(Path.unlink),
            "patient001_frame01.nii.gz",
            "has no patient001_frame01_gt.nii.gz",
            "unpack again",
            False,
        ),
    )
] + [
    Case(
        "conversion: nnUNet_raw is read only",
        convert,
        nothing,
        Refused("nnUNet_raw", "cannot be used (Permission denied)", "make it writable"),
        sealed=lambda world: [world.root / "nnUNet_raw"],
    )
]
