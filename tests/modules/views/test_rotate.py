"""Quarter turns and flips: exact, the same for all scales, and only such as keep every shape."""

import pytest
import torch

from nnunetv2_vqseg.modules.views.rotate import Turn, sample_turn


def test_a_quarter_turn_and_a_flip_by_hand():
    image = torch.tensor([[[[1, 2], [3, 4]]]])
    assert Turn(1).apply(image).tolist() == [[[[2, 4], [1, 3]]]]
    assert Turn(2).apply(image).tolist() == [[[[4, 3], [2, 1]]]]
    assert Turn(1, (-1,)).apply(image).tolist() == [[[[4, 2], [3, 1]]]]
    assert image.tolist() == [[[[1, 2], [3, 4]]]]


def test_volumes_keep_their_slices_unless_flipped():
    volume = torch.arange(8).view(1, 1, 2, 2, 2)
    turned = Turn(1).apply(volume)
    assert all(torch.equal(turned[:, :, z], Turn(1).apply(volume[:, :, z])) for z in range(2))
    assert torch.equal(Turn(1, (-3,)).apply(volume), turned.flip(2))


@pytest.mark.parametrize(
    ("sizes", "quarters"),
    [([(4, 4), (2, 2)], {1, 2, 3}), ([(4, 6)], {2}), ([(4, 4), (2, 4)], {2}), ([(3, 4, 4)], {1, 2, 3})],
)
def test_only_turns_that_keep_every_shape(sizes, quarters):
    turns = [sample_turn(sizes) for _ in range(60)]
    assert {turn.quarters for turn in turns} == quarters
    for size in sizes:
        assert all(turn.apply(torch.zeros(1, 1, *size)).shape[2:] == size for turn in turns)
    axes = {axis for turn in turns for axis in turn.flips}
    assert axes == {-1 - axis for axis in range(len(sizes[0]))}


def test_flips_have_their_chance():
    assert all(sample_turn([(2, 2)], 0.0).flips == () for _ in range(20))
    assert all(sample_turn([(2, 2)], 1.0).flips == (-1, -2) for _ in range(20))
