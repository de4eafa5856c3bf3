"""The strong view: jitter never touches its input, CutMix treats images, labels and confidence alike."""

from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_vqseg.modules.views.cutmix import CutMixPlan, sample_cutmix_plan
from nnunetv2_vqseg.modules.views.jitter import IntensityJitter
from nnunetv2_vqseg.modules.views.strong import strong_view

NOTHING = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "blur": 0.0, "noise": 0.0}
ALWAYS = {"color_probability": 1.0, "blur_probability": 1.0, "noise_probability": 1.0}


def jitter_with(**effect: float) -> IntensityJitter:
    return IntensityJitter(**(NOTHING | effect), **ALWAYS)


def identity(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return images.clone()


def test_boxes_are_rectangles_with_the_ranges_of_area_and_aspect():
    height, width = 200, 160
    boxes = sample_cutmix_plan(400, (height, width), probability=1.0).boxes
    assert boxes.shape == (400, 1, height, width)
    assert boxes.dtype == torch.bool
    box_height = boxes.any(dim=3).sum(dim=(1, 2))
    box_width = boxes.any(dim=2).sum(dim=(1, 2))
    area = boxes.sum(dim=(1, 2, 3))
    assert torch.equal(area, box_height * box_width)  # one filled rectangle each
    share = area / (height * width)
    assert share.min() > 0.018
    assert share.max() < 0.41
    assert share.mean().item() == pytest.approx(0.21, abs=0.02)  # uniform in [0.02, 0.4]
    aspect = (box_height / height) / (box_width / width)
    assert 0.28 < aspect.min() < 0.5
    assert 2 < aspect.max() < 3.6
    assert aspect.log().mean().abs() < 0.1


def test_boxes_reach_every_corner_and_come_with_their_probability():
    boxes = sample_cutmix_plan(2000, (12, 10), probability=0.3).boxes
    assert boxes.flatten(1).any(dim=1).float().mean().item() == pytest.approx(0.3, abs=0.04)
    small = sample_cutmix_plan(2000, (12, 10), probability=1.0, area=(0.02, 0.2)).boxes
    assert small[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]].any(dim=0).all()
    assert not sample_cutmix_plan(50, (12, 10), probability=0.0).boxes.any()


def test_boxes_of_volumes_are_cuboids_with_the_range_of_shares():
    size = (60, 100, 80)
    boxes = sample_cutmix_plan(200, size, probability=1.0).boxes
    assert boxes.shape == (200, 1, *size)
    depth, height, width = (boxes.any(dim=axes).sum(dim=(1, 2)) for axes in ((3, 4), (2, 4), (2, 3)))
    share = boxes.flatten(1).float().mean(dim=1)
    torch.testing.assert_close(share, depth * height * width / boxes[0].numel())
    assert 0.015 < share.min() < 0.05
    assert 0.35 < share.max() < 0.42
    assert share.mean().item() == pytest.approx(0.21, abs=0.03)
    torch.testing.assert_close(depth / 60, share ** (1 / 3), rtol=0, atol=0.02)
    aspect = (height / 100) / (width / 80)
    assert aspect.min() < 0.6
    assert aspect.max() > 1.7
    small = sample_cutmix_plan(2000, (4, 6, 5), probability=1.0).boxes
    assert small[:, 0, [0, 0, -1, -1], [0, -1, 0, -1], [0, -1, -1, 0]].any(dim=0).all()


def test_boxes_of_volumes_draw_what_those_of_images_draw_first():
    states, chosen = [], []
    for size, further in (((30, 30), 1), ((8, 30, 30), 0)):
        generator = torch.Generator().manual_seed(3)
        chosen.append(sample_cutmix_plan(40, size, 0.5, generator=generator).boxes.flatten(1).any(dim=1))
        torch.rand(40 * further, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*chosen)
    assert torch.equal(*states)


@pytest.mark.parametrize("size", [(30, 40), (10, 30, 40)])
def test_area_and_aspect_reach_the_strong_view(size):
    """Every image gets one box of a quarter of it, as high as it is wide."""
    index = torch.arange(4.0).reshape(4, *[1] * (len(size) + 1)).expand(4, 1, *size)
    view = strong_view(index, index[:, 0], index, identity, 1.0, area=(0.25, 0.25), aspect=(1.0, 1.0))
    foreign = view.labels != index[:, 0]
    torch.testing.assert_close(foreign.flatten(1).float().mean(dim=1), torch.full((4,), 0.25), rtol=0, atol=0.02)
    plane = foreign.flatten(1, -3).any(dim=1) if len(size) == 3 else foreign
    torch.testing.assert_close(plane.any(dim=2).sum(dim=1) / 30, plane.any(dim=1).sum(dim=1) / 40, rtol=0, atol=0.03)


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_nobody_is_its_own_partner(batch):
    for _ in range(20):
        partners = sample_cutmix_plan(batch, (4, 4)).partners
        assert (partners != torch.arange(batch)).all()
        assert torch.equal(partners.sort().values, torch.arange(batch))


