"""Bad input that a training meets when it starts, beside its plan."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import (
    AGAIN,
    IMAGE,
    LABEL,
    NO_RECORDS,
    PLANS_FILE,
    REPLACE,
    TRUNCATED,
    UNLABELED,
    Case,
    Refused,
    block,
    clear,
    in_2d,
    nothing,
    plans,
    splits,
    unlabeled,
)
from commands import nnunet_train, nnunet_train_without_gpu, stock_plan, train
from tiny_raw_dataset import add_case
from worlds import NAME, Damage, World, edit, empty, make_text, one_voxel, resize, truncate, voxels


def _preprocessed_label_of_another_dataset(world: World) -> None:
    """nnU-Net's own planning takes any label."""
    one_voxel(5, np.uint8)(world.label)
    stock_plan(world)


def _relabel(world: World) -> None:
    """A class taken out of dataset.json after preprocessing."""
    one_voxel(2, np.uint8)(world.label)
    edit(world.raw / "dataset.json", lambda content: content["labels"].update(second=2))
    stock_plan(world)
    edit(world.preprocessed / "dataset.json", lambda content: content["labels"].pop("second"))


def _new_unlabeled(world: World) -> None:
    add_case(world.raw, "imagesUl", "W")


def _two_channels_later(world: World) -> None:
    edit(world.preprocessed / "dataset.json", lambda content: content.update(channel_names={"0": "T1", "1": "T2"}))
    in_2d(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2)(world)
    plans(foreground_intensity_properties_per_channel={"0": {}, "1": {}})(world)


def _copied_without_raw(world: World) -> None:
    """As on a cluster, but without the folder of unlabelled cases."""
    shutil.rmtree(world.raw)
    shutil.rmtree(world.preprocessed / "nnUNetVQSegPlans_2d_unlabeled")


START = [
    Case(
        "preprocessed cases: missing",
        train,
        lambda world: shutil.rmtree(world.cases),
        Refused("nnUNetVQSegPlans_2d", "does not hold preprocessed cases", "run nnUNetv2_vqseg_plan_and_preprocess"),
    ),
    Case(
        "preprocessed cases: a file that does not belong there",
        train,
        lambda world: make_text(world.cases / "Thumbs.db"),
        Refused("nnUNetVQSegPlans_2d", "or not only such", "run nnUNetv2_vqseg_plan_and_preprocess"),
    ),
    *(
        Case(
            f"preprocessed cases: {what}",
            train,
            lambda world, name=name, damage=damage: damage(world.cases / name),
            Refused("nnUNetVQSegPlans_2d/A", problem, "run nnUNetv2_vqseg_plan_and_preprocess"),
            quotes=True,
        )
        for what, name, damage, problem in (
            ("half an image", "A.b2nd", truncate, "cannot be read as a preprocessed case"),
            ("half a label", "A_seg.b2nd", truncate, "cannot be read as a preprocessed case"),
            ("no label", "A_seg.b2nd", Path.unlink, "cannot be read as a preprocessed case"),
            ("half the properties", "A.pkl", truncate, "cannot be read as a preprocessed case"),
            ("no properties", "A.pkl", Path.unlink, "cannot be read as a preprocessed case"),
        )
    ),
    Case(
        "preprocessed cases: a channel fewer than dataset.json, nnUNet_raw not on this machine",
        train,
        lambda world: (_two_channels_later(world), shutil.rmtree(world.raw)),
        Refused("nnUNetVQSegPlans_2d/A", "was preprocessed with 1 channels", "run nnUNetv2_vqseg_plan_and_preprocess"),
    ),
    Case(
        "dataset.json of the preprocessed data: half a file",
        train,
        lambda world: truncate(world.preprocessed / "dataset.json"),
        Refused("nnUNet_preprocessed/Dataset901_Tiny/dataset.json", "is not valid JSON", "correct it"),
        quotes=True,
    ),
    Case(
        "dataset_fingerprint.json: missing",
        train,
        lambda world: (world.preprocessed / "dataset_fingerprint.json").unlink(),
        Refused("dataset_fingerprint.json", "cannot be used (No such file or directory)", "restore it"),
    ),
    *(
        Case(f"splits_final.json: {what}", train, splits(content), Refused("splits_final.json", problem, remedy))
        for what, content, problem, remedy in (
            (
                "a training case that is missing",
                [{"train": ["A", "Z"], "val": ["C"]}],
                'the case Z under "train"',
                "correct the name",
            ),
            (
                "a validation case that is missing",
                [{"train": ["A"], "val": ["Z", "Y"]}],
                'the case Y under "val" (and 1 more)',
                "correct the name",
            ),
            ("no training case", [{"train": [], "val": ["C"]}], 'no case under "train"', "add one"),
            ("no validation case", [{"train": ["A"], "val": []}], 'no case under "val"', "add one"),
            (
                "a text for a list",
                [{"train": "A", "val": ["C"]}],
                'no list of case names under "train"',
                "write for example",
            ),
            (
                "an unlabelled case that is missing, at the start of training",
                [{"train": ["A"], "val": ["C"], "unlabeled": ["Z"]}],
                "the case Z",
                "correct the name",
            ),
        )
    ),
    Case(
        "fold all, with unlabelled cases in splits_final.json",
        train,
        splits([{"train": ["A"], "val": ["C"], "unlabeled": ["B"]}]),
        Refused("splits_final.json", "would train on their labels", "train one of the folds 0 to 0"),
        options=("901", "2d", "all", "-device", "cpu"),
    ),
    Case(
        "no splits_final.json, and fewer cases than folds",
        train,
        lambda world: (world.preprocessed / "splits_final.json").unlink(),
        Refused("nnU-Net's split", "3 labelled case(s) are too few", "run `nnUNetv2_vqseg_split -d 901`"),
    ),
    Case(
        "imagesUl: empty, at the start of training",
        train,
        lambda world: clear(world.raw / "imagesUl"),
        Refused("imagesUl", "There is no unlabelled image", "put some into"),
    ),
    Case(
        "unlabelled image: gzip data end in the middle, after planning",
        train,
        unlabeled(truncate),
        Refused(UNLABELED, "is truncated", REPLACE),
    ),
    Case("unlabelled image: new since planning", train, _new_unlabeled),
    *(
        Case(
            f"list of the preprocessed unlabelled cases: {what}",
            train,
            lambda world, spoil=spoil: spoil(world.cases.with_name(f"{world.cases.name}_unlabeled.json")),
        )
        for what, spoil in NO_RECORDS
    ),
    Case("unlabelled image: new and smaller than the patch", train, lambda world: resize(world, (3, 3, 2), "U")),
    Case("nnUNet_raw: not on this machine", train, lambda world: shutil.rmtree(world.raw)),
    Case(
        "nnUNet_raw: not on this machine, and unlabelled cases not copied",
        train,
        _copied_without_raw,
        Refused("The preprocessed unlabelled case U", "is missing or incomplete", "set nnUNet_raw or copy the folder"),
    ),
    Case(
        "nnUNet_results: read only",
        train,
        nothing,
        Refused("nnUNet_results/Dataset901_Tiny", "cannot be used (Permission denied)", "make it writable"),
        sealed=lambda world: [world.root / "nnUNet_results"],
    ),
    Case(
        "nnUNet_raw and nnUNet_preprocessed: read only, and complete",
        train,
        nothing,
        sealed=lambda world: [world.root / "nnUNet_raw", world.root / "nnUNet_preprocessed"],
    ),
    Case(
        "nnUNet_preprocessed: read only, and an unlabelled image is new",
        train,
        _new_unlabeled,
        Refused("nnUNetVQSegPlans_2d_unlabeled", "Permission denied", "make it writable"),
        sealed=lambda world: [world.preprocessed],
    ),
]


