"""nnFilterMatch (original code: https://github.com/Ordi117/nnFilterMatch), after FixMatch (NeurIPS 2020) on nnU-Net.

Constants are the code's. The network labels unlabelled images at every scale of its deep supervision and learns the
labels, turned along, on the images turned by a multiple of 90 degrees, in one batch with the labelled ones. Twice in
the training the unlabelled cases with the least entropy, 15 % of them, are left out for good. By its name one would
expect the least certain to go; the code drops the surest, with a sum over voxels and so the smaller ones, too.

What differs: the unlabelled image is turned from the weak view (nnU-Net's spatial augmentation) instead of from
nnU-Net's whole augmentation; the first pass is without a gradient, which the original computes and never uses; outputs
that are not square are turned by 180 degrees only, where the original fails; volumes are turned in the plane of their
last two axes and flipped along all; the entropy's logarithm has 1e-6 in it instead of 1e-8. The labelled-only start is
the original's for 7 patients (20 of 300 epochs): with 3 it is shorter (5 of 300), but a first network's labels are
noise. Of its rates and weight decays (5e-3 and 3e-3 for 3 patients, 1e-2 and 3e-5 for 7) 1e-2 and 3e-3 are taken for
all. Its prediction with the best checkpoint is one with the last.

Every process draws its own turn; rank 0 predicts the cases, all leave out the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Context, Method, Metrics, Terms, UnlabeledImagesConfig
from nnunetv2_vqseg.methods.case_filter import without_extreme
from nnunetv2_vqseg.modules.losses.consistency import predictive_entropy
from nnunetv2_vqseg.modules.own_labels import own_outputs
from nnunetv2_vqseg.modules.targets import together
from nnunetv2_vqseg.modules.views.rotate import sample_turn


@dataclass(frozen=True)
class NNFilterMatchConfig(UnlabeledImagesConfig):
    """Hyper-parameters of nnFilterMatch."""

    warm_up: Annotated[float, Range(0, 1), "share of the training that learns labelled images alone"] = 0.067
    flip_start: Annotated[float, Range(0, 1), "share of the training after which images are flipped, too"] = 1 / 3
    flip_probability: Annotated[float, Range(0, 1), "chance of a flip along each axis"] = 0.5
    filter_at: Annotated[
        tuple[float, float], Range(0, 1), "shares of the training after which unlabelled cases are left out; 1: never"
    ] = (1 / 3, 2 / 3)
    filter_share: Annotated[float, Range(0, 1), "share of them that is left out each time; 0: none"] = 0.15
    filter_drops: Annotated[
        Literal["surest", "least_sure"], "those with the least entropy, as the original, or with the most"
    ] = "surest"
    filter_measure: Annotated[
        Literal["sum", "mean"], "of a case's entropy over its voxels; the sum is smaller for smaller cases"
    ] = "sum"


class NNFilterMatch(Method[NNFilterMatchConfig]):
    """A network learns its own labels on turned images, and leaves out cases now and then."""

    Config = NNFilterMatchConfig
    panels: ClassVar = {"pseudo-labels": ("pseudo_foreground",), "unlabelled cases": ("unlabeled_cases",)}

    def __init__(self, config: NNFilterMatchConfig, context: Context) -> None:
        super().__init__(config, context)
        self.filtered = 0

    def reads_unlabeled(self, progress: float) -> bool:
        """After the warm-up."""
        return progress >= self.config.warm_up

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """nnU-Net's loss of one batch, labelled and pseudo-labelled images alike."""
        if batch.unlabeled is None or not self.reads_unlabeled(progress):
            return {"supervised": (1.0, self.supervised(self.student(batch.labeled), batch.target))}, {}
        levels = batch.target if isinstance(batch.target, list) else [batch.target]
        labels = self.label(batch.unlabeled, levels)
        sizes = [values.shape[2:] for values in (batch.unlabeled, *labels)]
        turn = sample_turn(sizes, self.config.flip_probability if progress >= self.config.flip_start else 0.0)
        logits = self.student(torch.cat((batch.labeled, turn.apply(batch.unlabeled))))
        both = together(levels, [turn.apply(own) for own in labels])
        loss = self.supervised(logits, both if isinstance(batch.target, list) else both[0])
        return {"supervised": (1.0, loss)}, {"pseudo_foreground": (labels[0] > 0).float().mean()}

    @torch.no_grad()
    def label(self, images: Tensor, like: list[Tensor]) -> list[Tensor]:
        """The network's labels at every scale, in the form that nnU-Net gives its targets (`like`)."""
        outputs = own_outputs(self.student, images)
        labels = []
        for logits, level in zip(outputs if isinstance(outputs, list) else [outputs], like, strict=True):
            if self.context.regions:
                own = logits > 0
                if self.context.ignore_label is not None:  # a further channel of the target: nothing is ignored here
                    own = torch.cat((own, torch.zeros_like(own[:, :1])), dim=1)
            else:
                own = logits.argmax(dim=1, keepdim=True)
            labels.append(own.to(level.dtype))
        return labels

    def before_epoch(self, epoch: int) -> None:
        """Leave out cases where it is time."""
        config = self.config
        due = sum(epoch >= share * config.num_epochs for share in config.filter_at)
        if due > self.filtered and config.filter_share > 0:
            assert self.context.cases is not None
            entropies = self.context.cases.predict(self.entropy)
            kept = without_extreme(entropies, config.filter_share, config.filter_drops == "surest")
            self.context.cases.keep(kept)
        self.filtered = max(self.filtered, due)  # less is due where num_epochs was raised

    def entropy(self, case: str, logits: Tensor) -> float:
        """Of a case's voxels in nats, their sum or mean, from its logits (K, ...)."""
        total = 0.0
        for part in logits.split(1, dim=1):  # slice by slice, in the memory of one
            p = self.probabilities(part[None])
            total += predictive_entropy(p, self.context.regions).double().sum().item()
        return total if self.config.filter_measure == "sum" else total / logits[0].numel()

    def on_epoch_done(self) -> dict[str, float]:
        """How many cases are in use."""
        return {} if self.context.cases is None else {"unlabeled_cases": float(len(self.context.cases.names))}

    def state(self) -> dict[str, Any]:
        """How often cases were left out."""
        return {"filtered": self.filtered}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore it."""
        self.filtered = state.get("filtered", 0)
