"""Comparisons after nnU-Net's postprocessing, whose rule and functions are nnU-Net's own here."""

from __future__ import annotations

import json
import shutil
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from comparison_world import DATASET, DATASET_JSON, TRAINERS
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.postprocessing import remove_connected_components

from nnunetv2_vqseg.evaluation import compare, postprocessing, prediction
from nnunetv2_vqseg.evaluation.datasets import Case
from nnunetv2_vqseg.evaluation.json_files import to_jsonable
from nnunetv2_vqseg.evaluation.labels import classes_from_dataset_json
from nnunetv2_vqseg.evaluation.methods import Method
from nnunetv2_vqseg.evaluation.models import TrainedModel

MODEL = f"{TRAINERS[0]}__nnUNetPlans__2d"


@pytest.fixture
def threads(monkeypatch):
    """nnU-Net's pools as threads: a process imports nnU-Net anew, and it starts six pools a training."""
    pools = SimpleNamespace(get_context=lambda kind: SimpleNamespace(Pool=ThreadPool))
    for module in (evaluate_predictions, remove_connected_components):
        monkeypatch.setattr(module, "multiprocessing", pools)


@pytest.fixture
def second_heart(world, predictor, monkeypatch):
    """The small world where stock nnU-Net sees a second small heart in every volume; returns the world's folder."""
    for trainer in TRAINERS:
        model = world / "results" / DATASET / f"{trainer}__nnUNetPlans__2d"
        plans = {"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager"}
        (model / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
        (model / "dataset.json").write_text(json.dumps(DATASET_JSON), encoding="utf-8")
    inner = prediction.run_predictor

    def predict(model, fold, cases, output, device, num_processes):
        result = inner(model, fold, cases, output, device, num_processes)
        for case in cases if model.method.trainer == TRAINERS[0] else ():
            change(output / f"{case}.nii.gz", add_second_heart)
        return result

    monkeypatch.setattr(prediction, "run_predictor", predict)
    return world


def change(file, how):
    image = sitk.ReadImage(str(file))
    labels = sitk.GetArrayFromImage(image)
    how(labels)
    changed = sitk.GetImageFromArray(labels)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))


def add_second_heart(labels):
    labels[:, 58:62, 2:6] = 1


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_scores_are_those_after_the_steps_that_validation_cases_ask_for(second_heart, threads, without_report):
    plain = compare.run(901, TRAINERS, second_heart / "plain", device="cpu")
    summary = compare.run(901, TRAINERS, second_heart / "out", device="cpu", postprocess=True)
    stock, ours = summary["methods"].values()
    assert stock["postprocessing"]["steps"] == {"0": "largest component of the foreground"}
    assert ours["postprocessing"]["steps"] == {"0": "none"}
    before = [method["summary"] for method in plain["methods"].values()]
    as_predicted = [method["postprocessing"]["as_predicted"] for method in (stock, ours)]
    assert to_jsonable(as_predicted) == to_jsonable(before)
    assert to_jsonable(ours["summary"]) == to_jsonable(before[1])
    assert stock["summary"]["1"]["Dice"]["mean"] > before[0]["1"]["Dice"]["mean"] + 0.01
    assert stock["summary"]["1"]["ASD"]["mean"] < before[0]["1"]["ASD"]["mean"] - 0.2
    folder = second_heart / "out/postprocessing" / DATASET / MODEL / "fold_0_checkpoint_final"
    predicted = second_heart / "out/predictions" / DATASET / "test" / MODEL / "fold_0_checkpoint_final"
    scored = sorted((folder / "test").glob("*.nii.gz"))
    assert [file.name for file in scored] == sorted(file.name for file in predicted.glob("*.nii.gz"))
    expected = read(predicted / scored[3].name)
    assert expected[:, 58:62, 2:6].all()
    expected[:, 58:62, 2:6] = 0
    assert (read(scored[3]) == expected).all()


