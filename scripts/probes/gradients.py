"""What each loss term does to the features z, how stable the teacher's codes are, and how far it leads its student.

    python scripts/probes/gradients.py 503 2d -tr nnUNetTrainerVQSegQPMDB --epochs 3 -o probe.json

Every `--every` steps the gradient of each weighted term at the output of the quantised stage is taken: its norm over
the norm of the supervised term's, and the cosine between both in the parameters of the encoder up to that stage (at z
the terms of labelled and of unlabelled images are at right angles by construction: they are of other images). At the
end of every epoch: the share of the teacher's tokens, on fixed validation slices, whose code is another than an epoch
before, and the Dice of teacher and student on fixed patches of validation cases, mean over the classes, whose pixels
are counted together. The training goes to a temporary folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_process import started_training, train_epochs, training_parser
from torch import Tensor, nn

from nnunetv2_vqseg.core.json import write_json
from nnunetv2_vqseg.methods.base import Batch, Metrics, Terms
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.trainer.checkpoint_files import random_states, restore_random_states
from nnunetv2_vqseg.trainer.trainer import MethodTrainer


class GradientProbe:
    """Looks at the terms of a trainer's method before they are summed."""

    def __init__(self, trainer: MethodTrainer, every: int) -> None:
        self.trainer, self.every = trainer, every
        self.rows: list[dict[str, Any]] = []
        self._z: Tensor | None = None
        network: Any = unwrap(trainer.method.student)
        stages = network.encoder.stages[: getattr(network, "stage", len(network.encoder.stages) - 1) + 1]
        stages[-1].register_forward_hook(self._keep)
        self._parameters = [p for stage in stages for p in stage.parameters()]
        self._terms = trainer.method.terms
        trainer.method.terms = self._observe  # type: ignore[method-assign]

    def _keep(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            self._z = output

    def _observe(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        terms, metrics = self._terms(batch, progress)
        step = self.trainer.stepper.step
        if step % self.every == 0:
            self.rows.append({"step": step, "terms": self._measure(terms)})
        return terms, metrics

    def _measure(self, terms: Mapping[str, tuple[float, Tensor]]) -> dict[str, dict[str, float]]:
        norms, directions = {}, {}
        for name, (weight, term) in terms.items():
            inputs = [self._z, *self._parameters]
            at_z, *at_parameters = (
                torch.autograd.grad(weight * term, inputs, retain_graph=True, allow_unused=True)
                if term.requires_grad  # the entropy term of weight 0 is not computed
                else [None] * len(inputs)
            )
            norms[name] = 0.0 if at_z is None else float(at_z.norm())
            directions[name] = torch.cat(
                [
                    (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
                    for parameter, gradient in zip(self._parameters, at_parameters, strict=True)
                ]
            )
        reference = directions["supervised"]
        return {
            name: {
                "norm_at_z": norms[name],
                "relative_to_supervised": norms[name] / max(norms["supervised"], 1e-12),
                "parameter_norm": float(directions[name].norm()),
                "cosine_to_supervised": float(torch.cosine_similarity(directions[name], reference, dim=0)),
            }
            for name in terms
        }


@torch.no_grad()
def teacher_codes(trainer: MethodTrainer, images: Tensor) -> Tensor | None:
    """Codes (B, h, w) that the teacher gives fixed images."""
    teacher: Any = trainer.method.predictor()
    if getattr(teacher, "quantizer", None) is None:
        return None
    return teacher.quantizer(teacher.stage_features(images)).indices


class ValidationPatches:
    """Patches of validation cases, as nnU-Net's loader draws them, on which networks are compared."""

    def __init__(self, trainer: MethodTrainer, batches: int = 8) -> None:
        self.device = trainer.device
        self.classes = trainer.label_manager.foreground_labels
        drawn = [next(trainer.dataloader_val) for _ in range(batches)]
        self.images = [batch["data"] for batch in drawn]
        self.targets = [batch["target"][0][:, 0] for batch in drawn]  # finest first, under deep supervision

    @torch.no_grad()
    def dice(self, network: nn.Module) -> float:
        was_training = network.training
        network.eval()
        hits, sizes = np.zeros(len(self.classes)), np.zeros(len(self.classes))
        for images, targets in zip(self.images, self.targets, strict=True):
            logits = network(images.to(self.device))
            predicted = (logits[0] if isinstance(logits, list) else logits).argmax(1).cpu()
            for place, label in enumerate(self.classes):
                found, there = predicted == label, targets == label
                hits[place] += float((found & there).sum())
                sizes[place] += float(found.sum() + there.sum())
        network.train(was_training)
        return float(np.mean(2 * hits / np.maximum(sizes, 1)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = training_parser(__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=10, metavar="STEPS")
    parser.add_argument("-o", type=Path, required=True, help="the .json file to write")
    args = parser.parse_args(argv)
    with started_training(args) as trainer:
        probe = GradientProbe(trainer, args.every)
        assert trainer._preview is not None
        images = trainer._preview.images.to(trainer.device)
        before = random_states()
        patches = ValidationPatches(trainer)
        restore_random_states(before)  # the loaders share them where nnUNet_n_proc_DA is 0
        codes, dice = [teacher_codes(trainer, images)], []

        def at_end() -> None:
            codes.append(teacher_codes(trainer, images))
            networks = {"teacher": trainer.method.predictor(), "student": unwrap(trainer.method.student)}
            dice.append({name: patches.dice(network) for name, network in networks.items()})

        train_epochs(trainer, args.epochs, at_end)
    flips = [
        float((after != before).float().mean())
        for before, after in pairwise(codes)
        if before is not None and after is not None
    ]
    means: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in probe.rows:
        for name, values in row["terms"].items():
            for key, value in values.items():
                means[name][key].append(value)
    print(f"{'term':26s}{'|grad z| / supervised':>24s}{'cosine':>10s}")
    for name, series in means.items():
        ratio, cosine = np.mean(series["relative_to_supervised"]), np.mean(series["cosine_to_supervised"])
        print(f"{name:26s}{ratio:24.3f}{cosine:10.3f}")
    if flips:
        print("share of the teacher's codes that changed, epoch by epoch:", ", ".join(f"{flip:.2f}" for flip in flips))
    print("Dice of teacher, student:", ", ".join(f"{row['teacher']:.3f} {row['student']:.3f}" for row in dice))
    write_json({"steps": probe.rows, "teacher_code_flips": flips, "validation_dice": dice}, args.o)


if __name__ == "__main__":
    main()
