"""What can be wrong with the input, and what each command says to it: the table in docs/reliability.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from commands import convert, evaluate, nnunet_train, plan, split, stock_plan, train
from conversion_inputs import write_volume as write_acdc_volume
from tiny_raw_dataset import add_case, phantom, write_volume
from worlds import (
    FOLDS,
    Damage,
    World,
    configuration,
    cut_voxels,
    dangle,
    edit,
    empty,
    flip_byte,
    header,
    link,
    make_text,
    mirror,
    one_voxel,
    rename,
    resize,
    respace,
    shift,
    truncate,
    unpack,
    voxels,
    write_json,
    zip_text,
)

REPLACE = "replace the file or remove the case"
CORRECT = "correct it"


class Refused(NamedTuple):
    """Parts of the sentence: the file (or key) at fault, what is wrong with it, what to do."""

    file: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """One thing that is wrong.

    Attributes:
        what: in words, unique; a row of the table.
        command: what is run.
        damage: done to a valid dataset before.
        refused: what the command must say; None: it works.
        options: of the command.
        warns: where it works, a part of the one warning that is printed.
        channels: of the dataset.
        sealed: folders without permission to write.
        quotes: whether the sentence quotes another library, whose words the table leaves out.
    """

    what: str
    command: Callable[..., None]
    damage: Damage
    refused: Refused | None = None
    options: tuple[str, ...] = ()
    warns: str | None = None
    channels: int = 1
    sealed: Callable[[World], list[Path]] | None = None
    quotes: bool = False


def image(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(world.image)


def label(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(world.label)


def unlabeled(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(world.unlabeled)


def dataset_json(**values: Any) -> Damage:
    """Keys of dataset.json; None takes one away."""

    def damage(world: World) -> None:
        edit(world.raw / "dataset.json", lambda content: _update(content, values))

    return damage


def plans(**values: Any) -> Damage:
    """Keys of the plan; None takes one away."""
    return lambda world: edit(world.preprocessed / "nnUNetVQSegPlans.json", lambda plan: _update(plan, values))


def in_2d(**values: Any) -> Damage:
    """Keys of the plan's 2d configuration; None takes one away."""
    return lambda world: edit(
        world.preprocessed / "nnUNetVQSegPlans.json", lambda plan: _update(configuration(plan), values)
    )


def arch(**values: Any) -> Damage:
    """Arguments of the planned network."""
    return lambda world: edit(
        world.preprocessed / "nnUNetVQSegPlans.json",
        lambda plan: _update(configuration(plan)["architecture"]["arch_kwargs"], values),
    )


def block(**values: Any) -> Damage:
    """Keys of the plan's vqseg block."""
    return lambda world: edit(
        world.preprocessed / "nnUNetVQSegPlans.json", lambda plan: configuration(plan)["vqseg"].update(values)
    )


def splits(content: Any) -> Damage:
    return lambda world: write_json(world.preprocessed / "splits_final.json", content)


def raw_splits(content: Any) -> Damage:
    return lambda world: write_json(world.raw / "splits_final.json", content)


def text(content: str, *where: str) -> Damage:
    """A file below the root with another content."""
    return lambda world: world.root.joinpath(*where).write_text(content, encoding="utf-8")


def nothing(world: World) -> None:
    """A valid dataset."""


def _update(content: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if value is None:
            del content[key]
        else:
            content[key] = value


def _three_pixels(world: World) -> None:
    resize(world, (3, 3, 3), "A", "B", "C", "U", "V")


def _rename_all(world: World) -> None:
    for case, new in (
        ("A", "with space"),
        ("B", "Ümläut ß"),
        ("C", "v1.2.final"),
        ("U", "100 % (neu), ü.b"),
        ("V", "名"),
    ):
        rename(world, case, new)


def _drop_all_foreground(world: World) -> None:
    for case in "ABC":
        voxels(np.zeros_like)(world.raw / "labelsTr" / f"{case}.nii.gz")


def _clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _old_plan(world: World) -> None:
    """As nnU-Net 2.0 to 2.3 wrote it: the network's arguments lie in the configuration."""

    def change(plan: dict[str, Any]) -> None:
        inner = configuration(plan)
        network = inner.pop("architecture")["arch_kwargs"]
        inner.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=4,
            unet_max_num_features=8,
            n_conv_per_stage_encoder=network["n_conv_per_stage"],
            n_conv_per_stage_decoder=network["n_conv_per_stage_decoder"],
            num_pool_per_axis=[3, 3],
            pool_op_kernel_sizes=network["strides"],
            conv_kernel_sizes=network["kernel_sizes"],
        )

    edit(world.preprocessed / "nnUNetVQSegPlans.json", change)


