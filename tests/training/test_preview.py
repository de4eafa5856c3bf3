"""`preview.png` paints teacher and student in the reference's colours."""

from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes

from nnunetv2_vqseg.methods.base import Context
from nnunetv2_vqseg.methods.vqseg import VQSeg, VQSegConfig
from nnunetv2_vqseg.modules.losses.reconstruction import channel_scale
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.networks.vq import VQSegNet
from nnunetv2_vqseg.trainer.preview import PreviewSlices, _labels, draw_preview


@pytest.mark.parametrize(("order", "expected"), [([1, 3], [0, 1, 3]), ([2, 1], [0, 2, 1])])
def test_regions_are_painted_with_their_labels_the_later_on_top(order: list[int], expected: list[int]) -> None:
    logits = torch.tensor([[-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]]).reshape(1, 2, 1, 3)
    assert _labels(logits, order).flatten().tolist() == expected


def test_classes_are_those_with_the_largest_logit() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]).reshape(1, 3, 1, 3)
    assert _labels([logits, logits.flip(1)], None).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("standardized", [False, True])
def test_reconstruction_is_shown_in_the_image_s_units(tmp_path, monkeypatch, standardized: bool) -> None:
    images = 1000 + 300 * torch.randn(2, 1, 16, 16)
    mean, std = channel_scale(images)
    method = VQSeg(
        VQSegConfig(foundation_policy="off"),
        Context(NetworkPlan((16, 16), [[1, 1]], 1, torch.nn.Identity), device="cpu", z_scored=not standardized),
    )
    method.student = VQSegNet.__new__(VQSegNet)
    torch.nn.Module.__init__(method.student)
    method.student.image_decoder = torch.nn.Identity()
    method.student.reconstruct = lambda x: (x - mean) / std if standardized else x
    method.teacher = method.student.predict_perturbed = lambda x: torch.zeros(2, 3, 16, 16)
    shown = []
    monkeypatch.setattr(Axes, "imshow", lambda axis, values, **more: shown.append(torch.as_tensor(values)))
    slices = PreviewSlices(images, torch.zeros(2, 16, 16, dtype=torch.long), ["a", "b"])
    draw_preview(tmp_path / "preview.png", slices, method, None, "cpu")
    torch.testing.assert_close(shown[1], images[0, 0], rtol=1e-4, atol=1e-2)
    assert len(shown) == 2 * (2 + 2 * 3)
