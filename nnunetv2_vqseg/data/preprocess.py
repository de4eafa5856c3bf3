"""Unlabelled cases, preprocessed by nnU-Net's own preprocessor into a folder beside the labelled ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.files import NowAndThen
from nnunetv2_vqseg.core.locks import exclusive
from nnunetv2_vqseg.core.pools import for_each_case
from nnunetv2_vqseg.data.cases import UnlabeledCases
from nnunetv2_vqseg.data.checks.likeness import Look, looks_of_labeled, unlike_labeled
from nnunetv2_vqseg.data.manifest import Entry, Manifest, manifest_file
from nnunetv2_vqseg.data.preprocess_case import prepare_case, preprocessing_settings
from nnunetv2_vqseg.data.splits_file import check_fold_entry

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

SUFFIX = "_unlabeled"


def unlabeled_folder(preprocessed_dataset_folder: str) -> str:
    """The sibling of nnU-Net's folder of preprocessed labelled cases that holds the unlabelled ones."""
    return f"{preprocessed_dataset_folder.rstrip(os.sep + '/')}{SUFFIX}"


def prepare_unlabeled_cases(
    cases: UnlabeledCases,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
    folder: str,
    num_processes: int,
    log: Callable[[str], None] = print,
    show_progress: bool = True,
) -> list[str]:
    """Preprocess what is missing or out of date; labels are never opened, not even of cases that have one.

    Out of date means: made from other files, or with another spacing, normalisation, intensity statistics,
    transposition, resampling, reader or preprocessor. Several runs may do this at once, and a run may be killed at
    any moment.

    Args:
        folder: `unlabeled_folder(...)`; created if need be, read only if nothing is to be done.
        num_processes: 0 or 1 stays in this process.
        log: receives messages, one line each.

    Returns:
        The cases' names, sorted: all are ready.

    Raises:
        DatasetError: one line per image that cannot be used; the others are preprocessed nevertheless.
    """
    for warning in cases.warnings:
        log(f"WARNING: {warning}")
    settings = preprocessing_settings(plans_manager, configuration_manager)
    manifest = Manifest(folder)
    if _outdated(manifest, cases, settings) or _update_origins(manifest, cases):
        scratch = f"{folder}_tmp"
        plan = (folder, scratch, plans_manager, configuration_manager, dataset_json)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            # Where that is not certain results are the same: each case is put in place by renaming.
            with exclusive(folder, log, "preparing the unlabelled cases") as certain:
                if certain:
                    shutil.rmtree(scratch, ignore_errors=True)
                _bring_up_to_date(cases, folder, settings, plan, num_processes, log, show_progress)
                with suppress(OSError):
                    Path(scratch).rmdir()
        except OSError as error:
            # A folder that is complete and read only (a cluster's) is fine.
            if _outdated(Manifest(folder), cases, settings):
                raise DatasetError(
                    f"{error.filename or folder} cannot be used ({error.strerror}) while unlabelled cases are missing "
                    f"or out of date in {folder}; make room or make it writable and start again, what is done is kept."
                ) from error
    return sorted(cases.files)