def test_cutmix_equals_a_loop_over_pixels():
    values = torch.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5)
    boxes = torch.rand(3, 1, 4, 5) < 0.5
    partners = torch.tensor([2, 0, 1])
    mixed = CutMixPlan(boxes, partners).apply(values)
    for b in range(3):
        for y in range(4):
            for x in range(5):
                source = partners[b] if boxes[b, 0, y, x] else b
                assert torch.equal(mixed[b, :, y, x], values[source, :, y, x])


@pytest.mark.parametrize("size", [(16, 12), (6, 16, 12)])
def test_labels_and_confidence_are_mixed_exactly_where_pixels_are(size):
    """Each image, label map and confidence map carries its index everywhere, so all three must tell the same story."""
    index = torch.arange(6).reshape(6, *[1] * len(size))
    images = index.float()[:, None].expand(6, 2, *size)
    labels = index.expand(6, *size)
    confidence = index.double()[:, None].expand(6, 3, *size)  # regions
    view = strong_view(images, labels, confidence, identity, probability=1.0)
    assert (view.labels.dtype, view.confidence.dtype) == (torch.int64, torch.float64)
    assert (view.labels != labels).flatten(1).any(dim=1).all()
    for channel in range(2):
        assert torch.equal(view.images[:, channel].long(), view.labels)
        assert torch.equal(view.clean[:, channel].long(), view.labels)
    for region in range(3):
        assert torch.equal(view.confidence[:, region].long(), view.labels)


def test_a_plan_gives_the_same_mix_whenever_it_is_applied():
    images, labels = torch.randn(4, 1, 8, 8), torch.randint(4, (4, 8, 8))
    plan = sample_cutmix_plan(4, (8, 8), probability=1.0)
    assert isinstance(plan, CutMixPlan)
    assert torch.equal(plan.apply(images), torch.where(plan.boxes, images[plan.partners], images))
    both = plan.apply(torch.cat([images, labels[:, None]], dim=1))
    assert torch.equal(both[:, 0], plan.apply(images)[:, 0])
    assert torch.equal(both[:, 1].long(), plan.apply(labels))


def test_a_batch_of_one_is_not_mixed():
    image, labels, confidence = torch.randn(1, 1, 8, 8), torch.ones(1, 8, 8), torch.rand(1, 8, 8)
    view = strong_view(image, labels, confidence, identity, probability=1.0)
    for mixed, original in zip(view, (image, labels, confidence, image), strict=True):
        assert torch.equal(mixed, original)


