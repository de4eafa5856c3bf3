"""The page of an experiment: scores of its finished trainings as tables between two markers, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import median
from typing import Any

from experiment_files import Experiment, ExperimentError, Run, Training
from experiment_results import Result, has_failed, null_as_nan, with_nan

from nnunetv2_vqseg.core.files import replace_text
from nnunetv2_vqseg.core.versions import short_commit
from nnunetv2_vqseg.report.case_files import Split
from nnunetv2_vqseg.report.statistics import DEFAULT_PATIENT_REGEX, MEAN, analyse_method, paired_test, patient_key

Scores = Mapping[str, Mapping[str, Any]]  # seed -> case -> scores
BEGIN, END = "<!-- results: begin ({}) -->", "<!-- results: end -->"
ANSWER_BEGIN, ANSWER_END = "<!-- answer: begin -->", "<!-- answer: end -->"
FOLD = "<details markdown>\n<summary>All rows, classes and tests, what they cost, and the command</summary>"
UNFOLD = "</details>"
NOT_RUN = "not run"
FEWEST_SEEDS = 3
"""Of which a test over seeds is made."""
EXPLANATION = (
    "Dice, Jaccard, HD95 and ASD (in voxels): mean over the volumes of a class, then over the classes, then over the "
    "seeds, ± standard deviation (n - 1) over the seeds. Empty predictions, of all volumes, classes and seeds, have "
    "no HD95 and no ASD. Postprocessed: Dice after nnU-Net's choice of largest components, made for each training on "
    "its validation cases. Difference in Dice and its p-values (Wilcoxon, paired t-test, not corrected for their "
    "number) against the first row with as many labels, over patients; frames, and those seeds that both have, "
    "averaged first; empty where the first row's cases were not kept. Over the seeds: paired t-test whose sample is "
    "the seeds' mean Dice. Images a step: labelled ones and views of unlabelled ones that pass the student; images "
    "seen: that sum times the steps. Seconds a step: of the median epoch, its validation included; they and the "
    "minutes of wall time a training with other work on the machine. RV, MLV, LVC: right ventricle, myocardium and "
    "cavity of the left ventricle. QPM: quantised perturbation; DB: image decoder; PFA: alignment with DINOv2. Own "
    "plan: nnU-Net's, with its batch size. A row may have fewer seeds than the command trains, or others, which "
    "`--seeds` does."
)


def measure(
    experiment: Experiment,
    trainings: Mapping[Run, Sequence[Training]],
    results: Mapping[Training, Result],
    split: Split,
    earlier: Mapping[Split, Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """The experiment's rows; those with a `summary` are measured, the others have a `state` instead.

    Args:
        trainings: of each run, finished or not.
        results: of those that are finished.
        earlier: rows of each split that the page showed until now; those of which no training is left stay as they
            were.
    """
    rows: list[dict[str, Any]] = []
    scored = {
        run: [item for item in items if item in results and split in results[item].scores]
        for run, items in trainings.items()
    }
    scores_of = {run: {str(item.seed): results[item].scores[split] for item in items} for run, items in scored.items()}
    firsts = {run.labeled: run for run in reversed(experiment.runs)}
    named = {(run.name, run.labeled): scores_of[run] for run in experiment.runs}
    for run in experiment.runs:
        row: dict[str, Any] = {"name": run.name, "labeled": run.labeled, "trainer": run.trainer}
        first = firsts[run.labeled]
        failed = [training.seed for training in trainings[run] if has_failed(training)]
        if not scored[run]:
            kept = {name: _earlier_row(run, known) for name, known in earlier.items()}
            finished = any(kept.values()) or any(training in results for training in trainings[run])
            state = "not read" if finished else _state(run, trainings[run], failed)
            rows.append(_without_replaced(kept.get(split), run, scores_of[first], named) or row | {"state": state})
            continue
        scores = scores_of[run]
        found = [results[training] for training in scored[run]]
        classes = found[0].classes
        analysis = analyse_method(scores, list(classes), patient_key(DEFAULT_PATIENT_REGEX))
        test = None if run is first else compare_shared_seeds(scores_of[first], scores, list(classes))
        images = found[0].images_a_step or []
        steps = [result.steps for result in found if result.steps is not None]
        rows.append(
            row
            | {
                "settings": {**run.settings, "seed": [training.seed for training in scored[run]]},
                "classes": classes,
                "summary": analysis["summary"],
                "folds": analysis["folds"],
                "empty": analysis["empty"],
                "patients": analysis["patients"],
                "test_against_first": test,
                "against": run.against,
                "test_against_other": None
                if run is first or run.against is None
                else compare_shared_seeds(named.get((run.against, run.labeled), {}), scores, list(classes)),
                "last_values": {
                    name: [value for result in found if isfinite(value := result.last_values.get(name, nan))]
                    for name in experiment.columns
                },
                "steps": steps,
                "images_a_step": images,
                "images_seen": round(sum(steps) / len(steps) * sum(images)) if steps and images else None,
                "postprocessed": _postprocessed(found, scored[run], split, list(classes)),
                "online_dice": [result.epochs.get("dice", []) for result in found],
                "seconds_a_step": [
                    median(seconds) / (result.steps / len(seconds))
                    for result in found
                    if (seconds := result.epochs.get("seconds")) and result.steps
                ],
                "minutes": [result.seconds / 60 for result in found if result.seconds is not None],
                "commits": _distinct(short_commit(commit) for result in found for commit in result.commits if commit),
                "machines": _distinct(machine for result in found for machine in result.machines),
                "failed_seeds": failed,
                "line": run.line,
                "x": scored[run][0].config.as_dict()[experiment.figure["lines"][run.line]] if run.line else None,
            }
        )
    return rows


def _postprocessed(
    found: Sequence[Result], trainings: Sequence[Training], split: Split, classes: Sequence[str]
) -> dict[str, Any] | None:
    """Mean scores after nnU-Net's postprocessing, and what it was; None where a training's are not known."""
    after = [result.postprocessed.get("scores", {}).get(split) for result in found]
    if not all(after):
        return None
    scores = {str(training.seed): cases for training, cases in zip(trainings, after, strict=True)}
    summary = analyse_method(scores, classes, patient_key(DEFAULT_PATIENT_REGEX))["summary"][MEAN]
    return {"summary": summary, "steps": [result.postprocessed["steps"] for result in found]}


def seeds_of_row(run: Run, earlier: Mapping[Split, Sequence[Mapping[str, Any]]]) -> set[int]:
    """Seeds of a run that the page showed until now, also those that only `--seeds` trained."""
    rows = [_earlier_row(run, known) for known in earlier.values()]
    return {seed for row in rows if row for seed in row["settings"].get("seed", ())}


def _without_replaced(
    row: dict[str, Any] | None, run: Run, first: Scores, named: Mapping[tuple[str, int], Scores]
) -> dict[str, Any] | None:
    """A row of which no training is left, without what compares it with a row that is measured anew."""
    if row is None:
        return None
    stale = {"test_against_first": first, "test_against_other": named.get((run.against or "", run.labeled))}
    return row | {key: None for key, scores in stale.items() if scores and row.get(key)}


def _earlier_row(run: Run, earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A measured row of the same run: name, labels, trainer and settings are the same."""
    for row in earlier:
        same = (row["name"], row["labeled"], row["trainer"]) == (run.name, run.labeled, run.trainer)
        if same and "summary" in row:
            settings = {key: value for key, value in row["settings"].items() if key != "seed"}
            if settings == dict(run.settings):
                return _with_nan_for_null(row)
    return None