def test_the_report_says_what_was_done_and_what_it_changed(second_heart, threads, monkeypatch):
    monkeypatch.setattr(compare, "overlays_of_method", lambda *arguments: [])
    summary = compare.run(901, TRAINERS, second_heart / "out", device="cpu", postprocess=True)
    text = (second_heart / "out/report/index.html").read_text(encoding="utf-8")
    before = [
        method["postprocessing"]["as_predicted"]["mean"]["Dice"]["mean"] for method in summary["methods"].values()
    ]
    assert "trainings: nnU-Net 1 of 1, VQSeg 0 of 1" in text
    assert f"Mean Dice as predicted: nnU-Net {before[0]:.4f}, VQSeg {before[1]:.4f}." in text
    assert "<dt>Postprocessing, nnU-Net</dt><dd>largest component of the foreground</dd>" in text
    assert "<dt>Postprocessing, VQSeg</dt><dd>none</dd>" in text
    assert "--postprocessing" in summary["command"]
    assert "flatters" not in text


def test_without_it_nothing_is_said_of_it(second_heart, monkeypatch):
    monkeypatch.setattr(compare, "overlays_of_method", lambda *arguments: [])
    summary = compare.run(901, TRAINERS, second_heart / "out", device="cpu")
    assert "ostprocessing" not in (second_heart / "out/report/index.html").read_text(encoding="utf-8")
    assert "--postprocessing" not in summary["command"]
    assert not (second_heart / "out/postprocessing").exists()


def test_validation_cases_that_choose_and_are_scored_are_told(second_heart, threads, predictor, without_report):
    options = ["--split", "val", "--postprocessing", "-device", "cpu", "-np", "1", "-f", "0", "1"]
    compare.main(["-d", "901", "-tr", *TRAINERS, "-o", str(second_heart / "out"), *options])
    (summary,) = without_report
    assert any("the very cases that are scored" in notice for notice in summary["notices"])
    assert [fold for _, fold, _ in predictor] == ["0", "1", "0", "1"]
    assert len(summary["methods"]["nnU-Net"]["postprocessing"]["steps"]) == 2


