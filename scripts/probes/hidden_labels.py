"""How well trained models segment the unlabelled images themselves, whose labels a data set for development still has.

    python scripts/probes/hidden_labels.py -d 710 --labels BUSI_FOLDER/labelsUl_hidden -o hidden.json \\
        -tr "stock=nnUNetTrainerSupervised:PLANS:2d_a,2d_b" "MT=nnUNetTrainerMeanTeacher:PLANS:2d_c,2d_d"

Where validation has too few images to tell methods apart, these are many more, and neither their labels nor the test
were used. A semi-supervised training has seen the images: it may be a little better on them than on others, which is
measured here by nothing. Configurations of a method are its repetitions; those of two methods belong together by
their place in the list. Predictions are kept in `fold_0/unlabeled`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from math import isfinite
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asked_models import models_parser, read_dataset
from experiment_page import compare_shared_seeds

from nnunetv2_vqseg.core.json import write_json
from nnunetv2_vqseg.core.versions import git_commit
from nnunetv2_vqseg.data.cases import channel_files
from nnunetv2_vqseg.data.readers import find_reader
from nnunetv2_vqseg.report.case_files import Case, label_files
from nnunetv2_vqseg.report.methods import parse_methods
from nnunetv2_vqseg.report.prediction import predict_missing
from nnunetv2_vqseg.report.scoring import ScoreSettings, score_cases
from nnunetv2_vqseg.report.statistics import (
    DEFAULT_PATIENT_REGEX,
    MEAN,
    FoldScores,
    Scores,
    analyse_method,
    patient_key,
)
from nnunetv2_vqseg.report.trained_models import find_models


def main(argv: Sequence[str] | None = None) -> None:
    parser = models_parser(__doc__.split("\n")[0])
    parser.add_argument("--labels", type=Path, required=True, help="labels of imagesUl, under its names")
    args = parser.parse_args(argv)
    name, raw, dataset_json, classes, ending = read_dataset(args.d)
    images = channel_files(raw / "imagesUl", ending)
    references = label_files(args.labels, ending)
    if missing := sorted(images.keys() - references.keys()):
        sys.exit(f"Error: {args.labels} has no label of {missing[0]} ({len(missing)} in all); give all of imagesUl's.")
    cases = {case: Case(tuple(map(Path, files)), references[case]) for case, files in images.items()}
    settings = ScoreSettings(classes, find_reader(dataset_json, [next(iter(references.values()))]))
    rows: list[dict[str, Any]] = []
    baseline: Scores = {}
    for method, models in find_models(name, parse_methods(args.tr, []), ["0"]).items():
        scores: dict[str, FoldScores] = {}
        for number, model in enumerate(models.values()):
            folder = model.checkpoint.parent / "unlabeled"
            with redirect_stdout(sys.stderr):  # nnU-Net tells of every case
                predict_missing(model, cases, folder, ending, "cpu", 1)
            pairs = {case: (files.reference, folder / f"{case}{ending}") for case, files in cases.items()}
            scores[str(number)] = score_cases(pairs, settings, 1, f"{method.name} {number}")
        analysis = analyse_method(scores, list(classes.keys), patient_key(DEFAULT_PATIENT_REGEX))
        row = {"method": method.name, "asked": str(method), "cases": len(cases), "summary": analysis["summary"]}
        row["folds"] = {number: fold[MEAN]["Dice"] for number, fold in analysis["folds"].items()}
        baseline = baseline or scores
        if scores is not baseline:
            row["test_against_first"] = compare_shared_seeds(baseline, scores, list(classes.keys))
        rows.append(row)
        dice, test = row["summary"][MEAN]["Dice"], row.get("test_against_first")
        spread = f" ± {dice['sd_folds']:.3f}" if isfinite(dice["sd_folds"]) else ""
        against = f" ({test['difference']:+.3f}, p = {test['p_wilcoxon']:.2g})" if test else ""
        print(f"{method.name:40s} {dice['mean']:.3f}{spread}{against}, {list(row['folds'].values())}", flush=True)
    write_json({"dataset": name, "commit": git_commit(Path(__file__).parent), "rows": rows}, args.o)


if __name__ == "__main__":
    main()
