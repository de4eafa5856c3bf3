"""How much two trainings of the same method differ that have nothing but their seed apart.

    python scripts/probes/seed_noise.py results/trainings/cpu --split test --steps 3000

Reads what `run_experiment.py` keeps of its trainings, groups those whose dataset, trainer, number of steps and settings
are the same, and tests each pair of a group as two methods are tested: the mean Dice of each patient, by Wilcoxon.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiment_results import Result, read_kept

from nnunetv2_vqseg.report.case_files import SPLITS
from nnunetv2_vqseg.report.statistics import (
    DEFAULT_PATIENT_REGEX,
    MEAN,
    paired_test,
    patient_key,
    patient_values,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the kept trainings of a profile")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--steps", type=int, default=3000, help="of a training, up to a tenth more. Default: 3000")
    args = parser.parse_args(argv)
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for file in sorted(args.folder.glob("*/*.json")):
        result = read_kept(file)
        if args.split in result.scores and args.steps <= (result.steps or 0) <= 1.1 * args.steps:
            settings = {key: value for key, value in result.config.items() if key != "seed"}
            trainer, plans, _ = file.stem.split("__")
            groups[file.parent.name, trainer, plans, json.dumps(settings, sort_keys=True)].append(result)
    tests = []
    for (dataset, trainer, _, settings), results in groups.items():
        weight = json.loads(settings).get("lambda_u", "")
        for one, other in combinations(results, 2):
            dice = [_patients(result, args.split) for result in (one, other)]
            test = paired_test(*dice)
            tests.append(test)
            print(f"{dataset} {trainer} {weight}: {100 * test['difference']:+.1f} points, p = {test['p_wilcoxon']:.2g}")
    if not tests:
        raise SystemExit(f"{args.folder} holds no two trainings of about {args.steps} steps that differ in their seed.")
    differences = [abs(100 * test["difference"]) for test in tests]
    print(
        f"{len(tests)} pairs: {median(differences):.1f} points (median), {max(differences):.1f} (largest); "
        f"{sum(test['p_wilcoxon'] < 0.05 for test in tests)} have p < 0.05"
    )


def _patients(result: Result, split: str) -> dict[str, float]:
    """Mean Dice of each patient."""
    scores = {"0": dict(result.scores[split])}
    return patient_values(scores, list(result.classes), patient_key(DEFAULT_PATIENT_REGEX))[MEAN]["Dice"]


if __name__ == "__main__":
    main()
