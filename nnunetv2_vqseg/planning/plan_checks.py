"""A plan as training needs it; plans files are edited by hand, and come from other versions of nnU-Net.

There is no list of what each key may hold: what a plan says is tried out, on next to nothing.
"""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError, PlansError, reason_of
from nnunetv2_vqseg.data.checks.dataset_json import check_dataset_json, number_of_channels
from nnunetv2_vqseg.planning.plans import plans_name

AGAIN = "or plan again with nnUNetv2_vqseg_plan_and_preprocess"
Use = Callable[[Any], Any]


def check_plans(plans: Any, configuration: str, dataset_json: dict[str, Any]) -> None:
    """Refuse a plan that lacks what training reads, or has something else in its place, by the name of the key.

    What it names must exist in the installed nnU-Net and work with the plan's arguments, on a tiny image.

    Args:
        plans: content of a plans file; not changed.
        configuration: name in `plans["configurations"]`.
        dataset_json: of the dataset; checked before the keys that depend on it.

    Raises:
        PlansError: it does not, or its lists do not have one entry for each channel or axis.
        NotImplementedError: a configuration whose patch is not 2D, or one of a cascade.
        DatasetError: as `check_dataset_json`.
    """
    name = plans_name(plans)
    try:
        manager = PlansManager(copy.deepcopy(plans))
        resolved = manager.get_configuration(configuration)
    except Exception as error:  # plans of nnU-Net before 2.4 are translated there, as far as they are complete
        raise PlansError(
            f"{name} was written by another version of nnU-Net or is incomplete: '{configuration}' cannot be read "
            f"({type(error).__name__}: {reason_of(error)}); correct it {AGAIN}."
        ) from error
    _attempt(name, resolved.configuration, f"{configuration}.", "patch_size", _make_patch)
    _require_2d(configuration, resolved)
    check_dataset_json(dataset_json, "dataset.json")
    num_channels = number_of_channels(dataset_json)
    image, mask = np.ones((num_channels, 2, 4, 4), np.float32), np.zeros((1, 2, 4, 4), np.int16)
    grid: Any = ((2, 3, 3), (1.0, 1.0, 1.0), (1.0, 4 / 3, 4 / 3))
    in_plan: dict[str, Use] = {
        "dataset_name": _name,
        "plans_name": _name,
        "transpose_forward": _transpose,
        "transpose_backward": _transpose,
        "image_reader_writer": lambda _: manager.image_reader_writer_class.read_images,
        "label_manager": lambda _: issubclass(manager.label_manager_class, LabelManager),
    }
    for key, use in in_plan.items():
        _attempt(name, {"label_manager": None, **plans}, "", key, use)
    in_configuration: dict[str, Use] = {
        "data_identifier": _name,
        "batch_size": lambda number: torch.empty((number,), device="meta"),
        "batch_dice": _switches,
        "spacing": lambda steps: _entries([math.log(step) for step in steps], 2),
        "use_mask_for_norm": lambda values: _entries(_switches(*values), num_channels),
        "normalization_schemes": lambda names: (
            _entries(names, num_channels)
            and DefaultPreprocessor()._normalize(
                image, mask, resolved, manager.foreground_intensity_properties_per_channel
            )
        ),
        "preprocessor_name": lambda _: resolved.preprocessor_class.run_case,
        "resampling_fn_data": lambda _: resolved.resampling_fn_data(image, *grid),
        "resampling_fn_seg": lambda _: resolved.resampling_fn_seg(mask, *grid),
        "resampling_fn_probabilities": lambda _: resolved.resampling_fn_probabilities(image, *grid),
    }
    for key, use in in_configuration.items():
        _attempt(name, resolved.configuration, f"{configuration}.", key, use)


def _require_2d(configuration: str, resolved: ConfigurationManager) -> None:
    if len(resolved.patch_size) != 2:
        raise NotImplementedError(
            f"VQ-Seg trains 2D configurations only, '{configuration}' has a {len(resolved.patch_size)}D patch; use 2d."
        )
    if resolved.previous_stage_name is not None:
        raise NotImplementedError(f"VQ-Seg does not train cascades, '{configuration}' is one; use 2d.")


def check_network(
    plans: Mapping[str, Any], configuration: str, patch_size: Any, num_channels: int, build: Callable[[], nn.Module]
) -> None:
    """Build the planned network without memory and send the shape of a patch through encoder and decoder.

    Args:
        build: the network.

    Raises:
        PlansError: it cannot be built, or a patch does not come out as large as it went in.
        ConfigError, NotImplementedError: as `build` does.
    """
    try:
        with torch.device("meta"):
            network: Any = build()
            outputs = network.decoder(network.encoder(torch.empty(1, num_channels, *patch_size)))
            finest = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        if tuple(finest.shape[2:]) != tuple(patch_size):
            raise ValueError(f"the output has {' x '.join(map(str, finest.shape[2:]))} pixels")
    except (ConfigError, NotImplementedError):
        raise
    except Exception as error:  # whatever a wrong argument leads to, deep in other libraries
        raise PlansError(
            f"{plans_name(plans)}: the network of '{configuration}' does not work for a patch of "
            f"{' x '.join(map(str, patch_size))} pixels ({reason_of(error)}); correct architecture and patch_size "
            f"{AGAIN}."
        ) from error


def _attempt(name: str, content: Mapping[str, Any], prefix: str, key: str, use: Use) -> Any:
    """`use(content[key])`; whatever goes wrong there is said of this key."""
    if key not in content:
        raise PlansError(
            f"{name} has no {prefix}{key}: it is incomplete or of another version of nnU-Net; correct it {AGAIN}."
        )
    try:
        return use(content[key])
    except Exception as error:  # whatever a wrong name or argument leads to
        raise PlansError(
            f"{name}: {prefix}{key} = {reprlib.repr(content[key])} does not work with this version of nnU-Net "
            f"({type(error).__name__}: {reason_of(error)}); correct it or its arguments, {AGAIN}."
        ) from error


def _name(text: Any) -> None:
    Path(text)
    if not text:
        raise ValueError("it is empty")


def _transpose(axes: Any) -> None:
    np.empty((1, 1, 1)).transpose([*axes])


def _make_patch(size: Any) -> None:
    dimensions = torch.empty(tuple(size), device="meta").ndim
    if dimensions not in (2, 3):
        raise ValueError(f"it has {dimensions} numbers, a patch has two")


def _switches(*values: Any) -> tuple[bool, ...]:
    if not all(isinstance(value, bool) for value in values):
        raise TypeError("neither true nor false")
    return values


def _entries(values: Any, wanted: int) -> Any:
    if len(values) != wanted:
        raise ValueError(f"it has {len(values)} entries instead of {wanted}")
    return values