def _with_nan_for_null(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it, with NaN for what a single seed or patient, or a score that no case has, leaves null."""
    summary = {key: with_nan(values) for key, values in row["summary"].items()}
    folds = {seed: with_nan(values) for seed, values in row["folds"].items()}
    tests = {key: row.get(key) and null_as_nan(row[key]) for key in ("test_against_first", "test_against_other")}
    after = row.get("postprocessed")
    if after:
        after = after | {"summary": with_nan(after["summary"])}
    return {**row, "summary": summary, "folds": folds, **tests, "postprocessed": after}


def _state(run: Run, trainings: Sequence[Training], failed: Sequence[int]) -> str:
    if run.not_measured:
        return f"not measured: {run.not_measured}"
    if failed:
        return f"failed (seed {', '.join(map(str, failed))})"
    begun = any(any(training.fold.glob("checkpoint_*.pth")) for training in trainings)
    return "not finished" if begun else NOT_RUN


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def compare_shared_seeds(baseline: Scores, scores: Scores, classes: Sequence[str]) -> dict[str, Any] | None:
    """Paired test of the patients' mean Dice over the seeds that both have; None where they share none.

    From three seeds on `p_t_seeds` is that of a paired t-test on the mean Dice of the `n_seeds` seeds (Fig. 6).
    """
    seeds = sorted(set(baseline) & set(scores))
    if not seeds:
        return None
    first, second = (
        analyse_method({seed: values[seed] for seed in seeds}, classes, patient_key(DEFAULT_PATIENT_REGEX))
        for values in (baseline, scores)
    )
    test = dict(paired_test(first["patients"][MEAN]["Dice"], second["patients"][MEAN]["Dice"]))
    if len(seeds) < FEWEST_SEEDS:
        return test
    dice = [{seed: fold[MEAN]["Dice"] for seed, fold in method["folds"].items()} for method in (first, second)]
    over_seeds = paired_test(*dice)
    return test | {"n_seeds": over_seeds["n"], "p_t_seeds": over_seeds["p_t"]}


def tables(rows: Sequence[Mapping[str, Any]], unit: str, columns: Sequence[str]) -> list[str]:
    """What `measure` found, as two tables in Markdown: the scores, and what they cost.

    Rows that were not run are named under the first.

    Args:
        unit: of the number of labelled patients, empty or percent.
        columns: names of the curves whose last values, mean over seeds, are shown.
    """
    measured = [row for row in rows if "summary" in row]
    names = measured[0]["classes"] if measured else {}
    classes = list(names) if len(names) > 1 else []  # a single class is its own mean
    head = ["labelled", "method", "Dice", *(names[key] for key in classes), "HD95", "postprocessed", "empty"]
    head += ["difference", "p (Wilcoxon)", "p (t-test)", "seeds"]
    scores = []
    for row in rows:
        if row.get("state") == NOT_RUN:
            continue
        start = [f"{row['labeled']}{unit}", row["name"]]
        if "summary" not in row:
            scores.append([*start, row["state"], *[""] * (len(head) - 3)])
            continue
        summary, empty, test = row["summary"], row["empty"][MEAN], row["test_against_first"]
        seeds = ", ".join(map(str, row["settings"]["seed"]))
        if row["failed_seeds"]:
            seeds += f" (failed: {', '.join(map(str, row['failed_seeds']))})"
        scores.append(
            [
                *start,
                _mean_sd(summary[MEAN]["Dice"], 3),
                *(f"{summary[key]['Dice']['mean']:.3f}" for key in classes),
                _mean_sd(summary[MEAN]["HD95"], 1),
                _mean_sd(row["postprocessed"]["summary"]["Dice"], 3) if row.get("postprocessed") else "",
                f"{empty['empty_prediction']} of {empty['n_cases']}",
                *(
                    ["", "", ""]
                    if test is None
                    else [f"{test['difference']:+.3f}", _p(test, "wilcoxon"), _p(test, "t")]
                ),
                seeds,
            ]
        )
    lines = _markdown(head, scores)
    left = [f"{row['name']} ({row['labeled']}{unit} labelled)" for row in rows if row.get("state") == NOT_RUN]
    if left:
        lines += ["", f"Not run: {'; '.join(left)}."]
    compared = [row for row in measured if row.get("test_against_other")]
    if compared:
        lines += ["", "Differences over the seeds that both have:", ""]
    for row in compared:
        test = row["test_against_other"]
        lines.append(
            f"- {row['labeled']}{unit} labelled, *{row['name']}* minus *{row['against']}*: {test['difference']:+.3f} "
            f"(p = {_p(test, 'wilcoxon')} by Wilcoxon, {_p(test, 't')} by the t-test"
            + (f"; over the {test['n_seeds']} seeds {_p(test, 't_seeds')})" if "n_seeds" in test else ")")
        )
    if measured:
        head = ["labelled", "method", "Jaccard", "ASD", "images a step", "images seen", *columns]
        head += ["s a step", "minutes", "commit"]
        costs = [
            [
                f"{row['labeled']}{unit}",
                row["name"],
                _mean_sd(row["summary"][MEAN]["Jaccard"], 3),
                _mean_sd(row["summary"][MEAN]["ASD"], 1),
                " + ".join(map(str, row["images_a_step"])),
                "" if row["images_seen"] is None else f"{row['images_seen']:,}",
                *(_mean(values, ".4g") for values in row["last_values"].values()),
                _mean(row.get("seconds_a_step", ()), ".2f"),
                _mean(row["minutes"], ".0f"),
                ", ".join(row["commits"]),
            ]
            for row in measured
        ]
        lines += ["", *_markdown(head, costs)]
    machines = _distinct(machine for row in measured for machine in row["machines"])
    if machines:
        lines += ["", f"Trained on {'; '.join(map(describe_machine, machines))}."]
    return lines


def describe_machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _mean_sd(value: Mapping[str, float], digits: int) -> str:
    spread = value["sd_folds"]
    return f"{value['mean']:.{digits}f}" + ("" if spread != spread else f" ± {spread:.{digits}f}")


def _mean(values: Sequence[float], digits: str) -> str:
    return f"{sum(values) / len(values):{digits}}" if values else ""


def _p(test: Mapping[str, float], kind: str) -> str:
    return f"{test[f'p_{kind}']:.2g}"


def write_page(
    file: Path, experiment: Experiment, parts: Sequence[str], answer: Sequence[str] = (), tested: bool = False
) -> None:
    """Write title, question, answer and, folded away, all results; all other text of the page stays.

    The title is the page's first line, the question the paragraph under it.

    Args:
        answer: picture and table under the question.
        tested: scores of test patients are shown.

    Raises:
        ExperimentError: the page has lost the marker at the end of the answer or of the results.
    """
    begin = BEGIN.format(experiment.command)
    old = file.read_text(encoding="utf-8") if file.is_file() else ""
    head, found, rest = old.partition(begin)
    if found and END not in rest:
        raise ExperimentError(f"{file} has no line '{END}' after its results; put it back, or delete the page.")
    before = [f"# {experiment.title} ({experiment.profile_name} profile)", experiment.question]
    before += [ANSWER_BEGIN, "\n".join(answer).strip(), ANSWER_END, *_prose(file, head)]
    everything = [experiment.notes, "\n".join(parts).strip(), EXPLANATION, _bash(experiment, tested)]
    text = "\n\n".join(filter(None, [*before, FOLD, begin, *everything, END, UNFOLD]))
    tail = rest.partition(END)[2].strip().removeprefix(UNFOLD).strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, f"{text}\n\n{tail}\n" if tail else f"{text}\n")


def _prose(file: Path, head: str) -> list[str]:
    """What somebody wrote between question or answer and the results."""
    head = head.strip().removesuffix(FOLD).strip()
    _, found, rest = head.partition(ANSWER_BEGIN)
    if found:
        if ANSWER_END not in rest:
            raise ExperimentError(
                f"{file} has no line '{ANSWER_END}' after its table; put it back, or delete the page."
            )
        return [rest.partition(ANSWER_END)[2].strip()]
    return head.partition("\n")[2].strip().split("\n\n")[1:] if head.startswith("# ") else [head]


def _bash(experiment: Experiment, tested: bool) -> str:
    exports = "".join(f"export {name}=FILE\n" for name in experiment.variables)
    return f"```bash\n{exports}{experiment.command} --data FOLDER{' --test' if tested else ''}\n```"