def _checkpoint(name: str, content: dict[str, Any] | None = None) -> Damage:
    """A checkpoint in the folder of the training, with this content; None: a text."""

    def damage(world: World) -> None:
        folder = world.root / "nnUNet_results" / NAME / "nnUNetTrainerVQSeg__nnUNetVQSegPlans__2d" / "fold_0"
        folder.mkdir(parents=True)
        if content is None:
            make_text(folder / name)
        else:
            torch.save(content, folder / name)

    return damage


def _alone(*options: str) -> tuple[str, ...]:
    return ("901", "2d", "0", "-device", "cpu", *options)


WEIGHTS = [
    *(
        Case(
            f"-pretrained_weights: {what}",
            train,
            make,
            Refused("weights.pth", problem, remedy),
            options=_alone("-pretrained_weights", "{root}/weights.pth"),
        )
        for what, make, problem, remedy in (
            (
                "missing",
                nothing,
                "cannot be opened (No such file or directory)",
                "give the path of a checkpoint",
            ),
            (
                "a text",
                lambda world: make_text(world.root / "weights.pth"),
                "cannot be read as a checkpoint",
                "move it away",
            ),
            (
                "weights of another kind",
                lambda world: torch.save({"state_dict": {}}, world.root / "weights.pth"),
                "has no network_weights",
                "needs a checkpoint of nnU-Net",
            ),
            (
                "of another network",
                lambda world: torch.save({"network_weights": {}}, world.root / "weights.pth"),
                "has no weights of shape (4, 1, 3, 3)",
                "needs a checkpoint with the same network",
            ),
        )
    ),
    Case(
        "--c: a checkpoint that is a text",
        train,
        _checkpoint("checkpoint_latest.pth"),
        Refused("fold_0/checkpoint_latest.pth", "cannot be read as a checkpoint", "move it away"),
        options=_alone("--c"),
    ),
    Case(
        "--c: a checkpoint of stock nnU-Net",
        train,
        _checkpoint("checkpoint_latest.pth", {"network_weights": {}}),
        Refused("fold_0/checkpoint_latest.pth", "was not written by a VQ-Seg trainer", "start anew without --c"),
        options=_alone("--c"),
    ),
    Case(
        "--c: half of a checkpoint's content",
        train,
        _checkpoint("checkpoint_latest.pth", {"network_weights": {}, "vqseg": {"step": 3}}),
        Refused("fold_0/checkpoint_latest.pth", "does not fit this trainer and plan", "start anew without --c"),
        options=_alone("--c"),
        quotes=True,
    ),
    Case("--c: no checkpoint", train, nothing, options=_alone("--c"), warns="there seems to be no checkpoint"),
    Case(
        "--val: before the end of the training",
        train,
        _checkpoint("checkpoint_latest.pth"),
        Refused("fold_0/checkpoint_final.pth", "does not exist", "train first, or go on with --c"),
        options=_alone("--val"),
    ),
    Case(
        "-tr: a trainer that does not exist",
        train,
        nothing,
        Refused("nnUNetTrainerVQSegg", "There is no trainer", "correct its name"),
        options=_alone("-tr", "nnUNetTrainerVQSegg"),
    ),
    Case(
        "-tr: a trainer of a ViT with a plan of a U-Net",
        train,
        nothing,
        Refused("nnUNetTrainerMeanTeacherViT", "nnUNetVQSegPlans plans a U-Net", "-pl nnUNetPlannerViT"),
        options=_alone("-tr", "nnUNetTrainerMeanTeacherViT"),
    ),
    *(
        Case(
            f"vqseg block: {what}",
            train,
            block(foundation_policy="required", **values),
            refused,
            channels=channels,
            quotes="cannot be used" in refused.problem,
        )
        for what, values, channels, refused in (
            (
                "a foundation model that timm does not know",
                {"foundation_model": "vit_of_mine"},
                1,
                Refused("vit_of_mine", "cannot be used as the foundation model", "choose a ViT or CNN of timm"),
            ),
            (
                "a foundation_image_size that the model's patches do not fit",
                {"foundation_image_size": 225},
                1,
                Refused("vit_small_patch14_dinov2", "do not fit an image size of 225", "the next fitting size is 238"),
            ),
            (
                "foundation_channels that images do not have",
                {"foundation_channels": [0, 1, 4]},
                4,
                Refused("vqseg.foundation_channels", "[0, 1, 4] is not valid", "images have channels 0 to 3"),
            ),
            (
                "a foundation_checkpoint that is missing",
                {"foundation_checkpoint": "/nowhere/dinov2.pth"},
                1,
                Refused("/nowhere/dinov2.pth", "does not exist", "correct the path"),
            ),
        )
    ),
]

