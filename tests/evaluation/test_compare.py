"""`nnUNetv2_vqseg_compare` on a small world: what is predicted, what is written, what is refused."""

from __future__ import annotations

import csv
import json
import os
from html.parser import HTMLParser

import pytest
import torch
from comparison_world import DATASET, TRAINERS, build_world, enter_world

from nnunetv2_vqseg.evaluation import compare, tables
from nnunetv2_vqseg.evaluation.errors import EvaluationError
from nnunetv2_vqseg.evaluation.methods import parse_methods


class Reader(HTMLParser):
    """Collects tags with attributes and text, and checks that every opened tag is closed in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One full comparison for all tests that look at what it wrote: the summary and the report's folder."""
    folder = tmp_path_factory.mktemp("world")
    build_world(folder)
    unsafe = folder / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d/fold_1/checkpoint_final.pth"
    torch.save({"logging": {"train_losses": [1.0]}, "surprise": Reader}, unsafe)
    with pytest.MonkeyPatch.context() as patch:
        enter_world(folder, patch)
        notes = ["A note with <em>markup</em>."]
        summary = compare.run(901, TRAINERS, folder / "out", folds=[0, 1], device="cpu", notes=notes)
    return summary, folder / "out" / "report"


@pytest.fixture
def without_report(monkeypatch):
    """Leave out the figures, which take most of the time; returns the list of summaries that would be written."""
    summaries = []
    monkeypatch.setattr(compare, "overlays_of_method", lambda *arguments: [])
    monkeypatch.setattr(compare, "write_report", lambda summary, *arguments: summaries.append(summary))
    return summaries


def test_report_says_what_was_compared(report):
    summary, folder = report
    page = Reader((folder / "index.html").read_text(encoding="utf-8"))
    for text in (
        f"{DATASET}: VQSeg against nnU-Net",
        "14 volumes of 7 patients, test set",
        "A note with <em>markup</em>.",
        "The methods did not have the same number of steps: nnU-Net 150; VQSeg 120.",
        "Empty predictions have no surface distance",
        "Trained without a foundation model: <no weights> were found.",
        "97,000 tokens",
        "95th percentile",
        summary["versions"]["torch"],
        "nnUNetv2_vqseg_compare -d Dataset901_Phantom",
        "Wilcoxon p",
        "RV & <wall>",
        "3.00 GiB",
        "8 + 4",
        "1,440",  # images seen: 120 steps of 12
        "something new",
        "150 (6 × 25)",
    ):
        assert text in page.text, text


def test_page_needs_no_network_and_is_accessible(report):
    page = Reader((report[1] / "index.html").read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images
    for attributes in images:
        assert attributes["src"].startswith("data:image/png;base64,iVBOR")
        assert len(attributes["alt"]) > 20
        assert int(attributes["width"]) > 300
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "b", "em")]
    assert not [value for _, attributes in page.tags for value in attributes.values() if "http" in (value or "")]
    headers = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert set(headers) == {"col", "row", "rowgroup"}
    tables = [tag for tag, _ in page.tags if tag == "table"]
    assert len(tables) == len([tag for tag, _ in page.tags if tag == "caption"])
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert ids == {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}


def test_summary_json_has_the_numbers_of_the_page(report):
    summary, folder = report
    stored = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    means = {name: method["summary"]["mean"]["Dice"]["mean"] for name, method in stored["methods"].items()}
    assert means["VQSeg"] > means["nnU-Net"]
    assert f"{means['VQSeg']:.4f}" in (folder / "index.html").read_text(encoding="utf-8")
    assert stored["methods"]["nnU-Net"]["empty"]["mean"] == {
        "empty_prediction": 1,
        "empty_reference": 0,
        "both_empty": 0,
        "n_cases": 56,
    }
    assert stored["methods"]["nnU-Net"]["cases"]["0"]["patient001_frame01"]["2"]["HD95"] is None
    assert {test["n"] for test in stored["paired"]} == {7}  # patients, not 14 volumes or 28 predictions
    assert summary["n_patients"] == 7


def test_the_better_mean_is_bold_in_every_column(report):
    latex = (report[1] / "tables" / "summary.tex").read_text(encoding="utf-8")
    rows = [line for line in latex.splitlines() if line.startswith(("nnU-Net", "VQSeg"))]
    assert [row.count(r"\textbf") for row in rows] == [0, 4]
    assert r"$\pm$" in latex


