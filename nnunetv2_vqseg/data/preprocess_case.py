"""One unlabelled case through nnU-Net's preprocessor and into its place."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.data.checks.images import read_case
from nnunetv2_vqseg.data.checks.likeness import Look, look_of
from nnunetv2_vqseg.data.manifest import OUTPUT_SUFFIXES, Entry, describe_sources

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

# A spacing further than this from the plan's is a wrong unit, and resampling to it would fill the memory.
MAX_SPACING_FACTOR = 50.0


def preprocessing_settings(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> str:
    """A hash of everything in a plan that changes a preprocessed image (patch and batch size do not)."""
    keys = (
        "preprocessor_name",
        "spacing",
        "normalization_schemes",
        "use_mask_for_norm",
        "resampling_fn_data",
        "resampling_fn_data_kwargs",
        "resampling_fn_seg",
        "resampling_fn_seg_kwargs",
    )
    settings = {
        **{key: configuration_manager.configuration[key] for key in keys},
        "transpose_forward": plans_manager.transpose_forward,
        "intensity_properties": plans_manager.foreground_intensity_properties_per_channel,
        "image_reader_writer": plans_manager.plans["image_reader_writer"],
    }
    return hashlib.blake2b(json.dumps(settings, sort_keys=True, default=float).encode(), digest_size=16).hexdigest()


def prepare_case(
    case: str,
    files: Sequence[str],
    folder: str,
    scratch: str,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
) -> tuple[Entry, list[str], Look]:
    """Preprocess one case under a name of its own, then move its files into place, the properties last.

    Args:
        case: name, and the name of the files without ending.
        files: channel files; no label is read.
        folder: where the files belong.
        scratch: folder for unfinished cases on the same file system.

    Returns:
        What the manifest has to know, sentences about what is odd but allowed, and what the case looks like.

    Raises:
        DatasetError: an image that cannot be used.
        RuntimeError: the preprocessor failed on an image that looks fine.
    """
    sources = describe_sources(files)
    image = read_case(case, files, dataset_json, plans_manager.image_reader_writer_class)
    check_spacing(files[0], image.grid.spacing, plans_manager, configuration_manager)
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    plan = (plans_manager, configuration_manager, dataset_json)
    try:
        if type(preprocessor).run_case is DefaultPreprocessor.run_case:
            data, seg, properties = preprocessor.run_case_npy(image.data, None, image.properties, *plan)
        else:  # the user's own, which may read the files in its own way
            data, seg, properties = preprocessor.run_case(list(files), None, *plan)
    except Exception as error:
        raise RuntimeError(f"Preprocessing {files[0]} failed ({type(error).__name__}: {error}).") from error
    # nnU-Net's loader reads the key even where it oversamples nothing.
    properties["class_locations"] = {}
    Path(scratch).mkdir(parents=True, exist_ok=True)
    unfinished = Path(scratch) / uuid.uuid4().hex
    outputs = {}
    try:
        _save(unfinished, data, seg, properties, tuple(configuration_manager.patch_size))
        for suffix in OUTPUT_SUFFIXES:
            file = Path(f"{unfinished}{suffix}")
            outputs[case + suffix] = file.stat().st_size
            file.replace(Path(folder) / (case + suffix))
    except BaseException:
        for suffix in OUTPUT_SUFFIXES:
            Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
        raise
    return Entry(sources=sources, outputs=outputs), image.warnings, look_of(data, properties, image.constant)


def _save(target: Path, data: np.ndarray, seg: np.ndarray, properties: dict, patch_size: tuple[int, ...]) -> None:
    data, seg = data.astype(np.float32, copy=False), seg.astype(np.int16, copy=False)
    blocks, chunks = comp_blosc2_params(data.shape, patch_size, data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch_size, seg.itemsize)
    # What nnU-Net would find by compressing a constant array in every way it knows.
    filters_seg = [blosc2.Filter.NOFILTER] if seg.min() == seg.max() else None
    nnUNetDatasetBlosc2.save_case(
        data,
        seg,
        properties,
        str(target),
        chunks=chunks,
        blocks=blocks,
        chunks_seg=chunks_seg,
        blocks_seg=blocks_seg,
        filters_seg=filters_seg,
    )


def check_spacing(
    file: str, spacing: Sequence[float], plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> None:
    """Refuse a spacing from which resampling to the plan's would fill the memory, or leave nothing.

    Args:
        spacing: in mm per axis, as nnU-Net's readers give it.

    Raises:
        DatasetError: naming the file.
    """
    transposed = [spacing[axis] for axis in plans_manager.transpose_forward]
    target = configuration_manager.spacing
    # A 2D plan leaves the slices where they are.
    for step, wanted in zip(transposed[-len(target) :], target, strict=True):
        factor = step / wanted
        if not 1 / MAX_SPACING_FACTOR <= factor <= MAX_SPACING_FACTOR:
            raise DatasetError(
                f"{file} has a spacing of {step:g} mm, {factor:g} times the plan's {wanted:g} mm; correct the unit in "
                f"its header or the plan's spacing, or remove the case."
            )
