"""nnU-Net's labels: what is ignored, and the nearest pixel at coarser scales."""

import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

from nnunetv2_vqseg.modules.targets import at_scales, at_size, split_ignored


def test_ignored_pixels_are_unknown_background():
    target = torch.tensor([0, 1, 3, 2]).view(1, 1, 2, 2)
    labels, known = split_ignored(target, ignore_label=3)
    assert labels.flatten().tolist() == [0, 1, 0, 2]
    assert known.flatten().tolist() == [True, True, False, True]
    labels, known = split_ignored(target)
    assert torch.equal(labels, target)
    assert known.all()


def test_the_last_channel_of_regions_says_what_is_ignored():
    target = torch.tensor([[1, 1], [0, 1], [0, 1]], dtype=torch.bool).view(1, 3, 1, 2)
    labels, known = split_ignored(target, regions=True, ignore_label=4)
    assert labels.tolist() == [[[[1, 0]], [[0, 0]]]]
    assert known.tolist() == [[[[True, False]]]]
    labels, known = split_ignored(target, regions=True)
    assert labels.shape == (1, 3, 1, 2)
    assert known.shape == (1, 1, 1, 2)
    assert known.all()


def test_coarser_labels_are_those_of_nnunet():
    labels = torch.randint(5, (1, 16, 24), dtype=torch.int16)
    for level in DownsampleSegForDSTransform([[1, 1], [0.5, 0.5], [0.25, 0.5]])._apply_to_segmentation(labels):
        mine = at_size(labels[None], level.shape[1:])
        assert mine.dtype == torch.int16
        assert torch.equal(mine[0], level)
    volume = torch.arange(8).view(1, 1, 2, 2, 2) > 3
    assert at_size(volume, (1, 2, 2)).all(), "the second of two slices"


def test_a_target_for_every_output():
    target, outputs = torch.randint(3, (2, 1, 8, 12)), [torch.zeros(2, 3, 8, 12), torch.zeros(2, 3, 4, 6)]
    first, second = at_scales(target, outputs)
    assert torch.equal(first, target)
    assert torch.equal(second, target[..., 1::2, 1::2])
