"""Contrast of classes and the loss of images by their sure share, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_vqseg.modules.losses.class_contrast import class_contrast, class_means
from nnunetv2_vqseg.modules.losses.image_confidence import ImageConfidenceLoss


def test_contrast_by_hand():
    anchors = torch.tensor([[2.0, 0.0], [0.0, 3.0]], requires_grad=True)
    positive = torch.tensor([5.0, 0.0], requires_grad=True)
    others = torch.tensor([[0.0, 1.0], [-4.0, 0.0], [7.0, 7.0]], requires_grad=True)
    places = torch.tensor([[0, 1], [1, 1]])
    # Cosines of the first anchor: 1 with the positive, 0 and -1; of the second: 0, and 0 twice. Over 0.5.
    first = math.log(1 + math.exp(-2) + math.exp(-4))
    loss = class_contrast(anchors, positive, others, places)
    assert loss.item() == pytest.approx((first + math.log(3)) / 2, rel=1e-5)
    loss.backward()
    assert anchors.grad[1].any()
    assert positive.grad is None
    assert others.grad is None
    hot = class_contrast(anchors, positive, others, places, temperature=1e3)
    assert hot.item() == pytest.approx(math.log(3), abs=1e-2)


def test_means_are_of_the_pixels_of_a_class():
    vectors = torch.arange(12.0).view(2, 2, 1, 3)
    labels = torch.tensor([[[0, 2, 2]], [[0, -1, 4]]])
    means, found = class_means(vectors, labels, 4)
    assert found.tolist() == [True, False, True, False]
    assert means.tolist() == [[3.0, 6.0], [0.0, 0.0], [1.5, 4.5], [0.0, 0.0]]


def test_images_count_by_their_share_of_sure_pixels():
    loss = ImageConfidenceLoss(threshold=0.97)
    margin = torch.tensor([[1.0, 2.0, -1.0, 0.5], [3.0, 1.0, 1.0, 200.0]])
    logits = torch.stack((torch.zeros_like(margin), margin), dim=1)[..., None].requires_grad_()
    labels = torch.ones(2, 4, 1, dtype=torch.int64)
    confidence = torch.tensor([[0.97, 0.99, 0.5, 0.2], [0.9, 0.96, 0.98, 0.1]])[..., None]
    entropy = (1 + (-margin).exp()).log()
    # Shares 1/2 and 1/4; the pixel whose cross entropy is 0 is not counted.
    expected = (0.5 * entropy[0].sum() + 0.25 * entropy[1, :3].sum()) / 7
    value = loss(logits, labels, confidence)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert logits.grad[0, :, 3].any(), "pixels that are not sure learn too"
    unknown = torch.where(confidence > 0.9, confidence, -1.0)
    expected = (0.5 * entropy[0, :2].sum() + 0.25 * entropy[1, 1:3].sum()) / 4
    torch.testing.assert_close(loss(logits, labels, unknown), expected)
    nothing = loss(1000 * (2 * torch.eye(2)[None, :, 1:] - 1)[..., None], labels[:1, :1], confidence[:1, :1])
    assert nothing == 0


def test_images_count_by_their_share_of_sure_pixels_of_regions():
    margin = torch.tensor([[[1.0, 2.0], [-1.0, 0.5]], [[3.0, 1.0], [1.0, 2.5]]])[..., None]  # (B, R, 2, 1)
    labels = torch.tensor([[[1, 1], [0, 1]], [[0, 1], [1, 0]]])[..., None]
    confidence = torch.tensor([[[0.97, 0.99], [0.5, 0.98]], [[0.9, 0.96], [0.98, 0.1]]])[..., None]
    entropy = (1 + (-margin * (2 * labels - 1)).exp()).log()
    expected = (0.75 * entropy[0].sum() + 0.25 * entropy[1].sum()) / 8
    torch.testing.assert_close(ImageConfidenceLoss(0.97, regions=True)(margin, labels, confidence), expected)
