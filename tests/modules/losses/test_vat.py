"""The adversarial direction of virtual adversarial training."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.losses.soft_dice import soft_dice_loss
from nnunetv2_vqseg.modules.losses.vat import adversarial_direction

SIZES = pytest.mark.parametrize("size", [(2, 2, 6, 5), (2, 1, 3, 4, 5)])


def network(size: tuple[int, ...]) -> torch.nn.Module:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d if len(size) == 4 else torch.nn.Conv3d
    return torch.nn.Sequential(conv(size[1], 8, 3, padding=1), torch.nn.Tanh(), conv(8, 3, 3, padding=1))


@SIZES
def test_it_raises_the_loss_more_than_a_random_one_of_the_same_length(size):
    net, images = network(size), torch.randn(size)
    reference = net(images).softmax(1).detach()

    def divergence(change: torch.Tensor) -> torch.Tensor:
        return soft_dice_loss(net(images + change).softmax(1), reference)

    found = adversarial_direction(divergence, images, xi=0.275)
    random = [adversarial_direction(divergence, images, xi=0.275, steps=0) for _ in range(20)]
    for direction in (found, *random):
        torch.testing.assert_close(direction.flatten(1).square().mean(1), torch.ones(2))
        assert not direction.requires_grad
    losses = torch.stack([divergence(0.165 * direction) for direction in random])
    assert divergence(0.165 * found) > 1.5 * losses.max()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_of_a_square_it_is_the_steepest_axis():
    # The divergence is sum of (a x)^2 with a = 1 and 3; its gradient at a direction d is along a^2 d: one step of the
    # power iteration multiplies the ratio of both parts by 9.
    scale = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    images = torch.zeros(1, 1, 1, 2)
    ratios = []
    for steps in range(3):
        generator = torch.Generator().manual_seed(3)
        direction = adversarial_direction(
            lambda change: (scale * change).square().sum(), images, 0.1, steps, generator
        ).flatten()
        ratios.append(float(direction[1] / direction[0]))
    assert ratios[1] == pytest.approx(9 * ratios[0], rel=1e-4)
    assert ratios[2] == pytest.approx(81 * ratios[0], rel=1e-4)


def test_small_gradients_do_not_underflow_and_none_gives_no_direction():
    images = torch.zeros(2, 1, 4, 4)
    only_first = torch.tensor([1e-30, 0.0]).view(2, 1, 1, 1)
    direction = adversarial_direction(lambda change: (only_first * change).sum(), images, 1.0)
    torch.testing.assert_close(direction[0], torch.ones(1, 4, 4))
    assert torch.equal(direction[1], torch.zeros(1, 4, 4))


def test_soft_dice_of_probabilities_by_hand():
    p = torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)
    q = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    both = torch.cat((p, 1 - p), 1), torch.cat((q, 1 - q), 1)
    # Class 0: 2 (0.5) / (0.25 + 1 + 1) = 4/9. Class 1: 2 (0) / (0.25 + 1) = 0.
    assert soft_dice_loss(*both).item() == pytest.approx(1 - (4 / 9 + 0.0) / 2)
    assert soft_dice_loss(both[0], both[0]).item() == pytest.approx(0.0, abs=1e-6)
    twice = [torch.cat((values, values)) for values in both]
    assert soft_dice_loss(*twice).item() == pytest.approx(1 - 4 / 9 / 2), "sums are over the batch"
    with pytest.raises(ValueError, match="differ in shape"):
        soft_dice_loss(p, both[0])
