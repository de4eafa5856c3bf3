"""Planning and preprocessing from Python, as `nnUNetv2_vqseg_plan_and_preprocess` does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import nnunetv2
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_vqseg.core.errors import PlansError, explained_disk_errors
from nnunetv2_vqseg.core.folders import VARIABLES, find_dataset, folder_or_none, preprocessed_folder
from nnunetv2_vqseg.data.checks.dataset import CheckedDataset, check_dataset
from nnunetv2_vqseg.data.manifest import manifest_file
from nnunetv2_vqseg.data.patients import group_by_patient
from nnunetv2_vqseg.data.preprocess import prepare_unlabeled_cases, unlabeled_folder
from nnunetv2_vqseg.data.preprocess_case import check_spacing
from nnunetv2_vqseg.data.splits_file import FOLDS, load_splits, split_command
from nnunetv2_vqseg.planning import nnunet_steps
from nnunetv2_vqseg.planning.planner import IMAGES_A_LABEL, PLANS_NAME, vqseg_planner
from nnunetv2_vqseg.planning.plans import load_plans, resolve_vqseg_block
from nnunetv2_vqseg.planning.vit_planner import nnUNetPlannerViT

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
    images_a_label: Callable[[Mapping[str, Any]], float] = lambda block: IMAGES_A_LABEL,
    encoder: str | None = None,
) -> str:
    """Fingerprint, plan and preprocess one dataset, labelled and unlabelled cases.

    Args:
        gpu_memory_target_in_gb: for a VQ-Seg training, unlabelled images included; None: the planner's own.
        plans_name: None: `nnUNetVQSegPlans`, or `nnUNetViTPlans` with `nnUNetPlannerViT`.
        images_a_label: of a replaced plan's `vqseg` block: images with gradient in a step for each labelled one.
        clean: take nothing over from an earlier run: read and preprocess every image again.
        encoder: timm's name of the ViT, for `nnUNetPlannerViT`; None: the planner's own.

    Returns:
        The plan's name, for `-p`.

    Raises:
        DatasetError: as `check_dataset`, or an unlabelled image that cannot be used.
        PlansError: a plan that cannot be made.
    """
    name = find_dataset(dataset_id, *filter(None, map(folder_or_none, VARIABLES)))
    plan = plans_name or str(getattr(planner_class, "default_plans_name", PLANS_NAME))
    read_again = clean or verify_dataset_integrity
    dataset = check_dataset(name, num_processes_fingerprint, show_progress, read_again)
    if verify_dataset_integrity:
        nnunet_steps.verify(dataset, num_processes_fingerprint)
    nnunet_steps.extract_fingerprint(
        dataset, fingerprint_extractor_class, num_processes_fingerprint, clean, verbose, show_progress
    )
    print("Experiment planning...")
    planner: Any = cast("Any", vqseg_planner(planner_class))(
        name,
        preprocessor_name=preprocessor_name,
        plans_name=plan,
        num_processes=num_processes_fingerprint,
        show_progress=show_progress,
        clean=read_again,
        fingerprint_extractor_class=fingerprint_extractor_class,
        images_a_label=images_a_label(_kept_block(name, plan)),
        **_given(gpu_memory_target_in_gb, encoder, overwrite_target_spacing),
    )
    planner.plan_experiment()
    if preprocess:
        _preprocess(dataset, planner.plans_identifier, num_processes, clean, verbose, show_progress)
    _offer_split(dataset)
    return planner.plans_identifier


def _given(gigabytes: float | None, encoder: str | None, spacing: Sequence[float] | None) -> dict[str, Any]:
    """Those of the planner's options that were given."""
    options = {
        "gpu_memory_target_in_gb": gigabytes,
        "encoder": encoder,
        "overwrite_target_spacing": [*map(float, spacing)] if spacing else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _kept_block(dataset_name: str, plans_name: str) -> dict[str, Any]:
    """The `vqseg` block of the plan that will be replaced, which the new one keeps."""
    file = preprocessed_folder(dataset_name) / f"{plans_name}.json"
    return resolve_vqseg_block(load_plans(file), CONFIGURATION) if file.is_file() else {}


def _offer_split(dataset: CheckedDataset) -> None:
    """nnU-Net splits by case and from five cases up; a line about our command where that does not do."""
    cases = list(dataset.labeled)
    if load_splits(dataset.preprocessed, dataset.raw):
        return
    command = split_command(dataset.preprocessed.name)
    if len(cases) < FOLDS:
        print(f"{len(cases)} labelled case(s) are too few for nnU-Net's own split; next run `{command}`.")
    elif len(group_by_patient(cases)) < len(cases):
        print(f"nnU-Net's own split would tear patients with several cases apart; next run `{command}`.")


def find_class(name: str) -> Any:
    """`nnUNetPlannerViT`, or a planner or fingerprint extractor of nnU-Net's, by name.

    Raises:
        PlansError: there is none.
    """
    if name == nnUNetPlannerViT.__name__:
        return nnUNetPlannerViT
    found = recursive_find_python_class(
        f"{nnunetv2.__path__[0]}/experiment_planning", name, current_module="nnunetv2.experiment_planning"
    )
    if found is None:
        raise PlansError(f"nnU-Net has no class {name} in nnunetv2.experiment_planning; check the spelling.")
    return found


def _preprocess(
    dataset: CheckedDataset,
    plans_identifier: str,
    num_processes: int,
    clean: bool,
    verbose: bool,
    show_progress: bool,
) -> None:
    print("Preprocessing...")
    plans_manager = PlansManager(str(dataset.preprocessed / f"{plans_identifier}.json"))
    configuration_manager = plans_manager.get_configuration(CONFIGURATION)
    for case, found in dataset.labeled.items():
        image = dataset.roles.training[case]["images"][0]
        check_spacing(image, found["spacing"], plans_manager, configuration_manager)
    nnunet_steps.preprocess(dataset, plans_identifier, CONFIGURATION, num_processes, verbose, show_progress)
    folder = unlabeled_folder(str(dataset.preprocessed / configuration_manager.data_identifier))
    if clean:
        manifest_file(folder).unlink(missing_ok=True)
    if dataset.roles.unlabeled.files:
        prepare_unlabeled_cases(
            replace(dataset.roles.unlabeled, warnings=()),  # printed before planning
            plans_manager,
            configuration_manager,
            dataset.dataset_json,
            folder,
            num_processes,
            show_progress=show_progress,
        )
