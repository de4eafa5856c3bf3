"""Bad input that planning meets."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
from cases import (
    ALL,
    CORRECT,
    IMAGE,
    LABEL,
    NO_GZIP,
    NO_RECORDS,
    PLANS_FILE,
    REPLACE,
    TRUNCATED,
    UNLABELED,
    Case,
    Refused,
    clear,
    dataset_json,
    nnunet_1_plan,
    nothing,
    on_each,
    raw_splits,
    text,
)
from commands import plan
from tiny_raw_dataset import add_case, phantom, write_volume
from worlds import (
    FOLDS,
    World,
    convert,
    cut_voxels,
    dangle,
    empty,
    flip_byte,
    header,
    link,
    make_2d,
    make_text,
    mirror,
    one_voxel,
    preprocessed_shapes,
    rename,
    resize,
    respace,
    shift,
    truncate,
    turn,
    unpack,
    use_mha,
    use_png,
    use_tiff,
    voxels,
    write_json,
    zip_text,
)


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


def _outlier(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[10, 12, 1] = 1e6
    return array


def _spacings(world: World, step: float, *files: str) -> None:
    """Correct the spacing files of 3D TIFFs."""
    for file in files:
        write_json(world.raw / file, {"spacing": [10, step, step]})


UL_JSON, TR_JSON = "imagesUl/U.json", "imagesTr/A.json"
ALL_JSON = [
    *(f"imagesTr/{case}.json" for case in "ABC"),
    *(f"labelsTr/{case}.json" for case in "ABC"),
    UL_JSON,
    "imagesUl/V.json",
]
NO_LABEL = Refused("", "cannot be opened", "restore it, or move an image without a label to imagesUl")

FILES = [
    *on_each("gzip data end in the middle", truncate, TRUNCATED, ALL),
    *on_each("zero bytes", empty, Refused("", "has zero bytes", REPLACE), ALL),
    *on_each("text with the name of an image", make_text, NO_GZIP, ALL, quotes=True),
    *on_each("not compressed in spite of its name", unpack, NO_GZIP, quotes=True),
    *on_each("gzip data that are no image", zip_text, Refused("", "is not a NIfTI file", REPLACE)),
    *on_each("one byte in the middle is another", flip_byte, Refused("", "", REPLACE), quotes=True),
    *on_each("the last voxels are missing", cut_voxels, TRUNCATED, ALL),
    *on_each("a link that leads nowhere", dangle, Refused("", "cannot be opened", "restore it or remove the case")),
    *on_each("a link that leads nowhere", dangle, NO_LABEL, "label"),
    *on_each("a link to a file elsewhere", link, None, ALL),
    Case("imagesUl is a link to a folder elsewhere", plan, lambda world: link(world.raw / "imagesUl"), None),
    *on_each("missing", Path.unlink, NO_LABEL, "label"),
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
    *(
        Case(
            f"channel {name}: unlabelled image {what}",
            plan,
            lambda world, name=name, change=change: (
                dataset_json(channel_names={"0": name})(world),
                voxels(change)(world.unlabeled),
            ),
            warns=warns,
        )
        for name, what, change, warns in (
            ("CT", "plus 1024", lambda a: a + 1024, "The unlabelled case U has intensities unlike labelled cases"),
            ("CT", "scaled to 0..1", lambda a: a / 255, "The unlabelled case U has intensities unlike labelled cases"),
            ("MRI", "times 1000", lambda a: a * 1000, None),
            ("nonorm", "times 1000", lambda a: a * 1000, "The unlabelled case U has intensities unlike"),
            ("rgb_to_0_1", "scaled to 0..1", lambda a: a.clip(0, 255) / 255, "The unlabelled case U has intensities"),
            ("rescale_to_0_1", "with one voxel of 1e6", _outlier, "The unlabelled case U has intensities unlike"),
        )
    ),
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

VOXELS += [
    Case(
        "all labels: background and the ignore label only",
        plan,
        lambda world: (
            dataset_json(labels={"background": 0, "block": 1, "ignore": 2})(world),
            [voxels(lambda a: a * 2)(file) for file in sorted((world.raw / "labelsTr").iterdir())],
        ),
        Refused("labelsTr", "but for the ignore label", "add annotated cases"),
    ),
    Case(
        "label: background and the ignore label only",
        plan,
        lambda world: (
            dataset_json(labels={"background": 0, "block": 1, "ignore": 2})(world),
            voxels(lambda a: a * 2)(world.label),
        ),
    ),
]

VOXELS += [
    *on_each("a value of 1.0000001", one_voxel(1.0000001), Refused("", "label(s) 1.0000001", "round it"), "label"),
    *(
        Case(
            f"{words}: 16 bits in a channel rgb_to_0_1",
            plan,
            lambda world, side=side: (
                dataset_json(channel_names={"0": "rgb_to_0_1"})(world),
                voxels(lambda a: (a * 100).astype(np.uint16))(getattr(world, side)),
            ),
            Refused(file, "has values from", "save it with 8 bits"),
        )
        for words, side, file in (("labelled image", "image", IMAGE), ("unlabelled image", "unlabeled", UNLABELED))
    ),
]

# Files of other kinds than NIfTI: what makes them, one of them, what is done to it, what is said.
OTHER_KINDS = [
    Case(
        f"{what}",
        plan,
        lambda world, use=use, file=file, damage=damage: (use(world), damage(world.raw / file)),
        Refused(file, problem, remedy),
        quotes="half" in what and "JSON" in problem,
    )
    for what, use, file, damage, problem, remedy in (
        *(
            (f"{words}: {what}", use_tiff, file, lambda file, content=content: text(content, file), problem, remedy)
            for words, file in (
                ("spacing file of a labelled 3D TIFF", "imagesTr/A.json"),
                ("spacing file of a label in 3D TIFF", "labelsTr/A.json"),
                ("spacing file of an unlabelled 3D TIFF", "imagesUl/U.json"),
            )
            for what, content, problem, remedy in (
                ("a number in quotes", '{"spacing": [5, 0.5, "0.5"]}', "three numbers above 0", "write for example"),
                ("two numbers", '{"spacing": [0.5, 0.5]}', "three numbers above 0", "write for example"),
                ("no spacing in it", '{"Spacing": [5, 0.5, 0.5]}', 'nothing for "spacing"', "write for example"),
                ("half a file", '{"spacing": [5, 0.', "is not valid JSON", "write for example"),
            )
        ),
        *(
            (f"{words} as .mha: cut in half", use_mha, file, truncate, "its data end early", REPLACE)
            for words, file in (
                ("labelled image", "imagesTr/A_0000.mha"),
                ("label", "labelsTr/A.mha"),
                ("unlabelled image", "imagesUl/U_0000.mha"),
            )
        ),
        *(
            (f"{words} among RGB images: {what}", partial(use_png, colours=True), file, convert(mode), problem, remedy)
            for words, file in (
                ("labelled image", "imagesTr/A_0000.png"),
                ("unlabelled image", "imagesUl/U_0000.png"),
            )
            for what, mode, problem, remedy in (
                ("with transparency", "RGBA", "4 channels (colours and transparency count)", "without transparency"),
                ("grey", "L", "1 channels (it has grey values only)", "save it in colour"),
            )
        ),
        *(
            (f"{words} in grey: {what}", use_png, file, convert(mode), problem, "save it as a grey image")
            for words, file in (
                ("labelled image", "imagesTr/A_0000.png"),
                ("label", "labelsTr/A.png"),
                ("unlabelled image", "imagesUl/U_0000.png"),
            )
            for what, mode, problem in (
                ("with a palette", "P", "3 channels (a palette is read as its colours)"),
                ("in colour", "RGB", "3 channels (colours count)"),
            )
        ),
    )
]

GEOMETRY = [
    Case(
        "labelled image: 2D, with a label of one slice in 3D",
        plan,
        lambda world: (resize(world, (32, 32, 1), *"ABCUV"), make_2d(world.image)),
        Refused(LABEL, "is a 3D image, but", "write both as 2D or both as 3D"),
    ),
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
    *on_each("negative direction cosines", mirror, None, "unlabelled", warns="The unlabelled case U is oriented LPS"),
    *on_each(
        "pixels four times as large",
        respace(6, 6, 10),
        None,
        "unlabelled",
        warns="case U has pixels of 6",
    ),
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
    Case(
        "every image: a single slice, along the first axis of the file",
        plan,
        lambda world: turn(world, "ABCUV", slices=1),
        holds=lambda world: set(preprocessed_shapes(world).values()) == {(1, 1, 32, 32)},
    ),
    Case(
        "labelled images: slices along the first axis of the file, more unlabelled ones along the last",
        plan,
        lambda world: (turn(world, "ABC"), [add_case(world.raw, "imagesUl", case) for case in "RSTWX"]),
        warns="slices along another axis",
        holds=lambda world: preprocessed_shapes(world)["A"] == (1, 3, 32, 32),
    ),
    Case("every image: a single slice", plan, lambda world: resize(world, (32, 32, 1), *"ABCUV")),
    Case("labelled image: 3 x 3 pixels", plan, lambda world: resize(world, (3, 3, 3), "A")),
    Case("unlabelled image: 3 x 3 pixels", plan, lambda world: resize(world, (3, 3, 3), "U")),
    Case("unlabelled image: smaller than the patch", plan, lambda world: resize(world, (12, 10, 3), "U")),
    Case("every image: 3 x 3 pixels", plan, _three_pixels),
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
        for kind, damage in (("shape", voxels(lambda a: a[:30])), ("spacing", respace(1.5, 1.2, 10)), ("place", shift))
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
    Case("imagesUl: empty", plan, lambda world: clear(world.raw / "imagesUl"), warns="There is no unlabelled image"),
    Case(
        "imagesUl: missing", plan, lambda world: shutil.rmtree(world.raw / "imagesUl"), warns="There is no unlabelled"
    ),
    Case(
        "imagesTr: empty",
        plan,
        lambda world: clear(world.raw / "imagesTr"),
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

PLANNED_BEFORE = (
    [
        Case(
            "unlabelled 3D TIFF: its spacing file was corrected, planned before",
            plan,
            lambda world: (
                use_tiff(world),
                _spacings(world, 3.0, UL_JSON),
                plan(world),
                _spacings(world, 1.5, UL_JSON),
            ),
            holds=lambda world: set(preprocessed_shapes(world).values()) == {(1, 3, 32, 32)},
        ),
        Case(
            "every 3D TIFF: its spacing file was corrected, planned before",
            plan,
            lambda world: (use_tiff(world), plan(world), _spacings(world, 3.0, *ALL_JSON)),
            holds=lambda world: set(preprocessed_shapes(world).values()) == {(1, 3, 32, 32)},
        ),
        Case(
            "labelled 3D TIFF: its spacing file is gone, planned before",
            plan,
            lambda world: (use_tiff(world), plan(world), (world.raw / TR_JSON).unlink()),
            Refused("imagesTr/A_0000.tif", "has the spacing (10.0, 1.5, 1.5) mm", "check which files belong together"),
        ),
    ]
    + [
        Case(f"splits_final.json: {what}", plan, raw_splits(content), Refused("splits_final.json", problem, remedy))
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
    ]
    + [
        Case(
            "splits_final.json: other validation cases in nnUNet_raw than in nnUNet_preprocessed",
            plan,
            lambda world: (
                raw_splits(FOLDS)(world),
                plan(world),
                raw_splits([{"train": ["A", "C"], "val": ["B"]}])(world),
            ),
            Refused("splits_final.json", 'differ in "train" of fold 0', "delete the latter to use the former"),
        ),
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
            lambda world: text('{"spacings": [', world.preprocessed / "dataset_fingerprint.json"),
            Refused("dataset_fingerprint.json", "is not valid JSON", "add --clean"),
            quotes=True,
        ),
        Case(
            "dataset_fingerprint.json: of another version",
            plan,
            lambda world: text('{"all_sizes": []}', world.preprocessed / "dataset_fingerprint.json"),
            Refused("dataset_fingerprint.json", "is no fingerprint of this version", "add --clean"),
        ),
        Case(
            "an earlier plan: half a file",
            plan,
            lambda world: text('{"plans_name": ', world.preprocessed / PLANS_FILE),
            Refused(PLANS_FILE, "is not valid JSON", "delete it and plan again"),
            quotes=True,
        ),
        Case(
            "an earlier plan: of nnU-Net 1",
            plan,
            lambda world: (world.preprocessed.mkdir(), nnunet_1_plan(world)),
            Refused(PLANS_FILE, "is no plan of nnU-Net 2", "delete it and plan again"),
        ),
        *(
            Case(
                f"unlabeled_fingerprint.json: {what}",
                plan,
                lambda world, spoil=spoil: (plan(world), spoil(world.preprocessed / "unlabeled_fingerprint.json")),
            )
            for what, spoil in NO_RECORDS
        ),
        Case("nnUNet_raw: read only", plan, nothing, sealed=lambda world: [world.root / "nnUNet_raw"]),
        Case(
            "nnUNet_preprocessed: read only",
            plan,
            nothing,
            Refused(
                "nnUNet_preprocessed/Dataset901_Tiny", "cannot be written to (Permission denied)", "make it writable"
            ),
            sealed=lambda world: [world.root / "nnUNet_preprocessed"],
        ),
        Case(
            "nnUNet_preprocessed: read only, planned before",
            plan,
            plan,
            Refused(
                "nnUNet_preprocessed/Dataset901_Tiny", "cannot be written to (Permission denied)", "make it writable"
            ),
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
)
