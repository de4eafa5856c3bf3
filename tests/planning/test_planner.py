"""The plan counts the unlabelled images in, fits its memory, and leaves stock nnU-Net's files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage import io
from tiny_raw_dataset import add_case, make_dataset, phantom, write_dataset_json, write_volume

from nnunetv2_vqseg.core.errors import DatasetError, PlansError
from nnunetv2_vqseg.data.cases import UnlabeledCases
from nnunetv2_vqseg.planning import planner as planner_module
from nnunetv2_vqseg.planning.geometry import read_geometry
from nnunetv2_vqseg.planning.planner import FIXED_GB, IMAGES_A_LABEL, vqseg_planner

NAME = "Dataset901_Tiny"
INTENSITIES = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_samples: None) -> Path:
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(folder, str(tmp_path / folder))
    # nnU-Net forks twelve processes to list a folder.
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
    return tmp_path


def write_fingerprint(home: Path, shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]]) -> Path:
    """What nnU-Net's extractor writes; shapes (Z, Y, X) and spacings as its reader gives them."""
    file = home / "nnUNet_preprocessed" / NAME / "dataset_fingerprint.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        json.dumps(
            {
                "spacings": spacings,
                "shapes_after_crop": shapes,
                "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
                "median_relative_size_after_cropping": 1.0,
            }
        ),
        encoding="utf-8",
    )
    return file


def plan(base: type = ExperimentPlanner, **arguments) -> dict:
    planner = vqseg_planner(base)(901, num_processes=0, show_progress=False, **arguments)
    planner.plan_experiment()
    return saved(planner.plans_identifier)


def saved(name: str = "nnUNetVQSegPlans") -> dict:
    from nnunetv2.paths import nnUNet_preprocessed

    return json.loads((Path(nnUNet_preprocessed) / NAME / f"{name}.json").read_text(encoding="utf-8"))


def pretend(home: Path, labeled: int, shape: Sequence[int], spacing: Sequence[float] = (10.0, 1.5, 1.5)) -> None:
    """A dataset as if of `labeled` volumes of a larger shape: planning reads the fingerprint, not labelled images."""
    raw = make_dataset(home, labeled=[f"case{number:03d}" for number in range(2)], unlabeled=())
    content = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": labeled}), encoding="utf-8")
    write_fingerprint(home, [shape] * labeled, [spacing] * labeled)


