"""Any nnU-Net planner, with the unlabelled images counted in and the memory of a VQ-Seg step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_vqseg.core.errors import PlansError, and_more
from nnunetv2_vqseg.core.folders import preprocessed_folder
from nnunetv2_vqseg.data.checks.dataset_json import number_of_channels
from nnunetv2_vqseg.data.roles import CaseRoles, read_roles
from nnunetv2_vqseg.planning.geometry import Geometry, read_geometry
from nnunetv2_vqseg.planning.nnunet_steps import labeled_fingerprint
from nnunetv2_vqseg.planning.plans import keep_vqseg_blocks, load_plans

PLANS_NAME = "nnUNetVQSegPlans"
GEOMETRY_FILE = "unlabeled_fingerprint.json"

IMAGES_A_LABEL = 2.0
"""Images with gradient in a step of the default trainer for each labelled one: itself, and one view of as many
unlabelled ones. The teacher's pass keeps nothing and is over before the student's begins."""

MIN_PATCH = 8
"""Pixels; below this a plan is of no use, and nnU-Net's search for a smaller one does not end well."""

FIXED_GB = 0.75
"""What VQ-Seg holds whatever the batch size: the teacher's weights (0.13 to 0.4), the table of neighbours of the 16,384
codes and the chunks of the lookup (0.1), the foundation model with its activations (0.2)."""


