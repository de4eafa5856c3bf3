"""What planning may know of each case: which labels it may open and which images are unlabelled."""

from __future__ import annotations

from dataclasses import dataclass

from nnunetv2_vqseg.core.folders import preprocessed_folder, raw_folder
from nnunetv2_vqseg.data.cases import TrainingCase, UnlabeledCases, collect_unlabeled_cases, training_cases
from nnunetv2_vqseg.data.splits_file import check_fold_entry, check_same_folds, load_splits


@dataclass(frozen=True)
class CaseRoles:
    """The cases of a dataset, over all folds.

    Attributes:
        training: case -> `{"images": [...], "label": ...}` for everything in `imagesTr`.
        unlabeled: `imagesUl` and every case that some fold lists as unlabelled.
        hidden: cases of `imagesTr` that are unlabelled in some fold and labelled in none: nothing opens their labels.
        labeled: cases of `imagesTr` that no fold lists as unlabelled; where every case is listed somewhere (a
            cross-validation over unlabelled sets), all that are not hidden.
        unused: cases of `imagesTr` that no fold names, where there are folds.
    """

    training: dict[str, TrainingCase]
    unlabeled: UnlabeledCases
    hidden: frozenset[str]
    labeled: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def visible(self) -> dict[str, TrainingCase]:
        """`training` without the hidden cases."""
        return {case: entry for case, entry in self.training.items() if case not in self.hidden}

    @property
    def has_listed_cases(self) -> bool:
        """Does any fold have an `unlabeled` list?"""
        return "split" in self.unlabeled.origin.values()


def read_roles(dataset_name: str, dataset_json: dict) -> CaseRoles:
    """Find all images and read the splits, the preprocessed folder's first, as nnU-Net's trainers do.

    Raises:
        DatasetError: a name, a number of files or a fold that does not fit, or two files of splits that differ.
    """
    raw, preprocessed = raw_folder(dataset_name), preprocessed_folder(dataset_name)
    training = training_cases(raw, dataset_json)
    check_same_folds(raw, preprocessed)
    splits = load_splits(preprocessed, raw)
    listed: set[str] = set()
    taught: set[str] = set()
    for fold in splits:
        listed.update(check_fold_entry(fold, training))
        taught.update(fold["train"], fold["val"])
    hidden = frozenset(listed - taught)
    return CaseRoles(
        training,
        collect_unlabeled_cases(raw, dataset_json, {"unlabeled": sorted(listed)}),
        hidden,
        tuple(case for case in training if case not in listed)
        or tuple(case for case in training if case not in hidden),
        tuple(case for case in training if splits and case not in listed | taught),
    )
