"""What nnU-Net's postprocessing, the largest component of the foreground or of a class alone, does to trained models.

    python scripts/probes/postprocessing.py -d 507 -o postprocessing.json --test \\
        -tr "stock=nnUNetTrainerSupervised:PLANS:2d_a,2d_b" "MT=nnUNetTrainerMeanTeacher:PLANS:2d_c"

Nothing is trained or predicted: it reads the predictions in `fold_0/validation`, and those that
`run_experiment.py --test` left in `fold_0/test`. nnU-Net chooses for each training, on its validation cases; the test
cases have no say. "Anyway" is the foreground's largest component whatever nnU-Net chose. Configurations of a method
are its repetitions, of which the first ones of two methods are compared with each other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asked_models import models_parser, read_dataset
from experiment_page import compare_shared_seeds

from nnunetv2_vqseg.core.json import write_json
from nnunetv2_vqseg.core.versions import git_commit
from nnunetv2_vqseg.data.readers import find_reader
from nnunetv2_vqseg.report.case_files import test_cases, validation_cases
from nnunetv2_vqseg.report.methods import parse_methods
from nnunetv2_vqseg.report.postprocessing import apply_steps, choose, describe
from nnunetv2_vqseg.report.scoring import ScoreSettings, score_cases
from nnunetv2_vqseg.report.statistics import DEFAULT_PATIENT_REGEX, MEAN, Scores, analyse_method, patient_key
from nnunetv2_vqseg.report.trained_models import find_models

FOLDERS = {"val": "validation", "test": "test"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = models_parser(__doc__.split("\n")[0])
    parser.add_argument("--test", action="store_true", help="the test cases too")
    args = parser.parse_args(argv)
    name, raw, dataset_json, classes, ending = read_dataset(args.d)
    cases = {"val": validation_cases(raw, dataset_json, "0")}
    if args.test:
        cases["test"] = test_cases(raw, dataset_json)
    settings = ScoreSettings(classes, find_reader(dataset_json, [next(iter(cases["val"].values())).reference]))
    foreground = sorted(classes.values - {0, classes.ignore_label})
    rows: list[dict[str, Any]] = []
    baseline: dict[str, Scores] = {}
    for method, models in find_models(name, parse_methods(args.tr, []), ["0"]).items():
        scores: dict[str, dict[str, dict[str, Any]]] = {
            split: {"before": {}, "always": {}, "after": {}} for split in cases
        }
        chosen = []
        for number, model in enumerate(models.values()):
            fold_folder = model.checkpoint.parent
            with tempfile.TemporaryDirectory() as scratch:
                validation = fold_folder / FOLDERS["val"]
                pairs = {
                    case: (files.reference, validation / f"{case}{ending}") for case, files in cases["val"].items()
                }
                steps = choose(model, pairs, Path(scratch, "chosen"), settings, 1).steps
                chosen.append(describe(steps, classes))
                for split, of_split in cases.items():
                    source = fold_folder / FOLDERS[split]
                    places = {"before": source}
                    for when, wanted in (("after", steps), ("always", [foreground])):
                        places[when] = Path(scratch, split, when) if wanted else source
                        if wanted:
                            names = {case: f"{case}{ending}" for case in of_split}
                            moved = {case: (source / name, places[when] / name) for case, name in names.items()}
                            apply_steps(model, moved, wanted, 1)
                    for when, place in places.items():
                        pairs = {case: (files.reference, place / f"{case}{ending}") for case, files in of_split.items()}
                        about = f"{method.name} {number}, {split}, {when}"
                        scores[split][when][str(number)] = score_cases(pairs, settings, 1, about)
        for split in cases:
            row: dict[str, Any] = {
                "method": method.name,
                "asked": str(method),
                "split": split,
                "postprocessing": chosen,
            }
            for when, found in scores[split].items():
                analysis = analyse_method(found, list(classes.keys), patient_key(DEFAULT_PATIENT_REGEX))
                row[when] = {"summary": analysis["summary"], "patients": analysis["patients"][MEAN]}
                first = baseline.setdefault(f"{split} {when}", found)
                if first is not found:
                    row[when]["test_against_first"] = compare_shared_seeds(first, found, list(classes.keys))
            rows.append(row)
    for split in cases:
        print(f"\n{split}: Dice (difference from the first), HD95 in voxels; before, after, and postprocessed anyway")
        for row in (row for row in rows if row["split"] == split):
            told = [_told(row[when]) for when in ("before", "after", "always")]
            print(f"{row['method']:24s} {told[0]:40s} {told[1]:40s} {told[2]:40s} {'; '.join(row['postprocessing'])}")
    write_json({"dataset": name, "commit": git_commit(Path(__file__).parent), "rows": rows}, args.o)


def _told(result: Mapping[str, Any]) -> str:
    dice, test = result["summary"][MEAN]["Dice"], result.get("test_against_first")
    against = f" ({test['difference']:+.3f}, p = {test['p_wilcoxon']:.2g})" if test else ""
    spread = f" ± {dice['sd_folds']:.3f}" if isfinite(dice["sd_folds"]) else ""
    return f"{dice['mean']:.3f}{spread}{against}, {result['summary'][MEAN]['HD95']['mean']:.1f}"


if __name__ == "__main__":
    main()
