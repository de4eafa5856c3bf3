"""The experiment's page: it shows all there is, and never loses what it showed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiment_world import (
    VARIABLES,
    add_scores,
    answer,
    figures,
    files,
    finish,
    page,
    results,
    runner,
    use_fake_trainer,
)
from scipy import stats

from nnunetv2_vqseg import trainers
from nnunetv2_vqseg.report.training_records import TrainingRecord


def experiment(**changes: Any) -> runner.Experiment:
    known = {"title": "Modules", "question": "Which?", "columns": (), "figure": {}, "profile": {}, "runs": ()}
    return runner.Experiment(name="modules", profile_name="cpu", **(known | changes))


def runs_of(name: str, *names: str) -> list[runner.Run]:
    return runner.select(runner.read_experiment(name, "cpu").runs, names, None)


def write(home: Path, *options: str) -> tuple[str, dict[str, Any]]:
    runner.main(["modules", "--home", str(home), "--results", str(home / "results"), "--report-only", *options])
    text = (home / "results" / "modules-cpu.md").read_text(encoding="utf-8")
    return text, json.loads((home / "results" / "modules-cpu.json").read_text(encoding="utf-8"))


def kept_file(home: Path, training: runner.Training) -> Path:
    return results.kept_file(home / "results" / "trainings" / "cpu", training)


def test_page_shows_what_was_measured_and_why_the_rest_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    stock, teacher = runs_of("modules", "stock nnU-Net", "mean teacher")
    for seed, dice in enumerate((0.50, 0.52)):
        finish(tmp_path, runner.Training(stock, seed), dice)
        finish(tmp_path, runner.Training(teacher, seed), dice + 0.1)
    known = {"commits": [f"{'a' * 40} with uncommitted changes"], "seconds": 120.0}
    known["machines"] = [{"cpu": "Abacus 3", "cores": 2, "gpu": None}]
    # of the second seed nothing is known: its record was lost
    (runner.Training(stock, 0).fold / "experiment.json").write_text(json.dumps(known), encoding="utf-8")
    curves = {"steps": 1500, "labeled_batch_size": 8, "unlabeled_batch_size": 4}
    configs = {training.fold: training.config.as_dict() for training in runner.trainings_of(teacher, (0, 1))}
    monkeypatch.setattr(
        results,
        "read_training_record",
        lambda file: TrainingRecord(runtime=curves, config=configs.get(file.parent, {})),
    )
    text, content = write(tmp_path)
    assert "| 3 | stock nnU-Net | 0.525 ± 0.014 | 0.525 | 0.525 | 12.5 ± 0.0 |  | 2 of 16 |  |  |  | 0, 1 |" in text
    assert (
        "| 3 | mean teacher | 0.625 ± 0.014 | 0.625 | 0.625 | 12.5 ± 0.0 |  | 2 of 16 | +0.100 | 0.12 | 0 | 0, 1 |"
        in text
    )
    assert "| 3 | mean teacher | 0.500 ± 0.000 | 3.2 ± 0.0 | 8 + 4 | 18,000 |" in text
    assert "|  | 2 | aaaaaaa with uncommitted changes |" in text
    assert "Trained on Abacus 3, 2 cores, no GPU." in text
    assert "| 3 | full | not measured: needs DINOv2 weights |" in text
    assert "| 3 | paper's settings | not measured: GPU profile |" in text
    assert "| 3 | QPM |" not in text
    assert text.partition("\nNot run: ")[2].count("QPM (3 labelled)") == 1
    assert "](modules-cpu.png)" in text
    assert (tmp_path / "results" / "modules-cpu.png").read_bytes().startswith(b"\x89PNG")
    rows = {row["name"]: row for row in content["val"]}
    assert rows["mean teacher"]["images_seen"] == 1500 * 12
    assert rows["full"]["state"] == "not measured: needs DINOv2 weights"


def test_page_keeps_test_scores_and_seeds_that_a_later_run_does_not_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    stock, teacher = runs_of("modules", "stock nnU-Net", "mean teacher")
    for seed in (0, 1):
        finish(tmp_path, runner.Training(stock, seed), 0.5, ("val", "test"))
        finish(tmp_path, runner.Training(teacher, seed), 0.6)
    text, content = write(tmp_path, "--seeds", "1")
    validation, _, test = text.partition("<details")[2].partition("**Test patients**")
    assert "0, 1 |" in validation.partition("| 3 | stock nnU-Net | 0.515")[2].splitlines()[0]
    assert "0, 1 |" in test.partition("| 3 | stock nnU-Net | 0.515")[2].splitlines()[0]
    assert "| 3 | mean teacher | not read |" in test
    assert len(content["test"][0]["folds"]) == 2


def test_page_keeps_what_was_trained_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first := tmp_path / "first").mkdir()
    use_fake_trainer(first, monkeypatch)
    stock, teacher = runs_of("modules", "stock nnU-Net", "mean teacher")
    for seed in (0, 1):
        finish(first, runner.Training(stock, seed), 0.5, ("val", "test"))
    text, content = write(first)
    (second := tmp_path / "second").mkdir()
    (first / "results").rename(second / "results")
    for name in VARIABLES:
        monkeypatch.setenv(name, str(second / name))
    assert write(second) == (text, content), "nothing was trained, so nothing has changed"
    finish(second, runner.Training(stock, 1), 0.7)
    finish(second, runner.Training(stock, 2), 0.5)
    finish(second, runner.Training(teacher, 0), 0.6)
    _, content = write(second)
    validation, test = ({row["name"]: row for row in content[split]} for split in ("val", "test"))
    dice = {seed: fold["1"]["Dice"] for seed, fold in validation["stock nnU-Net"]["folds"].items()}
    assert dice == pytest.approx({"0": 0.515, "1": 0.715, "2": 0.515})
    assert validation["mean teacher"]["test_against_first"]["difference"] == pytest.approx(0.1), "of seed 0"
    assert list(test["stock nnU-Net"]["folds"]) == ["0"], "seed 1 was trained again and its test patients not read"


def test_a_report_without_the_test_scores_keeps_those_that_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    (teacher,) = runs_of("modules", "mean teacher")
    training = runner.Training(teacher, 0)
    finish(tmp_path, training, 0.5, ("val", "test"))
    known = TrainingRecord(runtime={"steps": 1500}, config=training.config.as_dict())
    monkeypatch.setattr(results, "read_training_record", lambda file: known)
    shown = write(tmp_path)
    (training.fold / "experiment_scores_test.json").unlink()
    monkeypatch.setattr(results, "read_training_record", lambda file: TrainingRecord(unreadable="damaged"))
    assert write(tmp_path) == shown
    kept = results.read_kept(kept_file(tmp_path, training))
    assert set(kept.scores) == {"val", "test"}
    assert (kept.steps, kept.config) == (1500, known.config)


def test_curves_that_ended_in_nan_are_left_out_of_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    trainings = runner.trainings_of(runner.read_experiment("perturbation", "cpu").runs[0], (0, 1))
    records = {}
    for training, last in zip(trainings, (float("nan"), 0.25), strict=True):
        finish(tmp_path, training, 0.5)
        curves = {"pseudo_perturbed": [0.5, last]}
        records[training.fold] = TrainingRecord(config=training.config.as_dict(), vqseg_curves=curves)
    monkeypatch.setattr(results, "read_training_record", lambda file: records[file.parent])
    place = tmp_path / "results"
    command = ["perturbation", "--home", str(tmp_path), "--results", str(place), "--report-only"]
    runner.main(command)
    text = (place / "perturbation-cpu.md").read_text(encoding="utf-8")
    assert " | 0.25 | " in text
    shutil.rmtree(tmp_path / "nnUNet_results")
    runner.main(command)
    assert (place / "perturbation-cpu.md").read_text(encoding="utf-8") == text


def test_rows_are_compared_with_another_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    dice = {
        "stock nnU-Net": 0.5,
        "mean teacher": 0.6,
        "VQ-Seg without PFA": 0.63,
        "mean teacher, lambda_u 1": 0.61,
        "VQ-Seg with a second view, without PFA, lambda_u 1": 0.59,
    }
    for run in runner.select(runner.read_experiment("finalists", "cpu").runs, list(dice), [3]):
        finish(tmp_path, runner.Training(run, 0), dice[run.name])
    place = tmp_path / "results"
    runner.main(["finalists", "--home", str(tmp_path), "--results", str(place), "--report-only"])
    text = (place / "finalists-cpu.md").read_text(encoding="utf-8")
    _, _, after = text.partition("Differences over the seeds that both have:\n\n")
    compared = [line.split(" (p = ")[0] for line in after.partition("\n\n")[0].splitlines()]
    assert compared == [
        "- 3 labelled, *VQ-Seg without PFA* minus *mean teacher*: +0.030",
        "- 3 labelled, *mean teacher, lambda_u 1* minus *mean teacher*: +0.010",
        "- 3 labelled, *VQ-Seg with a second view, without PFA, lambda_u 1* minus *mean teacher, lambda_u 1*: -0.020",
    ]


def test_an_unknown_run_to_compare_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (files.EXPERIMENTS / "finalists.yaml").read_text(encoding="utf-8")
    for name in ("finalists", "profiles", "defaults"):
        shutil.copy(files.EXPERIMENTS / f"{name}.yaml", tmp_path)
    (tmp_path / "finalists.yaml").write_text(text.replace("against: mean", "against: kind"), encoding="utf-8")
    monkeypatch.setattr(files, "EXPERIMENTS", tmp_path)
    with pytest.raises(runner.ExperimentError, match="there is no run 'kind teacher' to compare with"):
        runner.read_experiment("finalists", "cpu")


def test_a_kept_result_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    (stock,) = runs_of("modules", "stock nnU-Net")
    file = kept_file(tmp_path, runner.Training(stock, 0))
    file.parent.mkdir(parents=True)
    file.write_text('{"dice": 0.5}', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"Error: .*\.json is not a training's result .*; delete it"):
        write(tmp_path)


def test_a_page_keeps_seeds_that_only_the_option_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    (teacher,) = runs_of("modules", "mean teacher")
    for seed in (0, 7):
        finish(tmp_path, runner.Training(teacher, seed), 0.5)
    for options in (["--seeds", "7"], []):
        _, data = write(tmp_path, *options)
        (row,) = (row for row in data["val"] if row["name"] == "mean teacher")
        assert row["settings"]["seed"] == [0, 7]


def test_a_kept_row_is_not_compared_with_a_row_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    stock, teacher = runs_of("modules", "stock nnU-Net", "mean teacher")
    for run, dice in ((stock, 0.5), (teacher, 0.6)):
        finish(tmp_path, runner.Training(run, 0), dice)
    write(tmp_path)
    for run in (stock, teacher):  # only their table is left
        shutil.rmtree(runner.Training(run, 0).folder)
        kept_file(tmp_path, runner.Training(run, 0)).unlink()

    def test_of_teacher() -> object:
        _, data = write(tmp_path)
        (row,) = (row for row in data["val"] if row["name"] == "mean teacher")
        assert "summary" in row
        return row["test_against_first"]

    assert test_of_teacher() is not None
    finish(tmp_path, runner.Training(stock, 1), 0.4)
    assert test_of_teacher() is None


def test_scores_stay_where_weights_were_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    (teacher,) = runs_of("modules", "mean teacher")
    training = runner.Training(teacher, 0)
    finish(tmp_path, training, 0.5)
    debug = {"batch_size": "8", "num_iterations_per_epoch": "100"}
    (training.fold / "debug.json").write_text(json.dumps(debug), encoding="utf-8")
    before, _ = write(tmp_path)
    (training.fold / "checkpoint_final.pth").unlink()
    after, _ = write(tmp_path)
    assert after == before


def test_a_row_stays_where_only_its_table_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    stock, teacher = runs_of("modules", "stock nnU-Net", "mean teacher")
    finish(tmp_path, runner.Training(stock, 0), 0.5)
    text, _ = write(tmp_path)
    kept = tmp_path / "results" / "trainings"
    kept.rename(tmp_path / "lost")
    (tmp_path / "nnUNet_results").rename(tmp_path / "gone")
    assert write(tmp_path)[0] == text
    finish(tmp_path, runner.Training(teacher, 0), 0.6, ("val", "test"))
    text, content = write(tmp_path)
    assert "| 3 | stock nnU-Net | 0.515 | 0.515 | 0.515 | 12.5 |" in text
    assert "| 3 | stock nnU-Net | not read |" in text
    assert "| 3 | mean teacher | 0.615 |" in text
    rows = {row["name"]: row for row in content["val"]}
    assert rows["mean teacher"]["test_against_first"] is None, "the baseline's cases are not known any more"
    file = tmp_path / "results" / "modules-cpu.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"num_epochs": 15', '"num_epochs": 16'), encoding="utf-8")
    kept.joinpath("cpu").rename(tmp_path / "lost too")
    assert "Not run: stock nnU-Net (3 labelled)" in write(tmp_path)[0], "a row with other settings is another row"


def test_only_the_runs_that_are_named_are_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    stock, teacher = runs_of("modules", "stock nnU-Net", "mean teacher")
    for run in (stock, teacher):
        finish(tmp_path, runner.Training(run, 0), 0.5)
    predicted = []

    def predict(model: Any, fold: str, *others: Any) -> None:
        predicted.append(model.method.name)
        add_scores(runner.Training(teacher, 0), 0.7, ("test",))
        raise runner.ExperimentError("enough")

    monkeypatch.setattr(results, "test_cases", lambda raw, dataset_json: {})
    monkeypatch.setattr(results, "predict_missing", predict)
    with pytest.raises(SystemExit, match="enough"):
        write(tmp_path, "--test", "--only", "mean teacher")
    text, _ = write(tmp_path)
    assert predicted == ["mean teacher"]
    assert "| 3 | stock nnU-Net | not read |" in text
    assert "| 3 | mean teacher | 0.715 |" in text


def test_page_shows_seconds_a_step_and_what_postprocessing_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    training = runner.Training(runs_of("modules", "mean teacher")[0], 0)
    finish(tmp_path, training, 0.5)
    cases = json.loads((training.fold / "experiment_scores_val.json").read_text(encoding="utf-8"))
    for scores in cases.values():
        for values in scores.values():
            values["Dice"] += 0.2
    after = {"steps": "largest component of LV", "scores": results.splits_with_nan({"val": cases})}
    monkeypatch.setattr(results, "postprocess", lambda *arguments: after)
    record = TrainingRecord(
        runtime={"steps": 300},
        config=training.config.as_dict(),
        epoch_seconds=(90.0, 50.0, 60.0),
        curves={"mean_fg_dice": [0.1, 0.2, float("nan")]},
    )
    monkeypatch.setattr(results, "read_training_record", lambda file: record)
    for _ in range(2):  # the second time of what was kept
        text, rows = write(tmp_path)
        assert "| 3 | mean teacher | 0.515 | 0.515 | 0.515 | 12.5 | 0.715 |" in text
        assert "|  | 0.60 |  |  |" in text
        row = next(row for row in rows["val"] if "summary" in row)
        assert row["postprocessed"]["steps"] == ["largest component of LV"]
        kept = results.read_kept(kept_file(tmp_path, training))
        assert kept.epochs["seconds"] == [90.0, 50.0, 60.0]
        assert kept.epochs["dice"] == pytest.approx([0.1, 0.2, float("nan")], nan_ok=True)
        shutil.rmtree(training.fold, ignore_errors=True)


def test_sealed_test_scores_are_shown_once_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    training = runner.Training(runs_of("modules", "mean teacher")[0], 0)
    finish(tmp_path, training, 0.5)
    score = results.score

    def predict_and_score(one: runner.Training, split: str, *others: Any) -> dict[str, Any]:
        if split == "sealed":
            add_scores(one, 0.7, (split,))
        return score(one, split, *others)

    monkeypatch.setattr(results, "score", predict_and_score)
    text, rows = write(tmp_path, "--keep-test", "--only", "mean teacher")
    kept = results.read_kept(kept_file(tmp_path, training))
    assert set(kept.scores) == {"val", "sealed"}
    assert "test" not in rows
    assert "0.715" not in text
    assert write(tmp_path) == (text, rows), "a report without --test leaves it sealed"

    shutil.rmtree(training.fold)  # the weights are on another machine
    text, rows = write(tmp_path, "--test", "--only", "mean teacher")
    assert "| 3 | mean teacher | 0.715 |" in text
    assert set(results.read_kept(kept_file(tmp_path, training)).scores) == {"val", "test"}
    assert write(tmp_path) == (text, rows)


def test_scores_sealed_beside_the_weights_are_opened_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    training = runner.Training(runs_of("modules", "mean teacher")[0], 0)
    finish(tmp_path, training, 0.5)
    add_scores(training, 0.7, ("sealed",))
    assert "0.715" not in write(tmp_path)[0]
    text, _ = write(tmp_path, "--test", "--only", "mean teacher")
    assert "| 3 | mean teacher | 0.715 |" in text
    assert set(results.read_kept(kept_file(tmp_path, training)).scores) == {"val", "test"}


def test_scores_older_than_the_weights_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    (stock,) = runs_of("modules", "stock nnU-Net")
    training = runner.Training(stock, 0)
    finish(tmp_path, training, 0.5, ("test",))
    assert results.stored_scores(training, "test") is not None
    scores = training.fold / "experiment_scores_test.json"
    os.utime(scores, ns=(0, 0))
    assert results.stored_scores(training, "test") is None


def test_page_follows_the_experiment_and_keeps_what_was_written_around_it(tmp_path: Path) -> None:
    file = tmp_path / "modules-cpu.md"
    page.write_page(file, experiment(notes="To know."), ["first table"], ["first answer"])
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# Modules (cpu profile)\n\nWhich?\n\n<!-- answer: begin -->\n\nfirst answer\n")
    order = ["first answer", "<details markdown>", "<!-- results: begin", "To know.", "first table", "</details>"]
    assert sorted(order, key=text.index) == order
    text = text.replace("answer: end -->", "answer: end -->\n\nThree sentences.\n\nA warning.")
    file.write_text(text + "\nWhat we read.\n", encoding="utf-8")
    page.write_page(file, experiment(title="Parts", question="Which of them?"), ["second table"], ["second answer"])
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# Parts (cpu profile)\n\nWhich of them?\n\n<!-- answer: begin -->\n\nsecond answer\n")
    assert "first table" not in text
    assert "first answer" not in text
    assert "Which?" not in text
    order = [
        "answer: end -->\n\nThree sentences.\n\nA warning.\n\n<details",
        "second table",
        "</details>",
        "What we read.",
    ]
    assert sorted(order, key=text.index) == order
    assert text.count("<details") == text.count("</details>") == 1
    assert "--test" not in text
    page.write_page(file, experiment(title="Parts", question="Which of them?"), ["second table"], ["second answer"])
    assert file.read_text(encoding="utf-8") == text
    page.write_page(file, experiment(), ["third table"], tested=True)
    assert "modules --profile cpu --data FOLDER --test\n" in file.read_text(encoding="utf-8")


def test_the_command_is_preceded_by_the_files_that_settings_name(tmp_path: Path) -> None:
    run = files.Run("ViT", "nnUNetTrainerMeanTeacherViT", 3, settings={"encoder_checkpoint": "$SOME_WEIGHTS/vit.pth"})
    page.write_page(tmp_path / "page.md", experiment(runs=(run,)), ["table"], ["answer"])
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "```bash\nexport SOME_WEIGHTS=FILE\npython scripts/run_experiment.py modules --profile cpu --data" in text
    page.write_page(tmp_path / "other.md", experiment(), ["table"], ["answer"])
    assert "export" not in (tmp_path / "other.md").read_text(encoding="utf-8")


def test_page_of_an_earlier_layout_keeps_what_was_written_in_it(tmp_path: Path) -> None:
    file = tmp_path / "modules-cpu.md"
    old = f"# M\n\nWhich?\n\nA warning.\n\n{page.BEGIN.format(experiment().command)}\n\nold\n\n{page.END}\n\nRead.\n"
    file.write_text(old, encoding="utf-8")
    page.write_page(file, experiment(), ["new"], ["answer"])
    text = file.read_text(encoding="utf-8")
    assert "<!-- answer: end -->\n\nA warning.\n\n<details" in text
    assert text.endswith("</details>\n\nRead.\n")


def test_answer_has_few_rows_and_the_test_patients_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    stock, teacher = runs_of("modules", "stock nnU-Net", "mean teacher")
    finish(tmp_path, runner.Training(stock, 0), 0.5, ("val", "test"))
    finish(tmp_path, runner.Training(teacher, 0), 0.6)
    text, content = write(tmp_path)
    above = text.partition("<details")[0]
    assert "| 3 | stock nnU-Net | 0.515 | 0.515 | 12.5 | 1 |" in above
    assert "| 3 | mean teacher |  | 0.615 |  | 1 |" in above
    assert above.count("](modules-cpu") == 1
    rows = {"val": [{**content["val"][0], "name": str(number)} for number in range(20)]}
    shown = answer.answer_rows(experiment(), rows["val"])
    assert [row["name"] for row in shown] == [str(number) for number in range(8)]
    assert [row["name"] for row in answer.answer_rows(experiment(answer=("9", "3")), rows["val"])] == ["3", "9"]
    with_one_alone = [*rows["val"][:3], {**rows["val"][3], "labeled": 7}]
    assert len(answer.answer_rows(experiment(), with_one_alone)) == 3


def test_page_without_its_end_is_not_cut(tmp_path: Path) -> None:
    file = tmp_path / "modules-cpu.md"
    page.write_page(file, experiment(), ["table"])
    file.write_text(file.read_text(encoding="utf-8").replace("results: end", "end"), encoding="utf-8")
    with pytest.raises(runner.ExperimentError, match="has no line '<!-- results: end -->' after its results"):
        page.write_page(file, experiment(), ["table"])


@pytest.mark.parametrize("name", ["modules", "labels", "codebook", "perturbation"])
def test_figure_is_drawn_of_whatever_is_measured(name: str) -> None:
    of_file = runner.read_experiment(name, "gpu")
    assert (
        figures.draw(of_file, [{"name": run.name, "state": "not run"} for run in of_file.runs], "validation", "a")
        is None
    )
    dice = {"mean": 0.5, "sd_folds": float("nan"), "n_patients": 10}
    rows = [
        {
            "name": run.name,
            "labeled": run.labeled,
            "line": run.line,
            "x": run.line and run.settings.get(of_file.figure["lines"][run.line], 0.7),
            "summary": {"mean": {"Dice": dice}},
            "folds": {"0": {"mean": {"Dice": 0.5}}},
            "last_values": {column: [0.5] for column in of_file.columns},
        }
        for run in of_file.runs
    ]
    for some in (rows, rows[:1], rows[-1:]):
        figure = figures.draw(of_file, some, "validation", "a")
        assert figure is not None
        assert figure.size[0] > 1000


def test_lines_are_drawn_of_the_seeds_that_all_points_have() -> None:
    def row(line: str | None, x: float | None, *dice: float) -> dict[str, Any]:
        summary = {"mean": {"Dice": {"mean": sum(dice) / len(dice), "sd_folds": float("nan"), "n_patients": 10}}}
        folds = {str(seed): {"mean": {"Dice": value}} for seed, value in enumerate(dice)}
        return {"name": "none", "line": line, "x": x, "summary": summary, "folds": folds, "last_values": {}}

    rows = [row(None, None, 0.7, 0.6, 0.5), row("QPM, literal", 0.3, 0.4), row("QPM, literal", 0.7, 0.8, 0.2)]
    axes = figures._lines(runner.read_experiment("perturbation", "cpu"), rows).axes[0]
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert [0.7, 0.7] in drawn
    assert [0.4, 0.8] in drawn
    del rows[1]["folds"]["0"]
    axes = figures._lines(runner.read_experiment("perturbation", "cpu"), rows).axes[0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.6, 0.6])


def test_a_changed_tree_stays_marked() -> None:
    assert page.short_commit("0123456789abcdef") == "0123456"
    assert page.short_commit("0123456789abcdef with uncommitted changes") == "0123456 with uncommitted changes"


def test_a_training_with_other_defaults_is_not_taken_for_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "results")
    run = runner.Run("a", "nnUNetTrainerVQSegQPM", 3, settings={"epsilon": 0.3})
    training = runner.Training(run, 0)
    trained_with = trainers.nnUNetTrainerVQSegQPM.configured(training.block).as_dict()
    results.check_defaults(training, trained_with)
    results.check_defaults(training, {})
    with pytest.raises(runner.ExperimentError, match=r"other defaults \(commitment 9.0, now 0.25\)"):
        results.check_defaults(training, trained_with | {"commitment": 9.0})
    with pytest.raises(runner.ExperimentError, match="perturbed_view 'weak', now 'strong'"):
        results.check_defaults(training, trained_with | {"perturbed_view": "weak"})


def test_a_kept_training_with_other_defaults_is_not_taken_for_todays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_trainer(tmp_path, monkeypatch)
    (teacher,) = runs_of("modules", "mean teacher")
    training = runner.Training(teacher, 0)
    finish(tmp_path, training, 0.5)
    write(tmp_path)
    shutil.rmtree(tmp_path / "nnUNet_results")
    file = kept_file(tmp_path, training)
    kept = json.loads(file.read_text(encoding="utf-8"))
    kept["config"] = training.config.as_dict() | {"ema_decay": 0.5}
    file.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"was trained with other defaults \(ema_decay 0.5, now"):
        write(tmp_path)


def test_a_default_of_what_a_training_does_without_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "results")
    training = runner.Training(runner.Run("a", "nnUNetTrainerMeanTeacher", 3), 0)
    trained_with = trainers.nnUNetTrainerMeanTeacher.configured(training.block).as_dict()
    results.check_defaults(training, trained_with | {"perturbed_view": "weak"})
    with pytest.raises(runner.ExperimentError, match=r"lambda_u 0.3, now 1.0"):
        results.check_defaults(training, trained_with | {"lambda_u": 0.3})
    supervised = runner.Training(runner.Run("a", "nnUNetTrainerSupervisedEMA", 3), 0)
    trained_with = trainers.nnUNetTrainerSupervisedEMA.configured(supervised.block).as_dict()
    results.check_defaults(supervised, trained_with | {"lambda_u": 1.0, "lambda_a": 5.0})
    aligned = runner.Training(runner.Run("a", "nnUNetTrainerVQSegPFARequired", 3), 0)
    trained_with = trainers.nnUNetTrainerVQSegPFARequired.configured(aligned.block).as_dict()
    with pytest.raises(runner.ExperimentError, match=r"lambda_a 5.0, now 0.5"):
        results.check_defaults(aligned, trained_with | {"lambda_a": 5.0})


def test_rows_are_compared_over_the_seeds_that_both_have() -> None:
    def scores(dice: dict[str, float]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        row = {"Jaccard": 0.5, "HD95": 1.0, "ASD": 1.0, "n_pred": 5, "n_ref": 5}
        return {
            seed: {f"patient00{patient}_frame01": {"1": row | {"Dice": value + patient / 100}} for patient in range(5)}
            for seed, value in dice.items()
        }

    baseline = scores({"0": 0.5, "1": 0.9})
    test = page.compare_shared_seeds(baseline, scores({"0": 0.6, "2": 0.1}), ["1"])
    assert test is not None
    assert test["difference"] == pytest.approx(0.1)
    assert test["n"] == 5
    assert page.compare_shared_seeds(baseline, scores({"2": 0.6}), ["1"]) is None
    assert "n_seeds" not in test

    test = page.compare_shared_seeds(
        scores({"0": 0.5, "1": 0.9, "2": 0.5}), scores({"0": 0.6, "1": 0.8, "2": 0.7, "3": 0.1}), ["1"]
    )
    assert test is not None
    assert test["n_seeds"] == 3
    assert test["p_t_seeds"] == pytest.approx(stats.ttest_rel([0.6, 0.8, 0.7], [0.5, 0.9, 0.5]).pvalue)
