"""Every term of the objective and its weight, at three points of the ramp, by hand-computed numbers (Eq. 8 to 12)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunetv2_vqseg.methods.base import Batch, Context, ramp
from nnunetv2_vqseg.methods.vqseg import Views, VQSeg, VQSegConfig
from nnunetv2_vqseg.modules.views.strong import UnlabeledView
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.networks.vq import BatchLayout, VQSegOutput

LN2 = math.log(2)
RAMP = {0.0: math.exp(-5), 0.4: math.exp(-1.25), 0.8: 1.0, 1.0: 1.0}
"""Progress of the training -> exp(-5 (1 - t/T)^2) with T = 0.8."""

KEYS = {
    "lambda_u": 0.3,
    "ramp_up": 0.8,
    "pseudo_loss": "ce_dice",
    "weight_strong": 1.0,
    "weight_perturbed": 1.0,
    "reconstruct": True,
    "confidence_threshold": 0.9,
    "foundation_policy": "off",
}


def terms_of(progress: float, **settings: Any) -> dict[str, tuple[float, Tensor]]:
    """The terms of one labelled and two unlabelled images (a strong and a perturbed view) of 2 x 2 pixels.

    Student: both classes equally likely everywhere, so that cross entropy is ln 2 a pixel. Teacher: class 1 everywhere,
    sure of the upper half in the strong view, of all in the perturbed one.
    """
    config = VQSegConfig().override(KEYS | settings)
    images = torch.full((1, 1, 2, 2), 2.0)
    labels = torch.ones(1, 2, 2, dtype=torch.long)
    half_sure = torch.tensor([[[0.9, 0.9], [0.8, 0.8]]])
    strong = UnlabeledView(images, labels, half_sure, images)
    perturbed = UnlabeledView(images, labels, torch.ones(1, 2, 2), torch.full((1, 1, 2, 2), 5.0))
    output = VQSegOutput(
        segmentation=[torch.zeros(3, 2, 2, 2), torch.zeros(3, 2, 1, 1)],
        reconstruction=torch.full((2, 1, 2, 2), 1.5),
        adapted=torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]] * 2),  # two patches at right angles
        vq_loss=torch.tensor(3.0),
        entropy=torch.tensor(-2.0),
        feature_loss=torch.tensor(0.5),
    )
    targets = (output.adapted, torch.ones(2, 1, 2, dtype=torch.bool))
    method = VQSeg(config, Context(NetworkPlan((2, 2), [[1, 1]], 1, torch.nn.Identity), device="cpu"))
    method.supervised = lambda outputs, target: outputs[0].sum() + 7.0
    batch, views = Batch(images, labels), Views(strong, perturbed)
    return method.weighted(output, BatchLayout(1, 1, 1), batch, views, progress, targets)


@pytest.mark.parametrize("progress", RAMP)
def test_every_term_has_its_value_and_its_weight(progress):
    unlabeled = 0.3 * RAMP[progress]  # lambda_u times the ramp
    terms = terms_of(progress)
    expected = {
        "supervised": (1.0, 7.0),
        # Cross entropy over all pixels of which half count, and half of 1 - Dice of that half: p = 0.5 against 1.
        "pseudo_strong": (unlabeled, 0.5 * LN2 + 0.5 * 1 / 3),
        "pseudo_perturbed": (unlabeled, LN2 + 1 / 3),
        "reconstruction": (0.1, 0.5),  # |2 - 1.5|
        "reconstruction_unlabeled": (0.1 * unlabeled, 3.5),  # |5 - 1.5|, of the view before the jitter
        # Two patches with similarity 1 to their own and 0 to the other's features.
        "alignment": (0.5, math.log(1 + math.exp(-1 / 0.07))),
        "vq": (16.0, 3.0),
        "entropy": (0.1, -2.0),
        "feature": (1.0, 0.5),
    }
    assert terms.keys() == expected.keys()
    for name, (weight, value) in expected.items():
        assert terms[name][0] == pytest.approx(weight, rel=1e-9), name
        assert terms[name][1].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


WEIGHTS = {
    "lambda_u": ("pseudo_strong", "pseudo_perturbed", "reconstruction_unlabeled"),
    "weight_strong": ("pseudo_strong",),
    "weight_perturbed": ("pseudo_perturbed",),
    "weight_reconstruction": ("reconstruction", "reconstruction_unlabeled"),
    "lambda_a": ("alignment",),
    "weight_codebook": ("vq",),
    "weight_feature": ("feature",),
    "weight_entropy": ("entropy",),
}


@pytest.mark.parametrize("key", WEIGHTS)
def test_a_key_weighs_its_own_terms_and_no_other(key):
    before = terms_of(0.4)
    after = terms_of(0.4, **{key: 3.0 * getattr(VQSegConfig().override(KEYS), key)})
    for name, (weight, value) in before.items():
        factor = 3.0 if name in WEIGHTS[key] else 1.0
        assert after[name][0] == pytest.approx(factor * weight), name
        assert after[name][1].item() == value.item(), name


def test_ramp_rises_from_e_to_the_minus_5_to_1():
    for progress, value in RAMP.items():
        assert ramp(progress, 0.8) == pytest.approx(value)
    assert ramp(0.0, 0.0) == ramp(0.3, 0.0) == 1.0, "no ramp"
    assert ramp(0.1, 0.8) < ramp(0.2, 0.8) < ramp(0.7, 0.8) < 1.0


def test_temperature_divides_the_similarities():
    assert terms_of(0.0, temperature=1.0)["alignment"][1].item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)