class VQSegPlannerMixin(ExperimentPlanner):
    """In front of a planner class of nnU-Net's: `class P(VQSegPlannerMixin, nnUNetPlannerResEncM)`.

    - Spacing and shape of the unlabelled images count for target spacing and patch, in memory:
      `dataset_fingerprint.json` stays what stock nnU-Net needs. Along which axis images are cut, labelled ones decide.
    - Where folds of `splits_final.json` have `unlabeled` lists, intensity statistics and the number of training cases
      come from the cases that are labelled in every fold.
    - The labelled batch of the 2D configuration is the base planner's rule on the labelled cases, within
      `labeled_batch_range`, and the patch is reduced until that batch with its unlabelled half fits into
      `gpu_memory_target_in_gb`.
    - Data go into folders of this plan's own name, and a `vqseg` block written into an earlier plan is kept.

    Args:
        labeled_batch_range: smallest and largest number of labelled images a step.
        num_processes: for reading the unlabelled images; 0 or 1 stays in this process.
        show_progress: progress bars as nnU-Net has them.
        clean: read the unlabelled images again, even those that have not changed.
        fingerprint_extractor_class: nnU-Net's, for folds with `unlabeled` lists.
        images_a_label: images with gradient in a step for each labelled one.

    The other arguments are the base planner's.
    """

    dataset_json: dict
    UNet_vram_target_GB: float

    def __init__(
        self,
        dataset_name_or_id: str | int,
        *args: Any,
        plans_name: str = PLANS_NAME,
        labeled_batch_range: tuple[int, int] = (8, 12),
        num_processes: int = 8,
        show_progress: bool = True,
        clean: bool = False,
        fingerprint_extractor_class: type[DatasetFingerprintExtractor] = DatasetFingerprintExtractor,
        images_a_label: float = IMAGES_A_LABEL,
        **kwargs: Any,
    ):
        super().__init__(dataset_name_or_id, *args, plans_name=plans_name, **kwargs)
        self.labeled_batch_range = labeled_batch_range
        self.images_a_label = images_a_label
        self.roles: CaseRoles = read_roles(self.dataset_name, self.dataset_json)
        if self.roles.has_listed_cases:
            self.dataset_json = {**self.dataset_json, "numTraining": len(self.roles.labeled)}
            self.dataset_fingerprint = labeled_fingerprint(
                self.dataset_name, self.roles, fingerprint_extractor_class, num_processes, show_progress
            )
        cache = preprocessed_folder(self.dataset_name) / GEOMETRY_FILE
        if clean:
            cache.unlink(missing_ok=True)
        geometry = read_geometry(
            self.roles.unlabeled, self.dataset_json, self.determine_reader_writer(), cache, num_processes, show_progress
        )
        self._count_in(geometry)

    def _count_in(self, unlabeled: Mapping[str, Geometry]) -> None:
        """Add spacings and shapes to the fingerprint, unless labelled images would be cut along another axis then."""
        labeled = self.dataset_fingerprint
        axis = self.determine_transpose()[0][0]
        self.dataset_fingerprint = {
            **labeled,
            "spacings": [*labeled["spacings"], *(case["spacing"] for case in unlabeled.values())],
            "shapes_after_crop": [*labeled["shapes_after_crop"], *(case["shape"] for case in unlabeled.values())],
        }
        if self.determine_transpose()[0][0] != axis:
            self.dataset_fingerprint = labeled
            turned = [case for case, seen in unlabeled.items() if np.argmax(seen["spacing"]) != axis]
            print(
                f"WARNING: Unlabelled images have their slices along another axis than labelled ones, such as the case "
                f"{turned[0]}{and_more(turned)}; they are cut as these are, and spacing and patch are planned for "
                f"labelled images alone, so turn them or leave them out."
            )

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """The base planner's, but for images that are one slice along another axis than it finds."""
        forward, backward = super().determine_transpose()
        shape = np.median(self.dataset_fingerprint["shapes_after_crop"], 0)
        thin = int(np.argmin(shape))
        if shape[thin] > 1 or shape[forward[0]] == 1:
            return forward, backward
        forward = [thin, *(axis for axis in range(3) if axis != thin)]
        return forward, np.argsort(forward).tolist()

    def generate_data_identifier(self, configuration_name: str) -> str:
        """A folder of this plan's own: ResEnc planners share theirs with the default plan, from which ours differs."""
        return f"{self.plans_identifier}_{configuration_name}"

    def get_plans_for_configuration(self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache):
        """The base planner's; in 2D with our batch, and with a patch for which it fits."""
        arguments = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        if len(spacing) != 2:
            return super().get_plans_for_configuration(*arguments)
        smallest, largest = self.labeled_batch_range
        target = self.UNet_vram_target_GB
        try:
            # The base planner makes the patch so large that 2 images fit (ResEnc: 12); with less memory, a smaller one.
            while True:
                plan = super().get_plans_for_configuration(*arguments)
                if min(plan["patch_size"]) == 1:
                    raise PlansError(
                        f"Most images are {' x '.join(f'{extent:g}' for extent in median_shape)} pixels, which are "
                        f"lines and no slices; check their axes and spacing."
                    )
                if self.UNet_vram_target_GB < target and min(plan["patch_size"]) < MIN_PATCH:
                    raise PlansError(
                        f"Only a patch of {' x '.join(map(str, plan['patch_size']))} pixels would leave room for "
                        f"{smallest} labelled and {smallest // 2} unlabelled images in {target:g} GB; raise "
                        f"-gpu_memory_target."
                    )
                fitting = self._labeled_images_that_fit(plan, target, _cache)
                if fitting >= smallest:
                    break
                self.UNet_vram_target_GB *= min(fitting / smallest, 0.99)
        finally:
            self.UNet_vram_target_GB = target
        five_percent = round(approximate_n_voxels_dataset * self.max_dataset_covered / np.prod(plan["patch_size"]))
        plan["batch_size"] = int(min(max(min(int(fitting), five_percent), smallest), largest))
        return plan

    def _labeled_images_that_fit(self, plan: dict, target_gb: float, cache: dict) -> float:
        """Labelled images of a VQ-Seg step in this many GB, by nnU-Net's own reference."""
        architecture = plan["architecture"]
        key = f"{plan['patch_size']}_{architecture['arch_kwargs']['strides']}"  # as the base planner has it
        if key not in cache:
            cache[key] = self.static_estimate_VRAM_usage(
                plan["patch_size"],
                number_of_channels(self.dataset_json),
                len(self.dataset_json["labels"]),
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
            )
        available = max(target_gb - FIXED_GB, target_gb / 2)
        reference = self.UNet_reference_val_2d * available / self.UNet_reference_val_corresp_GB
        return reference / cache[key] * self.UNet_reference_val_corresp_bs_2d / self.images_a_label

    def static_estimate_VRAM_usage(self, *args: Any, **kwargs: Any) -> float:
        """The base planner's, which fails where `nnUNet_n_proc_DA` is 0: it sets that number of torch threads."""
        workers = os.environ.get("nnUNet_n_proc_DA")
        if workers != "0":
            return super().static_estimate_VRAM_usage(*args, **kwargs)
        os.environ["nnUNet_n_proc_DA"] = "1"
        try:
            return super().static_estimate_VRAM_usage(*args, **kwargs)
        finally:
            os.environ["nnUNet_n_proc_DA"] = workers

    def save_plans(self, plans: dict) -> None:
        """Under the base planner's name, which nnU-Net can look up, with the `vqseg` blocks of the plan it replaces.

        Raises:
            PlansError: the file that is there cannot be read.
        """
        plans["experiment_planner_used"] = self.base_planner_name()
        file = preprocessed_folder(self.dataset_name) / f"{self.plans_identifier}.json"
        if file.is_file():
            for name in keep_vqseg_blocks(plans, load_plans(file)):
                print(f"The vqseg block of the configuration {name} is kept: {plans['configurations'][name]['vqseg']}")
        super().save_plans(plans)

    @classmethod
    def base_planner_name(cls) -> str:
        """Name of the nnU-Net planner behind the mixin."""
        own = __name__.partition(".")[0]
        return next(base.__name__ for base in cls.__mro__ if base.__module__.partition(".")[0] != own)


def vqseg_planner(base: type[ExperimentPlanner]) -> type[VQSegPlannerMixin]:
    """The class that plans as `base` does, for VQ-Seg."""
    return type(f"VQSeg{base.__name__}", (VQSegPlannerMixin, base), {})
