"""A plan as training needs it; plans files are edited by hand, and come from other versions of nnU-Net."""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError, PlansError, reason_of
from nnunetv2_vqseg.planning.plans import plans_name, resolve_vqseg_block

AGAIN = "or plan again with nnUNetv2_vqseg_plan_and_preprocess"


class Field(NamedTuple):
    """What a key of a plan may hold: in words, and as a test."""

    valid: str
    check: Callable[[Any], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_length(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_list(value: object, item: Callable[[Any], bool], lengths: tuple[int, ...] = ()) -> bool:
    return isinstance(value, (list, tuple)) and (not lengths or len(value) in lengths) and all(map(item, value))


def _is_order(value: object) -> bool:
    return _is_list(value, lambda axis: isinstance(axis, int)) and sorted(value) == [0, 1, 2]  # type: ignore[call-overload]


_TEXT = Field("a name", _is_text)
_ORDER = Field("the axes 0, 1, 2 in some order", _is_order)
_OPTIONS = Field("a JSON object", lambda value: isinstance(value, dict))

PLAN_FIELDS = {
    "dataset_name": _TEXT,
    "plans_name": _TEXT,
    "image_reader_writer": _TEXT,
    "transpose_forward": _ORDER,
    "transpose_backward": _ORDER,
}
CONFIGURATION_FIELDS = {
    "data_identifier": _TEXT,
    "preprocessor_name": _TEXT,
    "batch_size": Field("a whole number of 1 or more", _is_count),
    "patch_size": Field("two whole numbers of 1 or more", lambda value: _is_list(value, _is_count, (2, 3))),
    "spacing": Field("two lengths in mm", lambda value: _is_list(value, _is_length, (2, 3))),
    "normalization_schemes": Field("a list of names", lambda value: _is_list(value, _is_text)),
    "use_mask_for_norm": Field(
        "a list of true and false", lambda value: _is_list(value, lambda item: isinstance(item, bool))
    ),
    "resampling_fn_data": _TEXT,
    "resampling_fn_data_kwargs": _OPTIONS,
    "resampling_fn_seg": _TEXT,
    "resampling_fn_seg_kwargs": _OPTIONS,
    "resampling_fn_probabilities": _TEXT,
    "resampling_fn_probabilities_kwargs": _OPTIONS,
    "batch_dice": Field("true or false", lambda value: isinstance(value, bool)),
    "architecture": _OPTIONS,
}


def check_plans(plans: Any, configuration: str) -> None:
    """Refuse a plan that lacks what training reads, or has something else in its place, by the name of the key.

    Args:
        plans: content of a plans file; not changed.
        configuration: name in `plans["configurations"]`.

    Raises:
        PlansError: it does.
    """
    resolve_vqseg_block(plans, configuration)
    name = plans_name(plans)
    _check_fields(name, "", plans, PLAN_FIELDS)
    try:
        resolved = PlansManager(copy.deepcopy(plans)).get_configuration(configuration)
    except Exception as error:  # plans of nnU-Net before 2.4 are translated there, as far as they are complete
        raise PlansError(
            f"{name} was written by another version of nnU-Net or is incomplete: '{configuration}' cannot be read "
            f"({type(error).__name__}: {reason_of(error)}); correct it {AGAIN}."
        ) from error
    _check_fields(name, f"{configuration}.", resolved.configuration, CONFIGURATION_FIELDS)


def try_plans(plans: dict[str, Any], configuration: str, num_channels: int) -> None:
    """What a plan names must exist in the installed nnU-Net and work with the plan's arguments, on a tiny image.

    Args:
        plans: as it passed `check_plans`.
        num_channels: channels of the dataset.

    Raises:
        PlansError: it does not, or its lists do not have one entry for each channel or axis.
    """
    name, manager = plans_name(plans), PlansManager(copy.deepcopy(plans))
    resolved = manager.get_configuration(configuration)
    for key, wanted in (
        ("normalization_schemes", num_channels),
        ("use_mask_for_norm", num_channels),
        ("spacing", len(resolved.patch_size)),
    ):
        given = len(resolved.configuration[key])
        if given != wanted:
            raise PlansError(
                f"{name}: {configuration}.{key} has {given} entries instead of {wanted}; correct it {AGAIN}."
            )
    for key, trial in _trials(configuration, manager, resolved).items():
        try:
            trial()
        except Exception as error:  # whatever a wrong name or argument leads to
            value = resolved.configuration.get(key.rpartition(".")[2], plans.get(key))
            raise PlansError(
                f"{name}: {key} = {reprlib.repr(value)} does not work with this version of nnU-Net "
                f"({type(error).__name__}: {reason_of(error)}); correct it or its arguments, {AGAIN}."
            ) from error


def check_network(
    plans: Mapping[str, Any], configuration: str, patch_size: Any, num_channels: int, build: Callable[[], nn.Module]
) -> None:
    """Build the planned network without memory and send the shape of a patch through encoder and decoder.

    Args:
        build: the network with deep supervision.

    Raises:
        PlansError: it cannot be built, or a patch does not come out as large as it went in.
        ConfigError, NotImplementedError: as `build` does.
    """
    try:
        with torch.device("meta"):
            network: Any = build()
            finest = network.decoder(network.encoder(torch.empty(1, num_channels, *patch_size)))[0]
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


def _check_fields(name: str, prefix: str, content: Mapping[str, Any], expected: Mapping[str, Field]) -> None:
    for key, field in expected.items():
        if key not in content:
            raise PlansError(
                f"{name} has no {prefix}{key}: it is incomplete or of another version of nnU-Net; correct it {AGAIN}."
            )
        if not field.check(content[key]):
            raise PlansError(
                f"{name}: {prefix}{key} = {reprlib.repr(content[key])} is not valid, it must be {field.valid}; correct "
                f"it {AGAIN}."
            )


def _trials(configuration: str, manager: PlansManager, resolved: ConfigurationManager) -> dict[str, Callable[[], Any]]:
    channels = len(resolved.normalization_schemes)
    image, mask = np.ones((channels, 2, 4, 4), np.float32), np.zeros((1, 2, 4, 4), np.int16)
    grid: Any = ((2, 3, 3), (1.0, 1.0, 1.0), (1.0, 4 / 3, 4 / 3))
    return {
        "image_reader_writer": lambda: manager.image_reader_writer_class.read_images,
        "label_manager": lambda: issubclass(manager.label_manager_class, LabelManager),
        f"{configuration}.preprocessor_name": lambda: resolved.preprocessor_class.run_case,
        f"{configuration}.normalization_schemes": lambda: DefaultPreprocessor()._normalize(
            image, mask, resolved, manager.foreground_intensity_properties_per_channel
        ),
        f"{configuration}.resampling_fn_data": lambda: resolved.resampling_fn_data(image, *grid),
        f"{configuration}.resampling_fn_seg": lambda: resolved.resampling_fn_seg(mask, *grid),
        f"{configuration}.resampling_fn_probabilities": lambda: resolved.resampling_fn_probabilities(image, *grid),
    }
