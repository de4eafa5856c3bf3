"""`loading`: the labelled and unlabelled pipelines alone, against stock nnU-Net's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import workbench
from benchmarks.measure import compare
from benchmarks.output import Row, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    workbench.add_arguments(parser)


def run(args: argparse.Namespace, device: torch.device) -> dict[str, list[Row]]:
    with workbench.workbench(args, device) as bench:
        stock, ours = bench.started_trainer(workbench.STOCK), bench.started_trainer("nnUNetTrainerVQSeg")
        from_disk = bench.started_trainer("nnUNetTrainerVQSeg", unlabeled_memory_share=0.0)
        workers = os.environ.get("nnUNet_n_proc_DA", "nnU-Net's default")
        unlabeled = ours.unlabeled_batch_size
        plain = plain_unlabeled_loader(ours) if workers == "0" else None
        sources: dict[str, tuple[int, Callable[[], Any]]] = {
            "nnU-Net": (stock.batch_size, lambda: next(stock.dataloader_train)),
            "VQ-Seg, labelled": (ours.batch_size, lambda: next(ours.dataloader_train)),
            "VQ-Seg, unlabelled": (unlabeled, lambda: next(ours.dataloader_unlabeled)),
            "VQ-Seg, unlabelled, none kept": (unlabeled, lambda: next(from_disk.dataloader_unlabeled)),
            "VQ-Seg, both": (
                ours.batch_size + unlabeled,
                lambda: (next(ours.dataloader_train), next(ours.dataloader_unlabeled)),
            ),
        }
        if plain is not None:
            sources["unlabelled, nnU-Net's loader"] = (unlabeled, lambda: next(plain))
        # Workers run ahead by some batches; enough rounds, and what they have in store counts little.
        rounds = args.repeats * (1 if workers == "0" else 10)
        seconds = compare({name: draw for name, (_, draw) in sources.items()}, device, rounds, args.seconds)
        for trainer in (stock, ours, from_disk):
            workbench.stop_loaders(trainer)
    rows: list[Row] = []
    for name, (images, _) in sources.items():
        milliseconds = seconds[name] * 1e3
        rows.append({"loader": name, "images": images, "ms": milliseconds, "ms_per_image": milliseconds / images})
    rows = [{**row, "of_first": row["ms_per_image"] / rows[0]["ms_per_image"]} for row in rows]
    print_table(rows, f"One batch, {workers} workers")
    return {"loading": rows}


def plain_unlabeled_loader(trainer: Any) -> Any:
    """The same images as nnU-Net's own loader gives them: files opened anew, a segmentation warped beside each."""
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    loader = trainer.dataloader_unlabeled.data_loader
    return nnUNetDataLoader(
        nnUNetDatasetBlosc2(trainer.cases.unlabeled_folder, trainer.pool.names),
        loader.batch_size,
        loader.patch_size[1:],
        loader.final_patch_size[1:],
        LabelManager({"background": 0, "foreground": 1}, regions_class_order=None),
        transforms=ComposeTransforms([loader.transforms, RemoveLabelTansform(-1, 0)]),
    )
