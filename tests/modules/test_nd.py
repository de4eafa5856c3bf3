"""What is shared by images and volumes, and that volumes are refused where there is no third dimension."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.foundation import FoundationModel
from nnunetv2_vqseg.modules.nd import channel_dropout, spatial_axes


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_dropout_takes_whole_channels(size) -> None:
    dropped = channel_dropout(torch.ones(50, 40, *size), 0.3).flatten(2)
    assert (dropped == dropped[..., :1]).all()
    assert (dropped[..., 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)
    torch.testing.assert_close(dropped.amax(), torch.tensor(1 / 0.7))


def test_dropout_of_images_draws_as_pytorch_s() -> None:
    images, draws = torch.randn(3, 4, 5, 6), []
    for dropout in (channel_dropout, F.dropout2d):
        torch.manual_seed(1)
        draws.append(dropout(images, 0.5))
    assert torch.equal(*draws)


def test_other_numbers_of_dimensions_are_refused() -> None:
    assert spatial_axes(torch.ones(1, 1, 2, 2)) == (2, 3)
    assert spatial_axes(torch.ones(1, 1, 2, 2, 2)) == (2, 3, 4)
    for shape in ((1, 2, 3), (1, 1, 2, 2, 2, 2)):
        with pytest.raises(ValueError, match="expected"):
            spatial_axes(torch.ones(shape))


def test_what_is_truly_2d_refuses_volumes() -> None:
    model = FoundationModel("test_vit.r160_in1k", image_size=32, random_weights=True)
    volumes = torch.randn(1, 3, 4, 32, 32)
    for call in (model, model.foreground, lambda z: PostVQFeatureAdapter(3, 4)(z, (2, 2))):
        with pytest.raises(ValueError, match="2D images"):
            call(volumes)