def test_the_choice_is_kept_until_what_it_was_made_from_changes(second_heart, threads, without_report, monkeypatch):
    asked = []
    inner = remove_connected_components.determine_postprocessing
    monkeypatch.setattr(
        remove_connected_components,
        "determine_postprocessing",
        lambda *arguments, **more: asked.append(arguments) or inner(*arguments, **more),
    )

    def steps():
        summary = compare.run(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True)
        return summary["methods"]["nnU-Net"]["postprocessing"]["steps"]["0"]

    assert [steps(), steps(), len(asked)] == ["largest component of the foreground"] * 2 + [1]
    for case in ("case2", "case3"):  # an annotator finds a second heart, larger than the first, in each of them
        change(second_heart / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", add_second_heart)
    assert [steps(), len(asked)] == ["none", 2]
    record = second_heart / "out/postprocessing" / DATASET / MODEL / "fold_0_checkpoint_final/record.json"
    record.write_text(json.dumps({**json.loads(record.read_text(encoding="utf-8")), "steps": "?"}), encoding="utf-8")
    assert [steps(), len(asked)] == ["none", 3]
    (record.parent / "postprocessing.pkl").unlink()
    assert [steps(), len(asked)] == ["none", 4]


def test_a_killed_choice_leaves_nothing_behind_and_is_made_anew(second_heart, threads, without_report, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(remove_connected_components, "determine_postprocessing", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compare.run(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True)
    summary = compare.run(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True)
    assert summary["methods"]["nnU-Net"]["postprocessing"]["steps"] == {"0": "largest component of the foreground"}
    folder = second_heart / "out/postprocessing" / DATASET / MODEL / "fold_0_checkpoint_final"
    assert sorted(file.name for file in folder.glob("[!.]*")) == [
        "postprocessing.json",
        "postprocessing.pkl",
        "record.json",
        "test",
    ]


def interrupt(*arguments, **more):
    raise KeyboardInterrupt


def test_the_file_for_nnunets_own_command_does_the_same(second_heart, threads, without_report):
    compare.run(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True)
    folder = second_heart / "out/postprocessing" / DATASET / MODEL / "fold_0_checkpoint_final"
    predicted = second_heart / "out/predictions" / DATASET / "test" / MODEL / "fold_0_checkpoint_final"
    model = second_heart / "results" / DATASET / MODEL
    remove_connected_components.apply_postprocessing_to_folder(
        str(predicted),
        str(second_heart / "theirs"),
        *load_pickle(str(folder / "postprocessing.pkl")),
        str(model / "plans.json"),
        str(model / "dataset.json"),
        1,
    )
    files = sorted((folder / "test").iterdir())
    assert len(files) == 14
    for file in files:
        assert (read(file) == read(second_heart / "theirs" / file.name)).all()


@pytest.mark.parametrize("fold", ["all", "7"])
def test_without_validation_cases_it_stops_before_anything_is_predicted(second_heart, predictor, fold):
    source = second_heart / "results" / DATASET / MODEL / "fold_0"
    shutil.copytree(source, source.with_name(f"fold_{fold}"))
    options = ["-f", fold, "--postprocessing", "-o", str(second_heart / "out")]
    with pytest.raises(SystemExit, match=r"Fold .* leave out --postprocessing, which asks the validation cases\."):
        compare.main(["-d", "901", "-tr", TRAINERS[0], *options])
    assert predictor == []


def test_steps_are_told_in_the_names_of_dataset_json():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    classes = classes_from_dataset_json({"labels": labels})

    def told(*labels):
        return postprocessing.describe([{"labels_or_regions": asked} for asked in labels], classes)

    assert told() == "none"
    assert told([1, 2, 3]) == "largest component of the foreground"
    assert told([2, 3], 3) == "largest component of core, then of enhancing"
    assert told([[2, 3]]) == "largest component of core"
    assert told([1]) == "largest component of [1]"


def test_a_tiff_keeps_the_spacing_beside_it(tmp_path, threads):
    model = TrainedModel(Method("m", "T", "P"), tmp_path / "T__P__2d", ("0",), "checkpoint_final.pth")
    model.folder.mkdir()
    dataset_json = {**DATASET_JSON, "file_ending": ".tif"}
    plans = {"image_reader_writer": "Tiff3DIO", "label_manager": "LabelManager"}
    (model.folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (model.folder / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    reference = np.zeros((3, 20, 20), np.uint8)
    reference[:, 4:10, 4:10] = 2
    predicted = reference.copy()
    predicted[:, 15:17, 15:17] = 2
    for folder, labels in (("references", reference), ("predictions", predicted)):
        (tmp_path / folder).mkdir()
        Tiff3DIO().write_seg(labels, str(tmp_path / folder / "a.tif"), {"spacing": [5.0, 1.0, 1.0]})
    cases = {"a": Case((), tmp_path / "references/a.tif")}
    steps = postprocessing.chosen_steps(model, cases, tmp_path / "predictions", tmp_path / "chosen", ".tif", 1)
    assert [step["labels_or_regions"] for step in steps] == [2]  # class 1 is nowhere, so that there is no mean Dice
    postprocessing.apply_steps(model, cases, tmp_path / "predictions", tmp_path / "done", ".tif", steps)
    labels, properties = Tiff3DIO().read_seg(str(tmp_path / "done/a.tif"))
    assert (labels[0] == reference).all()
    assert properties["spacing"] == [5.0, 1.0, 1.0]


@pytest.mark.slow
def test_with_nnunets_own_pools_of_processes(second_heart, without_report):
    summary = compare.run(901, TRAINERS[:1], second_heart / "out", device="cpu", num_processes=2, postprocess=True)
    stock = summary["methods"]["nnU-Net"]
    assert stock["postprocessing"]["steps"] == {"0": "largest component of the foreground"}
    assert stock["summary"]["mean"]["Dice"]["mean"] > stock["postprocessing"]["as_predicted"]["mean"]["Dice"]["mean"]