STOCK = [
    Case(
        "no GPU, and no -device cpu",
        nnunet_train_without_gpu,
        nothing,
        Refused("", "torch finds no GPU (cuda)", "add -device cpu"),
    ),
    Case("planned with nnU-Net's own command", nnunet_train, stock_plan, options=("-p", "nnUNetPlans")),
    Case(
        "planned with nnU-Net's own command: a label that dataset.json does not know",
        nnunet_train,
        _preprocessed_label_of_another_dataset,
        Refused(LABEL, "label(s) 5", "correct the label"),
        options=("-p", "nnUNetPlans"),
    ),
    Case(
        "planned with nnU-Net's own command: a label taken out of dataset.json later",
        nnunet_train,
        _relabel,
        Refused(LABEL, "label(s) 2", "correct the label"),
        options=("-p", "nnUNetPlans"),
    ),
    *(
        Case(
            f"planned with nnU-Net's own command: labelled image: {what}",
            nnunet_train,
            lambda world, damage=damage: (damage(world.image), stock_plan(world)),
            Refused(IMAGE, problem, remedy),
            options=("-p", "nnUNetPlans"),
        )
        for what, damage, problem, remedy in (
            ("a NaN", one_voxel(np.nan), "holds NaN values", "replace them by numbers"),
            ("an Inf", one_voxel(np.inf), "holds Inf values", "replace them by numbers"),
            ("the same value everywhere", voxels(lambda a: a * 0 + 7), "is empty", REPLACE),
            ("gzip data end in the middle", truncate, "is truncated", REPLACE),
        )
    ),
    Case(
        "planned with nnU-Net's own command: a label that dataset.json does not know, nnUNet_raw not on this machine",
        nnunet_train,
        lambda world: (_preprocessed_label_of_another_dataset(world), shutil.rmtree(world.raw)),
        Refused("nnUNetPlans_2d/A", "label(s) 5", "correct the label"),
        options=("-p", "nnUNetPlans"),
    ),
    Case(
        "labelled image: gzip data end in the middle, after planning",
        train,
        lambda world: truncate(world.image),
        TRUNCATED._replace(file=IMAGE),
    ),
    *(
        Case(
            f"labeled_checked.json: {what}",
            train,
            lambda world, spoil=spoil: spoil(world.preprocessed / "labeled_checked.json"),
        )
        for what, spoil in NO_RECORDS
    ),
    Case(
        "plan: batch_size in quotes, with nnUNetv2_train",
        nnunet_train,
        in_2d(batch_size="8"),
        Refused(PLANS_FILE, "2d.batch_size = '8' does not work", AGAIN),
        quotes=True,
    ),
    Case(
        "unlabelled image: zero bytes, with nnUNetv2_train",
        nnunet_train,
        unlabeled(empty),
        Refused(UNLABELED, "has zero bytes", REPLACE),
    ),
]
