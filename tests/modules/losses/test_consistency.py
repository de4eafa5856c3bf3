"""UA-MT's terms against numbers worked out by hand, for images and volumes."""

from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_vqseg.modules.losses import consistency
from nnunetv2_vqseg.modules.losses.consistency import masked_mse, predictive_entropy

SIZES = [(1, 2), (1, 2, 1)]


def probabilities(*pixels: list[float], size: tuple[int, ...]) -> torch.Tensor:
    """(1, C, *size), the probabilities of one pixel in each list."""
    return torch.tensor(pixels).T.reshape(1, -1, *size)


@pytest.mark.parametrize("size", SIZES)
def test_entropy_by_hand(size) -> None:
    entropy = predictive_entropy(probabilities([0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0], size=size))
    assert entropy.shape == (1, *size)
    assert entropy.flatten().tolist() == pytest.approx([math.log(4), 1.5 * math.log(2)], abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_entropy_of_regions_is_that_of_each_between_inside_and_outside(size) -> None:
    entropy = predictive_entropy(probabilities([0.5, 0.25], [1.0, 0.0], size=size), regions=True)
    assert entropy.shape == (1, 2, *size)
    quarter = math.log(4) - 0.75 * math.log(3)
    assert entropy.flatten().tolist() == pytest.approx([math.log(2), 0.0, quarter, 0.0], abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_masked_error_by_hand(size) -> None:
    p = probabilities([0.7, 0.2, 0.1], [0.0, 0.0, 1.0], size=size)
    q = probabilities([0.5, 0.5, 0.0], [0.0, 1.0, 0.0], size=size)
    first, both = torch.tensor([True, False]).reshape(1, *size), torch.ones(1, *size)
    assert masked_mse(p, q, first).item() == pytest.approx((0.04 + 0.09 + 0.01) / 2)
    assert masked_mse(p, q, both).item() == pytest.approx((0.14 + 2.0) / 4)
    assert masked_mse(p, q, torch.tensor([1.0, 0.5]).reshape(1, *size)).item() == pytest.approx((0.14 + 1.0) / 3)


@pytest.mark.parametrize("size", SIZES)
def test_masked_error_of_regions_is_that_of_their_two_classes(size) -> None:
    p, q = probabilities([0.7, 0.2], [0.4, 1.0], size=size), probabilities([0.5, 0.5], [0.0, 0.0], size=size)
    mask = probabilities([1.0, 0.0], [1.0, 0.0], size=size)
    both_classes = masked_mse(
        torch.cat((p[:, :1], 1 - p[:, :1]), 1), torch.cat((q[:, :1], 1 - q[:, :1]), 1), mask[:, 0]
    )
    assert masked_mse(p, q, mask).item() == pytest.approx(both_classes.item()) == pytest.approx((0.04 + 0.16) / 2)


def test_an_empty_mask_is_zero_with_a_gradient_path() -> None:
    p = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = masked_mse(p, torch.rand(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (p.grad == 0).all()


def test_autocast_and_half_inputs_are_computed_in_float32() -> None:
    p, q = (torch.rand(2, 3, 4, 4).softmax(dim=1).bfloat16() for _ in range(2))
    mask = torch.rand(2, 4, 4) < 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, entropy = masked_mse(p, q, mask), predictive_entropy(p)
    assert loss.dtype == entropy.dtype == torch.float32
    assert torch.equal(loss, masked_mse(p.float(), q.float(), mask))
    assert torch.equal(entropy, predictive_entropy(p.float()))


def test_over_processes_the_mean_count_divides(monkeypatch) -> None:
    monkeypatch.setattr(consistency, "mean_over_processes", lambda count: 3.0 * count)
    p, q, mask = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4)
    torch.testing.assert_close(3.0 * masked_mse(p, q, mask, ddp=True), masked_mse(p, q, mask))


@pytest.mark.parametrize("mask", [(2, 4, 5), (2, 1, 4, 4), (4, 4)])
def test_masks_of_another_shape_are_refused(mask) -> None:
    with pytest.raises(ValueError, match="mask"):
        masked_mse(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.ones(mask))
