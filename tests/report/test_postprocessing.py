"""Comparisons after postprocessing: the choice is that of nnU-Net, and so are the label maps that are scored."""

from __future__ import annotations

import json
import os
import shutil
import signal
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from comparison_world import DATASET, DATASET_JSON, TRAINERS, write_volume
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.postprocessing import remove_connected_components

from nnunetv2_vqseg.commands.compare import main as compare_main
from nnunetv2_vqseg.core.errors import UserError
from nnunetv2_vqseg.core.json import to_jsonable
from nnunetv2_vqseg.core.pools import WorkerKilled, workers
from nnunetv2_vqseg.report import compare, postprocessing, prediction
from nnunetv2_vqseg.report.classes import classes_from_dataset_json
from nnunetv2_vqseg.report.compare import Comparison
from nnunetv2_vqseg.report.methods import Method
from nnunetv2_vqseg.report.scoring import ScoreSettings
from nnunetv2_vqseg.report.trained_models import TrainedModel

MODEL = f"{TRAINERS[0]}__nnUNetPlans__2d"
FOREGROUND = "largest component of the foreground"
LABELS = {
    "classes": ({"background": 0, "a": 1, "b": 2, "c": 3}, None),
    "one class": ({"background": 0, "a": 1}, None),
    "absent class": ({"background": 0, "a": 1, "b": 2, "c": 3, "rare": 4}, None),
    "ignore label": ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
    "regions": ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "c": [3]}, [1, 2, 3]),
    "regions, ignore label": ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, [1, 2]),
}