def load_prepared_identifiers(
    folder: str,
    cases: UnlabeledCases | None = None,
    fold_entry: Mapping[str, Any] | None = None,
    plans_manager: PlansManager | None = None,
    configuration_manager: ConfigurationManager | None = None,
    labeled: Iterable[str] = (),
) -> list[str]:
    """The prepared cases where the raw images are not there, as on a cluster.

    Args:
        folder: `unlabeled_folder(...)`, with its manifest beside it.
        cases: the cases wanted; None: those that came from `imagesUl` and the fold's `unlabeled` list.
        fold_entry: the fold of `splits_final.json`; cases of other folds' lists are not returned.
        plans_manager: with `configuration_manager`, also check that the cases were made for this plan.
        labeled: labelled cases that serve as unlabelled ones where `cases` is None and there are no others.

    Raises:
        DatasetError: nothing was prepared, or a wanted case is missing, incomplete or made for another plan.
    """
    manifest = Manifest(folder)
    if not manifest.cases:
        raise DatasetError(
            f"The raw images are not there and {manifest_file(folder)} names no preprocessed unlabelled case; set "
            f"nnUNet_raw, or copy {folder} together with that file."
        )
    if cases is not None:
        wanted = set(cases.files)
    else:
        wanted = {case for case, entry in manifest.cases.items() if entry.get("origin") == "imagesUl"}
        wanted |= set(check_fold_entry(fold_entry, fold_entry.get("unlabeled") or ())) if fold_entry else set()
        wanted = wanted or set(labeled)
    if not wanted:
        raise DatasetError(f"{manifest_file(folder)} has no unlabelled case for this fold; set nnUNet_raw.")
    settings = None
    if plans_manager is not None and configuration_manager is not None:
        settings = preprocessing_settings(plans_manager, configuration_manager)
    for case in sorted(wanted):
        if not manifest.is_complete(case):
            problem = f"is missing or incomplete in {folder}"
        elif settings is not None and manifest.cases[case].get("settings") != settings:
            problem = f"in {folder} was made for another plan"
        else:
            continue
        raise DatasetError(
            f"The preprocessed unlabelled case {case} {problem} and the raw images are not there; set nnUNet_raw or "
            f"copy the folder again."
        )
    return sorted(wanted)


def _outdated(manifest: Manifest, cases: UnlabeledCases, settings: str) -> list[str]:
    return [case for case, files in cases.files.items() if not manifest.is_current(case, files, settings)]


def _update_origins(manifest: Manifest, cases: UnlabeledCases) -> bool:
    """Forget images taken out of `imagesUl` and note where cases come from now; True if that changed anything.

    Their files stay: a training that started earlier may still draw them.
    """
    changed = False
    for case, entry in list(manifest.cases.items()):
        if case not in cases.files:
            if entry.get("origin") == "imagesUl" and "labeled" not in cases.origin.values():
                del manifest.cases[case]
                changed = True
        elif entry.get("origin") != cases.origin[case]:
            entry["origin"] = cases.origin[case]
            changed = True
    return changed


def _bring_up_to_date(
    cases: UnlabeledCases,
    folder: str,
    settings: str,
    plan: tuple,
    num_processes: int,
    log: Callable[[str], None],
    show_progress: bool,
) -> None:
    """Preprocess what is out of date by now; `plan` is what `prepare_case` needs besides the files."""
    manifest = Manifest(folder)
    outdated = _outdated(manifest, cases, settings)
    _update_origins(manifest, cases)
    before = {case: manifest.cases[case] for case in outdated if case in manifest.cases}
    manifest.cases.update({case: Entry(origin=cases.origin[case]) for case in outdated})
    manifest.save()
    if not outdated:
        return
    log(f"Preprocessing {len(outdated)} of {len(cases.files)} unlabelled cases into {folder}")
    save_now_and_then = NowAndThen(manifest.save)
    looks: dict[str, Look] = {}

    def on_result(case: str, result: tuple[Entry, list[str], Look]) -> None:
        entry, warnings, looks[case] = result
        for warning in warnings:
            log(f"WARNING: {warning}")
        manifest.cases[case] = {**entry, "origin": cases.origin[case], "settings": settings}
        save_now_and_then()

    jobs = {case: (cases.files[case], *plan) for case in outdated}
    try:
        for_each_case(prepare_case, jobs, num_processes, "Preprocessing unlabelled cases", show_progress, on_result)
    except DatasetError:
        # Raised before a file of the case was touched: what is there still is what it was.
        manifest.cases.update({case: old for case, old in before.items() if "outputs" not in manifest.cases[case]})
        raise
    finally:
        manifest.save()
        labeled = looks_of_labeled(folder.removesuffix(SUFFIX))
        for warning in unlike_labeled(looks, labeled):
            log(f"WARNING: {warning}")
