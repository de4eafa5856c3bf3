"""Classes of codes, by hand-computed counts."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.vq.code_classes import CodeClasses

# Two tokens of 2 x 2 pixels side by side: the first half class 1, half background; the second all class 2.
LABELS = torch.tensor([[[[0, 1, 2, 2], [0, 1, 2, 2]]]])
KNOWN = torch.ones(1, 1, 2, 4, dtype=torch.bool)
CODES = torch.tensor([[[3, 5]]])


def counted(momentum: float = 0.5) -> CodeClasses:
    classes = CodeClasses(num_codes=8, classes=3, momentum=momentum)
    classes.update(CODES, LABELS, KNOWN)
    return classes


def test_a_token_counts_for_each_class_by_its_share_of_the_pixels():
    expected = torch.zeros(8, 3)
    expected[3] = torch.tensor([0.5, 0.5, 0.0])
    expected[5] = torch.tensor([0.0, 0.0, 1.0])
    classes = counted()
    assert torch.equal(classes.counts, expected)
    classes.update(CODES.flip(2), LABELS, KNOWN)
    assert classes.counts[3].tolist() == [0.25, 0.25, 1.0], "half of the old counts, and the new token"


def test_pixels_without_a_label_count_nothing():
    known = KNOWN.clone()
    known[..., 1:] = False  # of the first token one column is left, of the second nothing
    classes = CodeClasses(8, 3, 0.5)
    classes.update(CODES, LABELS, known)
    assert classes.counts[3].tolist() == [1.0, 0.0, 0.0]
    assert classes.counts.sum() == 1


def test_a_label_is_left_out_where_its_class_is_rare_under_the_code():
    classes = counted()
    labels = torch.tensor([[[0, 1, 2, 1], [2, 1, 2, 2]]])
    agrees, unknown = classes.judge(labels, CODES, least_share=0.5)
    assert agrees.tolist() == [[[True, True, True, False], [False, True, True, True]]]
    assert not unknown.any()
    agrees, _ = classes.judge(labels, CODES, least_share=0.6)
    assert agrees.tolist() == [[[False, False, True, False], [False, False, True, True]]]


def test_a_code_that_labels_never_had_has_no_opinion():
    classes = counted()
    agrees, unknown = classes.judge(torch.full((1, 2, 4), 2), torch.tensor([[[0, 3]]]), least_share=0.5)
    assert unknown[0].tolist() == [[True, True, False, False]] * 2
    assert agrees[0].tolist() == [[True, True, False, False]] * 2
    classes.update(torch.tensor([[[7, 7]]]), LABELS, KNOWN)
    classes.update(torch.tensor([[[7, 7]]]), LABELS, KNOWN)
    assert classes.judge(torch.full((1, 2, 4), 2), CODES, 0.5)[1].all(), "forgotten: a quarter of a token"


def test_what_is_restored_goes_on_alike_and_another_book_is_refused():
    first, second = counted(), CodeClasses(8, 3, 0.5)
    second.load_state(first.state())
    for classes in (first, second):
        classes.update(CODES.flip(2), LABELS, KNOWN)
    assert torch.equal(first.counts, second.counts)
    with pytest.raises(ValueError, match=r"\(8, 3\) codes and classes, this training has \(9, 3\)"):
        CodeClasses(9, 3, 0.5).load_state(first.state())


def test_volumes():
    classes = CodeClasses(4, 2, 0.0)
    labels = torch.zeros(1, 1, 2, 2, 4, dtype=torch.int64)
    labels[..., 2:] = 1
    codes = torch.tensor([[[[1, 2]]]])
    classes.update(codes, labels, torch.ones_like(labels, dtype=torch.bool))
    assert classes.counts[:3].tolist() == [[0, 0], [1, 0], [0, 1]]
    assert classes.judge(labels[:, 0], codes, 0.5)[0].all()
