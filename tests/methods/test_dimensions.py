"""Every method takes a step with images and with volumes, without a trainer."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from tiny_networks import CLASSES, context, plan_of, unet
from torch import Tensor

from nnunetv2_vqseg.methods.abd import ABD
from nnunetv2_vqseg.methods.abd_cross_teaching import ABDCrossTeaching
from nnunetv2_vqseg.methods.arco import ARCO
from nnunetv2_vqseg.methods.base import Batch, Method
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
from nnunetv2_vqseg.methods.vqseg import VQSeg
from nnunetv2_vqseg.trainer.optimizers import chosen_loss

LABELED, UNLABELED = 2, 2
IGNORED = CLASSES
"""The ignore label, as nnU-Net numbers it."""
BOOK = {"num_codes": 64, "code_dim": 8, "min_tokens": 4, "qpm_perplexity": 4, "qpm_neighbors": 8}


class Case(NamedTuple):
    """A method with the keys of its configuration, and the names of its terms."""

    method: type[Method[Any]]
    keys: dict[str, Any]
    terms: set[str]


CHANGES = {
    "turn_probability": 1.0,
    "largest_component": True,
    "pseudo_loss": "nnunet",
    "guard": True,
}
"""What can be changed about strong views and the teacher's labels, all at once."""
WITH_BOXES = {**CHANGES, "copy_paste": "box", "class_thresholds": "flexmatch"}
WITH_ORGANS = {**CHANGES, "copy_paste": "organs", "class_thresholds": "freematch"}
VQ_TERMS = {"supervised", "pseudo_perturbed", "vq", "entropy", "reconstruction", "reconstruction_unlabeled"}
TWICE = {"supervised", "supervised_second", "consistency", "consistency_second", "displaced", "displaced_second"}
METHODS = {
    "supervised": Case(Supervised, {}, {"supervised"}),
    "supervised, EMA": Case(SupervisedEMA, {}, {"supervised"}),
    "U-Net": Case(UNet, {}, {"supervised"}),
    "mean teacher": Case(MeanTeacher, {}, {"supervised", "pseudo_strong"}),
    "mean teacher, dropout": Case(MeanTeacherDropout, {"min_tokens": 4}, {"supervised", "pseudo_perturbed"}),
    "mean teacher, changed": Case(
        MeanTeacher, {**WITH_ORGANS, "strong_view_count": 2}, {"supervised", "pseudo_strong"}
    ),
    "mean teacher, dropout, changed": Case(
        MeanTeacherDropout, {**WITH_BOXES, "min_tokens": 4}, {"supervised", "pseudo_perturbed"}
    ),
    "ABD": Case(ABD, {}, {*TWICE, "pseudo", "pseudo_second"}),
    "ABD, teacher": Case(ABD, {"saved_network": "teacher", "pretrain_share": 0.0}, {*TWICE, "pseudo", "pseudo_second"}),
    "ABD, cross teaching": Case(ABDCrossTeaching, {}, {*TWICE, "displaced_labeled", "displaced_labeled_second"}),
    "BCP": Case(BCP, {}, {"supervised", "pseudo"}),
    "BCP, teacher": Case(BCP, {"saved_network": "teacher", "pretrain_share": 0.0}, {"supervised", "pseudo"}),
    "CPS, its own loss": Case(
        CPS, {"supervised_loss": "literature"}, {"supervised", "supervised_second", "pseudo", "pseudo_second"}
    ),
    "CPS": Case(CPS, {}, {"supervised", "supervised_second", "pseudo", "pseudo_second"}),
    "nnFilterMatch": Case(NNFilterMatch, {"flip_start": 0.0, "warm_up": 0.05}, {"supervised"}),
    "MC-Net": Case(MCNet, {"nearest_decoder": False}, {"supervised", "supervised_linear", "consistency"}),
    "MC-Net+": Case(MCNet, {}, {"supervised", "supervised_linear", "supervised_nearest", "consistency"}),
    "self-training": Case(SelfTraining, {}, {"supervised"}),
    "UA-MT": Case(UAMT, {"passes": 2}, {"supervised", "consistency"}),
    "UA-MT, teacher": Case(UAMT, {"passes": 2, "saved_network": "teacher"}, {"supervised", "consistency"}),
    "UniMatch": Case(UniMatch, {}, {"supervised", "pseudo_first", "pseudo_second", "pseudo_perturbed"}),
    "UniMatch V2": Case(UniMatchV2, {}, {"supervised", "pseudo_first", "pseudo_second"}),
    "UniMatch V2, teacher": Case(
        UniMatchV2,
        {"saved_network": "teacher", "pseudo_loss": "ce_dice", "first_dropped_stage": 2},
        {"supervised", "pseudo_first", "pseudo_second"},
    ),
    "ARCO": Case(
        ARCO,
        {"anchors": 32, "negatives": 32, "queue_size": 64, "queue_push": 16, "representation_dim": 8},
        {"supervised", "pseudo_strong", "contrast"},
    ),
    "SS-Net": Case(SSNet, {"pixels_per_class": 64}, {"supervised", "smoothness", "separation", "separation_unlabeled"}),
    "VQ-Seg": Case(VQSeg, {**BOOK, "reconstruct": True, "foundation_policy": "off"}, {*VQ_TERMS, "feature"}),
    "VQ-Seg, changed": Case(
        VQSeg, {**BOOK, **WITH_BOXES, "reconstruct": True, "foundation_policy": "off"}, {*VQ_TERMS, "feature"}
    ),
    "VQ-Seg, codes asked": Case(
        VQSeg, {**BOOK, "code_agreement": 0.5}, {"supervised", "pseudo_perturbed", "vq", "entropy", "feature"}
    ),
    "VQ-Seg, literal QPM": Case(
        VQSeg,
        {
            **BOOK,
            "qpm": "literal",
            "decoder_input": "quantized",
            "strong_view": True,
            "reconstruct": True,
            "foundation_policy": "off",
        },
        {*VQ_TERMS, "pseudo_strong"},
    ),
}


