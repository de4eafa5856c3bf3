"""What can be changed about the strong views of unlabelled images and the teacher's labels on them.

Each change is a key that is off by default; they can be combined. The mean teacher and VQ-Seg have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Context, Metrics, finest
from nnunetv2_vqseg.methods.recipe import RecipeConfig
from nnunetv2_vqseg.methods.teacher import TeacherMethod
from nnunetv2_vqseg.modules.class_thresholds import ClassThresholds
from nnunetv2_vqseg.modules.components import cleaned
from nnunetv2_vqseg.modules.losses.pseudo_label import EveryScale, PseudoLabelLoss
from nnunetv2_vqseg.modules.targets import full_resolution, split_ignored
from nnunetv2_vqseg.modules.views.copy_paste import both_ways, organs, random_box
from nnunetv2_vqseg.modules.views.rotate import sample_turn
from nnunetv2_vqseg.modules.views.strong import UnlabeledView


@dataclass(frozen=True)
class TaughtViewsConfig(RecipeConfig):
    """Changes of the strong views and of the teacher's labels."""

    turn_probability: Annotated[
        float,
        Range(0, 1),
        "chance that a step's strong views are turned by a multiple of 90 degrees, the teacher's labels along; by 180 "
        "degrees alone where patches are not square (nnFilterMatch: 1)",
    ] = 0.0
    flip_probability: Annotated[float, Range(0, 1), "chance of a flip along each axis of views that are turned"] = 0.5
    copy_paste: Annotated[
        Literal["off", "box", "organs"],
        "strong views are labelled parts in unlabelled images, half of them, and unlabelled parts in labelled images: "
        "one box (BCP), or all that is not background",
    ] = "off"
    box_share: Annotated[float, Range(0.01, 1), "share of each side of the image that the box takes"] = 2 / 3
    organ_margin: Annotated[int, Range(0, 256), "pixels around organs that are pasted with them"] = 4
    largest_component: Annotated[
        bool, "keep the largest connected part of each class in the teacher's labels; false for scattered structures"
    ] = False
    class_thresholds: Annotated[
        Literal["off", "flexmatch", "freematch"],
        "a threshold for each class, lower where the teacher is less sure: confidence_threshold times the share of the "
        "class's pixels that reach it (FlexMatch), or a mean confidence that replaces it (FreeMatch)",
    ] = "off"
    class_threshold_momentum: Annotated[
        float, Range(0, 1), "share of the running means behind them that a step keeps (FreeMatch: 0.999)"
    ] = 0.99


E = TypeVar("E", bound=Any)


class TaughtViewsMethod(TeacherMethod[E]):
    """A method in which strong views learn the teacher's labels, with the changes of `TaughtViewsConfig`."""

    panels: ClassVar = {
        **TeacherMethod.panels,
        "pseudo-labels": ("ramp", "confidence", "kept_share", "kept_by_component", "lowest_threshold"),
    }

    def __init__(self, config: E, context: Context) -> None:
        super().__init__(config, context)
        threshold, regions, ddp = config.confidence_threshold, context.regions, context.ddp
        if config.pseudo_loss == "nnunet":
            self.pseudo = EveryScale(PseudoLabelLoss(True, threshold, regions, ddp, absent=True))
        self.thresholds: ClassThresholds | None = None
        if config.class_thresholds != "off":
            classes, momentum = context.plan.heads * (1 + regions), config.class_threshold_momentum
            self.thresholds = ClassThresholds(
                config.class_thresholds, classes, threshold, momentum, regions, ddp, context.device
            )

    @property
    def is_static(self) -> bool:  # type: ignore[override]
        """But for changes that Python draws, that remember earlier steps or whose work depends on the labels."""
        config = self.config
        changed = config.class_thresholds != "off" or config.copy_paste != "off"
        return not (changed or config.turn_probability > 0 or config.largest_component)

    @torch.no_grad()
    def teach(self, weak: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """As the teacher's, with thresholds of each class (1 above, less below) and without small parts."""
        labels, confidence, metrics = super().teach(weak)
        if self.thresholds is not None:
            self.thresholds.update(labels, confidence)
            confidence = self.thresholds.judge(labels, confidence)
            metrics["kept_share"] = (confidence > 0).float().mean()
            if self.config.pseudo_loss == "image":  # which reads less than 0 as no label at all
                confidence = confidence.clamp(min=0.0)
            metrics["lowest_threshold"] = self.thresholds.thresholds.min()
        if self.config.largest_component:
            channels = labels if self.context.regions else labels[:, None]
            channels, metrics["kept_by_component"] = cleaned(channels)
            labels = channels if self.context.regions else channels[:, 0]
        return labels, confidence, metrics

    @torch.no_grad()
    def view(self, batch: Batch, labels: Tensor, confidence: Tensor) -> UnlabeledView:
        """A strong view of the unlabelled images with the teacher's labels: pasted, jittered, mixed, turned."""
        config = self.config
        assert batch.unlabeled is not None
        view = UnlabeledView(batch.unlabeled, labels, confidence, batch.unlabeled)
        if config.copy_paste != "off":
            view = self.pasted(batch, view)
        view = self.strong(view.images, view.labels, view.confidence)
        if config.turn_probability > 0 and torch.rand(()) < config.turn_probability:
            turn = sample_turn([view.images.shape[2:]], config.flip_probability)
            view = UnlabeledView(*map(turn.apply, view))
        return view

    def pasted(self, batch: Batch, taught: UnlabeledView) -> UnlabeledView:
        """As many images as `taught` has: labelled parts in those, and parts of those in labelled images."""
        config, regions = self.config, self.context.regions
        labels, known = split_ignored(full_resolution(batch.target), regions, self.context.ignore_label)
        sure = torch.where(known, 1.0, -1.0)  # less than any threshold where there is no label
        labels, sure = (labels, sure.expand_as(labels)) if regions else (labels[:, 0], sure[:, 0])
        box = random_box(batch.labeled.shape[2:], config.box_share, batch.labeled.device)

        def mask_of(inside: UnlabeledView) -> Tensor:
            return box if config.copy_paste == "box" else organs(inside.labels, config.organ_margin, regions)

        images = len(taught.images)
        mixed = both_ways(UnlabeledView(batch.labeled, labels, sure, batch.labeled), taught, images, mask_of)
        return UnlabeledView(*(values[:images] for values in mixed))

    def learn(self, outputs: list[Tensor], view: UnlabeledView) -> Tensor:
        """The loss of the student's outputs for a view, finest first."""
        logits = outputs if self.config.pseudo_loss == "nnunet" else finest(outputs)
        return self.pseudo(logits, view.labels, view.confidence)

    def state(self) -> dict[str, Any]:
        """Teacher, and what thresholds follow."""
        own = {} if self.thresholds is None else {"class_thresholds": self.thresholds.state()}
        return {**super().state(), **own}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore them."""
        super().load_state(state, strict)
        if self.thresholds is not None and "class_thresholds" in state:
            self.thresholds.load_state(state["class_thresholds"])