def test_tables_are_written_as_csv_json_and_latex(report):
    folder = report[1] / "tables"
    assert {file.name for file in folder.iterdir()} == {
        f"{name}.{ending}"
        for name in ("summary", "classes", "folds", "paired", "training", "cases")
        for ending in ("csv", "json", "tex")
        if (name, ending) != ("cases", "tex")
    }
    with (folder / "cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 14 * 2
    assert next(row for row in rows if row["HD95"] == "")["case"] == "patient001_frame01"
    assert r"RV \& $<$wall$>$" in (folder / "classes.tex").read_text(encoding="utf-8")
    assert len(json.loads((folder / "paired.json").read_text(encoding="utf-8"))) == 3 * 4
    assert len(list((report[1] / "figures").glob("*.png"))) > 20


def test_predictions_are_made_once_per_checkpoint(world, predictor, without_report):
    def again():
        predictor.clear()
        compare.run(901, TRAINERS, world / "out", device="cpu")
        return predictor

    assert [call[:2] for call in again()] == [("nnUNetTrainer", "0"), ("nnUNetTrainerVQSeg", "0")]
    assert again() == []
    made = world / "out/predictions/test/nnUNetTrainer__nnUNetPlans__2d/fold_0_checkpoint_final"
    (made / "patient002_frame01.nii.gz").unlink()
    assert again() == [("nnUNetTrainer", "0", ["patient002_frame01"])]
    image = world / "raw" / DATASET / "imagesTs" / "patient003_frame01_0000.nii.gz"
    os.utime(image, ns=(image.stat().st_mtime_ns + 10**12,) * 2)
    os.utime(made / "patient003_frame01.nii.gz", ns=(image.stat().st_mtime_ns + 1,) * 2)
    assert again() == [("nnUNetTrainerVQSeg", "0", ["patient003_frame01"])]


def test_another_checkpoint_is_never_scored_with_old_predictions(world, predictor, without_report):
    compare.run(901, TRAINERS, world / "out", device="cpu")
    checkpoint = world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth"
    os.utime(checkpoint, ns=(10**18,) * 2)  # older than the predictions, as a restored backup would be
    predictor.clear()
    compare.run(901, TRAINERS, world / "out", device="cpu")
    assert [(trainer, len(cases)) for trainer, _, cases in predictor] == [("nnUNetTrainer", 14)]


def test_validation_cases_are_those_of_each_fold(world, predictor):
    summary = compare.run(901, TRAINERS[:1], world / "out", folds=[0, 1], split="val", device="cpu")
    assert [cases for _, _, cases in predictor] == [["case2", "case3"], ["case0", "case1"]]
    assert any("validation cases" in notice for notice in summary["notices"])
    assert summary["paired"] == []
    assert "Paired comparison" not in (world / "out/report/index.html").read_text(encoding="utf-8")


def test_missing_models_are_named_with_the_command_that_trains_them(world, predictor, without_report, capsys):
    results = world / "results" / DATASET
    (results / "nnUNetTrainer__nnUNetPlans__2d/fold_1/checkpoint_final.pth").rename(
        results / "nnUNetTrainer__nnUNetPlans__2d/fold_1/checkpoint_latest.pth"
    )
    with pytest.raises(SystemExit) as stopped:
        compare.main(
            f"-d 901 -tr nnUNetTrainer nnUNetTrainerVQSeg -f 0 1 -o {world / 'out'} -np 0 "
            "-p nnUNetPlans nnUNetTrainerVQSeg:nnUNetVQSegPlans".split()
        )
    message = str(stopped.value)
    assert "3 of 4 models have no checkpoint_final.pth" in message
    assert "nnUNetv2_train Dataset901_Phantom 2d 1 -tr nnUNetTrainer -p nnUNetPlans --c\n" in message
    assert "nnUNetv2_train Dataset901_Phantom 2d 0 -tr nnUNetTrainerVQSeg -p nnUNetVQSegPlans\n" in message
    assert predictor == []


def test_command_line_options_reach_the_report(world, predictor, without_report, capsys):
    names = ["--labels", "Stock & co", "Ours_1", "--patient-regex", r"^patient\d+_frame\d+"]
    options = f"-d {DATASET} -tr {' '.join(TRAINERS)} -o {world / 'out'} -device cpu -np 0 --units mm".split()
    compare.main([*options, *names])
    assert str(world / "out/report/index.html") in capsys.readouterr().out
    (summary,) = without_report
    assert list(summary["methods"]) == ["Stock & co", "Ours_1"]
    assert summary["n_patients"] == 14
    assert tables.summary_table(summary).header[3] == "HD95 (mm)"
    assert "--labels 'Stock & co' Ours_1" in summary["command"]


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda raw: (raw / "imagesTs/patient001_frame01_0000.nii.gz").unlink(), "holds no patient001_frame01_0000"),
        (lambda raw: (raw / "labelsTs").rename(raw / "elsewhere"), "labelsTs is not a folder"),
        (lambda raw: (raw / "dataset.json").write_text("{", encoding="utf-8"), "dataset.json .*restore the dataset"),
        (lambda raw: (raw / "labelsTs/patient001_frame01.nii.gz").write_bytes(b""), "None of nnU-Net's readers opens"),
    ],
)
def test_broken_datasets_stop_with_one_sentence(world, predictor, without_report, break_it, sentence):
    break_it(world / "raw" / DATASET)
    with pytest.raises(EvaluationError, match=sentence):
        compare.run(901, TRAINERS[:1], world / "out", device="cpu")


