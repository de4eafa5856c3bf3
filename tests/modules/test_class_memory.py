"""The memory holds what was pushed into it, and the distance from it, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_vqseg.modules.class_memory import ClassMemory
from nnunetv2_vqseg.modules.losses.prototype import memory_distance


def candidates() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of class 0 four of which one is not there, of class 1 one, of class 2 none."""
    vectors = torch.arange(24.0).view(3, 4, 2)
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.3, 0.0, 0.0, 0.0], [0.0] * 4])
    valid = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
    return vectors, scores, valid


@pytest.mark.parametrize(("keeps", "first"), [("lowest", [1, 2]), ("highest", [0, 2])])
def test_it_holds_the_vectors_with_the_lowest_or_highest_scores(keeps, first):
    vectors, scores, valid = candidates()
    memory = ClassMemory.empty(3, 2, 2).replaced(vectors, scores, valid, keeps)
    assert memory.sizes.tolist() == [2, 1, 0]
    assert torch.equal(memory.vectors[0], vectors[0, first])
    assert torch.equal(memory.vectors[1], torch.stack((vectors[1, 0], torch.zeros(2))))
    assert memory.held.tolist() == [[True, True], [True, False], [False, False]]


def test_absent_classes_keep_what_they_have_and_present_ones_lose_it():
    vectors, scores, valid = candidates()
    full = ClassMemory(torch.full((3, 2, 2), -1.0), torch.tensor([2, 2, 2]))
    memory = full.replaced(vectors, scores, valid)
    assert memory.sizes.tolist() == [2, 1, 2]
    assert torch.equal(memory.vectors[2], full.vectors[2])
    assert not (memory.vectors[:2] == -1).any()
    assert (full.vectors == -1).all(), "the old one is as it was"


def test_a_memory_larger_than_the_candidates():
    vectors, scores, valid = candidates()
    memory = ClassMemory.empty(3, 9, 2).replaced(vectors, scores, valid)
    assert memory.sizes.tolist() == [3, 1, 0]
    assert torch.equal(memory.vectors[0, :3], vectors[0, [1, 2, 0]])
    assert not memory.vectors[0, 3:].any()


def test_distance_is_the_weighted_mean_of_one_minus_cosine():
    memory = ClassMemory(torch.tensor([[[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]]]), torch.tensor([2]))
    half = math.sqrt(0.5)
    vectors = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]], requires_grad=True)
    scores = torch.tensor([[0.2, 0.6, 0.9]])
    valid = torch.tensor([[True, True, False]])
    # Cosines of the first: 1 and 0; of the second: 0.707 twice. Scores 0.2 and 0.6 scaled to mean 1 are 0.5 and 1.5.
    expected = (0.5 * (0 + 1) + 1.5 * 2 * (1 - half)) / 4
    loss = memory_distance(vectors, scores, valid, memory)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.sum().backward()
    torch.testing.assert_close(vectors.grad[0, 1], torch.zeros(2))  # between both already
    assert not vectors.grad[0, 2].any()


@pytest.mark.parametrize(("held", "number"), [(1, 2), (2, 1), (0, 2), (2, 0)])
def test_one_vector_is_too_few(held, number):
    memory = ClassMemory(torch.randn(1, 2, 3), torch.tensor([held]))
    vectors = torch.randn(1, 2, 3, requires_grad=True)
    scores = torch.full((1, 2), 0.5, requires_grad=True)
    loss = memory_distance(vectors, scores, torch.arange(2)[None] < number, memory)
    assert loss.tolist() == [0.0]
    loss.sum().backward()
    assert not vectors.grad.any()
    assert not scores.grad.any()
