"""The trainers a user names with `-tr`: a method, and what is set for it.

`nnUNetTrainerX_5epochs` and the like, for any trainer X and any number, are made when they are asked for.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from nnunetv2_vqseg.methods.abd import ABD
from nnunetv2_vqseg.methods.abd_cross_teaching import ABDCrossTeaching
from nnunetv2_vqseg.methods.arco import ARCO
from nnunetv2_vqseg.methods.bcp import BCP
from nnunetv2_vqseg.methods.cps import CPS
from nnunetv2_vqseg.methods.mc_net import MCNet
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher, MeanTeacherDropout
from nnunetv2_vqseg.methods.nnfiltermatch import NNFilterMatch
from nnunetv2_vqseg.methods.self_training import SelfTraining
from nnunetv2_vqseg.methods.ss_net import SSNet
from nnunetv2_vqseg.methods.supervised import Supervised, SupervisedEMA
from nnunetv2_vqseg.methods.ua_mt import UAMT
from nnunetv2_vqseg.methods.unet import UNet
from nnunetv2_vqseg.methods.unimatch import UniMatch
from nnunetv2_vqseg.methods.unimatch_v2 import UniMatchV2
from nnunetv2_vqseg.methods.vit import MeanTeacherViT, SupervisedViT, UniMatchV2ViT, VQSegViT
from nnunetv2_vqseg.methods.vqseg import FREE_IN_PAPER, PAPER, VQSeg
from nnunetv2_vqseg.trainer.trainer import MethodTrainer

_WITH_QPM: dict[str, Any] = {"use_unlabeled": True, "quantize": True, "perturbation": "qpm"}
_WITHOUT_VQ: dict[str, Any] = {"quantize": False, "reconstruct": False, "foundation_policy": "off"}
_VIT: dict[str, Any] = {
    "optimizer": "adamw",
    "initial_lr": 5e-6,
    "head_lr_scale": 40.0,
    "labeled_batch_size": 8,
    "unlabeled_batch_size": 4,
    "lambda_u": 1.0,
    "ramp_up": 0.0,
    "ema_decay": 0.996,
    "weight_decay": None,
}
"""Optimiser, batch and unlabelled weight of the paper (4.2, Table 3), whose network starts from pretrained weights."""
_VIT_VIEWS: dict[str, Any] = {
    "pseudo_loss": "ce_dice",
    "confidence_threshold": 0.95,
    "cutmix_probability": 0.5,
    "cutmix_area": (0.02, 0.4),
    "cutmix_aspect": (0.3, 1 / 0.3),
}
"""Views and loss of the teacher's labels: those of before the recipe, which was not measured on this network."""
_EPOCHS = re.compile(r"(nnUNetTrainer\w+?)_(\d+)epochs?")


class nnUNetTrainerVQSeg(MethodTrainer):
    """VQ-Seg (NeurIPS 2025) on nnU-Net's 2D plan, preprocessing and augmentation."""

    method_class = VQSeg


class nnUNetTrainerVQSegViT(MethodTrainer):
    """VQ-Seg with all its parts on the paper's network, a pretrained ViT with a DPT decoder (`nnUNetPlannerViT`).

    The last of the ViT's four maps is quantised, and the decoder reads q(z). Optimiser, batch, number of views and
    weights of the terms are the paper's; quantiser and QPM are those of nnUNetTrainerVQSeg, views and loss of the
    teacher's labels those that it had before its recipe.
    """

    method_class = VQSegViT
    preset: ClassVar = {
        **_VIT,
        **_VIT_VIEWS,
        "decoder_input": "quantized",
        "perturbed_view": "weak",
        "strong_view": True,
        "reconstruct": True,
        "weight_reconstruction": 1.0,
        "foundation_policy": "auto",
        "lambda_a": 5.0,
    }


class nnUNetTrainerVQSegPaper(nnUNetTrainerVQSegViT):
    """The paper to the letter, as far as it says (4.2): its settings on its network.

    Free are the budget and with it the rates, the batch, the sizes that Tables 3 and 5 vary, and what to do without
    DINOv2 weights. Models that an earlier version trained under this name on a U-Net's plan predict and validate as
    before.
    """

    preset: ClassVar = {**_VIT_VIEWS, **PAPER, "weight_decay": None}
    fixed: ClassVar = {key: value for key, value in PAPER.items() if key not in FREE_IN_PAPER}


class nnUNetTrainerVQSegPFARequired(nnUNetTrainerVQSeg):
    """Table 2, last row: QPM, DB and PFA; stops at the start where the foundation model's weights cannot be had."""

    fixed: ClassVar = {**_WITH_QPM, "reconstruct": True, "foundation_policy": "required"}


class nnUNetTrainerVQSegBase(nnUNetTrainerVQSeg):
    """Table 2, row 1: quantised U-Net with EMA teacher and a strong view, no feature perturbation.

    The decoder reads q(z), as in the paper: where it reads z itself, a quantiser without QPM changes nothing.
    """

    fixed: ClassVar = {
        "use_unlabeled": True,
        "quantize": True,
        "decoder_input": "quantized",
        "strong_view": True,
        "perturbation": "none",
        "reconstruct": False,
        "foundation_policy": "off",
    }


class nnUNetTrainerVQSegQPM(nnUNetTrainerVQSeg):
    """Table 2, row 2: QPM."""

    fixed: ClassVar = {**_WITH_QPM, "reconstruct": False, "foundation_policy": "off"}


class nnUNetTrainerVQSegQPMDB(nnUNetTrainerVQSeg):
    """Table 2, row 3: QPM and the dual branch."""

    fixed: ClassVar = {**_WITH_QPM, "reconstruct": True, "foundation_policy": "off"}


