"""The trainers a user names with `-tr`: thin subclasses, one per setting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from nnunetv2_vqseg.config import VQSegConfig
from nnunetv2_vqseg.training.supervised import WITHOUT, nnUNetTrainerSupervised  # noqa: F401 the latter in __all__
from nnunetv2_vqseg.training.trainer import nnUNetTrainerVQSeg

_METHOD = frozenset(
    {"use_unlabeled", "quantize", "perturbation", "reconstruct", "strong_view", "weight_strong", "weight_perturbed"}
)
"""Switches of the whole method's parts but PFA, which has a policy, and the weights of its views (Eq. 9)."""

_VARIED = frozenset({"epsilon", "lambda_u", "lambda_a", "num_codes"})
"""What Tables 3 and 5 vary."""

_WITH_QPM: dict[str, Any] = {"use_unlabeled": True, "quantize": True, "perturbation": "qpm"}


class _Variant(nnUNetTrainerVQSeg):
    """A trainer whose `switches` are set and locked."""

    switches: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.locked = frozenset(cls.switches)

    @classmethod
    def default_config(cls) -> VQSegConfig:
        return replace(VQSegConfig.default(), **cls.switches)


class nnUNetTrainerVQSegPaper(nnUNetTrainerVQSeg):
    """The paper's settings to the letter (4.2), on the planned U-Net.

    Free are the budget, the batch, the sizes that Tables 3 and 5 vary, and what to do without DINOv2 weights.
    """

    locked = _METHOD | {
        key
        for key, value in VQSegConfig.literal().as_dict().items()
        if value != VQSegConfig.default().as_dict()[key] and not key.endswith("batch_size") and key not in _VARIED
    }

    @classmethod
    def default_config(cls) -> VQSegConfig:
        return VQSegConfig.literal()


class nnUNetTrainerVQSegPFARequired(_Variant):
    """Table 2, last row: QPM, DB and PFA; stops at the start where the foundation model's weights cannot be had."""

    switches: ClassVar = {**_WITH_QPM, "reconstruct": True, "foundation_policy": "required"}


class nnUNetTrainerVQSegBase(_Variant):
    """Table 2, row 1: quantised U-Net with EMA teacher and a strong view, no feature perturbation.

    The decoder reads q(z), as in the paper: where it reads z itself, a quantiser without QPM changes nothing.
    """

    switches: ClassVar = {
        "use_unlabeled": True,
        "quantize": True,
        "decoder_input": "quantized",
        "strong_view": True,
        "perturbation": "none",
        "reconstruct": False,
        "foundation_policy": "off",
    }


class nnUNetTrainerVQSegQPM(_Variant):
    """Table 2, row 2: QPM."""

    switches: ClassVar = {**_WITH_QPM, "reconstruct": False, "foundation_policy": "off"}


class nnUNetTrainerVQSegQPMDB(_Variant):
    """Table 2, row 3: QPM and the dual branch."""

    switches: ClassVar = {**_WITH_QPM, "reconstruct": True, "foundation_policy": "off"}


class nnUNetTrainerVQSegQPMPFA(_Variant):
    """Table 2, row 4: QPM and PFA; needs the foundation model's weights."""

    switches: ClassVar = {**_WITH_QPM, "reconstruct": False, "foundation_policy": "required"}


class nnUNetTrainerMeanTeacher(_Variant):
    """EMA teacher and a strong view with CutMix, without any vector quantisation."""

    switches: ClassVar = {
        "use_unlabeled": True,
        "strong_view": True,
        "quantize": False,
        "perturbation": "none",
        "reconstruct": False,
        "foundation_policy": "off",
    }


class nnUNetTrainerMeanTeacherDropout(_Variant):
    """Mean teacher in whose student feature dropout perturbs the strong view (Fig. 1's alternative to QPM)."""

    switches: ClassVar = {
        "use_unlabeled": True,
        "quantize": False,
        "perturbation": "dropout",
        "reconstruct": False,
        "foundation_policy": "off",
    }


class nnUNetTrainerSupervisedEMA(_Variant):
    """nnU-Net on the labelled cases alone; the EMA of the weights is what is saved and scored."""

    switches: ClassVar = {**WITHOUT, "strong_view": False}


class nnUNetTrainerSupervisedVQ(_Variant):
    """Labelled cases alone with the quantiser in the path: what quantisation itself costs."""

    switches: ClassVar = {
        "quantize": True,
        "decoder_input": "quantized",
        "use_unlabeled": False,
        "strong_view": False,
        "perturbation": "none",
        "reconstruct": False,
        "foundation_policy": "off",
    }


class nnUNetTrainerVQSeg_1epoch(_Variant):
    """`nnUNetTrainerVQSeg` for 1 epoch."""

    switches: ClassVar = {"num_epochs": 1}


class nnUNetTrainerVQSeg_5epochs(_Variant):
    """`nnUNetTrainerVQSeg` for 5 epochs."""

    switches: ClassVar = {"num_epochs": 5}


class nnUNetTrainerVQSeg_20epochs(_Variant):
    """`nnUNetTrainerVQSeg` for 20 epochs."""

    switches: ClassVar = {"num_epochs": 20}


class nnUNetTrainerVQSeg_50epochs(_Variant):
    """`nnUNetTrainerVQSeg` for 50 epochs."""

    switches: ClassVar = {"num_epochs": 50}


class nnUNetTrainerVQSeg_100epochs(_Variant):
    """`nnUNetTrainerVQSeg` for 100 epochs."""

    switches: ClassVar = {"num_epochs": 100}


__all__ = sorted(
    name for name, value in list(globals().items()) if name.startswith("nnUNetTrainer") and isinstance(value, type)
)
