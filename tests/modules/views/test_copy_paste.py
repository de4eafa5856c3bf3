"""Copy-paste: one box of two thirds of each side, and what is pasted with it."""

import pytest
import torch

from nnunetv2_vqseg.modules.views.copy_paste import (
    LabeledImages,
    both_ways,
    halves,
    join,
    organs,
    paste,
    random_box,
)
from nnunetv2_vqseg.modules.views.strong import UnlabeledView


@pytest.mark.parametrize(
    ("size", "sides"),
    [((256, 256), (170, 170)), ((9, 5), (6, 3)), ((6, 4, 1), (4, 2, 1)), ((112, 112, 80), (74, 74, 53))],
)
def test_a_box_of_two_thirds_of_each_side(size, sides):
    box = random_box(size)
    assert box.shape == (1, 1, *size)
    for axis, side in enumerate(sides):
        others = [other for other in range(len(size)) if other != axis]
        along = box[0, 0].any(dim=others) if others else box[0, 0]
        places = along.nonzero().flatten()
        assert len(places) == side
        assert places[-1] - places[0] == side - 1
    assert box.sum() == torch.tensor(sides).prod(), "a full box"


def test_every_place_is_as_likely():
    generator = torch.Generator().manual_seed(0)
    corners = torch.stack([random_box((6, 3), generator=generator)[0, 0].nonzero()[0] for _ in range(600)])
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)):
        assert (corners == torch.tensor(corner)).all(1).sum() == pytest.approx(100, abs=35)


def numbered(*values: int) -> LabeledImages:
    images = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    return LabeledImages(images, images[:, :1].long(), images[:, :1] < 10)


def test_labels_and_what_is_known_are_pasted_with_the_image():
    box = torch.tensor([[True, False, False], [True, True, False]])[None, None]
    mix = paste(box, numbered(1, 20), numbered(10, 2))
    assert mix.images[:, 1].tolist() == [[[1, 10, 10], [1, 1, 10]], [[20, 2, 2], [20, 20, 2]]]
    assert torch.equal(mix.labels, mix.images[:, :1].long())
    assert torch.equal(mix.known, mix.labels < 10)


@pytest.mark.parametrize(
    ("batch", "images", "first", "second"),
    [
        ([0, 1, 2, 3], 4, [0, 1], [2, 3]),
        ([0, 1, 2], 3, [0, 1], [2, 0]),
        ([0], 1, [0], [0]),
        ([0, 1], 4, [0, 1], [0, 1]),
        ([0], 2, [0], [0]),
    ],
)
def test_halves_of_even_odd_and_short_batches(batch, images, first, second):
    parts = halves(numbered(*batch), images)
    assert [half.labels[:, 0, 0, 0].tolist() for half in parts] == [first, second]
    assert join(*parts).images[:, 0, 0, 0].tolist() == first + second


def test_organs_are_what_is_not_background_and_a_margin():
    labels = torch.zeros(2, 5, 6, dtype=torch.long)
    labels[0, 2, 1] = 3
    assert organs(labels)[0, 0].nonzero().tolist() == [[2, 1]]
    rows, columns = organs(labels, margin=1)[0, 0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max(), len(rows)) == (1, 3, 0, 2, 9)
    assert not organs(labels, margin=1)[1].any()
    in_regions = torch.stack((labels == 3, labels == 2), 1).long()
    assert torch.equal(organs(in_regions, 1, regions=True), organs(labels, 1))
    volume = torch.zeros(1, 4, 5, 6, dtype=torch.long)
    volume[0, 2, 2, 2] = 1
    assert organs(volume, margin=1).sum() == 27
    assert organs(volume, margin=1).shape == (1, 1, 4, 5, 6)


def test_both_ways_paste_of_labelled_and_of_taught_images():
    labeled, taught = numbered(1, 2), numbered(11, 12)
    box = torch.tensor([[True, False, False], [False, False, False]])[None, None]
    seen = []
    mix = both_ways(labeled, taught, 2, lambda inside: seen.append(inside.labels[:, 0, 0, 0].tolist()) or box)
    assert seen == [[1, 12]], "what is pasted"
    assert mix.images[:, 0].tolist() == [[[1, 11, 11], [11, 11, 11]], [[12, 2, 2], [2, 2, 2]]]
    views = [
        UnlabeledView(part.images, part.labels[:, 0], part.known[:, 0].float(), part.images)
        for part in (labeled, taught)
    ]
    view = both_ways(*views, 2, lambda inside: box)
    assert torch.equal(view.labels, mix.labels[:, 0]), "labels without channels too"
    assert torch.equal(view.confidence, mix.known[:, 0].float())