def test_unlabelled_images_count_for_spacing_and_patch(home: Path):
    raw = make_dataset(home, labeled="AB", unlabeled=())
    file = write_fingerprint(home, [[3, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    before = file.read_bytes()
    alone = plan(plans_name="alone")["configurations"]["2d"]
    assert alone["spacing"] == [1.5, 1.5]
    assert alone["median_image_size_in_voxels"] == [32, 32]

    for case in "UVW":
        add_case(raw, "imagesUl", case, shape=(96, 64, 3), spacing=(0.5, 0.75, 10.0))
    together = plan()["configurations"]["2d"]
    assert together["spacing"] == [0.75, 0.5]  # rows are y
    assert together["median_image_size_in_voxels"] == [64, 96]
    assert together["patch_size"] == [64, 96]
    assert file.read_bytes() == before


def test_labelled_images_decide_along_which_axis_all_are_cut(home: Path, capsys: pytest.CaptureFixture[str]):
    """Sagittal labelled volumes and more axial unlabelled ones, as an MRI department has them."""
    raw = make_dataset(home, labeled="ABC", unlabeled=())
    write_fingerprint(home, [[64, 64, 5]] * 3, [[0.5, 0.5, 5.0]] * 3)
    for case in "STUVWXYZ":
        add_case(raw, "imagesUl", case, shape=(32, 32, 5), spacing=(1.0, 1.0, 5.0))
    plans = plan()
    assert plans["transpose_forward"] == [2, 0, 1]
    assert plans["configurations"]["2d"]["spacing"] == [0.5, 0.5]
    assert plans["configurations"]["2d"]["patch_size"] == [64, 64]
    assert "such as the case S (and 7 more)" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "first"), [((1, 48, 64), 0), ((48, 1, 64), 1), ((48, 64, 1), 2)])
def test_single_slices_are_cut_where_they_are_thin(home: Path, shape: tuple[int, int, int], first: int):
    pretend(home, 3, shape, (1.0, 1.0, 1.0))
    plans = plan()
    assert plans["transpose_forward"][0] == first
    assert [plans["transpose_forward"][axis] for axis in plans["transpose_backward"]] == [0, 1, 2]
    assert plans["configurations"]["2d"]["patch_size"] == [48, 64]


def test_lines_are_refused(home: Path):
    pretend(home, 3, (64, 1, 1), (1.0, 1.0, 1.0))
    with pytest.raises(PlansError, match="lines and no slices"):
        plan()


def test_images_are_cropped_to_nonzero_for_their_shape(home: Path):
    from tiny_raw_dataset import phantom, write_volume

    raw = make_dataset(home, labeled="AB", unlabeled=())
    write_fingerprint(home, [[3, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    image = phantom(1, (80, 80, 3))[0]
    image[:, :16] = image[:, 64:] = 0
    for case in "UVW":
        write_volume(raw / "imagesUl" / f"{case}_0000.nii.gz", image)
    assert plan()["configurations"]["2d"]["median_image_size_in_voxels"] == [48, 80]


@pytest.mark.parametrize("base", [ExperimentPlanner, nnUNetPlannerResEncM])
def test_the_plan_can_be_used_by_stock_nnunet(home: Path, base: type):
    make_dataset(home)
    write_fingerprint(home, [[3, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    plans = plan(base)
    assert plans["plans_name"] == "nnUNetVQSegPlans"
    manager = PlansManager(plans)
    assert manager.experiment_planner_class is base
    configuration = manager.get_configuration("2d")
    assert configuration.data_identifier == "nnUNetVQSegPlans_2d"
    network = nnUNetTrainer.build_network_architecture(manager, configuration, 1, 2)
    assert ("Residual" in type(network).__name__) == (base is nnUNetPlannerResEncM)


def test_another_name_keeps_its_data_apart(home: Path):
    make_dataset(home)
    write_fingerprint(home, [[3, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    plans = plan(nnUNetPlannerResEncM, plans_name="mine")
    assert plans["plans_name"] == "mine"
    assert plans["configurations"]["2d"]["data_identifier"] == "mine_2d"


@pytest.mark.parametrize(
    ("labeled", "batch"),
    [
        (2, 8),  # 5 % of 20 slices is one
        (19, 10),  # 5 % of 190 slices is 9.5
        (200, 12),
    ],
)
def test_the_batch_is_five_percent_of_the_labelled_slices_between_8_and_12(home: Path, labeled: int, batch: int):
    pretend(home, labeled, (10, 64, 64))
    configuration = plan()["configurations"]["2d"]
    assert configuration["patch_size"] == [64, 64]
    assert configuration["batch_size"] == batch


def test_another_batch_range(home: Path):
    pretend(home, 19, (10, 64, 64))
    assert plan(labeled_batch_range=(3, 4))["configurations"]["2d"]["batch_size"] == 4
    assert plan(labeled_batch_range=(16, 16))["configurations"]["2d"]["batch_size"] == 16


def test_unlabelled_images_do_not_make_the_batch_larger(home: Path):
    raw = make_dataset(home, labeled="AB", unlabeled=())
    for number in range(30):
        add_case(raw, "imagesUl", f"U{number}", shape=(32, 32, 12))
    write_fingerprint(home, [[12, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    assert plan(labeled_batch_range=(1, 100))["configurations"]["2d"]["batch_size"] == 1


def step_gb(planner: ExperimentPlanner, configuration: dict) -> float:
    """Memory of a VQ-Seg step with nnU-Net's smallest labelled batch, by nnU-Net's own reference numbers."""
    architecture = configuration["architecture"]
    estimate = planner.static_estimate_VRAM_usage(
        configuration["patch_size"],
        1,
        2,
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
    )
    stock_images = configuration["batch_size"] * IMAGES_A_LABEL
    per_image = planner.UNet_reference_val_corresp_GB / planner.UNet_reference_val_corresp_bs_2d
    return FIXED_GB + stock_images * per_image * estimate / planner.UNet_reference_val_2d


@pytest.mark.parametrize(
    ("base", "target"),
    [
        (ExperimentPlanner, 8.0),
        pytest.param(ExperimentPlanner, 4.0, marks=pytest.mark.slow),
        pytest.param(nnUNetPlannerResEncM, 8.0, marks=pytest.mark.slow),
        pytest.param(nnUNetPlannerResEncXL, 40.0, marks=pytest.mark.slow),
    ],
)
def test_a_step_fits_the_memory_and_uses_it(home: Path, base: type, target: float):
    size = 480 if target <= 8 else 800
    pretend(home, 300, (10, size, size))
    planner = vqseg_planner(base)(901, num_processes=0, show_progress=False, gpu_memory_target_in_gb=target)
    configuration = planner.get_plans_for_configuration([1.5, 1.5], [size, size], "x", 3000.0 * size * size, {})
    assert 8 <= configuration["batch_size"] <= 12
    assert 0.7 * target < step_gb(planner, configuration) <= target
    assert target == planner.UNet_vram_target_GB


def test_a_memory_that_nothing_fits_is_refused(home: Path):
    pretend(home, 300, (10, 64, 64))
    planner = vqseg_planner(ExperimentPlanner)(901, num_processes=0, labeled_batch_range=(10**6, 10**6))
    with pytest.raises(PlansError, match="gpu_memory_target"):
        planner.get_plans_for_configuration([1.5, 1.5], [64, 64], "x", 1e9, {})


def test_where_memory_is_plenty_the_patch_is_stock_nnunets(home: Path, monkeypatch: pytest.MonkeyPatch):
    pretend(home, 40, (10, 256, 216))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    ExperimentPlanner(901).plan_experiment()
    theirs = saved("nnUNetPlans")["configurations"]["2d"]
    ours = plan()["configurations"]["2d"]
    for key in ("patch_size", "spacing", "architecture", "normalization_schemes", "use_mask_for_norm"):
        assert ours[key] == theirs[key]
    assert (ours["batch_size"], theirs["batch_size"]) == (12, 19)


def test_replanning_keeps_what_was_written_by_hand(home: Path):
    make_dataset(home)
    write_fingerprint(home, [[3, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    plans = plan()
    plans["configurations"]["2d"] |= {"vqseg": {"epsilon": 0.3}, "batch_size": 99}
    plans["configurations"]["2d_small"] = {"inherits_from": "2d", "vqseg": {"seed": 1}}
    file = home / "nnUNet_preprocessed" / NAME / "nnUNetVQSegPlans.json"
    file.write_text(json.dumps(plans), encoding="utf-8")
    again = plan()["configurations"]
    assert again["2d"]["vqseg"] == {"epsilon": 0.3}
    assert again["2d"]["batch_size"] == 8
    assert again["2d_small"] == plans["configurations"]["2d_small"]
    file.write_text("{", encoding="utf-8")
    with pytest.raises(PlansError, match=r"nnUNetVQSegPlans\.json is not valid JSON"):
        plan()


def test_unchanged_images_are_read_once(home: Path, monkeypatch: pytest.MonkeyPatch):
    raw = make_dataset(home)
    write_fingerprint(home, [[3, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    read: list[str] = []
    original = planner_module.read_geometry.__globals__["read_case"]
    monkeypatch.setitem(
        planner_module.read_geometry.__globals__,
        "read_case",
        lambda case, *arguments: read.append(case) or original(case, *arguments),
    )
    first = plan()
    assert read == ["U", "V"]
    assert plan() == first
    assert read == ["U", "V"]
    add_case(raw, "imagesUl", "V", shape=(64, 64, 3), seed=9)
    plan()
    assert read == ["U", "V", "V"]
    plan(clean=True)
    assert read == ["U", "V", "V", "U", "V"]


def test_a_broken_unlabelled_image_is_named_while_planning(home: Path, monkeypatch: pytest.MonkeyPatch):
    raw = make_dataset(home)
    write_fingerprint(home, [[3, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    broken = raw / "imagesUl" / "V_0000.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    with pytest.raises(DatasetError) as error:
        plan()
    assert str(broken) in str(error.value)
    assert "truncated" in str(error.value)
    broken.write_bytes(whole)
    read: list[str] = []
    names = planner_module.read_geometry.__globals__
    original = names["read_case"]
    monkeypatch.setitem(names, "read_case", lambda case, *rest: read.append(case) or original(case, *rest))
    plan()
    assert read == ["V"], "the others were read"


def test_all_broken_cases_are_named_at_once(tmp_path: Path):
    files = {case: [str(tmp_path / f"{case}_0000.nii.gz")] for case in "NUZ"}
    images = (phantom(1)[0] * np.nan, phantom(1)[0], np.zeros((8, 8, 2), np.float32))
    for (file,), image in zip(files.values(), images, strict=True):
        write_volume(Path(file), image)
    cases = UnlabeledCases(files, dict.fromkeys(files, "imagesUl"))
    description = {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    arguments = (description, SimpleITKIO, tmp_path / "record.json", 0, False)
    with pytest.raises(DatasetError) as error:
        read_geometry(cases, *arguments)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert files["N"][0] in lines[0]
    assert files["Z"][0] in lines[1]
    whole = UnlabeledCases({"U": files["U"]}, {"U": "imagesUl"})
    assert read_geometry(whole, *arguments)["U"]["shape"] == [3, 32, 32]


def test_natural_images(home: Path):
    raw = home / "nnUNet_raw" / NAME
    rng = np.random.default_rng(0)
    for folder, names, shape in (("imagesTr", "AB", (32, 32, 3)), ("imagesUl", "UVW", (48, 64, 3))):
        (raw / folder).mkdir(parents=True)
        for name in names:
            io.imsave(raw / folder / f"{name}_0000.png", rng.integers(1, 255, shape, np.uint8), check_contrast=False)
    write_dataset_json(raw, channels=3, ending=".png", modality="R")
    file = write_fingerprint(home, [[1, 32, 32]] * 2, [[999, 1, 1]] * 2)
    fingerprint = json.loads(file.read_text(encoding="utf-8"))
    fingerprint["foreground_intensity_properties_per_channel"] = {str(channel): INTENSITIES for channel in range(3)}
    file.write_text(json.dumps(fingerprint), encoding="utf-8")
    plans = plan()
    assert list(plans["configurations"]) == ["2d"]
    assert plans["configurations"]["2d"]["patch_size"] == [48, 64]
    assert plans["image_reader_writer"] == "NaturalImage2DIO"


class TestListedCases:
    """Folds with `unlabeled` lists: C's and D's labels are garbage, B is listed in one fold and taught in another."""

    FOLDS = (
        {"train": ["A"], "val": ["E"], "unlabeled": ["C", "D"]},
        {"train": ["A", "B"], "val": ["E"], "unlabeled": ["C", "D"]},
        {"train": ["A"], "val": ["E"], "unlabeled": ["B", "C"]},
    )

    def roles(self, home: Path, folds: Sequence[dict], where: str = "nnUNet_raw"):
        from nnunetv2_vqseg.data.roles import read_roles

        raw = make_dataset(home, labeled="ABCDE", unlabeled="U")
        for case in "CD":
            (raw / "labelsTr" / f"{case}.nii.gz").write_text("garbage", encoding="utf-8")
        (home / where / NAME).mkdir(exist_ok=True)
        (home / where / NAME / "splits_final.json").write_text(json.dumps(list(folds)), encoding="utf-8")
        return read_roles(NAME, json.loads((raw / "dataset.json").read_text(encoding="utf-8")))

    @pytest.mark.parametrize("where", ["nnUNet_raw", "nnUNet_preprocessed"])
    def test_roles(self, home: Path, where: str):
        roles = self.roles(home, self.FOLDS, where)
        assert roles.hidden == {"C", "D"}
        assert roles.labeled == ("A", "E")
        assert sorted(roles.visible) == ["A", "B", "E"]
        assert sorted(roles.unlabeled.files) == ["B", "C", "D", "U"]
        assert roles.has_listed_cases

    def test_without_lists_everything_is_labelled(self, home: Path):
        roles = self.roles(home, [{"train": ["A", "B"], "val": ["C", "D", "E"]}])
        assert roles.hidden == frozenset()
        assert roles.labeled == tuple("ABCDE")
        assert not roles.has_listed_cases
        assert list(roles.unlabeled.files) == ["U"]

    def test_where_every_case_is_listed_somewhere_the_taught_ones_count(self, home: Path):
        roles = self.roles(
            home,
            [
                {"train": ["A", "B"], "val": [], "unlabeled": ["C", "D", "E"]},
                {"train": ["E"], "val": [], "unlabeled": ["A", "B"]},
            ],
        )
        assert roles.labeled == ("A", "B", "E")

    @pytest.mark.slow
    def test_hidden_labels_are_never_opened_and_do_not_count(self, home: Path):
        self.roles(home, self.FOLDS)
        file = write_fingerprint(home, [[3, 32, 32]] * 5, [[10.0, 1.5, 1.5]] * 5)
        before = file.read_bytes()
        planner = vqseg_planner(ExperimentPlanner)(901, num_processes=1, show_progress=False)
        plans = planner.plan_experiment()
        assert file.read_bytes() == before
        assert len(planner.dataset_fingerprint["spacings"]) == 2 + 4
        assert planner.dataset_json["numTraining"] == 2
        mean = plans["foreground_intensity_properties_per_channel"]["0"]["mean"]
        assert mean == pytest.approx(160, abs=3)  # of the bright block in A and E, not the 1.0 of the file


def test_the_labels_of_dataset_json_may_be_regions(home: Path):
    raw = make_dataset(home)
    content = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    content |= {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    write_fingerprint(home, [[3, 32, 32]] * 2, [[10.0, 1.5, 1.5]] * 2)
    assert plan()["configurations"]["2d"]["batch_size"] == 8