def save_description(model, dataset_json, reader="SimpleITKIO"):
    model.mkdir(parents=True, exist_ok=True)
    plans = {"image_reader_writer": reader, "label_manager": "LabelManager"}
    (model / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (model / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    return TrainedModel(Method("m", "T", "P"), model, "0")


@pytest.fixture
def second_heart(world, predictor, monkeypatch):
    """The small world where stock nnU-Net sees a second small heart in every volume; returns the world's folder."""
    for trainer in TRAINERS:
        save_description(world / "results" / DATASET / f"{trainer}__nnUNetPlans__2d", DATASET_JSON)
    inner = prediction.run_predictor

    def predict(model, cases, output, device, num_processes):
        result = inner(model, cases, output, device, num_processes)
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


def folder_of(world, *more):
    return world.joinpath("out/postprocessing", DATASET, MODEL, "fold_0_checkpoint_final", *more)


def steps_of(summary, method="nnU-Net"):
    return summary["methods"][method]["postprocessing"]["steps"]


@pytest.mark.parametrize(("labels", "order"), LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("what", ["wrong blobs", "other wrong blobs", "a true island", "wrong where nobody asks"])
def test_the_choice_is_that_of_nnunet(tmp_path, monkeypatch, labels, order, what):
    """On volumes with wrong blobs of every class; nnU-Net's pools are threads, its code is its own."""
    pools = SimpleNamespace(get_context=lambda kind: SimpleNamespace(Pool=ThreadPool))
    for module in (evaluate_predictions, remove_connected_components):
        monkeypatch.setattr(module, "multiprocessing", pools)
    dataset_json = {**DATASET_JSON, "labels": labels} | ({} if order is None else {"regions_class_order": order})
    model = save_description(tmp_path / "model", dataset_json)
    classes = classes_from_dataset_json(dataset_json)
    values = sorted(classes.values - {0, 4})
    generator = np.random.default_rng(len(what))
    pairs = {}
    for case in ("a", "b", "c"):
        files = [tmp_path / folder / f"{case}.nii.gz" for folder in ("references", "predictions")]
        for file, wrong in zip(files, (0, 5), strict=True):
            volume = np.zeros((3, 40, 40), np.uint8)
            for index, value in enumerate(values):
                volume[:, 8:24, 8 + 5 * index : 13 + 5 * index] = value
            for _ in range(wrong):
                row, column = (
                    generator.integers(28 if what == "wrong where nobody asks" else 0, 36),
                    generator.integers(0, 36),
                )
                inside = [value for value in values if value != classes.ignore_label]
                volume[:, row : row + 3, column : column + 3] = generator.choice(inside)
            if what == "a true island":  # without it one class is worse, and without the wrong blobs the mean better
                volume[:, 34:37, 34:37] = values[0]
            if what == "wrong where nobody asks" and not wrong:
                volume[:, 28:, :] = classes.ignore_label or 0
            write_volume(volume, file)
        pairs[case] = tuple(files)
    theirs = remove_connected_components.determine_postprocessing(
        str(tmp_path / "predictions"),
        str(tmp_path / "references"),
        str(tmp_path / "model/plans.json"),
        str(tmp_path / "model/dataset.json"),
        2,
    )
    ours = postprocessing.choose(model, pairs, tmp_path / "chosen", ScoreSettings(classes, SimpleITKIO), 1)
    kept = load_pickle(str(tmp_path / "chosen/postprocessing.pkl"))
    assert kept[0] == theirs[0]
    assert to_jsonable(kept[1]) == to_jsonable(theirs[1])
    assert [{"labels_or_regions": step} for step in ours.steps] == to_jsonable(theirs[1])
    assert ours.lacking == (["4"] if "rare" in labels else [])
    made = {case: (files[1], tmp_path / "made" / files[1].name) for case, files in pairs.items()}
    postprocessing.apply_steps(model, made, ours.steps, 1)
    for _, file in made.values():
        assert (read(file) == read(tmp_path / "predictions/postprocessed" / file.name)).all()


def test_scores_are_those_after_the_steps_that_validation_cases_ask_for(second_heart, without_report):
    plain = Comparison(901, TRAINERS, second_heart / "plain", device="cpu").run()
    summary = Comparison(901, TRAINERS, second_heart / "out", device="cpu", postprocess=True).run()
    assert [steps_of(summary), steps_of(summary, "VQSeg")] == [{"0": FOREGROUND}, {"0": "none"}]
    before = [method["summary"] for method in plain["methods"].values()]
    stock, ours = summary["methods"].values()
    as_predicted = [method["postprocessing"]["as_predicted"] for method in (stock, ours)]
    assert to_jsonable(as_predicted) == to_jsonable(before)
    assert to_jsonable(ours["summary"]) == to_jsonable(before[1])
    assert stock["summary"]["1"]["Dice"]["mean"] > before[0]["1"]["Dice"]["mean"] + 0.01
    assert stock["summary"]["1"]["ASD"]["mean"] < before[0]["1"]["ASD"]["mean"] - 0.2
    predicted = second_heart / "out/predictions" / DATASET / "test" / MODEL / "fold_0_checkpoint_final"
    scored = sorted(folder_of(second_heart, "test").iterdir())
    assert [file.name for file in scored] == sorted(file.name for file in predicted.glob("*.nii.gz"))
    expected = read(predicted / scored[3].name)
    assert expected[:, 58:62, 2:6].all()
    expected[:, 58:62, 2:6] = 0
    assert (read(scored[3]) == expected).all()


def test_the_report_says_what_was_done_and_what_it_changed(second_heart, without_pixels, monkeypatch):
    monkeypatch.setattr(compare, "overlays_of_method", lambda *arguments: [])
    summary = Comparison(901, TRAINERS, second_heart / "out", device="cpu", postprocess=True).run()
    text = (second_heart / "out/report/index.html").read_text(encoding="utf-8")
    before = [
        method["postprocessing"]["as_predicted"]["mean"]["Dice"]["mean"] for method in summary["methods"].values()
    ]
    assert "trainings: nnU-Net 1 of 1, VQSeg 0 of 1" in text
    assert f"Mean Dice as predicted: nnU-Net {before[0]:.4f}, VQSeg {before[1]:.4f}." in text
    assert f"<dt>Postprocessing, nnU-Net</dt><dd>{FOREGROUND}</dd>" in text
    assert "<dt>Postprocessing, VQSeg</dt><dd>none</dd>" in text
    assert "--postprocessing" in summary["command"]
    assert "flatters" not in text
    assert "The validation cases of a training have no" not in text


def test_without_it_nothing_is_said_of_it(second_heart, without_pixels, monkeypatch):
    monkeypatch.setattr(compare, "overlays_of_method", lambda *arguments: [])
    summary = Comparison(901, TRAINERS, second_heart / "out", device="cpu").run()
    assert "ostprocessing" not in (second_heart / "out/report/index.html").read_text(encoding="utf-8")
    assert "--postprocessing" not in summary["command"]
    assert not (second_heart / "out/postprocessing").exists()


def test_overlays_show_what_was_scored(second_heart, monkeypatch):
    shown = {}
    monkeypatch.setattr(compare, "write_report", lambda summary, done, *more: shown.update(done))
    Comparison(901, TRAINERS, second_heart / "out", device="cpu", postprocess=True).run()
    assert shown["nnU-Net"]["0"].predictions["patient003_frame01"].parent == folder_of(second_heart, "test")
    assert "predictions" in shown["VQSeg"]["0"].predictions["patient003_frame01"].parts


def test_validation_cases_that_choose_and_are_scored_are_told(second_heart, predictor, without_report):
    options = ["--split", "val", "--postprocessing", "-device", "cpu", "-np", "1", "-f", "0", "1"]
    compare_main(["-d", "901", "-tr", *TRAINERS, "-o", str(second_heart / "out"), *options])
    (summary,) = without_report
    assert any("the very cases that are scored" in notice for notice in summary["notices"])
    assert [fold for _, fold, _ in predictor] == ["0", "1", "0", "1"]
    assert len(steps_of(summary)) == 2


def test_a_class_that_no_validation_case_has_is_told(second_heart, without_report):
    """nnU-Net has no mean Dice then and never asks for the foreground."""
    labels = {**DATASET_JSON["labels"], "rare": 3}
    for file in (second_heart / "raw" / DATASET, second_heart / "results" / DATASET / MODEL):
        (file / "dataset.json").write_text(json.dumps({**DATASET_JSON, "labels": labels}), encoding="utf-8")
    summary = Comparison(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True).run()
    assert "foreground" not in steps_of(summary)["0"]
    assert any("The validation cases of a training have no rare: nnU-Net's rule" in text for text in summary["notices"])


def test_the_choice_is_kept_until_what_it_was_made_from_changes(second_heart, without_report, monkeypatch):
    asked = []
    inner = postprocessing._choose
    monkeypatch.setattr(postprocessing, "_choose", lambda *arguments: asked.append(arguments) or inner(*arguments))

    def steps():
        return steps_of(Comparison(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True).run())["0"]

    assert [steps(), steps(), len(asked)] == [FOREGROUND] * 2 + [1]
    assert folder_of(second_heart, "test").is_dir()
    for case in ("case2", "case3"):  # an annotator finds a second heart in each of them
        change(second_heart / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", add_second_heart)
    assert [steps(), len(asked)] == ["none", 2]
    assert not folder_of(second_heart, "test").exists()
    record = folder_of(second_heart, "record.json")
    record.write_text(json.dumps({**json.loads(record.read_text(encoding="utf-8")), "chosen": "?"}), encoding="utf-8")
    assert [steps(), len(asked)] == ["none", 3]
    folder_of(second_heart, "postprocessing.pkl").unlink()
    assert [steps(), len(asked)] == ["none", 4]


def test_files_appear_as_a_whole_and_others_go(second_heart, without_report, monkeypatch):
    Comparison(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True).run()
    (victim, *others) = sorted(folder_of(second_heart, "test").iterdir())
    before = victim.read_bytes()
    stray = victim.with_name("of_a_case_that_is_gone.nii.gz")
    shutil.copy(victim, stray)
    with monkeypatch.context() as patch:
        patch.setattr(postprocessing, "_write_postprocessed", half_a_file)
        with pytest.raises(KeyboardInterrupt):
            Comparison(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True).run()
    assert victim.read_bytes() == before
    Comparison(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True).run()
    assert sorted(folder_of(second_heart, "test").iterdir()) == [victim, *others]


def half_a_file(source, target, *more):
    target.write_bytes(source.read_bytes()[:100])
    raise KeyboardInterrupt


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-200])


def move_away(file):
    write_volume(read(file), file, origin=(400.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut_off, "case2.nii.gz"),
        (move_away, "do not lie on the same grid"),
        (lambda file: change(file, lambda labels: labels.__setitem__((0, 0, 0), 7)), "case2.nii.gz has the label"),
    ],
)
def test_references_that_choose_are_checked_as_those_that_are_scored(second_heart, without_report, damage, sentence):
    Comparison(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True).run()
    damage(second_heart / "raw" / DATASET / "labelsTr/case2.nii.gz")
    with pytest.raises(UserError, match=sentence):
        Comparison(901, TRAINERS[:1], second_heart / "out", device="cpu", postprocess=True).run()


@pytest.mark.parametrize("fold", ["all", "7"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_without_validation_cases_it_stops_before_anything_is_predicted(second_heart, predictor, fold, split):
    source = second_heart / "results" / DATASET / MODEL / "fold_0"
    shutil.copytree(source, source.with_name(f"fold_{fold}"))
    options = ["-f", fold, "--postprocessing", "--split", split, "-o", str(second_heart / "out")]
    with pytest.raises(SystemExit, match=r"Fold .* leave out --postprocessing, which asks the validation cases\."):
        compare_main(["-d", "901", "-tr", TRAINERS[0], *options])
    assert predictor == []


def test_steps_are_told_in_the_names_of_dataset_json():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    classes = classes_from_dataset_json({"labels": labels})

    def told(*steps):
        return postprocessing.describe(steps, classes)

    assert told() == "none"
    assert told([1, 2, 3]) == FOREGROUND
    assert told([2, 3], 3) == "largest component of core, then of enhancing"
    assert told([[2, 3]]) == "largest component of core"
    assert told([1]) == "largest component of [1]"


def test_a_tiff_keeps_the_spacing_beside_it(tmp_path):
    dataset_json = {**DATASET_JSON, "file_ending": ".tif"}
    model = save_description(tmp_path / "model", dataset_json, "Tiff3DIO")
    labels = np.zeros((3, 20, 20), np.uint8)
    labels[:, 4:10, 4:10] = 2
    labels[:, 15:17, 15:17] = 2
    source, target = tmp_path / "predictions/a.tif", tmp_path / "done/a.tif"
    source.parent.mkdir()
    Tiff3DIO().write_seg(labels, str(source), {"spacing": [5.0, 1.0, 1.0]})
    postprocessing.apply_steps(model, {"a": (source, target)}, [2], 1)
    made, properties = Tiff3DIO().read_seg(str(target))
    labels[:, 15:17, 15:17] = 0
    assert (made[0] == labels).all()
    assert properties["spacing"] == [5.0, 1.0, 1.0]
    assert sorted(file.name for file in target.parent.iterdir()) == ["a.json", "a.tif"]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(WorkerKilled, match=r"use fewer processes with -np\."), workers(2, "with -np") as work:
        list(work(die, {"a": ()}))


@pytest.mark.slow
def test_with_processes(second_heart, without_report):
    summary = Comparison(901, TRAINERS[:1], second_heart / "out", device="cpu", num_processes=2, postprocess=True).run()
    stock = summary["methods"]["nnU-Net"]
    assert steps_of(summary) == {"0": FOREGROUND}
    assert stock["summary"]["mean"]["Dice"]["mean"] > stock["postprocessing"]["as_predicted"]["mean"]["Dice"]["mean"]
