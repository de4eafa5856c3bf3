"""Whole unlabelled cases predicted in the middle of a training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor

from nnunetv2_vqseg.networks.modes import in_prediction

if TYPE_CHECKING:
    from nnunetv2_vqseg.trainer.trainer import MethodTrainer

T = TypeVar("T")


@torch.no_grad()
def predict_cases(trainer: MethodTrainer, cases: Sequence[str], look: Callable[[str, Tensor], T]) -> dict[str, T]:
    """`look(name, logits)` of preprocessed unlabelled cases by their names, until the training is asked to stop.

    The logits (K, ...) are the predictor's, with a sliding window and mirroring as in nnU-Net's final validation. On
    this process alone, without random numbers; networks are left as they were.
    """
    trainer.print_to_log_file(f"Predicting {len(cases)} unlabelled cases.")
    dataset = nnUNetDatasetBlosc2(trainer.cases.unlabeled_folder, list(cases))
    answers = {}
    with in_prediction(trainer.method.predictor()) as network:
        predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
        predictor.manual_initialization(
            network,
            trainer.plans_manager,
            trainer.configuration_manager,
            None,
            trainer.dataset_json,
            type(trainer).__name__,
            trainer.inference_allowed_mirroring_axes,
        )
        for case in dataset.identifiers:
            if trainer.asked_to_stop():
                break
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the array cannot be written to
                image = torch.from_numpy(dataset.load_case(case)[0][:])
            answers[case] = look(case, predictor.predict_sliding_window_return_logits(image))
    compute_gaussian.cache_clear()
    return answers
