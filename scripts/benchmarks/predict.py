"""`predict`: nnU-Net's sliding window over a volume, with a supervised trainer's network and with ours, on one plan.

With `-p nnUNetViTPlans` both networks are a ViT.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import workbench
from benchmarks.measure import compare, peak_memory
from benchmarks.output import Row, print_table

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nnU-Net": (workbench.STOCK, {}),
    "VQ-Seg": ("nnUNetTrainerVQSeg", {}),
    "VQ-Seg, decoder reads q(z)": ("nnUNetTrainerVQSeg", {"decoder_input": "quantized"}),
}

VIT_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("nnUNetTrainerSupervisedViT", {"encoder_weights": "random"}),
    "VQ-Seg's ViT, decoder reads q(z)": ("nnUNetTrainerVQSegViT", {"encoder_weights": "random"}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    workbench.add_arguments(parser)


def run(args: argparse.Namespace, device: torch.device) -> dict[str, list[Row]]:
    with workbench.workbench(args, device) as bench:
        vit = "encoder" in bench.plans["configurations"][bench.configuration]["architecture"]["arch_kwargs"]
        variants = VIT_VARIANTS if vit else VARIANTS
        stock_name, stock_block = next(iter(variants.values()))
        stock = bench.trainer(stock_name, **stock_block)
        with workbench.silence():
            stock.initialize()
            _, validation = stock.get_tr_and_val_datasets()
            case = sorted(validation.identifiers)[0]
            image = torch.from_numpy(np.asarray(validation.load_case(case)[0][:])).float()
        runs = {}
        for name, (trainer_name, block) in variants.items():
            predictor = _predictor(bench.trainer(trainer_name, **block), stock.num_input_channels, device)
            runs[name] = partial(_predict, predictor, image)
        seconds = compare(runs, device, args.repeats, args.seconds, args.compile)
        memory = {name: peak_memory(predict, device) / 1e6 for name, predict in runs.items()}
    rows: list[Row] = [{"network": name, "s": seconds[name], "peak_MB": memory[name]} for name in runs]
    first = rows[0]
    rows = [
        {**row, "time_of_first": row["s"] / first["s"], "memory_of_first": row["peak_MB"] / first["peak_MB"]}
        for row in rows
    ]
    print_table(rows, f"One volume of {tuple(image.shape)}, mirroring on")
    return {"predict": rows}


def _predictor(trainer: Any, channels: int, device: torch.device) -> Any:
    """nnU-Net's predictor with untrained weights of this trainer's network."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network = type(trainer).build_network_architecture(
        trainer.plans_manager,
        trainer.configuration_manager,
        channels,
        trainer.label_manager.num_segmentation_heads,
        enable_deep_supervision=False,
    )
    network.to(device)
    with workbench.silence():
        predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        (0, 1),
    )
    return predictor


def _predict(predictor: Any, image: torch.Tensor) -> None:
    with workbench.silence():
        predictor.predict_logits_from_preprocessed_data(image)
