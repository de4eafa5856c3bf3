"""ARCO: rethinking semi-supervised segmentation, a variance-reduction perspective (You et al., NeurIPS 2023).

Paper: https://arxiv.org/abs/2302.01735. The student learns labels of an EMA teacher on a strong view, and its vectors
of pixels are contrasted with the teacher's mean vector of their class and with vectors of other classes. Anchors and
negatives are drawn equally from all parts of their lists (stratified group sampling, SG; SAG: `sampling` "antithetic").
Original code, from which the constants are: https://github.com/charlesyou999648/ARCO, stage two, train_arco_2d.py.

What is left out: stage one, a contrastive training of the network that stage two starts from; the nearest neighbours'
loss, which has no gradient in the original; the equivariance loss and the elastic deformation, which its paper lacks.

What differs, beside what docs/methods/README.md names for all: vectors of `representation_dim` numbers from one stage
of the decoder, `representation_level`, instead of 496 from all stages at full resolution, with labels, probabilities
and entropies at the places of that stage; the teacher's layers for them follow after a step with its other weights
instead of before the forward pass; negatives are vectors of other classes, as in the paper, from queues of `queue_size`
a class, where the original's rule leaves its queues of 30000 almost empty; the sampler's square holds its whole list;
percentiles are each process's own; intensity jitter before CutMix instead of colour jitter and blur after it. Queues
are the same on all processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Loss, Metrics, Terms, finest, split
from nnunetv2_vqseg.methods.strong_view import StrongViewConfig
from nnunetv2_vqseg.methods.tapped import TappedMethod
from nnunetv2_vqseg.methods.teacher import EMAConfig, EMAWarmup, SavedNetwork, TeacherMethod
from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.modules.losses.class_contrast import class_contrast, class_means
from nnunetv2_vqseg.modules.losses.consistency import predictive_entropy
from nnunetv2_vqseg.modules.pixels import features_at
from nnunetv2_vqseg.modules.queue import ClassQueue
from nnunetv2_vqseg.modules.stratified import draw_stratified
from nnunetv2_vqseg.networks.backbone import backbone_of
from nnunetv2_vqseg.networks.tap import RepresentedUNet, Tapped


@dataclass(frozen=True)
class ARCOConfig(EMAConfig, StrongViewConfig):
    """Hyper-parameters of ARCO."""

    lambda_u: Annotated[float, Range(0, 1000), "weight of the loss against the teacher's labels"] = 1.0
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 0.0
    ema_decay: Annotated[float, Range(0, 1), "largest decay of the teacher"] = 0.99
    ema_warmup: EMAWarmup = 1.0
    saved_network: SavedNetwork = "student"
    pseudo_loss: Annotated[
        Literal["image", "ce", "ce_dice"],
        "against the teacher's labels: all pixels, weighted by their image's share of sure ones, or the sure ones",
    ] = "image"
    confidence_threshold: Annotated[float, Range(0, 1), "teacher's probability from which a pixel is sure"] = 0.97
    cutmix_probability: Annotated[float, Range(0, 1), "share of the strong views that get a CutMix box"] = 1.0
    cutmix_area: Annotated[tuple[float, float], Range(0, 1), "a box's share of the image"] = (0.5, 0.5)
    cutmix_aspect: Annotated[tuple[float, float], Range(0.01, 100), "a box's height over its width"] = (0.5, 2.0)
    weight_contrast: Annotated[float, Range(0, 1000), "weight of the contrast"] = 0.01
    contrast_temperature: Annotated[float, Range(1e-3, 100), "that cosines are divided by"] = 0.5
    sampling: Annotated[
        Literal["stratified", "antithetic", "naive"], "how anchors and negatives are drawn: SG, SAG, or uniformly"
    ] = "stratified"
    anchors: Annotated[int, Range(1, 65_536), "anchors of each class"] = 256
    negatives: Annotated[int, Range(1, 65_536), "negatives of each anchor"] = 512
    anchor_probability: Annotated[float, Range(0, 1), "the teacher's, above which a pixel may be an anchor"] = 0.3
    certain_share: Annotated[float, Range(0, 1), "share of unlabelled pixels, the surest, in use; falls to 0"] = 0.2
    representation_dim: Annotated[int, Range(1, 4096), "numbers in a vector"] = 128
    representation_level: Annotated[int, Range(0, 64), "stage of the decoder; 0: full resolution, 64: the last"] = 2
    queue_size: Annotated[int, Range(1, 1_000_000), "vectors of each class to draw negatives from"] = 4096
    queue_push: Annotated[int, Range(1, 65_536), "new ones a step and process"] = 256

    sizes: ClassVar[frozenset[str]] = frozenset({"representation_dim", "representation_level", "queue_size"})
    same_to_continue: ClassVar[frozenset[str]] = StrongViewConfig.same_to_continue | sizes


class ARCO(TappedMethod[ARCOConfig], TeacherMethod[ARCOConfig]):
    """Labels of the teacher on a strong view, and contrast of vectors between classes."""

    Config = ARCOConfig
    literature = (1.0, 1.0)
    runs_ahead: ClassVar[bool] = False  # its memory would keep what is not finite
    panels: ClassVar = {**TeacherMethod.panels, "contrast": ("queue_share", "classes_present")}

    def training_network(self) -> nn.Module:
        """The planned U-Net with vectors of one stage."""
        plan, config = self.context.plan, self.config
        unet = self.network(plan, config)
        level = min(config.representation_level, len(backbone_of(unet).widths) - 2)
        return RepresentedUNet(unet, level, config.representation_dim, plan.ndim)

    def begin(self, student: nn.Module, supervised: Loss) -> None:
        """The queues begin empty."""
        super().begin(student, supervised)
        self.classes = self.net.unet.decoder.num_classes
        size, dim = self.config.queue_size, self.config.representation_dim
        self.queue = self._next_queue = ClassQueue.empty(self.classes, size, dim, self.context.device)

    @property
    def averaged(self) -> nn.Module:
        """The student with its heads: the teacher has vectors, too."""
        return self.net

    def validated(self) -> dict[str, nn.Module]:
        """The teacher and the student, without heads."""
        teacher: Any = unwrap(self.teacher)
        return {"teacher": teacher.unet, "student": self.main}

    def predictor(self) -> nn.Module:
        """The student, as in the original, or the teacher, without heads."""
        return self.validated()[self.config.saved_network]

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The labels' loss, the teacher's labels' loss on the strong view, and the contrast."""
        assert batch.unlabeled is not None
        labels, confidence, metrics = self.teach(batch.unlabeled)
        view = self.strong(batch.unlabeled, labels, confidence)
        images = torch.cat((batch.labeled, view.images))
        output = self.student(images)
        labeled, strong = split(output.segmentation, len(batch.labeled), len(view.images))
        target = (batch.target[0] if isinstance(batch.target, list) else batch.target)[:, 0].long()
        contrast, more = self.contrast(images, output, torch.cat((target, view.labels)), len(target), progress)
        return {
            "supervised": (1.0, self.supervised(labeled, batch.target)),
            "pseudo_strong": (
                self.unlabeled_weight(progress),
                self.pseudo(finest(strong), view.labels, view.confidence),
            ),
            "contrast": (self.unlabeled_factor * self.config.weight_contrast, contrast),
        }, metrics | more

    def contrast(
        self, images: Tensor, output: Tapped, labels: Tensor, labeled: int, progress: float
    ) -> tuple[Tensor, Metrics]:
        """The mean over classes of their contrast; fills the queues.

        Args:
            images: (B, C, ...), of which the first `labeled` have labels and the others the teacher's.
            output: the student's.
            labels: (B, ...).
        """
        config, classes, ddp = self.config, self.classes, self.context.ddp
        known, members, likely = self.members(images, output, labels, labeled, progress)
        new = draw_stratified(members, classes, config.queue_push, config.sampling)
        queue = self._next_queue = self.queue.pushed(features_at(known, new.places), new.valid)
        means, found = class_means(known, members, classes, ddp)
        drawn = draw_stratified(torch.where(likely, members, -1), classes, config.anchors, config.sampling)
        anchors, others, losses = features_at(output.features, drawn.places), queue.vectors.flatten(0, 1), []
        for own in range(classes):
            places = queue.draw_others(own, config.anchors, config.negatives, config.sampling)
            losses.append(class_contrast(anchors[own], means[own], others, places, config.contrast_temperature))
        present = (drawn.valid[:, 0] & found & (queue.sizes.sum() > queue.sizes)).float()
        share = mean_over_processes(present) if ddp else present  # of the processes, which are averaged
        weights = present / share.clamp(min=1e-6) / (share > 0).sum().clamp(min=1)
        return (weights * torch.stack(losses)).sum(), {
            "queue_share": queue.sizes.float().mean() / config.queue_size,
            "classes_present": (share > 0).float().mean(),
        }

    @torch.no_grad()
    def members(
        self, images: Tensor, output: Tapped, labels: Tensor, labeled: int, progress: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's vectors (B, D, ...), each place's class, -1 for none, and whether the teacher agrees."""
        teacher: Any = unwrap(self.teacher)
        with self.context.autocast():
            logits, vectors = teacher.represent(images)

        def there(values: Tensor) -> Tensor:
            """(B, K, ...) at the places of the vectors."""
            return F.interpolate(values.float(), vectors.shape[2:], mode="nearest-exact")

        members = there(labels[:, None])[:, 0].long()
        entropy = predictive_entropy(there(finest(output.segmentation)[labeled:]).softmax(dim=1))
        share = self.config.certain_share * (1.0 - progress)
        limit = entropy.flatten().kthvalue(int(share * (entropy.numel() - 1)) + 1).values
        certain = torch.cat((torch.ones_like(members[:labeled], dtype=torch.bool), entropy <= limit))
        probability = there(logits).softmax(dim=1).gather(1, members.clamp(0, self.classes - 1)[:, None])[:, 0]
        return vectors, torch.where(certain, members, -1), probability > self.config.anchor_probability

    def after_step(self) -> dict[str, float]:
        """The teacher follows, and what the step put into the queues stays there."""
        self.queue = self._next_queue
        return super().after_step()

    def state(self) -> dict[str, Any]:
        """Teacher and queues."""
        return {**super().state(), "queue": self.queue._asdict()}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore teacher and queues."""
        super().load_state(state, strict)
        if strict or "queue" in state:
            self.queue = self._next_queue = ClassQueue(**state["queue"])