def _nnunet_1_plan(world: World) -> None:
    write_json(
        world.preprocessed / "nnUNetVQSegPlans.json",
        {"plans_per_stage": {"0": {"batch_size": 12, "patch_size": [32, 32]}}, "num_modalities": 1},
    )


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


def _prediction(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(world.root / "predictions" / "A.nii.gz")


def _acdc(name: str) -> Callable[[World], Path]:
    return lambda world: world.root / "acdc" / "training" / "patient001" / name


def _acdc_image(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(_acdc("patient001_frame01.nii.gz")(world))


def _acdc_label(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(_acdc("patient001_frame01_gt.nii.gz")(world))


IMAGE, LABEL, UNLABELED = "imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz", "imagesUl/U_0000.nii.gz"
PLANS_FILE = "nnUNetVQSegPlans.json"
AGAIN = "plan again with nnUNetv2_vqseg_plan_and_preprocess"
TRUNCATED, NO_GZIP = Refused("", "is truncated", REPLACE), Refused("", "is not a valid gzip file", REPLACE)


def on_each(
    what: str, damage: Callable[[Path], object], refused: Refused | None, where: str = "image, unlabelled", **more: Any
) -> list[Case]:
    """The same damage to a labelled image, its label, an unlabelled image."""
    sides = {
        "image": (image, "labelled image", IMAGE),
        "label": (label, "label", LABEL),
        "unlabelled": (unlabeled, "unlabelled image", UNLABELED),
    }
    cases = []
    for side in where.split(", "):
        wrap, words, file = sides[side]
        cases.append(Case(f"{words}: {what}", plan, wrap(damage), refused and refused._replace(file=file), **more))
    return cases


ALL = "image, label, unlabelled"

FILES = [
    *on_each("gzip data end in the middle", truncate, TRUNCATED, ALL),
    *on_each("zero bytes", empty, Refused("", "has zero bytes", REPLACE), ALL),
    *on_each("text with the name of an image", make_text, NO_GZIP, ALL, quotes=True),
    *on_each("not compressed in spite of its name", unpack, NO_GZIP, quotes=True),
    *on_each("gzip data that are no image", zip_text, Refused("", "is not a NIfTI file", REPLACE)),
    *on_each("one byte in the middle is another", flip_byte, Refused("", "", REPLACE), quotes=True),
    *on_each("the last voxels are missing", cut_voxels, TRUNCATED, ALL),
    *on_each(
        "a link that leads nowhere", dangle, Refused("", "cannot be opened", "restore it or remove the case"), ALL
    ),
    *on_each("a link to a file elsewhere", link, None, ALL),
    Case("imagesUl is a link to a folder elsewhere", plan, lambda world: link(world.raw / "imagesUl"), None),
    *on_each("missing", Path.unlink, Refused("", "cannot be opened", "restore it or remove the case"), "label"),
    Case(
        "unlabelled image: a folder",
        plan,
        lambda world: (world.unlabeled.unlink(), world.unlabeled.mkdir()),
        Refused(UNLABELED, "is a folder", "put its images into imagesUl itself"),
    ),
]

VOXELS = [
    *on_each("4D", voxels(lambda a: np.stack([a] * 5, -1)), Refused("", "5 channels", "split or convert the file")),
    *on_each("4D", voxels(lambda a: np.stack([a] * 2, -1)), Refused("", "2 channels", "write it with one"), "label"),
    *on_each("a NaN", one_voxel(np.nan), Refused("", "holds NaN values", "replace them by numbers"), ALL),
    *on_each("an Inf", one_voxel(np.inf), Refused("", "holds Inf values", "replace them by numbers")),
    *on_each(
        "too large for 32 bits",
        one_voxel(1e300, np.float64),
        Refused("", "holds Inf values", "replace them by numbers"),
    ),
    *on_each("the same value everywhere", voxels(lambda a: a * 0 + 7), Refused("", "is empty", REPLACE)),
    *on_each("zero everywhere", voxels(np.zeros_like), Refused("", "is empty", REPLACE)),
    *on_each("complex numbers", header(70, "<h", 1792), Refused("", "complex numbers", "convert it")),
    *on_each("uint16 up to 65535", voxels(lambda a: np.clip(a * 400, 0, 65535).astype(np.uint16)), None),
    *on_each("int16 below zero", voxels(lambda a: (a - 2000).astype(np.int16)), None),
    *on_each("65535 from an overflow", one_voxel(65535, np.uint16), Refused("", "65535", "correct the label"), "label"),
    *on_each("a value that dataset.json does not know", one_voxel(7), Refused("", "label(s) 7", "correct"), "label"),
    *on_each("a negative value", one_voxel(-1), Refused("", "label(s) -1", "correct the label"), "label"),
    *on_each("a value between labels", one_voxel(0.5), Refused("", "label(s) 0.5", "correct the label"), "label"),
    *on_each("background only", voxels(np.zeros_like), None, "label"),
    Case(
        "all labels: background only",
        plan,
        _drop_all_foreground,
        Refused("labelsTr", "background only", "add annotated cases"),
    ),
]

GEOMETRY = [
    *on_each(
        "a spacing of 0", header(80, "<f", 0.0), Refused("", "not positive everywhere", "correct its header"), ALL
    ),
    *on_each(
        "a spacing of NaN", header(84, "<f", np.nan), Refused("", "not positive everywhere", "correct its header")
    ),
    Case(
        "labelled image: a spacing in micrometres, with its label",
        plan,
        lambda world: (respace(1500, 1500, 10)(world.image), respace(1500, 1500, 10)(world.label)),
        Refused(IMAGE, "1000 times the plan's 1.5 mm", "correct the unit in its header"),
    ),
    *on_each(
        "a spacing in micrometres",
        respace(1500, 1500, 10),
        Refused("", "1000 times the plan's 1.5 mm", "correct the unit in its header"),
        "unlabelled",
    ),
    Case(
        "every image: a huge spacing",
        plan,
        lambda world: [respace(1500, 1500, 9000)(file) for file in sorted(world.raw.glob("*/*.nii.gz"))],
    ),
    Case(
        "labelled image: negative direction cosines, with its label",
        plan,
        lambda world: (mirror(world.image), mirror(world.label)),
    ),
    *on_each("negative direction cosines", mirror, None, "unlabelled"),
    *on_each("another place than its image", shift, None, "label", warns="differ in origin or direction"),
    *on_each(
        "another shape than its image",
        voxels(lambda a: a[:, :30]),
        Refused("", "has the shape (3, 30, 32)", "check which files belong together"),
        "label",
    ),
    *on_each(
        "another spacing than its image",
        respace(1.5, 1.2, 10),
        Refused("", "has the spacing (10.0, 1.2, 1.5)", "check which files belong together"),
        "label",
    ),
    Case("labelled image: a single slice", plan, lambda world: resize(world, (32, 32, 1), "A")),
    Case("unlabelled image: a single slice", plan, lambda world: resize(world, (32, 32, 1), "U")),
    Case("every image: a single slice", plan, lambda world: resize(world, (32, 32, 1), *"ABCUV")),
    Case("labelled image: 3 x 3 pixels", plan, lambda world: resize(world, (3, 3, 3), "A")),
    Case("unlabelled image: 3 x 3 pixels", plan, lambda world: resize(world, (3, 3, 3), "U")),
    Case("unlabelled image: smaller than the patch", plan, lambda world: resize(world, (12, 10, 3), "U")),
    Case("labelled image: smaller than the patch", plan, lambda world: resize(world, (12, 10, 3), "A")),
]

CHANNELS = [
    Case(
        f"{words}: a channel is missing",
        plan,
        lambda world, folder=folder, case=case: (world.raw / folder / f"{case}_0001.nii.gz").unlink(),
        refused,
        channels=2,
    )
    for words, folder, case, refused in (
        ("labelled image", "imagesTr", "A", Refused("A_0000.nii.gz", "1 channels", "split or convert the file")),
        ("unlabelled image", "imagesUl", "U", Refused("The case U", "has 1 channel file", "complete or correct it")),
    )
] + [
    Case(
        "labelled image: a channel too many",
        plan,
        lambda world: write_volume(world.raw / "imagesTr" / "A_0001.nii.gz", phantom(3)[0]),
        Refused("A_0000.nii.gz", "2 channels", "split or convert the file"),
    ),
    Case(
        "unlabelled image: a channel too many",
        plan,
        lambda world: write_volume(world.raw / "imagesUl" / "U_0001.nii.gz", phantom(3)[0]),
        Refused("The case U", "has 2 channel file", "complete or correct it"),
    ),
    Case(
        "unlabelled image: channel 0002 instead of 0001",
        plan,
        lambda world: (world.raw / "imagesUl" / "U_0001.nii.gz").rename(world.raw / "imagesUl" / "U_0002.nii.gz"),
        Refused("The case U", "has the channel numbers 0000, 0002", "add or rename its files"),
        channels=2,
    ),
    *(
        Case(
            f"{words}: channels of different {kind}",
            plan,
            lambda world, folder=folder, case=case, damage=damage: damage(world.raw / folder / f"{case}_0001.nii.gz"),
            None if kind == "place" else Refused(f"{case}_0001.nii.gz", f"has the {kind}", "resample one channel"),
            warns="differ in origin or direction" if kind == "place" else None,
            channels=2,
        )
        for words, folder, case in (("labelled image", "imagesTr", "A"), ("unlabelled image", "imagesUl", "U"))
        for kind, damage in (
            ("shape", voxels(lambda a: a[:30])),
            ("spacing", respace(1.5, 1.2, 10)),
            ("place", shift),
        )
    ),
]

NAMES = [
    Case("names with spaces, umlauts, dots, percent signs and Chinese characters", plan, _rename_all),
    Case("labelled image: a name of 200 letters", plan, lambda world: rename(world, "A", "x" * 200)),
    Case(
        "labelled image: a name that ends in _seg",
        plan,
        lambda world: rename(world, "A", "A_seg"),
        Refused("A_seg_0000.nii.gz", "takes names ending in _seg for segmentations", "rename the case"),
    ),
    Case(
        "unlabelled image: a name that ends in _seg",
        plan,
        lambda world: rename(world, "U", "U_seg"),
        Refused("U_seg_0000.nii.gz", "takes names ending in _seg for segmentations", "rename the case"),
    ),
    Case(
        "labelled image: no channel number",
        plan,
        lambda world: world.image.rename(world.raw / "imagesTr" / "A.nii.gz"),
        Refused("imagesTr/A.nii.gz", "is not named CASE_0000.nii.gz", "rename it"),
    ),
    Case(
        "unlabelled image: no channel number",
        plan,
        lambda world: world.unlabeled.rename(world.raw / "imagesUl" / "U.nii.gz"),
        Refused("imagesUl/U.nii.gz", "is not named CASE_0000.nii.gz", "rename it"),
    ),
    Case(
        "unlabelled image: another file format",
        plan,
        lambda world: world.unlabeled.rename(world.raw / "imagesUl" / "U_0000.nrrd"),
        Refused("imagesUl/U_0000.nrrd", "is not named CASE_0000.nii.gz", "rename it"),
    ),
    Case(
        "imagesTr: a file that macOS makes",
        plan,
        lambda world: (world.raw / "imagesTr" / "._A_0000.nii.gz").write_bytes(b"\0\5\26\7"),
        Refused("._A_0000.nii.gz", "is not named CASE_0000.nii.gz", "move it out of imagesTr"),
    ),
    Case(
        "imagesUl: notes and hidden files",
        plan,
        lambda world: [make_text(world.raw / "imagesUl" / name) for name in (".DS_Store", "README.txt", "U.json")],
    ),
    Case(
        "one case in imagesTr and in imagesUl",
        plan,
        lambda world: rename(world, "U", "A"),
        Refused("The case A", "is both in", "keep it in one of them"),
    ),
    Case("imagesUl: empty", plan, lambda world: _clear(world.raw / "imagesUl"), warns="There is no unlabelled image"),
    Case(
        "imagesUl: missing", plan, lambda world: shutil.rmtree(world.raw / "imagesUl"), warns="There is no unlabelled"
    ),
    Case(
        "imagesTr: empty",
        plan,
        lambda world: _clear(world.raw / "imagesTr"),
        Refused("imagesTr", "has no file named CASE_0000.nii.gz", "needs its labelled images there"),
    ),
    Case(
        "imagesTr: missing",
        plan,
        lambda world: shutil.rmtree(world.raw / "imagesTr"),
        Refused("imagesTr", "has no file named CASE_0000.nii.gz", "needs its labelled images there"),
    ),
]

DESCRIPTION = [
    Case(
        f"dataset.json: {what}",
        plan,
        damage,
        Refused("dataset.json", problem, remedy),
        quotes=what in ("missing", "half a file"),
    )
    for what, damage, problem, remedy in (
        ("missing", lambda world: (world.raw / "dataset.json").unlink(), "cannot be read", "restore it"),
        ("half a file", lambda world: truncate(world.raw / "dataset.json"), "is not valid JSON", "correct it"),
        ("a list", lambda world: write_json(world.raw / "dataset.json", []), "is not a JSON object", "write it as"),
        ("no file_ending", dataset_json(file_ending=None), 'nothing for "file_ending"', "write for example"),
        ("file_ending without a dot", dataset_json(file_ending="nii.gz"), "'nii.gz' for \"file_ending\"", "write for"),
        ("channel_names as a list", dataset_json(channel_names=["MRI"]), 'for "channel_names"', "write for example"),
        ("numTraining in words", dataset_json(numTraining="three"), "'three' for \"numTraining\"", "write for example"),
        ("no labels", dataset_json(labels=None), 'nothing for "labels"', "write for example"),
        ("labels as a list", dataset_json(labels=["block"]), 'for "labels"', "write for example"),
        ("a label in words", dataset_json(labels={"background": 0, "block": "one"}), "the value 'one'", "whole number"),
        ("no background", dataset_json(labels={"block": 1}), 'no label "background"', "write for example"),
        ("nnU-Net 1's labels", dataset_json(labels={"0": "background", "1": "block"}), "the value", "a whole number"),
        ("labels with a gap", dataset_json(labels={"background": 0, "block": 2}), "labels 0, 2", "number them 0, 1, 2"),
        ("background only", dataset_json(labels={"background": 0}), "no label besides the background", "write for"),
        (
            "an ignore label that is not the last",
            dataset_json(labels={"background": 0, "block": 1, "ignore": 7}),
            "labels 0, 1, 7",
            "number them 0, 1, 2",
        ),
        (
            "regions without an order",
            dataset_json(labels={"background": 0, "whole": [1, 2], "core": 2}),
            '"regions_class_order"',
            "write a list of 2 labels",
        ),
    )
] + [
    Case(
        "dataset.json: a file_ending that nnU-Net does not read",
        plan,
        lambda world: (
            [
                file.rename(file.with_name(file.name.replace(".nii.gz", ".foo")))
                for file in world.raw.glob("*/*.nii.gz")
            ],
            dataset_json(file_ending=".foo")(world),
        ),
        Refused("A_0000.foo", "None of nnU-Net's readers opens", "check"),
    ),
    Case(
        "dataset.json: numTraining is not the number of cases", plan, dataset_json(numTraining=7), warns="numTraining 7"
    ),
    Case(
        "dataset.json: numTraining is not the number of cases, with --verify_dataset_integrity",
        plan,
        dataset_json(numTraining=7),
        Refused("Dataset901_Tiny", "Did not find the expected number of training cases", "correct the dataset"),
        options=("--verify_dataset_integrity",),
        quotes=True,
    ),
    Case(
        "dataset ID that does not exist",
        plan,
        lambda world: world.raw.rename(world.raw.with_name("Dataset902_Other")),
        Refused("nnUNet_raw", "not exactly one dataset with the ID 901", "wants one folder"),
    ),
    Case(
        "dataset ID of two datasets",
        plan,
        lambda world: world.raw.with_name("Dataset901_Twin").mkdir(),
        Refused("nnUNet_raw", "not exactly one dataset with the ID 901", "wants one folder"),
    ),
]

PLANNED_BEFORE = [
    Case(
        f"splits_final.json: {what}",
        plan,
        raw_splits(content),
        Refused("splits_final.json", problem, remedy),
    )
    for what, content, problem, remedy in (
        ("a dictionary", {"train": ["A"]}, "is not a list of folds", CORRECT),
        ("names instead of folds", ["A", "B"], "is not a list of folds", CORRECT),
        ("no list of training cases", [{"val": ["A"]}], 'no list of case names under "train"', "write for example"),
        ("numbers for names", [{"train": [1], "val": ["A"]}], 'no list of case names under "train"', "write for"),
        (
            "an unlabelled case that is missing",
            [{"train": ["A"], "val": ["B"], "unlabeled": ["Z"]}],
            "names the case Z",
            "correct the name",
        ),
        (
            "a case with and without label",
            [{"train": ["A"], "val": ["B"], "unlabeled": ["A", "C"]}],
            "names the case A",
            "remove it from one of the lists",
        ),
        (
            "a case twice",
            [{"train": ["A"], "val": ["B"], "unlabeled": ["C", "C"]}],
            "names the case C twice",
            "remove one of them",
        ),
        (
            "every case unlabelled",
            [{"train": [], "val": [], "unlabeled": ["A", "B", "C"]}],
            "lists every case",
            "leave some labelled",
        ),
    )
] + [
    Case(
        "splits_final.json: half a file",
        plan,
        lambda world: (raw_splits(FOLDS)(world), truncate(world.raw / "splits_final.json")),
        Refused("splits_final.json", "is not valid JSON", CORRECT),
        quotes=True,
    ),
    Case(
        "dataset_fingerprint.json: half a file",
        plan,
        lambda world: (
            world.preprocessed.mkdir(),
            text('{"spacings": [', "nnUNet_preprocessed", "Dataset901_Tiny", "dataset_fingerprint.json")(world),
        ),
        Refused("dataset_fingerprint.json", "is not valid JSON", "add --clean"),
        quotes=True,
    ),
    Case(
        "dataset_fingerprint.json: of another version",
        plan,
        lambda world: (
            world.preprocessed.mkdir(),
            text('{"all_sizes": []}', "nnUNet_preprocessed", "Dataset901_Tiny", "dataset_fingerprint.json")(world),
        ),
        Refused("dataset_fingerprint.json", "is no fingerprint of this version", "add --clean"),
    ),
    Case(
        "an earlier plan: half a file",
        plan,
        lambda world: (
            world.preprocessed.mkdir(),
            text('{"plans_name": ', "nnUNet_preprocessed", "Dataset901_Tiny", PLANS_FILE)(world),
        ),
        Refused(PLANS_FILE, "is not valid JSON", CORRECT),
        quotes=True,
    ),
    Case(
        "an earlier plan: of nnU-Net 1",
        plan,
        lambda world: (world.preprocessed.mkdir(), _nnunet_1_plan(world)),
        Refused(PLANS_FILE, "is no plan of nnU-Net 2", "delete it and plan again"),
    ),
    Case("nnUNet_raw: read only", plan, nothing, sealed=lambda world: [world.root / "nnUNet_raw"]),
    Case(
        "nnUNet_preprocessed: read only",
        plan,
        nothing,
        Refused("nnUNet_preprocessed/Dataset901_Tiny", "cannot be written to (Permission denied)", "make it writable"),
        sealed=lambda world: [world.root / "nnUNet_preprocessed"],
    ),
    Case(
        "nnUNet_preprocessed: read only, planned before",
        plan,
        plan,
        Refused("nnUNet_preprocessed/Dataset901_Tiny", "cannot be written to (Permission denied)", "make it writable"),
        sealed=lambda world: [world.preprocessed],
    ),
    Case(
        "labelled image: gzip data end in the middle, planned before",
        plan,
        lambda world: (plan(world), truncate(world.image)),
        TRUNCATED._replace(file=IMAGE),
    ),
    Case(
        "label: a value that dataset.json does not know, planned before",
        plan,
        lambda world: (plan(world), one_voxel(7)(world.label)),
        Refused(LABEL, "label(s) 7", "correct the label"),
    ),
]

PLAN_FILES = [
    Case(
        "plan: missing",
        train,
        lambda world: (world.preprocessed / PLANS_FILE).unlink(),
        Refused(PLANS_FILE, "does not exist", "run nnUNetv2_vqseg_plan_and_preprocess"),
    ),
    Case(
        "plan: half a file",
        train,
        lambda world: truncate(world.preprocessed / PLANS_FILE),
        Refused(PLANS_FILE, "is not valid JSON", "correct it or plan again"),
        quotes=True,
    ),
    Case(
        "plan: a list",
        train,
        lambda world: write_json(world.preprocessed / PLANS_FILE, []),
        Refused(PLANS_FILE, "is no plan of nnU-Net 2", "delete it and plan again"),
    ),
    Case("plan: of nnU-Net 2.0 to 2.3", train, _old_plan),
    Case(
        "plan: of nnU-Net 2.0 to 2.3, incomplete",
        train,
        lambda world: (_old_plan(world), in_2d(conv_kernel_sizes=None)(world)),
        Refused(PLANS_FILE, "was written by another version of nnU-Net or is incomplete", AGAIN),
        quotes=True,
    ),
    Case(
        "plan: of nnU-Net 1",
        train,
        _nnunet_1_plan,
        Refused(PLANS_FILE, "is no plan of nnU-Net 2", "delete it and plan again"),
    ),
    *(
        Case(f"plan: {what}", train, damage, Refused(PLANS_FILE, problem, AGAIN), quotes=quotes)
        for what, damage, problem, quotes in (
            (
                "a network of a later version",
                in_2d(
                    architecture={
                        "network_class_name": "dynamic_network_architectures.architectures.unet.UNet2030",
                        "arch_kwargs": {"strides": [[1, 1], [2, 2]]},
                        "_kw_requires_import": [],
                    }
                ),
                "does not work for a patch of 32 x 32",
                True,
            ),
            (
                "a resampling function of a later version",
                in_2d(resampling_fn_data="resample_2030"),
                "2d.resampling_fn_data = 'resample_2030' does not work",
                True,
            ),
            (
                "a normalisation of a later version",
                in_2d(normalization_schemes=["Norm2030"]),
                "2d.normalization_schemes = ['Norm2030'] does not work",
                True,
            ),
            (
                "a preprocessor of a later version",
                in_2d(preprocessor_name="Preprocessor2030"),
                "2d.preprocessor_name = 'Preprocessor2030' does not work",
                True,
            ),
            (
                "a reader of a later version",
                plans(image_reader_writer="Reader2030"),
                "image_reader_writer = 'Reader2030' does not work",
                True,
            ),
            ("no patch_size", in_2d(patch_size=None), "has no 2d.patch_size", False),
            ("no transpose_forward", plans(transpose_forward=None), "has no transpose_forward", False),
            ("batch_size in quotes", in_2d(batch_size="8"), "2d.batch_size = '8' is not valid", False),
            ("batch_size with a point", in_2d(batch_size=8.0), "2d.batch_size = 8.0 is not valid", False),
            ("patch_size as a number", in_2d(patch_size=32), "2d.patch_size = 32 is not valid", False),
            ("patch_size of one number", in_2d(patch_size=[32]), "2d.patch_size = [32] is not valid", False),
            ("spacing in quotes", in_2d(spacing=["1.5", "1.5"]), "2d.spacing = ['1.5', '1.5'] is not valid", False),
            ("spacing of 0", in_2d(spacing=[0, 1.5]), "2d.spacing = [0, 1.5] is not valid", False),
            (
                "spacing of three numbers",
                in_2d(spacing=[10, 1.5, 1.5]),
                "2d.spacing has 3 entries instead of 2",
                False,
            ),
            (
                "normalization_schemes as a text",
                in_2d(normalization_schemes="ZScoreNormalization"),
                "is not valid",
                False,
            ),
            (
                "normalization_schemes for two channels",
                in_2d(normalization_schemes=["ZScoreNormalization"] * 2),
                "has 2 entries instead of 1",
                False,
            ),
            (
                "use_mask_for_norm in quotes",
                in_2d(use_mask_for_norm=["false"]),
                "2d.use_mask_for_norm = ['false'] is not valid",
                False,
            ),
            (
                "intensity statistics in words",
                lambda world: (
                    in_2d(normalization_schemes=["CTNormalization"])(world),
                    plans(foreground_intensity_properties_per_channel={"0": {"mean": "one"}})(world),
                ),
                "2d.normalization_schemes = ['CTNormalization'] does not work",
                True,
            ),
            (
                "transpose_forward of two axes",
                plans(transpose_forward=[0, 1]),
                "transpose_forward = [0, 1] is not valid",
                False,
            ),
            (
                "an order of resampling in words",
                in_2d(resampling_fn_data_kwargs={"order": "cubic"}),
                "does not work",
                True,
            ),
            (
                "features_per_stage in quotes",
                arch(features_per_stage=["4", "8", "8", "8"]),
                "does not work for a patch",
                True,
            ),
            ("more stages than strides", arch(n_stages=6), "does not work for a patch of 32 x 32", True),
            (
                "patch_size that the strides do not divide",
                in_2d(patch_size=[36, 36]),
                "does not work for a patch of 36 x 36",
                True,
            ),
            (
                "patch_size too small for the strides",
                in_2d(patch_size=[8, 8]),
                "does not work for a patch of 8 x 8",
                True,
            ),
            ("data_identifier as a number", in_2d(data_identifier=2), "2d.data_identifier = 2 is not valid", False),
        )
    ),
    Case("plan: patch_size larger than every image", train, in_2d(patch_size=[64, 64])),
    Case(
        "plan: a configuration that inherits from itself",
        train,
        in_2d(inherits_from="2d"),
        Refused(PLANS_FILE, "2d -> 2d inherit from each other", "correct 'inherits_from'"),
    ),
    Case(
        "plan: a configuration that is missing",
        train,
        nothing,
        Refused(PLANS_FILE, "has no configuration '2d_mine'", "it has 2d"),
        options=("901", "2d_mine", "0", "-device", "cpu"),
    ),
    Case(
        "vqseg block: a list",
        train,
        in_2d(vqseg=[1]),
        Refused(PLANS_FILE, "'vqseg' of the configuration '2d' is [1]", "write it as a dictionary"),
    ),
    Case(
        "vqseg block: a key with a typing error",
        train,
        block(epsilom=0.5),
        Refused("'epsilom'", "Unknown key", "did you mean 'epsilon'?"),
    ),
    Case(
        "vqseg block: a number in quotes",
        train,
        block(epsilon="0.5"),
        Refused("vqseg.epsilon", "'0.5' is not valid", "must be number in [0, 1]"),
    ),
    Case(
        "vqseg block: a number out of range",
        train,
        block(num_codes=1),
        Refused("vqseg.num_codes", "1 is not valid", "must be integer in [2, 1048576]"),
    ),
    Case(
        "vqseg block: a stage that the plan does not have",
        train,
        block(vq_stage=9),
        Refused("vqseg.vq_stage", "9 is not valid", "this plan has stages 0 to 3"),
    ),
]

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
        "preprocessed cases: a channel fewer than dataset.json",
        train,
        _two_channels_later,
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
        Refused("splits_final.json", "would train on their labels", "train a numbered fold"),
        options=("901", "2d", "all", "-device", "cpu"),
    ),
    Case(
        "no splits_final.json, and fewer cases than folds",
        train,
        lambda world: (world.preprocessed / "splits_final.json").unlink(),
        Refused("splits_final.json", "3 labelled case(s) are too few", "nnUNetv2_vqseg_split"),
    ),
    Case(
        "imagesUl: empty, at the start of training",
        train,
        lambda world: _clear(world.raw / "imagesUl"),
        Refused("imagesUl", "There is no unlabelled image", "put some into"),
    ),
    Case(
        "unlabelled image: gzip data end in the middle, after planning",
        train,
        unlabeled(truncate),
        Refused(UNLABELED, "is truncated", REPLACE),
    ),
    Case("unlabelled image: new since planning", train, _new_unlabeled),
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

STOCK = [
    Case("planned with nnU-Net's own command", nnunet_train, stock_plan, options=("-p", "nnUNetPlans")),
    Case(
        "planned with nnU-Net's own command: a label that dataset.json does not know",
        nnunet_train,
        _preprocessed_label_of_another_dataset,
        Refused("nnUNetPlans_2d/A", "label(s) 5", "correct the label"),
        options=("-p", "nnUNetPlans"),
    ),
    Case(
        "planned with nnU-Net's own command: a label taken out of dataset.json later",
        nnunet_train,
        _relabel,
        Refused("nnUNetPlans_2d/A", "label(s) 2", "correct the label"),
        options=("-p", "nnUNetPlans"),
    ),
    Case(
        "plan: batch_size in quotes, with nnUNetv2_train",
        nnunet_train,
        in_2d(batch_size="8"),
        Refused(PLANS_FILE, "2d.batch_size = '8' is not valid", AGAIN),
    ),
    Case(
        "unlabelled image: zero bytes, with nnUNetv2_train",
        nnunet_train,
        unlabeled(empty),
        Refused(UNLABELED, "has zero bytes", REPLACE),
    ),
]

SPLIT = [
    Case(
        f"split: {what}",
        split,
        damage,
        Refused(file, problem, remedy),
        options=options,
        quotes=quotes,
    )
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
            lambda world: _clear(world.raw / "imagesTr"),
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
    ),
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
    ),
]

SECTIONS = {
    "Planning: files (`nnUNetv2_vqseg_plan_and_preprocess`)": FILES,
    "Planning: voxels": VOXELS,
    "Planning: geometry": GEOMETRY,
    "Planning: channels": CHANNELS,
    "Planning: names and folders": NAMES,
    "Planning: `dataset.json`": DESCRIPTION,
    "Planning: what is there already": PLANNED_BEFORE,
    "Start of training: the plan (`python -m nnunetv2_vqseg.train`)": PLAN_FILES,
    "Start of training: data": START,
    "Start of training with `nnUNetv2_train`": STOCK,
    "`nnUNetv2_vqseg_split`": SPLIT,
    "`nnUNetv2_vqseg_evaluate`": EVALUATE,
    "Conversion (`dataset_conversion/Dataset027_ACDC.py`)": CONVERT,
}
CASES = [case for cases in SECTIONS.values() for case in cases]
