"""A trained model and its validation Dice, for probes that change something inside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunetv2_vqseg.core.folders import nnunet_folder
from nnunetv2_vqseg.core.json import read_json


def model_parser(description: str, trainer: str) -> argparse.ArgumentParser:
    """Which model, and the file to write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-d", required=True, help="dataset name or id")
    parser.add_argument("-tr", default=trainer, help="trainer (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetVQSegPlans", help="plans (default: %(default)s)")
    parser.add_argument("-c", default="2d", help="configuration (default: %(default)s)")
    parser.add_argument("-f", default="0", help="fold (default: %(default)s)")
    parser.add_argument("-o", type=Path, required=True, help="the .json file to write")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser


@dataclass
class TrainedModel:
    """nnU-Net's predictor with a fold's final weights, in evaluation mode on the CPU, and where its cases are."""

    predictor: Any
    folder: Path
    validation: list[str]

    @property
    def network(self) -> Any:
        return self.predictor.network

    def dice(self) -> float:
        """Mean over volumes, then classes, of Dice on the preprocessed grid, without mirroring."""
        dataset = infer_dataset_class(str(self.folder))(str(self.folder), self.validation)
        rows: list[list[float]] = []
        for case in self.validation:
            data, seg, _, _ = dataset.load_case(case)
            logits = self.predictor.predict_sliding_window_return_logits(torch.from_numpy(np.asarray(data)).float())
            prediction, reference = logits.argmax(0).numpy(), np.asarray(seg[0])
            row = []
            for label in range(1, logits.shape[0]):
                total = (prediction == label).sum() + (reference == label).sum()
                row.append(2 * ((prediction == label) & (reference == label)).sum() / total if total else np.nan)
            rows.append(row)
        return float(np.nanmean(np.array(rows), axis=0).mean())


def load_model(args: argparse.Namespace) -> TrainedModel:
    """The model that `model_parser`'s arguments name."""
    name = maybe_convert_to_dataset_name(int(args.d) if args.d.isdigit() else args.d)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    predictor = nnUNetPredictor(
        tile_step_size=1, use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"),
        allow_tqdm=False,
    )  # fmt: skip
    model = nnunet_folder("nnUNet_results") / name / f"{args.tr}__{args.p}__{args.c}"
    predictor.initialize_from_trained_model_folder(str(model), (int(args.f),), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network.eval()
    folds: Sequence[dict[str, list[str]]] = read_json(preprocessed / "splits_final.json", "train first", kind=list)
    folder = preprocessed / predictor.configuration_manager.data_identifier
    return TrainedModel(predictor, folder, folds[int(args.f)]["val"])
