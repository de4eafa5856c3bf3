"""Cutout: noise of the image's own range inside a box."""

import pytest
import torch

from nnunetv2_vqseg.modules.views.cutout import cutout


@pytest.mark.parametrize("size", [(32, 48), (16, 16, 24)])
def test_the_box_is_filled_with_the_channel_s_extremes(size):
    torch.manual_seed(0)
    images = torch.randn(6, 2, *size)
    changed, boxes = cutout(images, probability=1.0)
    assert boxes.shape == (6, 1, *size)
    inside = boxes.expand_as(images)
    assert torch.equal(changed[~inside], images[~inside])
    for image, new, box in zip(images, changed, boxes[:, 0], strict=True):
        assert 0.015 < box.float().mean() < 0.42
        for channel, values in zip(image, new, strict=True):
            low, high = (values[box] == channel.min()).float().mean(), (values[box] == channel.max()).float().mean()
            assert low + high == pytest.approx(1.0)
            assert 0.2 < low < 0.8


def test_some_images_are_left_as_they_are():
    torch.manual_seed(0)
    images = torch.randn(200, 1, 8, 8)
    changed, boxes = cutout(images, probability=0.25)
    assert boxes.flatten(1).any(1).float().mean() == pytest.approx(0.25, abs=0.1)
    assert torch.equal(cutout(images, probability=0.0)[0], images)
    assert not torch.equal(changed, images)