class nnUNetTrainerVQSegQPMPFA(nnUNetTrainerVQSeg):
    """Table 2, row 4: QPM and PFA; needs the foundation model's weights."""

    fixed: ClassVar = {**_WITH_QPM, "reconstruct": False, "foundation_policy": "required"}


class nnUNetTrainerMeanTeacher(MethodTrainer):
    """EMA teacher and a strong view with CutMix, without any vector quantisation."""

    method_class = MeanTeacher
    fixed: ClassVar = {**_WITHOUT_VQ, "use_unlabeled": True, "strong_view": True, "perturbation": "none"}


class nnUNetTrainerMeanTeacherViT(MethodTrainer):
    """The mean teacher on a pretrained ViT with a DPT decoder (`nnUNetPlannerViT`)."""

    method_class = MeanTeacherViT
    preset: ClassVar = {**_VIT, **_VIT_VIEWS}
    fixed: ClassVar = nnUNetTrainerMeanTeacher.fixed


class nnUNetTrainerMeanTeacherDropout(MethodTrainer):
    """Mean teacher in whose student feature dropout perturbs the strong view (Fig. 1's alternative to QPM)."""

    method_class = MeanTeacherDropout
    fixed: ClassVar = {**_WITHOUT_VQ, "use_unlabeled": True, "perturbation": "dropout"}


class nnUNetTrainerABD(MethodTrainer):
    """Adaptive bidirectional displacement on BCP: two networks agree on views that exchanged patches."""

    method_class = ABD


class nnUNetTrainerABDCrossTeaching(MethodTrainer):
    """Adaptive bidirectional displacement with cross teaching: two networks, no teacher, no copy-paste."""

    method_class = ABDCrossTeaching


class nnUNetTrainerARCO(MethodTrainer):
    """ARCO's second stage: a teacher's labels, and contrast of classes with stratified sampling."""

    method_class = ARCO


class nnUNetTrainerBCP(MethodTrainer):
    """Bidirectional copy-paste: boxes of labelled images in unlabelled ones and the other way round."""

    method_class = BCP


class nnUNetTrainerCPS(MethodTrainer):
    """Cross pseudo supervision: two networks learn each other's labels."""

    method_class = CPS


class nnUNetTrainerSSNet(MethodTrainer):
    """SS-Net: robust against adversarial changes, and features close to a memory of their class."""

    method_class = SSNet


class nnUNetTrainerNNFilterMatch(MethodTrainer):
    """nnFilterMatch: learns its own labels on turned images, and leaves out the surest cases."""

    method_class = NNFilterMatch


class nnUNetTrainerMCNet(MethodTrainer):
    """MC-Net+: decoders that upsample differently agree with each other's sharpened probabilities."""

    method_class = MCNet


class nnUNetTrainerSelfTraining(MethodTrainer):
    """Self-training in rounds: each round's network learns the labels of the one before."""

    method_class = SelfTraining


class nnUNetTrainerUAMT(MethodTrainer):
    """Uncertainty-aware mean teacher: consistency where the teacher is certain."""

    method_class = UAMT


class nnUNetTrainerUniMatch(MethodTrainer):
    """UniMatch (V1): two strong views and dropped features learn the network's own labels."""

    method_class = UniMatch


class nnUNetTrainerUniMatchV2(MethodTrainer):
    """UniMatch V2: two strong views that lose complementary features learn an EMA teacher's labels."""

    method_class = UniMatchV2


class nnUNetTrainerUniMatchV2ViT(MethodTrainer):
    """UniMatch V2 on its own network, a pretrained ViT with a DPT decoder (`nnUNetPlannerViT`)."""

    method_class = UniMatchV2ViT
    preset: ClassVar = _VIT


class nnUNetTrainerSupervised(MethodTrainer):
    """nnU-Net as it is, but for the number of steps and the seed, which it takes from the plan's `vqseg` block."""

    method_class = Supervised


class nnUNetTrainerSupervisedEMA(MethodTrainer):
    """nnU-Net on the labelled cases alone; the EMA of the weights is what is saved and scored."""

    method_class = SupervisedEMA


class nnUNetTrainerSupervisedViT(MethodTrainer):
    """A pretrained ViT with a DPT decoder (`nnUNetPlannerViT`) on the labelled cases alone."""

    method_class = SupervisedViT
    preset: ClassVar = _VIT


class nnUNetTrainerUNet(MethodTrainer):
    """The small U-Net of the semi-supervised literature with its loss, on the labelled cases alone."""

    method_class = UNet


class nnUNetTrainerSupervisedVQ(nnUNetTrainerVQSeg):
    """Labelled cases alone with the quantiser in the path: what quantisation itself costs."""

    fixed: ClassVar = {
        "quantize": True,
        "decoder_input": "quantized",
        "use_unlabeled": False,
        "strong_view": False,
        "perturbation": "none",
        "reconstruct": False,
        "foundation_policy": "off",
    }


__all__ = sorted(name for name in globals() if name.startswith("nnUNetTrainer"))


def __getattr__(name: str) -> type[MethodTrainer]:
    found = _EPOCHS.fullmatch(name)
    if found is None or found[1] not in __all__ or int(found[2]) < 1:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = globals()[found[1]]
    content = {
        "preset": {**base.preset, "num_epochs": int(found[2])},
        "named_epochs": int(found[2]),
        "__module__": __name__,
        "__doc__": f"`{base.__name__}` for {int(found[2])} epochs.",
    }
    return globals().setdefault(name, type(name, (base,), content))
