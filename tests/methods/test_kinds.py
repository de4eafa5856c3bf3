"""Every method takes colour images, regions, an ignore label and residual encoders, or says at the start that not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from test_dimensions import IGNORED, LABELED, METHODS, started

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Method, finest
from nnunetv2_vqseg.modules.losses.cross_entropy_dice import CrossEntropyAndDice
from nnunetv2_vqseg.modules.targets import full_resolution

KINDS: list[dict[str, Any]] = [{"regions": True}, {"ignore_label": IGNORED}, {"regions": True, "ignore_label": IGNORED}]


def take_two_steps(method: Method[Any], batch: Any) -> None:
    """Late in a training, when everything is switched on."""
    optimizer = torch.optim.SGD(method.parameter_groups(method.student), lr=0.01)
    for progress in (0.5, 0.9):
        method.before_step(progress)
        terms, _ = method.terms(batch, progress)
        assert all(torch.isfinite(value) for _, value in terms.values())
        optimizer.zero_grad()
        torch.stack([weight * value for weight, value in terms.values()]).sum().backward()
        optimizer.step()
        method.after_step()
    assert all(torch.isfinite(parameter).all() for parameter in method.student.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_several_channels(name):
    method, batch = started(METHODS[name], 2, channels=3)
    assert batch.labeled.shape[:2] == (LABELED, 3)
    take_two_steps(method, batch)


@pytest.mark.parametrize("name", METHODS)
def test_residual_encoders(name):
    method, batch = started(METHODS[name], 2, kind=ResidualEncoderUNet)
    take_two_steps(method, batch)


@pytest.mark.parametrize("labels", KINDS, ids=" and ".join)
@pytest.mark.parametrize("name", METHODS)
def test_kinds_of_labels(name, labels):
    if name in ("ARCO", "SS-Net") and labels.get("regions"):
        with pytest.raises(ConfigError, match=r"overlapping regions .* use nnUNetTrainerUniMatchV2"):
            started(METHODS[name], 2, **labels)
        return
    if name == "VQ-Seg, codes asked" and labels.get("regions"):
        with pytest.raises(ConfigError, match=r"code_agreement > 0 is for classes.*regions; set it to 0"):
            started(METHODS[name], 2, **labels)
        return
    take_two_steps(*started(METHODS[name], 2, **labels))


MIXES = ("BCP", "BCP, teacher", "ABD", "ABD, teacher")
"""Methods whose labelled images are parts of mixed ones, by a loss of their own: see their tests."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in MIXES])
def test_ignored_pixels_teach_nothing(name):
    method, batch = started(METHODS[name], 2, ignore_label=IGNORED)
    loss, seen = CrossEntropyAndDice(ignore_label=IGNORED), []

    def watched(outputs: Any, target: Any) -> torch.Tensor:
        value = loss(outputs, target)
        gradient = torch.autograd.grad(value, finest(outputs), retain_graph=True)[0]
        seen.append((gradient.abs().sum(1, keepdim=True) > 0, full_resolution(target)))
        return value

    method.supervised = watched
    method.before_step(0.5)
    method.terms(batch, 0.5)
    assert seen
    ignored = batch.target[0] == IGNORED
    for learns, target in seen:
        if name != "ABD, cross teaching" or len(target) == LABELED:  # else patches have moved, ignored ones with them
            assert torch.equal(target[:LABELED] == IGNORED, ignored)
        assert torch.equal(learns, target != IGNORED)
