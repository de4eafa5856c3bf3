"""`preview.png` paints teacher and student in the reference's colours."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.training.preview import _labels


@pytest.mark.parametrize(("order", "expected"), [([1, 3], [0, 1, 3]), ([2, 1], [0, 2, 1])])
def test_regions_are_painted_with_their_labels_the_later_on_top(order: list[int], expected: list[int]) -> None:
    logits = torch.tensor([[-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]]).reshape(1, 2, 1, 3)
    assert _labels(logits, order).flatten().tolist() == expected


def test_classes_are_those_with_the_largest_logit() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]).reshape(1, 3, 1, 3)
    assert _labels([logits, logits.flip(1)], None).flatten().tolist() == [0, 1, 2]
