"""SS-Net: adversarial changes, and the memory of what was segmented right, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_networks import CLASSES, context, plan_of, unet
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.ss_net import SSNet, SSNetConfig
from nnunetv2_vqseg.modules.losses.soft_dice import soft_dice_loss
from nnunetv2_vqseg.modules.prototype_heads import Embedded
from nnunetv2_vqseg.networks.tap import Tapped, TappedUNet


class Copy(nn.Module):
    """Heads that give a pixel's features as they are; its score is their first number."""

    selectors = (None, None)

    def forward(self, features: torch.Tensor) -> Embedded:
        return Embedded(features, features[..., 0].sigmoid().detach())

    candidates = forward


class Painted(TappedUNet):
    """The image is its segmentation; features are the image's other two channels."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.heads = Copy()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> Any:
        if x.ndim == 3:
            return self.heads(x)
        classes = nn.functional.one_hot(x[:, 0].long().clamp(0, 2), 3).movedim(-1, 1).float()
        return Tapped([self.scale * 9 * classes + 0 * x[:, :1]], self.scale * x[:, 1:])


def painted(**settings: Any) -> SSNet:
    plan = plan_of(nn.Identity())
    made = SSNet(SSNetConfig(**{"prototype_dim": 2, "ramp_up": 0.0, **settings}), Context(plan, torch.device("cpu")))
    made.begin(Painted(), lambda outputs, target: outputs[0].sum() * 0)
    return made


def row(classes: list[int], first: list[float], second: list[float]) -> torch.Tensor:
    """An image of one row of pixels: classes and both features."""
    return torch.tensor([classes, first, second], dtype=torch.float32)[None, :, None]


LABELED = row([1, 1, 1, 2, 0, 2], [0.3, -0.2, 5.0, 0.7, 9.0, -8.0], [1.0, 1.0, 5.0, 0.0, 9.0, 1.0])
# The third and the last pixel are wrong, or have no label (3); the fifth is background.
TARGET = torch.tensor([1.0, 1.0, 2.0, 2.0, 0.0, 3.0]).view(1, 1, 1, 6)
UNLABELED = row([1, 1, 0, 2, 2, 0], [1.0, 0.0, 7.0, 1.0, 1.0, 7.0], [0.0, 1.0, 7.0, 1.0, 1.0, 7.0])


def test_the_memory_holds_the_features_of_pixels_that_are_right():
    ss = painted(memory_size=4)
    _, metrics = ss.terms(Batch(LABELED, [TARGET], UNLABELED), 0.0)
    assert not ss.memory.sizes.any(), "a step that is skipped leaves no trace"
    ss.after_step()
    assert ss.memory.sizes.tolist() == [2, 1]
    torch.testing.assert_close(ss.memory.vectors[0, :2], torch.tensor([[-0.2, 1.0], [0.3, 1.0]]))  # lowest first
    torch.testing.assert_close(ss.memory.vectors[1, :1], torch.tensor([[0.7, 0.0]]))
    assert metrics["right_share"].item() == pytest.approx(3 / 4), "of the labelled foreground"
    assert metrics["memory_share"].item() == pytest.approx(3 / 8)
    nothing_right = Batch(LABELED, [torch.full_like(TARGET, 3.0)], UNLABELED)
    before = ss.memory
    ss.terms(nothing_right, 0.0)
    ss.after_step()
    assert torch.equal(ss.memory.vectors, before.vectors), "absent classes keep theirs"
    assert ss.memory.sizes.tolist() == [2, 1]


@pytest.mark.parametrize(("keeps", "expected"), [("lowest", [-0.2, 0.1]), ("highest", [0.3, 0.1])])
def test_the_memory_keeps_the_lowest_scores_or_the_highest(keeps, expected):
    ss = painted(memory_size=2, memory_keeps=keeps)
    images = row([1, 1, 1], [0.3, -0.2, 0.1], [1.0, 1.0, 1.0])
    ss.terms(Batch(images, [torch.ones(1, 1, 1, 3)], images), 0.0)
    ss.after_step()
    torch.testing.assert_close(ss.memory.vectors[0, :, 0], torch.tensor(expected))
    assert SSNetConfig().memory_keeps == "lowest", "as the original's code"


def test_separation_by_hand():
    ss = painted(weight_prototype=0.1)
    terms, _ = ss.terms(Batch(LABELED, [TARGET], UNLABELED), 0.0)
    remembered = nn.functional.normalize(torch.tensor([[-0.2, 1.0], [0.3, 1.0]]), dim=1).mean(0)
    # Class 1: unlabelled (1, 0) and (0, 1) with scores sigmoid(1) and sigmoid(0). Class 2 has one remembered vector
    # only, and counts nothing; neither does the background, but the sum is divided by 3.
    scores = torch.tensor([1 / (1 + math.exp(-1)), 0.5])
    expected = (scores * (1 - remembered)).sum() / scores.sum() / 3
    assert terms["separation_unlabeled"][0] == terms["separation"][0] == pytest.approx(0.1 * 0.1)
    torch.testing.assert_close(terms["separation_unlabeled"][1], expected)
    # Labelled: by the labels, whatever the network says of the pixels.
    vectors = nn.functional.normalize(torch.tensor([[0.3, 1.0], [-0.2, 1.0]]), dim=1)
    scores = torch.tensor([0.3, -0.2]).sigmoid()
    expected = (scores * (1 - vectors @ remembered)).sum() / scores.sum() / 3
    torch.testing.assert_close(terms["separation"][1], expected)


def real(**settings: Any) -> SSNet:
    torch.manual_seed(0)
    plan = plan_of(None)._replace(build=lambda: unet())
    made = SSNet(SSNetConfig(**settings), context(plan))
    made.begin(made.training_network().train(), lambda outputs, target: outputs[0].sum() * 0)
    return made


@pytest.mark.parametrize("z_scored", [True, False])
def test_images_change_by_the_radius_in_the_direction_that_moves_the_output_most(z_scored):
    images = torch.randn(2, 1, 32, 32)
    seen = []
    losses = {}
    for steps in (0, 1):
        ss = real(vat_steps=steps)
        ss.context = replace(ss.context, z_scored=z_scored)
        inputs = images if z_scored else 100 + 20 * images
        probabilities = ss.net.tap(inputs).segmentation[0].detach().softmax(1)
        tap = ss.net.tap
        ss.net.tap = lambda x, tap=tap: (seen.append(x.detach()), tap(x))[1]
        loss = ss.smoothness(inputs, probabilities)
        change = (seen[-1] - inputs).flatten(1)
        spread = 1.0 if z_scored else inputs.flatten(1).std(1)
        torch.testing.assert_close(change.square().mean(1).sqrt() / spread, torch.full((2,), 0.165), rtol=1e-3, atol=0)
        expected = soft_dice_loss(tap(seen[-1]).segmentation[0].softmax(1), probabilities)
        torch.testing.assert_close(loss, expected)
        losses[steps] = loss.item()
        assert all(parameter.grad is None for parameter in ss.net.parameters())
        loss.backward()
        assert ss.net.unet.encoder.stages[0][0].convs[0].conv.weight.grad.any()
    assert len(seen) == 1 + 2, "one more pass measures the direction"
    assert losses[1] > 1.5 * losses[0]


def test_weights_rise_over_the_whole_training():
    for progress, share in ((0.0, math.exp(-5)), (0.5, math.exp(-1.25)), (1.0, 1.0)):
        terms, _ = painted(ramp_up=1.0).terms(Batch(LABELED, [TARGET], UNLABELED), progress)
        assert terms["smoothness"][0] == pytest.approx(0.1 * share)
        assert terms["separation"][0] == pytest.approx(0.01 * share)
        assert terms["supervised"][0] == 1.0


def test_the_memory_is_continued_and_a_validation_does_without():
    ss, other = painted(), painted()
    ss.terms(Batch(LABELED, [TARGET], UNLABELED), 0.0)
    ss.after_step()
    other.load_state({}, strict=False)
    assert not other.memory.sizes.any()
    other.load_state(ss.state())
    assert torch.equal(other.memory.vectors, ss.memory.vectors)
    assert torch.equal(other.memory.sizes, ss.memory.sizes)
    with pytest.raises(KeyError):
        other.load_state({})


def test_selectors_learn_from_the_distance_and_not_the_features_from_the_scores():
    ss = real()
    assert len(ss.net.heads.selectors) == CLASSES - 1, "none for the background"
    rows = torch.randn(CLASSES - 1, 4, 8, requires_grad=True)
    ss.net.heads(rows).scores.sum().backward()
    assert rows.grad is None
    assert ss.net.heads.selectors[0][0].weight.grad.any()
    candidates = ss.net.heads.candidates(rows)
    torch.testing.assert_close(candidates.vectors, ss.net.heads.projection(rows.detach()))
    assert not candidates.vectors.requires_grad


def test_regions_are_refused():
    with pytest.raises(ConfigError, match="use nnUNetTrainerUniMatchV2"):
        SSNet(SSNetConfig(), replace(context(plan_of(nn.Identity())), regions=True))
