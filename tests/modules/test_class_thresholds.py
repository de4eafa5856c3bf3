"""Class-wise thresholds, by hand-computed running means."""

import pytest
import torch

from nnunetv2_vqseg.modules.class_thresholds import ClassThresholds

# Class 0: confidence 1.0, 0.8; class 1: 0.6; class 2 nowhere.
LABELS = torch.tensor([[[0, 0], [1, 1]]])
CONFIDENCE = torch.tensor([[[1.0, 0.8], [0.7, 0.5]]])


def test_freematch_follows_the_mean_confidence_of_each_class_and_of_all():
    thresholds = ClassThresholds("freematch", classes=3, threshold=0.95, momentum=0.5)
    torch.testing.assert_close(thresholds.thresholds, torch.full((3,), 1 / 3))
    thresholds.update(LABELS, CONFIDENCE)
    # halfway from 1/3 to the means 0.9 and 0.6; no pixel of class 2; all: to 0.75
    sureness = torch.tensor([(1 / 3 + 0.9) / 2, (1 / 3 + 0.6) / 2, 1 / 3])
    torch.testing.assert_close(thresholds.sureness, sureness)
    overall = (1 / 3 + 0.75) / 2
    torch.testing.assert_close(thresholds.thresholds, overall * sureness / sureness[0])


def test_flexmatch_follows_the_share_of_each_class_that_reaches_the_threshold():
    thresholds = ClassThresholds("flexmatch", classes=3, threshold=0.7, momentum=0.5)
    assert thresholds.thresholds.tolist() == [0.0, 0.0, 0.0], "everything counts before anything is learned"
    thresholds.update(LABELS, CONFIDENCE)
    torch.testing.assert_close(thresholds.sureness, torch.tensor([0.5, 0.25, 0.0]))
    # b = 1, 0.5, 0; b / (2 - b) = 1, 1/3, 0
    torch.testing.assert_close(thresholds.thresholds, torch.tensor([0.7, 0.7 / 3, 0.0]))
    judged = thresholds.judge(torch.tensor([0, 0, 1, 1]), torch.tensor([0.71, 0.69, 0.24, 0.23]))
    assert judged.tolist() == [1, -1, 1, -1]


def test_each_region_has_a_threshold_inside_and_one_outside():
    thresholds = ClassThresholds("freematch", classes=4, threshold=0.95, momentum=0.0, regions=True)
    labels = torch.tensor([[[[0, 1]], [[1, 1]]]])  # (1, R=2, 1, 2)
    confidence = torch.tensor([[[[0.9, 0.6]], [[0.8, 1.0]]]])
    thresholds.update(labels, confidence)
    torch.testing.assert_close(thresholds.sureness, torch.tensor([0.9, 0.6, 0.25, 0.9]))
    expected = 0.825 * torch.tensor([0.9, 0.6, 0.25, 0.9]) / 0.9
    torch.testing.assert_close(thresholds.thresholds, expected)
    judged = thresholds.judge(labels, torch.tensor([[[[0.82, 0.56]], [[0.83, 0.82]]]]))
    assert judged.tolist() == [[[[-1, 1]], [[1, -1]]]]


@pytest.mark.parametrize("rule", ["freematch", "flexmatch"])
def test_what_is_restored_goes_on_alike(rule):
    first, second = (ClassThresholds(rule, 3, 0.7, 0.9) for _ in range(2))
    first.update(LABELS, CONFIDENCE)
    second.load_state(first.state())
    for thresholds in (first, second):
        thresholds.update(LABELS, CONFIDENCE.flip(1))
    assert torch.equal(first.thresholds, second.thresholds)


def test_a_broken_image_leaves_no_trace():
    thresholds = ClassThresholds("freematch", 3, 0.95, 0.5)
    thresholds.update(LABELS, CONFIDENCE)
    before = thresholds.thresholds
    thresholds.update(torch.zeros_like(LABELS), torch.full_like(CONFIDENCE, float("nan")))
    assert torch.equal(thresholds.thresholds, before)
