"""`nnUNetv2_vqseg_compare` on a small world: what is predicted, what is written, what is refused."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shlex
import shutil
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison_world import DATASET, TRAINERS, add_trainings, build_world, enter_world, save_model
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nnunetv2_vqseg.commands.compare import main as compare_main
from nnunetv2_vqseg.core import locks
from nnunetv2_vqseg.core.errors import EvaluationError, UserError
from nnunetv2_vqseg.report import charts, compare, formatting, pictures, prediction, tables
from nnunetv2_vqseg.report.compare import Comparison
from nnunetv2_vqseg.report.methods import parse_methods
from nnunetv2_vqseg.report.overlays import pick_cases
from nnunetv2_vqseg.report.page import TEMPLATES, foundation_models
from nnunetv2_vqseg.report.sheet import sheet
from nnunetv2_vqseg.report.statistics import paired_test
from nnunetv2_vqseg.report.training_records import TrainingRecord, read_training_record
from nnunetv2_vqseg.report.verdict import verdict

PARTS = TEMPLATES.get_template("parts.html").module


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
        summary = Comparison(901, TRAINERS, folder / "out", folds=[0, 1], device="cpu", notes=notes).run()
    return summary, folder / "out" / "report"


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
        "Standard deviation (n - 1) over patients, whose frames and trainings are averaged first",
        summary["versions"]["torch"],
        "nnUNetv2_vqseg_compare -d Dataset901_Phantom",
        "Wilcoxon p",
        "RV & <wall>",
        "3.00 GiB",
        "8 + 4 + 4",
        "1,920",  # images seen: 120 steps of 8 labelled ones and two views of 4 unlabelled ones
        "something new",
        "150 (6 × 25)",
    ):
        assert text in page.text, text


def test_page_opens_with_the_verdict_and_a_picture_of_it(report):
    summary, folder = report
    page = (folder / "index.html").read_text(encoding="utf-8")
    start, sentence = page.index("<body>"), html.escape(verdict(summary), quote=False)
    assert sentence.startswith("VQSeg is ahead of nnU-Net by 0.")
    assert start < page.index(sentence) < page.index("<img") < page.index("<nav") < page.index("Read this first")
    assert (folder / "figures" / "overview_dice.png").is_file()


def test_report_is_printed_on_one_sheet_that_is_the_same_again(report):
    summary, folder = report
    pdf = (folder / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert re.findall(rb"/Count (\d+)", pdf) == [b"1"]
    assert b"/MediaBox [ 0 0 595 842 ]" in pdf
    assert sheet(summary, {table.name: table for table in (make(summary) for make in tables.ON_PAGE)}) == pdf


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


def test_a_long_name_leaves_room_for_the_numbers_on_a_phone_and_on_paper(report):
    """A browser was asked; this holds what it was asked for."""
    style = Reader((report[1] / "index.html").read_text(encoding="utf-8")).text
    anywhere, phone, paper = re.findall(r"th\[scope=row\] span \{(.*?)\}", style, re.DOTALL)
    assert (
        style.index(paper) > style.index("@media print") > style.index(phone) > style.index("@media (max-width: 40rem)")
    )
    assert "max-width: 9.5rem" in phone
    assert "max-width: 9rem" in paper
    for part in ("white-space: normal", "overflow-wrap: break-word", "max-width: 18rem", "width: max-content"):
        assert part in anywhere


@pytest.mark.parametrize(("metric", "filled"), [("HD95", [True, False, False]), ("Dice", [False, False, True])])
def test_dots_are_filled_where_the_method_is_better_not_where_it_is_equal(monkeypatch, metric, filled):
    drawn = []
    monkeypatch.setattr(charts, "picture", lambda figure, *texts: drawn.append((figure, texts[-1])))
    values = {"a": {"x": 1.0, "y": 2.0, "z": 3.0}, "b": {"x": 0.0, "y": 2.0, "z": 4.0}}
    summary = {
        "methods": {name: {"patients": {"mean": {metric: found}}} for name, found in values.items()},
        "paired": [{"method": "b", "metric": metric, "class": "mean"} | paired_test(values["a"], values["b"])],
        "units": "voxel",
    }
    charts.difference_plot(summary, "b", metric)
    ((figure, caption),) = drawn
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == filled
    assert f"better than a in {metric} for 1 of 3 patients" in caption


def test_names_of_curves_cover_no_curve_and_fit_into_the_figure(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "picture", lambda figure, *texts: drawn.append(figure))
    names = {name: [0.5, 0.4] for name in ("supervised", *"abcdef", "reconstruction_unlabeled")}
    record = TrainingRecord(
        curves={"train_losses": [1.0, 0.5]}, vqseg_curves=names, panels={"loss and its terms": list(names)}
    )
    charts.curve_plots({"short": {"0": record}, "a method with a name that takes more than a line " * 3: {"0": record}})
    charts.vqseg_plots("short", {"0": record})
    assert len(drawn) == 2
    for figure in drawn:
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        (legend,), (axes,) = figure.legends, figure.axes
        place = legend.get_window_extent(renderer)
        assert place.y1 < axes.get_tightbbox(renderer).y0
        assert place.x0 >= 0
        assert place.x1 <= figure.bbox.x1
    looks = [(line.get_color(), line.get_linestyle()) for line in drawn[1].axes[0].lines]
    assert len(looks) == len(set(looks)) == len(names)


def test_a_training_says_in_which_panels_its_curves_are_drawn(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(charts, "_curves", lambda name, title, lines, *rest: drawn.update({title: list(lines)}))
    curves = {"dice_teacher": [0.5], "loss": [1.0], "weighted_vq": [1.0], "vq": [2.0], "agreement": [0.7]}
    panels = {"Dice": ["dice_teacher"], "loss": ["loss", "weighted_vq"], "pseudo-labels": ["agreement"]}
    save_model(tmp_path / "fold_0", TRAINERS[1], 0, curves=curves, panels=panels)
    charts.vqseg_plots("new", {"0": read_training_record(tmp_path / "fold_0" / "checkpoint_final.pth")})
    assert drawn == {"Dice": ["dice_teacher"], "Loss": ["loss", "weighted_vq"], "Pseudo-labels": ["agreement"]}
    drawn.clear()
    charts.vqseg_plots("old", {"0": TrainingRecord(vqseg_curves=curves)})
    assert {"Loss terms (unweighted)": ["vq"], "Agreement": ["agreement"]}.items() <= drawn.items()


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


def test_every_file_of_a_report_is_written_as_a_whole(world, predictor, without_pixels, monkeypatch):
    replaced, replace = set(), Path.replace
    monkeypatch.setattr(Path, "replace", lambda file, target: replaced.add(target) or replace(file, target))
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    written = {file for file in (world / "out" / "report").rglob("*") if file.is_file()}
    assert len(written) > 20
    assert written <= replaced


def test_classes_without_a_box_are_told(world, predictor, without_pixels, monkeypatch):
    folder, told = world / "out" / "report", "Boxes are drawn for the first 1 of 2 classes; the tables have all."
    for boxes in (2, 1):
        monkeypatch.setattr(compare, "MAX_BOXED_CLASSES", boxes)
        Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
        assert (told in (folder / "index.html").read_text(encoding="utf-8")) == (boxes == 1)


def test_nothing_of_an_earlier_report_stays(world, predictor, without_pixels):
    Comparison(901, TRAINERS, world / "out", device="cpu").run()
    report = world / "out" / "report"
    (report / "figures" / "box_of_mine.png").touch()
    assert (report / "tables" / "paired.tex").is_file()
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    assert not (report / "tables" / "paired.tex").exists()
    stored = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    left = {file.stem for file in (report / "figures").iterdir()}
    assert left == {*stored["figures"], "box_of_mine"}
    assert not [name for name in left if "VQSeg" in name]


def test_the_better_mean_is_bold_in_every_column(report):
    latex = (report[1] / "tables" / "summary.tex").read_text(encoding="utf-8")
    rows = [line for line in latex.splitlines() if line.startswith(("nnU-Net", "VQSeg"))]
    assert [row.count(r"\textbf") for row in rows] == [0, 4]
    assert r"$\pm$" in latex


def test_tables_are_written_as_csv_json_and_latex(report):
    folder = report[1] / "tables"
    assert {file.name for file in folder.iterdir()} == {
        f"{name}.{ending}"
        for name in ("summary", "classes", "repetitions", "paired", "training", "cases")
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
        Comparison(901, TRAINERS, world / "out", device="cpu").run()
        return predictor

    assert [call[:2] for call in again()] == [("nnUNetTrainer", "0"), ("nnUNetTrainerVQSeg", "0")]
    assert again() == []
    made = world / "out/predictions" / DATASET / "test/nnUNetTrainer__nnUNetPlans__2d/fold_0_checkpoint_final"
    (made / "patient002_frame01.nii.gz").unlink()
    assert again() == [("nnUNetTrainer", "0", ["patient002_frame01"])]
    image = world / "raw" / DATASET / "imagesTs" / "patient003_frame01_0000.nii.gz"
    os.utime(image, ns=(image.stat().st_mtime_ns + 10**12,) * 2)
    os.utime(made / "patient003_frame01.nii.gz", ns=(image.stat().st_mtime_ns + 1,) * 2)
    assert again() == [("nnUNetTrainerVQSeg", "0", ["patient003_frame01"])]


def test_datasets_share_an_output_folder_but_no_predictions(world, predictor, without_report):
    for folder in ("raw", "preprocessed", "results"):
        shutil.copytree(world / folder / DATASET, world / folder / "Dataset902_Other")
    for dataset in (901, 902, 901):
        Comparison(dataset, TRAINERS[:1], world / "out", device="cpu").run()
    assert [len(cases) for _, _, cases in predictor] == [14, 14]


def test_a_killed_prediction_goes_on_without_its_last_file(world, predictor, without_report, monkeypatch):
    fake = prediction.run_predictor

    def killed(model, cases, output, *rest):
        names = list(cases)
        fake(model, {case: cases[case] for case in names[:5]}, output, *rest)
        time.sleep(0.05)  # a file system's clock ticks every few milliseconds
        fake(model, {names[5]: cases[names[5]]}, output, *rest)
        last = output / f"{names[5]}.nii.gz"
        last.write_bytes(last.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "run_predictor", killed)
    with pytest.raises(KeyboardInterrupt):
        Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    monkeypatch.setattr(prediction, "run_predictor", fake)
    predictor.clear()
    summary = Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    cases = sorted(summary["methods"]["nnU-Net"]["cases"]["0"])
    assert predictor == [("nnUNetTrainer", "0", cases[5:])]
    (record,) = (world / "out").rglob(prediction.RECORD_FILE)
    assert sorted(file.name.removesuffix(".nii.gz") for file in record.parent.glob("*.nii.gz")) == cases
    assert not (record.parent / "unfinished").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"'])
def test_a_spoilt_record_of_predictions_counts_as_none(world, predictor, without_report, content):
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    (record,) = (world / "out").rglob(prediction.RECORD_FILE)
    record.write_text(content, encoding="utf-8")
    predictor.clear()
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    assert [len(cases) for _, _, cases in predictor] == [14]


def test_another_checkpoint_is_never_scored_with_old_predictions(world, predictor, without_report):
    Comparison(901, TRAINERS, world / "out", device="cpu").run()
    checkpoint = world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth"
    os.utime(checkpoint, ns=(10**18,) * 2)  # older than the predictions, as a restored backup would be
    predictor.clear()
    Comparison(901, TRAINERS, world / "out", device="cpu").run()
    assert [(trainer, len(cases)) for trainer, _, cases in predictor] == [("nnUNetTrainer", 14)]


def test_validation_cases_are_those_of_each_fold(world, predictor, without_pixels):
    summary = Comparison(901, TRAINERS[:1], world / "out", folds=[0, 1], split="val", device="cpu").run()
    assert [cases for _, _, cases in predictor] == [["case2", "case3"], ["case0", "case1"]]
    assert any("validation cases" in notice for notice in summary["notices"])
    assert summary["paired"] == []
    assert "Paired comparison" not in (world / "out/report/index.html").read_text(encoding="utf-8")


def test_configurations_of_a_method_are_repetitions_of_it(world, predictor, without_pixels):
    for configuration, seed in (("2d_s1", 1), ("2d_s2", 2)):
        runtime = {"steps": 120, "labeled_batch_size": 8, "unlabeled_batch_size": 4, "seed": seed}
        add_trainings(world, TRAINERS[1], configuration, folds=[0], runtime=runtime)
    stock, ours = TRAINERS
    summary = Comparison(901, [stock, f"Ours={ours}:nnUNetPlans:2d_s1,2d_s2"], world / "out", device="cpu").run()

    assert [(trainer, len(cases)) for trainer, _, cases in predictor] == [(stock, 14), (ours, 14), (ours, 14)]
    method = summary["methods"]["Ours"]
    assert list(method["cases"]) == ["2d_s1", "2d_s2"]
    assert method["empty"]["mean"]["n_cases"] == 2 * 14 * 2
    assert {test["n"] for test in summary["paired"]} == {7}  # patients, whatever the number of repetitions
    dice = [method["folds"][repetition]["mean"]["Dice"] for repetition in ("2d_s1", "2d_s2")]
    assert method["summary"]["mean"]["Dice"]["mean"] == pytest.approx(np.mean(dice))
    assert method["summary"]["mean"]["Dice"]["sd_folds"] == pytest.approx(np.std(dice, ddof=1))
    assert "The methods were not repeated equally often: nnU-Net 1, Ours 2." in summary["notices"]

    folder = world / "out" / "report"
    page = Reader((folder / "index.html").read_text(encoding="utf-8"))
    for text in ("2d_s1, seed 1", "2d_s2, seed 2", "1 to 2 trainings of each method", "a line per training"):
        assert text in page.text, text
    assert "Ours=nnUNetTrainerVQSeg:nnUNetPlans:2d_s1,2d_s2" in summary["command"]
    rows = json.loads((folder / "tables" / "repetitions.json").read_text(encoding="utf-8"))
    assert [(row["method"], row["repetition"]) for row in rows] == [
        ("nnU-Net", "0"), ("Ours", "2d_s1"), ("Ours", "2d_s2"), ("Ours", "mean"), ("Ours", "SD"),
    ]  # fmt: skip
    training = json.loads((folder / "tables" / "training.json").read_text(encoding="utf-8"))
    assert [(row["repetition"], row["configuration"], row["seed"]) for row in training[1:]] == [
        ("2d_s1", "2d_s1", 1), ("2d_s2", "2d_s2", 2),
    ]  # fmt: skip


def test_folds_and_configurations_repeat_together(world, predictor, without_report):
    add_trainings(world, TRAINERS[0], "2d_s1")
    summary = Comparison(
        901, [f"{TRAINERS[0]}::2d,2d_s1"], world / "out", folds=[0, 1], split="val", device="cpu"
    ).run()
    cases = summary["methods"]["nnU-Net"]["cases"]
    assert {repetition: list(scores) for repetition, scores in cases.items()} == {
        "2d fold 0": ["case2", "case3"],
        "2d fold 1": ["case0", "case1"],
        "2d_s1 fold 0": ["case2", "case3"],
        "2d_s1 fold 1": ["case0", "case1"],
    }


def test_overlays_show_the_extremes_of_all_repetitions():
    def scores(dice):
        return {"1": {"Dice": dice, "Jaccard": dice, "HD95": 1.0, "ASD": 1.0, "n_pred": 5, "n_ref": 5}}

    repetitions = {"a": {"x": scores(0.5), "y": scores(0.8)}, "b": {"x": scores(0.9), "y": scores(0.3)}}
    assert pick_cases(repetitions, ["1"]) == {
        "best": ("b", "x", 0.9),
        "median": ("a", "x", 0.5),
        "worst": ("b", "y", 0.3),
    }


def test_every_missing_repetition_is_named(world, predictor, without_report):
    with pytest.raises(EvaluationError) as stopped:
        Comparison(901, [f"{TRAINERS[0]}::2d,2d_s1,2d_s2", TRAINERS[1]], world / "out", device="cpu").run()
    message = str(stopped.value)
    assert "2 of 4 models have no checkpoint_final.pth" in message
    for configuration in ("2d_s1", "2d_s2"):
        assert f"nnUNetv2_train {DATASET} {configuration} 0 -tr nnUNetTrainer -p nnUNetPlans" in message
    assert predictor == []


@pytest.mark.parametrize(
    ("state", "note"),
    [
        ({"alignment": True, "config": {"foundation_policy": "auto"}}, ""),
        ({"alignment": False, "config": {"foundation_policy": "off"}}, ""),  # a variant without PFA
        (
            {"alignment": False, "config": {"foundation_policy": "auto", "foundation_model": "vit_small_dinov2"}},
            "trained without PFA: no DINOv2 weights",
        ),
        (
            {"alignment": False, "config": {"foundation_policy": "off"}, "method_has_alignment": True},
            "trained without PFA: foundation_policy is off",
        ),
    ],
)
def test_a_method_that_lacks_its_alignment_is_marked(world, predictor, without_report, state, note):
    add_trainings(world, TRAINERS[1], "2d_s1", folds=[0], **state)
    summary = Comparison(901, [TRAINERS[0], f"Ours={TRAINERS[1]}::2d_s1"], world / "out", device="cpu").run()
    table = tables.summary_table(summary)
    assert [row[0].note for row in table.rows] == ["", note]
    told = [notice for notice in summary["notices"] if "PFA" in notice]
    assert told == ([f"Ours was {note}. These are not the numbers of the method with its alignment."] if note else [])
    assert PARTS.table(table).count(f"Ours</span><small>{note}</small>" if note else ">Ours</span></th>") == 1
    assert (f"Ours ({note})" in table.to_latex().replace(r"\_", "_")) == bool(note)


def test_one_training_in_two_without_alignment_is_told_as_such(world, predictor, without_report):
    for configuration, alignment in (("2d_s1", True), ("2d_s2", False)):
        config = {"foundation_policy": "auto", "foundation_model": "x"}
        add_trainings(world, TRAINERS[1], configuration, folds=[0], alignment=alignment, config=config)
    summary = Comparison(901, [f"{TRAINERS[1]}::2d_s1,2d_s2"], world / "out", device="cpu").run()
    assert summary["methods"]["VQSeg"]["training"]["note"] == "trained without PFA in 1 of 2 trainings: no x weights"


def test_the_weights_that_an_encoder_started_from_are_told(world, predictor, without_report):
    told = ["The encoder X starts from weights of the file B.", "The encoder X starts from weights of the file A."]
    for configuration, encoder in zip(("2d_s1", "2d_s2"), told, strict=True):
        add_trainings(world, TRAINERS[1], configuration, folds=[0], encoder=encoder)
    summary = Comparison(901, [TRAINERS[0], f"Ours={TRAINERS[1]}::2d_s1,2d_s2"], world / "out", device="cpu").run()
    found = foundation_models(summary)
    assert found["Encoder, Ours"] == f"{told[1]}; {told[0]}"
    assert [name for name in found if name.startswith("Encoder")] == ["Encoder, Ours"]


@pytest.mark.parametrize(
    ("config", "batch", "images"),
    [
        ({"use_unlabeled": True, "strong_view": True, "perturbation": "none", "reconstruct": False}, "8 + 4", 1440),
        ({"use_unlabeled": False, "strong_view": False, "perturbation": "none", "reconstruct": False}, "8", 960),
        ({"strong_view": True, "perturbation": "dropout", "a_key_of_the_future": 1}, "8 + 4 + 4", 1920),
        ({}, "8 + ?", None),
    ],
)
def test_images_seen_are_those_that_passed_the_student(world, predictor, without_report, config, batch, images):
    add_trainings(world, TRAINERS[1], "2d_s1", folds=[0], config=config)
    summary = Comparison(901, [f"{TRAINERS[1]}::2d_s1"], world / "out", device="cpu").run()
    table = tables.training_table(summary)
    assert table.rows[0][table.header.index("Batch")].text == batch
    assert table.records[0]["images_seen"] == images


def test_memory_of_training_and_prediction_is_shown(world, predictor, without_report, monkeypatch):
    fold = world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d/fold_0"
    runtime = {"peak_gpu_memory_bytes": None, "peak_resident_memory_bytes": 2**30, "seed": 7, "labeled_cases": 6}
    runtime["package"] = "nnunetv2_vqseg 0.1.0, 0123456"
    (fold / "runtime.json").write_text(json.dumps(runtime), encoding="utf-8")
    fake = prediction.run_predictor
    monkeypatch.setattr(prediction, "run_predictor", lambda *arguments: fake(*arguments) or 5 * 2**20)
    table = tables.training_table(Comparison(901, TRAINERS, world / "out", device="cpu").run())
    rows = [dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows]
    assert [row["Prediction peak GPU memory"] for row in rows] == ["5 MiB", "5 MiB"]
    assert [row["Peak resident memory"] for row in rows] == ["1.00 GiB", "–"]
    assert [row["Peak GPU memory"] for row in rows] == ["–", "3.00 GiB"]
    assert (rows[0]["Seed"], rows[0]["Labelled cases"]) == ("7", "6")
    assert [row["Package"] for row in rows] == [runtime["package"], "–"]


def test_missing_models_are_named_with_the_command_that_trains_them(world, predictor, without_report, capsys):
    results = world / "results" / DATASET
    (results / "nnUNetTrainer__nnUNetPlans__2d/fold_1/checkpoint_final.pth").rename(
        results / "nnUNetTrainer__nnUNetPlans__2d/fold_1/checkpoint_latest.pth"
    )
    with pytest.raises(SystemExit) as stopped:
        compare_main(
            f"-d 901 -tr nnUNetTrainer nnUNetTrainerVQSeg -f 0 1 -o {world / 'out'} -np 0 "
            "-p nnUNetPlans nnUNetTrainerVQSeg:nnUNetVQSegPlans".split()
        )
    message = str(stopped.value)
    assert "3 of 4 models have no checkpoint_final.pth" in message
    assert "nnUNetv2_train Dataset901_Phantom 2d 1 -tr nnUNetTrainer -p nnUNetPlans --c\n" in message
    assert "nnUNetv2_train Dataset901_Phantom 2d 0 -tr nnUNetTrainerVQSeg -p nnUNetVQSegPlans\n" in message
    assert predictor == []


def test_where_all_was_trained_with_another_plan_the_whole_command_is_told(world, predictor, without_report, capsys):
    """The path of `nnUNetv2_vqseg_plan_and_preprocess`, whose later commands all want -p."""
    folder = world / "results" / DATASET
    for trainer in ("nnUNetTrainer", "nnUNetTrainerVQSeg"):
        (model,) = folder.glob(f"{trainer}__*__2d")
        model.rename(folder / f"{trainer}__MyPlans__2d")
    words = f"-d 901 -tr nnUNetTrainer nnUNetTrainerVQSeg -f 0 --split val -np 0 -device cpu -o {world / 'out'}".split()
    with pytest.raises(SystemExit) as stopped:
        compare_main(words)
    told, _, command = str(stopped.value).partition("; run:\n  ")
    assert "nnUNetTrainer was trained with -p MyPlans; nnUNetTrainerVQSeg was trained with -p MyPlans" in told
    assert predictor == []
    name, *corrected = shlex.split(command)
    assert name == "nnUNetv2_vqseg_compare"
    compare_main([*corrected, "-np", "0", "-device", "cpu"])
    (summary,) = without_report
    assert {method["training"]["plans"] for method in summary["methods"].values()} == {"MyPlans"}


def test_trainings_with_other_plans_are_named(world, predictor):
    folder = world / "results" / DATASET
    for configuration in ("2d", "2d_s1"):
        (folder / f"nnUNetTrainerMeanTeacher__nnUNetVQSegPlans__{configuration}").mkdir()
    with pytest.raises(EvaluationError) as stopped:
        Comparison(901, ["nnUNetTrainer", "nnUNetTrainerMeanTeacher"], world / "out", device="cpu").run()
    assert "; nnUNetTrainerMeanTeacher was trained with -p nnUNetVQSegPlans; train them first:" in str(stopped.value)
    with pytest.raises(EvaluationError) as stopped:
        Comparison(901, ["nnUNetTrainer", "nnUNetTrainerMeanTeacher::2d,2d_s2"], world / "out", device="cpu").run()
    assert "was trained with" not in str(stopped.value)  # not in 2d_s2
    (folder / "nnUNetTrainerMeanTeacher__nnUNetPlans__2d").mkdir()  # begun with the plans that are asked for
    with pytest.raises(EvaluationError) as stopped:
        Comparison(901, ["nnUNetTrainer", "nnUNetTrainerMeanTeacher"], world / "out", device="cpu").run()
    assert "was trained with" not in str(stopped.value)


@pytest.mark.parametrize(
    ("named", "reader"), [({"image_reader_writer": "NibabelIO"}, "NibabelIO"), ({}, "SimpleITKIO")]
)
def test_cases_are_read_as_the_plan_reads_them(world, predictor, without_report, monkeypatch, named, reader):
    """Of a TIFF with three slices the first reader that opens it takes the slices for channels."""
    (world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d/plans.json").write_text(json.dumps(named))
    used, inner = [], compare.Scoring
    monkeypatch.setattr(compare, "Scoring", lambda **given: used.append(given["settings"].reader) or inner(**given))
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    assert [one.__name__ for one in used] == [reader]


def test_a_misspelt_checkpoint_does_not_send_to_train_again(world, predictor):
    with pytest.raises(
        EvaluationError, match=r"2 of 2 models have no checkpoint_final in .*; correct -chk\."
    ) as stopped:
        Comparison(901, TRAINERS, world / "out", checkpoint="checkpoint_final").run()
    assert "checkpoint_final.pth" in str(stopped.value)
    assert "nnUNetv2_train" not in str(stopped.value)


def test_a_gpu_that_is_not_there_is_told_before_anything_is_predicted(world, predictor, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EvaluationError, match="torch finds no GPU here for -device cuda"):
        Comparison(901, TRAINERS, world / "out", device="cuda").run()
    assert predictor == []


def test_command_line_options_reach_the_report(world, predictor, without_report, capsys):
    names = ["--labels", "Stock & co", "Ours_1", "--patient-regex", r"^patient\d+_frame\d+"]
    options = f"-d {DATASET} -tr {' '.join(TRAINERS)} -o {world / 'out'} -device cpu -np 0 --units mm".split()
    compare_main([*options, *names])
    assert str(world / "out/report/index.html") in capsys.readouterr().out
    (summary,) = without_report
    assert list(summary["methods"]) == ["Stock & co", "Ours_1"]
    assert summary["n_patients"] == 14
    assert tables.summary_table(summary).header[3] == "HD95 (mm)"
    assert (
        "-tr 'Stock & co=nnUNetTrainer:nnUNetPlans:2d' Ours_1=nnUNetTrainerVQSeg:nnUNetPlans:2d" in summary["command"]
    )


def test_a_regex_without_a_patient_stops_before_anything_is_predicted(world, predictor, without_report):
    with pytest.raises(EvaluationError, match="no patient in it"):
        Comparison(901, TRAINERS, world / "out", device="cpu", patient_regex=r"^(P\d+)_|^patient").run()
    assert predictor == []


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
    with pytest.raises(UserError, match=sentence):
        Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()


def test_an_output_folder_that_cannot_be_made_is_one_sentence(world, predictor, without_report):
    (world / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^Error: .*taken.* cannot be used \(.*\); restore it, make it writable"):
        compare_main(["-d", "901", "-tr", *TRAINERS, "-o", str(world / "taken"), "-device", "cpu", "-np", "0"])


def test_a_half_written_prediction_is_named(world, predictor, without_report):
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    file = next((world / "out").rglob("patient002_frame01.nii.gz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"patient002_frame01.* is truncated.*delete it if it is a prediction"):
        Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()


@pytest.mark.parametrize(("fold", "sentence"), [("5", "not one of the 2 folds"), ("all", "Fold all is not one")])
def test_validation_needs_a_fold_of_the_splits(world, predictor, without_report, fold, sentence):
    model = world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d"
    (model / f"fold_{fold}").mkdir()
    (model / f"fold_{fold}" / "checkpoint_final.pth").touch()
    with pytest.raises(EvaluationError, match=sentence):
        Comparison(901, TRAINERS[:1], world / "out", folds=[fold], split="val", device="cpu").run()


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


def test_items_name_methods_plans_and_configurations():
    items = ["A", "B:Q", "Ours, eps=0.3=C:P:2d_a,2d_b", "C::2d_c"]
    methods = parse_methods(items, ["P"], configuration="2d_x,2d_y")
    assert [(m.trainer, m.plans, m.configurations) for m in methods] == [
        ("A", "P", ("2d_x", "2d_y")),
        ("B", "Q", ("2d_x", "2d_y")),
        ("C", "P", ("2d_a", "2d_b")),
        ("C", "P", ("2d_c",)),
    ]
    assert [m.name for m in methods] == ["A (P)", "B (Q)", "Ours, eps=0.3", "C (P, 2d_c)"]
    assert parse_methods([str(method) for method in methods], []) == methods


@pytest.mark.parametrize(
    ("trainers", "plans", "labels", "sentence"),
    [
        (["A:P:2d:0"], ["P"], None, "-tr A:P:2d:0 is not of the form"),
        (["name="], ["P"], None, "-tr name= is not of the form"),
        (["A:P:2d_a,2d_a"], ["P"], None, "2d_a,2d_a of A are not different"),
        (["A:P:2d_a,"], ["P"], None, "2d_a, of A are not different"),
        (["x=A"], ["P"], ["y"], "by --labels and by NAME="),
        (["A:P:2d_a,2d_b", "A:P:2d_a,2d_b"], [], None, "are the same"),
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


def test_two_runs_do_not_predict_into_one_folder_at_once(world, predictor, without_report, monkeypatch, capsys):
    fake, started, waited = prediction.run_predictor, threading.Event(), threading.Event()

    def slow(*arguments):
        started.set()
        assert waited.wait(60)
        return fake(*arguments)

    monkeypatch.setattr(prediction, "run_predictor", slow)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: waited.set())
    first = threading.Thread(target=Comparison(901, TRAINERS[:1], world / "out", device="cpu").run)
    first.start()
    assert started.wait(60)
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    first.join()
    assert [len(cases) for _, _, cases in predictor] == [14]
    assert len(without_report) == 2
    assert "Another run is predicting into" in capsys.readouterr().out


def test_predictions_that_are_all_there_may_be_read_only(world, predictor, without_report, monkeypatch):
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    monkeypatch.setattr(prediction, "exclusive", lambda *_: pytest.fail("nothing to write"))
    Comparison(901, TRAINERS[:1], world / "out", device="cpu").run()
    assert len(without_report) == 2


def test_spacing_beside_a_tiff_is_taken_over_with_it(tmp_path):
    unfinished, output = tmp_path / "unfinished", tmp_path
    unfinished.mkdir()
    for number, case in enumerate("abc"):
        for name in (f"{case}.tif", f"{case}.json"):
            (unfinished / name).write_text(case, encoding="utf-8")
        os.utime(unfinished / f"{case}.tif", (number, number))
    prediction._keep_whole_files(unfinished, output, ".tif")
    assert sorted(path.name for path in output.iterdir()) == ["a.json", "a.tif", "b.json", "b.tif"]


def test_a_misspelt_dataset_is_named_before_its_models_are_looked_for(world):
    with pytest.raises(EvaluationError, match=rf"holds no Dataset901_Smal, only {DATASET}; correct -d"):
        Comparison("Dataset901_Smal", TRAINERS, world / "out").run()


def test_figures_of_methods_that_differ_in_a_sign_have_files_of_their_own():
    assert pictures.distinct(["VQ_PFA", "a", "VQ_PFA", "vq_pfa_2", "VQ_PFA"]) == [
        "VQ_PFA",
        "a",
        "VQ_PFA_2",
        "vq_pfa_2_2",
        "VQ_PFA_3",
    ]


def test_batch_of_several_gpus_is_the_plan_s(world):
    """debug.json has the share of one."""
    folder = world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d"
    debug = json.loads((folder / "fold_0/debug.json").read_text(encoding="utf-8"))
    plans = {"configurations": {"2d": {"inherits_from": "base"}, "base": {"batch_size": 13}}}
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    for ddp, expected in (("False", 6), ("True", 13)):
        content = json.dumps(debug | {"batch_size": "6", "is_ddp": ddp})
        (folder / "fold_0/debug.json").write_text(content, encoding="utf-8")
        assert read_training_record(folder / "fold_0/checkpoint_final.pth").images_a_step == [expected]


def test_seeds_are_shown_as_they_are_written():
    assert formatting.quantity("seed", 2024) == "2024"
    assert formatting.quantity("labeled_cases", 2024) == "2,024"


def test_images_a_step_are_not_guessed_where_the_checkpoint_is_gone(world):
    """debug.json knows nothing of the unlabelled ones."""
    checkpoint = world / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth"
    assert read_training_record(checkpoint).images_a_step is not None
    checkpoint.unlink()
    record = read_training_record(checkpoint)
    assert record.batch_size is not None
    assert record.images_a_step is None


def test_images_a_step_that_a_checkpoint_names_need_no_configuration():
    record = TrainingRecord(runtime={"labeled_batch_size": 8, "images_a_step": [8, 4, 4, 4]}, config={"method": "new"})
    assert record.images_a_step == [8, 4, 4, 4]
