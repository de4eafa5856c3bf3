"""Largest components, by hand-drawn labels."""

import pytest
import torch

from nnunetv2_vqseg.modules.components import cleaned, largest_components


def drawn(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(pixel) for pixel in row] for row in rows])[None, None]


def test_each_class_keeps_its_largest_part_and_the_rest_becomes_background():
    labels = drawn(
        "1100200",
        "1100022",
        "0000000",
        "1012000",
        "0110000",
    )
    expected = drawn(
        "1100200",  # the 2 below touches at a corner
        "1100022",
        "0000000",
        "0000000",  # three of class 1 and one of class 2 are smaller
        "0000000",
    )
    assert torch.equal(largest_components(labels), expected)
    assert labels[0, 0, 3, 0] == 1, "the labels themselves stay"


def test_images_and_regions_are_looked_at_one_by_one():
    first, second = drawn("101", "001"), drawn("110", "001")
    labels = torch.cat((torch.cat((first, second), 1), torch.cat((second, 0 * first), 1)))
    kept = largest_components(labels)
    assert torch.equal(kept[0, 0], drawn("001", "001")[0, 0])
    assert torch.equal(kept[0, 1], second[0, 0]), "connected at a corner"
    assert torch.equal(kept[1, 0], second[0, 0])
    assert not kept[1, 1].any()


def test_volumes_are_connected_through_slices():
    labels = torch.zeros(1, 1, 3, 2, 4, dtype=torch.uint8)
    labels[0, 0, 0, 0, 0] = labels[0, 0, 1, 1, 1] = labels[0, 0, 2, 1, 2] = 3
    labels[0, 0, 0, 0, 2:] = 3
    kept = largest_components(labels)
    assert kept.dtype == torch.uint8
    assert kept.sum() == 15, "all five voxels touch over edges and corners"
    labels[0, 0, 1, 1, 1] = 0
    assert torch.equal(largest_components(labels).nonzero(), torch.tensor([[0, 0, 0, 0, 2], [0, 0, 0, 0, 3]]))


def test_the_share_that_is_left():
    kept, share = cleaned(drawn("1101", "0002"))
    assert torch.equal(kept, drawn("1100", "0002"))
    assert share.item() == pytest.approx(3 / 4)
    assert cleaned(drawn("00"))[1] == 1.0
