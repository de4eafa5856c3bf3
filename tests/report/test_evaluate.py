"""`nnUNetv2_vqseg_evaluate` on files: what it writes, what it counts, what it refuses."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import SimpleITK as sitk
from comparison_world import DATASET_JSON, fake_prediction, phantom, write_volume

from nnunetv2_vqseg.commands.evaluate import main
from nnunetv2_vqseg.core.errors import EvaluationError, UserError
from nnunetv2_vqseg.core.json import to_jsonable
from nnunetv2_vqseg.report import scoring
from nnunetv2_vqseg.report.classes import classes_from_dataset_json
from nnunetv2_vqseg.report.metrics import METRICS, score_masks
from nnunetv2_vqseg.report.scoring import evaluate_folder


@pytest.fixture
def folders(tmp_path):
    """Three references with predictions; that of `b` lacks class 2."""
    for index, case in enumerate("abc"):
        _, labels = phantom(index)
        write_volume(labels, tmp_path / "ref" / f"{case}.nii.gz")
        guess = fake_prediction(labels, 2)
        if case == "b":
            guess[guess == 2] = 1
        write_volume(guess, tmp_path / "pred" / f"{case}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET_JSON), encoding="utf-8")
    return tmp_path


def command(folders, *more):
    files = f"-ref {folders}/ref -pred {folders}/pred --dataset-json {folders}/dataset.json -o {folders}/out.json"
    main([*files.split(), "-np", "0", *more])
    return json.loads((folders / "out.json").read_text(encoding="utf-8"))


def test_result_holds_case_class_and_mean_and_counts_the_empty(folders, capsys):
    result = command(folders)
    assert [entry["case"] for entry in result["metric_per_case"]] == ["a", "b", "c"]
    _, labels = phantom(0)
    expected = score_masks(fake_prediction(labels, 2) == 1, labels == 1)
    assert result["metric_per_case"][0]["metrics"]["1"] == pytest.approx(expected)
    failed = result["metric_per_case"][1]["metrics"]["2"]
    assert (failed["Dice"], failed["Jaccard"], failed["HD95"], failed["ASD"]) == (0, 0, None, None)
    assert result["empty"]["2"] == {"empty_prediction": 1, "empty_reference": 0, "both_empty": 0, "n_cases": 3}
    per_case = [entry["metrics"]["2"] for entry in result["metric_per_case"]]
    assert result["mean"]["2"]["Dice"] == pytest.approx(np.mean([scores["Dice"] for scores in per_case]))
    assert result["mean"]["2"]["HD95"] == pytest.approx((per_case[0]["HD95"] + per_case[2]["HD95"]) / 2)
    for metric in METRICS:
        assert result["foreground_mean"][metric] == pytest.approx(
            (result["mean"]["1"][metric] + result["mean"]["2"][metric]) / 2
        )
    distances = [per_case[0]["HD95"], per_case[2]["HD95"]]
    assert result["std"]["2"]["HD95"] == pytest.approx(np.std(distances, ddof=1))
    assert "(n - 1) over the cases that have a value" in result["definitions"]["std"]
    assert result["classes"] == {"1": "RV & <wall>", "2": "LV"}
    assert "MedPy" in result["definitions"]["HD95"]
    assert "RV & <wall>" in capsys.readouterr().out


def test_printed_summary_counts_each_kind_of_empty_mask_and_defines_the_metrics(folders, capsys):
    _, labels = phantom(0)
    write_volume(np.where(labels == 2, 1, labels).astype(np.uint8), folders / "ref/a.nii.gz")  # predicted only
    _, labels = phantom(2)
    for name in ("ref", "pred"):
        write_volume((labels == 1).astype(np.uint8), folders / name / "c.nii.gz")  # in neither
    command(folders)
    printed = capsys.readouterr().out
    counts = {line.split("  ")[0]: line.split()[-3:] for line in printed.splitlines() if line.startswith(("RV", "LV"))}
    assert counts == {"RV & <wall>": ["0", "0", "0"], "LV": ["1", "1", "1"]}
    for text in ("95th percentile", "this direction only (MedPy)", "All three are counted"):
        assert printed.count(text) == 1, text


def test_nnunets_own_tools_read_the_result(folders):
    command(folders)
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    summary = load_summary_json(str(folders / "out.json"))
    stock = compute_metrics(str(folders / "ref/a.nii.gz"), str(folders / "pred/a.nii.gz"), SimpleITKIO(), [1, 2])
    for label in (1, 2):
        ours = summary["metric_per_case"][0]["metrics"][label]
        assert ours["Dice"] == pytest.approx(stock["metrics"][label]["Dice"])
        assert ours["Jaccard"] == pytest.approx(stock["metrics"][label]["IoU"])


def test_mm_measures_with_the_references_spacing(folders):
    # spacing is (10, 1.5, 1.5) and the prediction is moved in plane only
    voxel, mm = command(folders), command(folders, "--units", "mm")
    assert voxel["units"] == "voxel"
    assert mm["metric_per_case"][0]["metrics"]["2"]["HD95"] > voxel["metric_per_case"][0]["metrics"]["2"]["HD95"]
    _, labels = phantom(0)
    expected = score_masks(fake_prediction(labels, 2) == 2, labels == 2, (10.0, 1.5, 1.5))
    assert mm["metric_per_case"][0]["metrics"]["2"] == pytest.approx(expected)


def test_literature_convention_scores_failure_with_zero_distance(folders):
    result = command(folders, "--empty-convention", "literature")
    assert result["metric_per_case"][1]["metrics"]["2"]["HD95"] == 0
    assert result["empty"]["2"]["empty_prediction"] == 1
    for text in ("One of several variants", "rewards failure", "without a value if both are, where other code has 0"):
        assert text in result["definitions"]["empty"]


def test_worker_processes_give_the_same_scores(folders):
    serial = evaluate_folder(folders / "ref", folders / "pred", DATASET_JSON, num_processes=1)
    parallel = evaluate_folder(folders / "ref", folders / "pred", DATASET_JSON, num_processes=2)
    assert to_jsonable(serial) == to_jsonable(parallel)


def test_an_error_in_a_worker_process_keeps_its_sentence(folders):
    (folders / "pred/b.nii.gz").write_bytes(b"not a gzip")
    with pytest.raises(UserError, match=r"pred/b\.nii\.gz is not a valid gzip file"):
        evaluate_folder(folders / "ref", folders / "pred", DATASET_JSON, num_processes=2)


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_process_is_one_sentence(folders, monkeypatch):
    monkeypatch.setattr(scoring, "score_case", killed)
    with pytest.raises(UserError, match=r"killed, most often because memory ran out; .* with -np\.$"):
        evaluate_folder(folders / "ref", folders / "pred", DATASET_JSON, num_processes=2)


def test_files_that_a_mac_adds_are_no_cases(folders):
    for name in ("ref", "pred"):
        (folders / name / "._a.nii.gz").write_bytes(b"resource fork")
    assert command(folders)["n_cases"] == 3


def test_missing_predictions_are_listed_or_left_out_with_chill(folders):
    (folders / "pred/a.nii.gz").unlink()
    (folders / "pred/c.nii.gz").unlink()
    with pytest.raises(SystemExit, match=r"2 of 3 cases \(a\.nii\.gz, c\.nii\.gz\).*--chill"):
        command(folders)
    result = command(folders, "--chill")
    assert result["missing_predictions"] == ["a", "c"]
    assert result["n_cases"] == 1
    (folders / "pred/b.nii.gz").unlink()
    with pytest.raises(SystemExit, match="3 of 3 cases"):
        command(folders, "--chill")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"spacing": (1.5, 1.6, 10.0)}, "spacings are"),
        ({"origin": (0.0, 3.0, 0.0)}, "3.0 mm apart"),
        ({"shape": (5, 64, 56)}, r"shapes are \(5, 64, 56\) and \(4, 64, 56\)"),
    ],
)
def test_a_prediction_on_another_grid_is_refused(folders, change, sentence):
    _, labels = phantom(0, change.pop("shape", (4, 64, 56)))
    write_volume(labels, folders / "pred/a.nii.gz", **change)
    with pytest.raises(SystemExit, match=f"a.nii.gz do not lie on the same grid.*{sentence}"):
        command(folders)


def test_a_flipped_direction_is_refused_but_rounding_of_the_header_is_not(folders):
    image = sitk.ReadImage(str(folders / "ref/a.nii.gz"))
    image.SetOrigin((1e-4, -1e-4, 0.2))
    sitk.WriteImage(image, str(folders / "pred/a.nii.gz"))
    command(folders)
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(folders / "pred/a.nii.gz"))
    with pytest.raises(SystemExit, match="origin or direction differ"):
        command(folders)


def test_regions_and_ignore_label_come_from_dataset_json(tmp_path):
    reference = np.array([[[0, 1, 1, 2, 2, 0], [0, 1, 1, 2, 3, 3]]] * 2, dtype=np.uint8)
    guess = np.where(reference == 3, 1, reference)
    write_volume(reference, tmp_path / "ref/a.nii.gz")
    write_volume(guess.astype(np.uint8), tmp_path / "pred/a.nii.gz")
    dataset_json = {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, "file_ending": ".nii.gz"}
    result = evaluate_folder(tmp_path / "ref", tmp_path / "pred", dataset_json)
    assert result["classes"] == {"(1, 2)": "whole", "2": "core"}
    assert result["metric_per_case"][0]["metrics"]["(1, 2)"]["Dice"] == 1  # what lies under ignore does not count


def test_2d_images_are_read_with_nnunets_reader_and_measured_as_2d(tmp_path):
    from skimage.io import imsave

    for name, column in (("ref", 3), ("pred", 5)):
        labels = np.zeros((20, 20), dtype=np.uint8)
        labels[4:14, column : column + 10] = 1
        (tmp_path / name).mkdir()
        imsave(tmp_path / name / "x.png", labels, check_contrast=False)
    dataset_json = {"labels": {"background": 0, "road": 1}, "file_ending": ".png"}
    scores = evaluate_folder(tmp_path / "ref", tmp_path / "pred", dataset_json)["metric_per_case"][0]["metrics"]["1"]
    assert scores["Dice"] == pytest.approx(0.8)
    assert scores["HD95"] == pytest.approx(2)  # all of a slice would be surface in 3D, with distance 0 inside


def test_only_the_named_file_is_written(folders):
    before = {file: file.read_bytes() for file in folders.rglob("*") if file.is_file()}
    command(folders)
    command(folders)
    after = {file: file.read_bytes() for file in folders.rglob("*") if file.is_file()}
    assert after.keys() - before.keys() == {folders / "out.json"}
    assert all(after[file] == content for file, content in before.items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "out.txt"], "not the name of a .json file"),
        (["--dataset-json", "nowhere.json"], "nowhere.json cannot be read"),
        (["-ref", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_wrong_arguments_are_named(folders, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        command(folders, *arguments)


def test_dataset_id_finds_dataset_json_in_nnunet_raw(folders, monkeypatch):
    arguments = [
        "-ref",
        str(folders / "ref"),
        "-pred",
        str(folders / "pred"),
        "-o",
        str(folders / "out.json"),
        "-np",
        "0",
    ]
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(SystemExit, match="nnUNet_raw is not set"):
        main([*arguments, "-d", "5"])
    monkeypatch.setenv("nnUNet_raw", str(folders / "raw"))
    with pytest.raises(SystemExit, match="no dataset with id 5"):
        main([*arguments, "-d", "5"])
    for name in ("Dataset005_A", "Dataset005_B"):
        (folders / "raw" / name).mkdir(parents=True)
        (folders / "raw" / name / "dataset.json").write_text(json.dumps(DATASET_JSON), encoding="utf-8")
    with pytest.raises(SystemExit, match="several datasets"):
        main([*arguments, "-d", "5"])
    main([*arguments, "-d", "Dataset005_A"])
    assert (folders / "out.json").is_file()


def test_labels_of_dataset_json_must_be_there():
    with pytest.raises(EvaluationError, match='no "labels"'):
        classes_from_dataset_json({})
    with pytest.raises(EvaluationError, match="no label besides the background"):
        classes_from_dataset_json({"labels": {"background": 0, "ignore": 1}})
