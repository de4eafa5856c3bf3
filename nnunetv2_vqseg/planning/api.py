"""Planning and preprocessing from Python, as `nnUNetv2_vqseg_plan_and_preprocess` does it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import nnunetv2
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_vqseg.data.cases import DatasetError, UnlabeledCases, check_images, no_unlabeled_cases_message
from nnunetv2_vqseg.data.preprocessing import prepare_unlabeled_cases, unlabeled_folder
from nnunetv2_vqseg.planning import labeled
from nnunetv2_vqseg.planning.planner import PLANS_NAME, vqseg_planner
from nnunetv2_vqseg.planning.plans import PlansError
from nnunetv2_vqseg.planning.roles import CaseRoles, preprocessed_folder, raw_folder, read_roles

CONFIGURATION = "2d"


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
        DatasetError: images, names or splits that cannot be used.
        PlansError: a plan that cannot be made.
    """
    dataset_name = str(convert_id_to_dataset_name(dataset_id))
    dataset_json = _load_dataset_json(dataset_name)
    roles = read_roles(dataset_name, dataset_json)
    for warning in roles.unlabeled.warnings:
        print(f"WARNING: {warning}")
    if not roles.unlabeled.files:
        print(f"WARNING: {no_unlabeled_cases_message(raw_folder(dataset_name))}")

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
        _preprocess(dataset_name, dataset_json, roles, planner.plans_identifier, num_processes, verbose, show_progress)
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


def _load_dataset_json(dataset_name: str) -> dict:
    file = raw_folder(dataset_name) / "dataset.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({error.strerror}); nnU-Net needs one for each dataset.") from None
    except ValueError as error:
        raise DatasetError(f"{file} is not valid JSON ({error}); correct it.") from None


def _verify(dataset_name: str, dataset_json: dict, roles: CaseRoles, num_processes: int, show_progress: bool) -> None:
    """nnU-Net's check and ours, which finds what SimpleITK hides; labelled images first."""
    labeled.verify(dataset_name, dataset_json, roles, num_processes)
    images = {case: entry["images"] for case, entry in roles.visible.items()}
    reader = determine_reader_writer_from_dataset_json(dataset_json, next(iter(images.values()))[0])
    groups = {
        "Checking labelled images": UnlabeledCases(images, dict.fromkeys(images, "labeled")),
        "Checking unlabelled images": roles.unlabeled,
    }
    for description, cases in groups.items():
        for warning in check_images(cases, dataset_json, reader, num_processes, show_progress, description):
            print(f"WARNING: {warning}")


def _preprocess(
    dataset_name: str,
    dataset_json: dict,
    roles: CaseRoles,
    plans_identifier: str,
    num_processes: int,
    verbose: bool,
    show_progress: bool,
) -> None:
    labeled.preprocess(
        dataset_name, dataset_json, roles, plans_identifier, CONFIGURATION, num_processes, verbose, show_progress
    )
    base = preprocessed_folder(dataset_name)
    plans_manager = PlansManager(str(base / f"{plans_identifier}.json"))
    configuration_manager = plans_manager.get_configuration(CONFIGURATION)
    if roles.unlabeled.files:
        prepare_unlabeled_cases(
            roles.unlabeled,
            plans_manager,
            configuration_manager,
            dataset_json,
            unlabeled_folder(str(base / configuration_manager.data_identifier)),
            num_processes,
            show_progress=show_progress,
        )
