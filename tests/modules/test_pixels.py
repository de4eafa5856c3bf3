"""Pixels of each class, and the features at them."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.pixels import draw_per_class, features_at


@pytest.mark.parametrize("size", [(3, 20, 20), (2, 6, 10, 10)])
def test_each_class_gets_its_own_pixels_without_repetition(size):
    torch.manual_seed(0)
    labels = torch.randint(-1, 5, size)  # -1, 3 and 4 are not drawn
    labels[labels == 2] = 0
    labels[0].view(-1)[:7] = 2
    drawn = draw_per_class(labels, 3, 50)
    assert drawn.places.shape == drawn.valid.shape == (3, 50)
    assert drawn.valid.sum(1).tolist() == [50, 50, 7]
    for number in range(3):
        index = drawn.places[number, drawn.valid[number]]
        assert (labels.flatten()[index] == number).all()
        assert len(index.unique()) == len(index)


def test_every_pixel_of_a_class_has_the_same_chance():
    labels = torch.tensor([[0, 1, 1, 0, 1, 0]])
    counts = torch.zeros(6)
    for _ in range(2000):
        counts[draw_per_class(labels, 2, 1).places.flatten()] += 1
    assert counts.sum() == 4000
    assert (counts / 2000 - 1 / 3).abs().max() < 0.05


def test_a_class_of_high_number_and_a_small_image():
    labels = torch.full((1, 3), 254)
    drawn = draw_per_class(labels, 255, 8)
    assert drawn.valid.sum(1).nonzero().flatten().tolist() == [254]
    assert drawn.places[254].sort().values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_features_are_those_of_the_pixel(size):
    features = torch.randn(size, requires_grad=True)
    pixels = size[0] * features[0, 0].numel()
    index = torch.randperm(pixels)[:6].view(2, 3)
    expected = features.movedim(1, -1).reshape(pixels, 3)[index]
    found = features_at(features, index)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert features.grad.sum() == 6 * 3
