"""Planning and preprocessing from Python, as `nnUNetv2_vqseg_plan_and_preprocess` does it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_vqseg.core.errors import DatasetError, PlansError, and_more, explained_disk_errors
from nnunetv2_vqseg.core.folders import preprocessed_folder, raw_folder
from nnunetv2_vqseg.data.cases import check_training_names, no_unlabeled_cases_message
from nnunetv2_vqseg.data.checks.dataset_json import load_dataset_json
from nnunetv2_vqseg.data.checks.images import check_images
from nnunetv2_vqseg.data.checks.labeled import RECORD_FILE, CheckedCase, check_labeled_cases
from nnunetv2_vqseg.data.preprocess import prepare_unlabeled_cases, unlabeled_folder
from nnunetv2_vqseg.data.preprocess_case import check_spacing
from nnunetv2_vqseg.data.readers import find_reader
from nnunetv2_vqseg.data.splits_file import SPLITS_FILE
from nnunetv2_vqseg.planning import labeled
from nnunetv2_vqseg.planning.planner import PLANS_NAME, vqseg_planner
from nnunetv2_vqseg.planning.roles import CaseRoles, read_roles

CONFIGURATION = "2d"


@explained_disk_errors()
def plan_and_preprocess_dataset(
    dataset_id: int,
    planner_class: type[ExperimentPlanner] = ExperimentPlanner,
    fingerprint_extractor_class: type[DatasetFingerprintExtractor] = DatasetFingerprintExtractor,
    gpu_memory_target_in_gb: float | None = None,
    preprocessor_name: str = "DefaultPreprocessor",
    overwrite_target_spacing: Sequence[float] | None = None,
    plans_name: str | None = None,
    num_processes: int = 8,
    num_processes_fingerprint: int = 8,
    verify_dataset_integrity: bool = False,
    clean: bool = False,
    preprocess: bool = True,
    verbose: bool = False,
    show_progress: bool = True,
) -> str:
    """Fingerprint, plan and preprocess one dataset, labelled and unlabelled cases.

    Args:
        planner_class: any of nnU-Net's.
        gpu_memory_target_in_gb: for a VQ-Seg training, unlabelled images included; None: the planner's own.
        plans_name: None: `nnUNetVQSegPlans`.

    Returns:
        The plan's name, for `-p`.

    Raises:
        DatasetError: images, labels, names, splits or a dataset.json that cannot be used, or a file that cannot be read
            or written.
        PlansError: a plan that cannot be made.
    """
    dataset_name = _find_dataset(dataset_id)
    dataset_json = load_dataset_json(raw_folder(dataset_name) / "dataset.json")
    check_training_names(raw_folder(dataset_name), dataset_json)
    roles = read_roles(dataset_name, dataset_json)
    for warning in roles.unlabeled.warnings:
        print(f"WARNING: {warning}")
    if not roles.unlabeled.files:
        print(f"WARNING: {no_unlabeled_cases_message(raw_folder(dataset_name))}")
    if roles.unused:
        copy = preprocessed_folder(dataset_name) / SPLITS_FILE
        print(
            f"WARNING: No fold of {SPLITS_FILE} names the case {roles.unused[0]} of imagesTr{and_more(roles.unused)}, "
            f"so only a training of fold all uses it; add it to a fold"
            f"{f', or delete {copy} where nnU-Net made it up' if copy.is_file() else ''}."
        )
    if dataset_json["numTraining"] != len(roles.training):
        print(
            f"WARNING: {raw_folder(dataset_name) / 'dataset.json'} says numTraining {dataset_json['numTraining']}, but "
            f"there are {len(roles.training)} labelled cases; correct it."
        )
    _require_writable(dataset_name)
    record = preprocessed_folder(dataset_name) / RECORD_FILE
    if clean or verify_dataset_integrity:
        record.unlink(missing_ok=True)
    checked = _check_labeled(dataset_name, dataset_json, roles, record, num_processes_fingerprint, show_progress)

    print("Fingerprint extraction...")
    if verify_dataset_integrity:
        _verify(dataset_name, dataset_json, roles, num_processes_fingerprint, show_progress)
    labeled.extract_fingerprint(
        dataset_name, roles, fingerprint_extractor_class, num_processes_fingerprint, clean, verbose, show_progress
    )

    print("Experiment planning...")
    optional: dict[str, Any] = {}
    if gpu_memory_target_in_gb is not None:
        optional["gpu_memory_target_in_gb"] = gpu_memory_target_in_gb
    planner: Any = vqseg_planner(planner_class)(
        dataset_id,
        preprocessor_name=preprocessor_name,
        overwrite_target_spacing=[float(step) for step in overwrite_target_spacing]
        if overwrite_target_spacing
        else None,
        suppress_transpose=False,
        plans_name=plans_name or PLANS_NAME,
        num_processes=num_processes_fingerprint,
        show_progress=show_progress,
        clean=clean,
        fingerprint_extractor_class=fingerprint_extractor_class,
        **optional,
    )
    planner.plan_experiment()
    if preprocess:
        print("Preprocessing...")
        _preprocess(
            dataset_name,
            dataset_json,
            roles,
            checked,
            planner.plans_identifier,
            num_processes,
            verbose,
            show_progress,
        )
    return planner.plans_identifier


def find_class(name: str) -> Any:
    """A planner or fingerprint extractor of nnU-Net's, by name.

    Raises:
        PlansError: there is none.
    """
    found = recursive_find_python_class(
        f"{nnunetv2.__path__[0]}/experiment_planning", name, current_module="nnunetv2.experiment_planning"
    )
    if found is None:
        raise PlansError(f"nnU-Net has no class {name} in nnunetv2.experiment_planning; check the spelling.")
    return found


def _find_dataset(dataset_id: int) -> str:
    try:
        return str(convert_id_to_dataset_name(dataset_id))
    except RuntimeError as error:
        raise DatasetError(
            f"There is not exactly one dataset with the ID {dataset_id} in {nnUNet_raw}; nnU-Net wants one folder such "
            f"as Dataset{dataset_id:03d}_NAME, of the same name in its three folders."
        ) from error


def _require_writable(dataset_name: str) -> None:
    """Find out now, and not after nnU-Net has deleted what it was about to replace."""
    base = preprocessed_folder(dataset_name)
    try:
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=base):
            pass
    except OSError as error:
        raise DatasetError(
            f"{base} cannot be written to ({error.strerror}); make it writable or make room, and start again."
        ) from error


def _check_labeled(
    dataset_name: str, dataset_json: dict, roles: CaseRoles, record: Path, num_processes: int, show_progress: bool
) -> dict[str, CheckedCase]:
    """Read all labelled images and labels that may be opened; there are few where there are unlabelled ones."""
    folder = raw_folder(dataset_name) / "imagesTr"
    if not roles.training:
        raise DatasetError(
            f"{folder} has no file named CASE_0000{dataset_json['file_ending']}; nnU-Net needs its labelled images "
            f"there."
        )
    if not roles.visible:
        raise DatasetError(
            f'splits_final.json lists every case of {folder} under "unlabeled" and none under "train" or "val"; leave '
            f"some labelled."
        )
    images = [file for entry in roles.visible.values() for file in entry["images"]]
    reader = find_reader(dataset_json, images)
    checked = check_labeled_cases(roles.visible, dataset_json, reader, record, num_processes, show_progress)
    for case in checked.values():
        for warning in case["warnings"]:
            print(f"WARNING: {warning}")
    return checked


def _verify(dataset_name: str, dataset_json: dict, roles: CaseRoles, num_processes: int, show_progress: bool) -> None:
    """nnU-Net's check, which is ours on labelled cases in other words, and ours on the unlabelled images."""
    labeled.verify(dataset_name, dataset_json, roles, num_processes)
    reader = find_reader(dataset_json, [entry["images"][0] for entry in roles.visible.values()])
    for warning in check_images(roles.unlabeled.files, dataset_json, reader, num_processes, show_progress):
        print(f"WARNING: {warning}")


def _preprocess(
    dataset_name: str,
    dataset_json: dict,
    roles: CaseRoles,
    checked: dict[str, CheckedCase],
    plans_identifier: str,
    num_processes: int,
    verbose: bool,
    show_progress: bool,
) -> None:
    base = preprocessed_folder(dataset_name)
    plans_manager = PlansManager(str(base / f"{plans_identifier}.json"))
    configuration_manager = plans_manager.get_configuration(CONFIGURATION)
    for case, found in checked.items():
        check_spacing(roles.training[case]["images"][0], found["spacing"], plans_manager, configuration_manager)
    labeled.preprocess(
        dataset_name, dataset_json, roles, plans_identifier, CONFIGURATION, num_processes, verbose, show_progress
    )
    if roles.unlabeled.files:
        prepare_unlabeled_cases(
            replace(roles.unlabeled, warnings=()),  # printed before planning
            plans_manager,
            configuration_manager,
            dataset_json,
            unlabeled_folder(str(base / configuration_manager.data_identifier)),
            num_processes,
            show_progress=show_progress,
        )