def test_boxes_that_do_not_fit_are_refused():
    for values, boxes in (
        ((2, 1, 8, 8), (2, 1, 8, 6)),
        ((2, 1, 3, 8, 8), (2, 1, 8, 8)),
        ((2, 1, 8, 8), (2, 1, 3, 8, 8)),
        ((2, 6, 8), (2, 1, 8, 8)),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            CutMixPlan(torch.zeros(boxes, dtype=torch.bool), torch.tensor([1, 0])).apply(torch.zeros(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_jitter_leaves_its_input_untouched_and_keeps_shape_and_dtype(dtype):
    images = torch.randn(4, 2, 9, 7).to(dtype)
    original = images.clone()
    jittered = jitter_with(brightness=0.5, contrast=0.5, gamma=0.5, blur=1.5, noise=0.2)(images)
    assert torch.equal(images, original)
    assert (jittered.shape, jittered.dtype) == (images.shape, dtype)
    assert jittered.isfinite().all()


@pytest.mark.parametrize(
    "effect", [{"brightness": 0.5}, {"contrast": 0.5}, {"gamma": 0.5}, {"blur": 2.0}, {"noise": 1}]
)
def test_every_effect_differs_between_images_and_channels(effect):
    """The same picture in every image and channel comes out different everywhere."""
    images = torch.randn(16, 16).expand(3, 2, 16, 16)
    jittered = jitter_with(**effect)(images).reshape(6, -1)
    assert torch.pdist(jittered).min() > 1e-3


def test_strength_zero_changes_nothing_and_undrawn_effects_neither():
    images = torch.randn(3, 2, 16, 16)
    torch.testing.assert_close(IntensityJitter(strength=0.0)(images), images)
    never = IntensityJitter(strength=3.0, color_probability=0.0, blur_probability=0.0, noise_probability=0.0)
    torch.testing.assert_close(never(images), images)
    with pytest.raises(ValueError, match="negative"):
        IntensityJitter(strength=-1.0)


def test_effects_do_what_they_are_called():
    images = torch.randn(200, 1, 16, 16) + 3.0
    mean, std = images.mean(dim=(2, 3)), images.std(dim=(2, 3))

    shifted = jitter_with(brightness=0.5)(images)
    shift = (shifted - images).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(shifted, images + shift, rtol=1e-4, atol=1e-4)
    assert 0.45 < shift.abs().max() <= 0.5

    stretched = jitter_with(contrast=math.log(2))(images)
    factor = stretched.std(dim=(2, 3)) / std
    torch.testing.assert_close(stretched.mean(dim=(2, 3)), mean, rtol=1e-4, atol=1e-4)
    assert 0.5 <= factor.min() < 0.6
    assert 1.8 < factor.max() <= 2.0

    bent = jitter_with(gamma=0.5)(images)
    torch.testing.assert_close(bent.amin(dim=(2, 3)), images.amin(dim=(2, 3)))
    torch.testing.assert_close(bent.amax(dim=(2, 3)), images.amax(dim=(2, 3)))
    order = images.flatten(1).argsort(dim=1)
    assert (bent.flatten(1).gather(1, order).diff(dim=1) > -1e-5).all()  # monotone

    noisy = jitter_with(noise=0.2)(images)
    assert (noisy - images).std(dim=(2, 3)).max() < 0.24
    assert (noisy - images).std() == pytest.approx(0.2 / math.sqrt(3), rel=0.15)  # sigma uniform in [0, 0.2]


def test_blur_is_a_gaussian_that_keeps_the_sum():
    """The response to an impulse has the drawn variance in both directions; sigma is at most 2 pixels."""
    images = torch.zeros(8, 1, 33, 33)
    images[:, :, 16, 16] = 1.0
    blurred = jitter_with(blur=2.0)(images)
    torch.testing.assert_close(blurred.sum(dim=(2, 3)), torch.ones(8, 1))
    offset = torch.arange(33.0) - 16
    down = (blurred.sum(dim=3) * offset**2).sum(dim=2)
    across = (blurred.sum(dim=2) * offset**2).sum(dim=2)
    torch.testing.assert_close(down, across)
    assert 1.0 < down.max() <= 4.0
    torch.testing.assert_close(blurred.amax(dim=(2, 3)), blurred[:, :, 16, 16])


def test_blur_of_volumes_goes_along_all_three_axes():
    volumes = torch.zeros(6, 1, 17, 19, 21)
    volumes[:, :, 8, 9, 10] = 1.0
    blurred = jitter_with(blur=1.5)(volumes)
    variances = []
    for axis, center in ((2, 8), (3, 9), (4, 10)):
        others = [other for other in (2, 3, 4) if other != axis]
        variances.append((blurred.sum(dim=others) * (torch.arange(volumes.shape[axis]) - center) ** 2).sum(dim=2))
    torch.testing.assert_close(variances[0], variances[1])
    torch.testing.assert_close(variances[0], variances[2])
    assert 0.5 < variances[0].max() <= 2.25


@pytest.mark.parametrize("effect", [{"brightness": 0.5}, {"contrast": 0.5}, {"gamma": 0.5}, {"noise": 1.0}])
def test_other_effects_treat_volumes_as_images_of_the_same_voxels(effect):
    volumes, jitter = torch.randn(2, 3, 4, 5, 6) + 2.0, jitter_with(**effect)
    found, expected = (jitter(images, torch.Generator().manual_seed(1)) for images in (volumes, volumes.flatten(2, 3)))
    torch.testing.assert_close(found.flatten(2, 3), expected)
    assert not torch.allclose(found, volumes, atol=0.05)


def test_jitter_survives_constant_and_tiny_images():
    assert IntensityJitter(strength=2.0)(torch.zeros(2, 1, 2, 2)).isfinite().all()


def test_a_generator_makes_the_view_repeatable():
    images = torch.randn(2, 1, 8, 8)
    once, again = (IntensityJitter()(images, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(once, again)


def test_relative_jitter_does_the_same_to_images_of_any_scale():
    images = torch.randn(4, 2, 12, 12)
    scale = torch.tensor([200.0, 0.01]).reshape(2, 1, 1)
    one, other = (
        IntensityJitter(relative=True)(values, torch.Generator().manual_seed(7)) for values in (images, images * scale)
    )
    assert not torch.allclose(one, images, atol=0.1)
    torch.testing.assert_close(other / scale, one, rtol=1e-3, atol=1e-3)


def test_a_masked_background_stays_0_and_an_unmasked_one_is_jittered():
    """As nnU-Net masks after its own intensity transforms."""
    images = torch.randn(4, 2, 16, 16) + 3.0
    images[:, :, :, 8:] = 0.0
    labels, confidence = torch.zeros(4, 16, 16, dtype=torch.int64), torch.ones(4, 16, 16)
    view = strong_view(images, labels, confidence, IntensityJitter(), probability=0.0, masked=(True, False))
    assert (view.images[:, 0, :, 8:] == 0).all()
    assert (view.images[:, 1, :, 8:] != 0).any()
    assert not torch.equal(view.images[:, 0, :, :8], images[:, 0, :, :8])