def test_a_half_written_prediction_is_named(world, predictor, without_report):
    compare.run(901, TRAINERS[:1], world / "out", device="cpu")
    file = next((world / "out").rglob("patient002_frame01.nii.gz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EvaluationError, match=r"patient002_frame01.* is truncated.*delete it if it is a prediction"):
        compare.run(901, TRAINERS[:1], world / "out", device="cpu")


@pytest.mark.parametrize(("fold", "sentence"), [("5", "not one of the 2 folds"), ("all", "Fold all is not one")])
def test_validation_needs_a_fold_of_the_splits(world, predictor, without_report, fold, sentence):
    model = world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d"
    (model / f"fold_{fold}").mkdir()
    (model / f"fold_{fold}" / "checkpoint_final.pth").touch()
    with pytest.raises(EvaluationError, match=sentence):
        compare.run(901, TRAINERS[:1], world / "out", folds=[fold], split="val", device="cpu")


def test_a_checkpoint_that_is_not_safe_to_read_costs_only_its_curves(report):
    summary, folder = report
    page = Reader((folder / "index.html").read_text(encoding="utf-8"))
    assert "nnU-Net, fold 1 UnpicklingError while reading checkpoint_final.pth" in page.text
    assert summary["methods"]["nnU-Net"]["training"]["folds"]["0"]["steps"] == 150


def test_methods_get_their_plans_and_short_names():
    methods = parse_methods(["nnUNetTrainer", "nnUNetTrainerVQSeg_5epochs"], ["P", "nnUNetTrainer:Q"])
    assert [(m.name, m.plans) for m in methods] == [("nnU-Net (Q)", "Q"), ("VQSeg_5epochs (P)", "P")]
    methods = parse_methods(["nnUNetTrainer", "nnUNetTrainer:Q", "nnUNetTrainer_5epochs"], ["P"])
    assert [m.name for m in methods] == ["nnU-Net (P)", "nnU-Net (Q)", "nnU-Net 5epochs (P)"]
    assert [m.name for m in parse_methods(["A", "B"], ["P"], ["x", "y"])] == ["x", "y"]


@pytest.mark.parametrize(
    ("trainers", "plans", "labels", "sentence"),
    [
        (["A"], ["P", "Q"], None, "2 plans for all trainers"),
        (["A"], ["B:P"], None, "names plans for B"),
        (["A", "B"], ["A:P"], None, "no plans for B"),
        (["A", "B"], ["P"], ["x"], "1 names for 2 trainers"),
        (["A", "A"], ["P"], None, "are the same"),
        (["A", "B"], ["P"], ["x", "x"], "are the same"),
    ],
)
def test_methods_that_do_not_fit_are_refused(trainers, plans, labels, sentence):
    with pytest.raises(EvaluationError, match=sentence):
        parse_methods(trainers, plans, labels)
