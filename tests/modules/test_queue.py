"""A queue holds what was pushed, and the oldest leave first."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.queue import ClassQueue


def numbered(*numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of one number for each class; 0 is none."""
    values = torch.tensor(numbers, dtype=torch.float32)
    return values[..., None], values != 0


def contents(queue: ClassQueue) -> list[list[int]]:
    return [vectors[:size, 0].int().tolist() for vectors, size in zip(queue.vectors, queue.sizes, strict=True)]


def test_it_holds_what_was_pushed_until_newer_ones_take_the_place_of_the_oldest():
    queue = ClassQueue.empty(2, 4, 1)
    queue = queue.pushed(*numbered([1, 0, 2], [0, 0, 0]))
    assert contents(queue) == [[1, 2], []]
    second = queue.pushed(*numbered([3, 4, 0], [0, 9, 0]))
    assert contents(second) == [[1, 2, 3, 4], [9]]
    third = second.pushed(*numbered([0, 0, 5], [8, 0, 7]))
    assert contents(third) == [[5, 2, 3, 4], [9, 8, 7]]
    assert contents(third.pushed(*numbered([6, 7, 8], [6, 5, 4]))) == [[5, 6, 7, 8], [5, 4, 7, 6]]
    assert contents(queue) == [[1, 2], []], "a push leaves the one before as it is"


def test_more_than_it_holds():
    queue = ClassQueue.empty(1, 3, 1).pushed(*numbered([0, 1, 2, 3, 4]))
    assert contents(queue) == [[1, 2, 3]]
    assert queue.ends.tolist() == [0]


@pytest.mark.parametrize("sampling", ["stratified", "antithetic", "naive"])
def test_negatives_are_all_the_vectors_of_all_other_classes(sampling):
    torch.manual_seed(0)
    queue = ClassQueue.empty(4, 5, 1).pushed(*numbered([1, 2, 3], [11, 12, 0], [0, 0, 0], [31, 32, 33]))
    for own, expected in enumerate(([11, 12, 31, 32, 33], [1, 2, 3, 31, 32, 33], [1, 2, 3, 11, 12, 31, 32, 33])):
        places = queue.draw_others(own, 3, 200, sampling)
        assert places.shape == (3, 200)
        found = queue.vectors.flatten(0, 1)[places, 0].int()
        for row in found:
            assert row.unique().tolist() == expected
        assert not torch.equal(found[0], found[1]), "each anchor has its own draw"


def test_an_empty_queue_gives_some_place():
    places = ClassQueue.empty(3, 5, 1).draw_others(1, 2, 4)
    assert ((places >= 0) & (places < 15)).all()