def supervised_loss(outputs: Any, target: Any) -> Tensor:
    """Cross entropy at every level, which reaches every head; of regions, and without ignored pixels, as nnU-Net's."""
    levels = outputs if isinstance(outputs, list) else [outputs]
    return torch.stack([_cross_entropy(*pair) for pair in zip(levels, target, strict=True)]).sum()


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    if target.shape[1] == 1:
        return torch.nn.functional.cross_entropy(logits, target[:, 0], ignore_index=IGNORED)
    regions, ignored = target.split((CLASSES, target.shape[1] - CLASSES), dim=1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, regions.float(), reduction="none")
    return (loss * (1 - ignored)).mean() if len(ignored[0]) else loss.mean()


def started(
    case: Case, ndim: int, kind: type = PlainConvUNet, channels: int = 1, **labels: Any
) -> tuple[Method[Any], Batch]:
    """The method at its first step, and a batch; `labels` are the context's regions and ignore label."""
    plan = plan_of(None, ndim, channels)._replace(build=lambda: unet(kind, ndim, channels=channels))
    method = case.method(case.method.Config(**case.keys), context(plan, **labels))
    method.begin(method.training_network().train(), chosen_loss(method, supervised_loss))
    patch = tuple(plan.patch_size)
    target = [_target(tuple(side // factor for side in patch), **labels) for factor in (1, 2, 4)]
    unlabeled = torch.randn(UNLABELED, channels, *patch) if method.uses_unlabeled else None
    batch = Batch(torch.randn(LABELED, channels, *patch), target, unlabeled, [level.clone() for level in target])
    method.start(iter([batch] * 100))
    method.student.train()
    method.on_epoch_start()
    return method, batch


def _target(size: tuple[int, ...], regions: bool = False, ignore_label: int | None = None) -> Tensor:
    """As nnU-Net's loader gives it: labels, or a channel a region and one for what is ignored."""
    if regions:
        return torch.randint(2, (LABELED, CLASSES + (ignore_label is not None), *size))
    labels = torch.randint(CLASSES, (LABELED, 1, *size))
    return labels if ignore_label is None else labels.where(torch.rand(labels.shape) < 0.7, ignore_label)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_a_step(name, ndim):
    case = METHODS[name]
    method, batch = started(case, ndim)
    method.before_step(0.5)
    terms, metrics = method.terms(batch, 0.5)
    assert terms.keys() == case.terms
    for weight, value in terms.values():
        assert value.ndim == 0
        assert torch.isfinite(value)
        assert weight > 0
    assert all(value.ndim == 0 and torch.isfinite(value) for value in metrics.values())
    torch.stack([weight * value for weight, value in terms.values()]).sum().backward()
    assert [key for key, parameter in method.student.named_parameters() if parameter.grad is None] == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in method.student.parameters())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_what_follows_a_step_and_an_epoch(name, ndim):
    method, batch = started(METHODS[name], ndim)
    optimizer = torch.optim.SGD(method.parameter_groups(method.student), lr=0.1)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(
        map(id, method.student.parameters())
    )
    before = {key: value.clone() for key, value in method.predictor().state_dict().items()}
    for number in range(2):
        method.before_step(number / 10)
        terms, _ = method.terms(batch, number / 10)
        optimizer.zero_grad()
        torch.stack([weight * value for weight, value in terms.values()]).sum().backward()
        optimizer.step()
        assert all(isinstance(value, float) for value in method.after_step().values())
    assert any(not torch.equal(value, before[key]) for key, value in method.predictor().state_dict().items())
    assert all(isinstance(value, float) for value in method.on_epoch_done().values())
    assert all(isinstance(value, float) for value in method.schedule(0.5).values())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_its_predictor_computes_what_prediction_will(name, ndim):
    case = METHODS[name]
    method, batch = started(case, ndim)
    built = case.method.network(plan_of(unet(ndim=ndim), ndim), method.config)
    own = method.predictor().eval().state_dict()
    built.load_state_dict({key: own[key] for key in built.state_dict()}, strict=True)
    predicted, expected = method.predictor()(batch.labeled), built.eval()(batch.labeled)
    finest = [logits[0] if isinstance(logits, list) else logits for logits in (predicted, expected)]
    assert torch.equal(*finest)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_a_continued_method_has_the_state_of_the_first(name, ndim):
    case = METHODS[name]
    method, batch = started(case, ndim)
    method.before_step(0.0)
    method.terms(batch, 0.0)
    method.after_step()
    other, _ = started(case, ndim)
    other.student.load_state_dict(method.student.state_dict())
    other.load_state(method.state())
    for key, value in method.predictor().state_dict().items():
        assert torch.equal(value, other.predictor().state_dict()[key])
    assert method.why_not_continue(method.state()) is None
