"""The strong view x_a of unlabelled images: intensity jitter, then CutMix inside the batch (Section 4.2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class CutMixPlan(NamedTuple):
    """Which pixels of which image are replaced by whose; the same plan serves images, labels and confidence.

    boxes: (B, 1, H, W) bool, True where the partner's pixels are pasted.
    partners: (B,) int64, for every image the index of the one it is pasted from.
    """

    boxes: Tensor
    partners: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """`cutmix` of (B, ..., H, W) values of any dtype; a new tensor."""
        return cutmix(values, self.boxes, self.partners)


class UnlabeledView(NamedTuple):
    """A view of unlabelled images and what it is compared with, all mixed by the same CutMix plan where there is one.

    images: (B, C, H, W).
    labels, confidence: (B, H, W), or (B, R, H, W) for regions, of the teacher.
    clean: (B, C, H, W), the images before the jitter.
    """

    images: Tensor
    labels: Tensor
    confidence: Tensor
    clean: Tensor


def sample_cutmix_boxes(
    batch: int,
    height: int,
    width: int,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One random box per image, with UniMatch's ranges of area and aspect ratio.

    Args:
        probability: chance in [0, 1] that an image gets a box at all.
        area: range of the box's share of the image, uniform.
        aspect: range of the box's height / width in units of the image's, log-uniform, narrowed where a box of the
            drawn area would not fit.

    Returns:
        (B, 1, H, W) bool, True inside the box, all False for an image without one.
    """

    def uniform() -> Tensor:
        return torch.rand(batch, device=device, generator=generator)

    share = area[0] + (area[1] - area[0]) * uniform()
    lowest, highest = share.clamp(min=aspect[0]).log(), (1 / share).clamp(max=aspect[1]).log()
    ratio = (lowest + (highest - lowest) * uniform()).exp()
    box_height = ((share * ratio).sqrt() * height).round().clamp(1, height)
    box_width = ((share / ratio).sqrt() * width).round().clamp(1, width)
    top = (uniform() * (height - box_height + 1)).floor()
    left = (uniform() * (width - box_width + 1)).floor()
    rows = torch.arange(height, device=device)[None]  # (1, H)
    columns = torch.arange(width, device=device)[None]  # (1, W)
    in_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])  # (B, W)
    in_rows &= (uniform() < probability)[:, None]
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def sample_cutmix_plan(
    batch: int,
    height: int,
    width: int,
    probability: float = 0.5,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> CutMixPlan:
    """Boxes and partners for a batch; no image is its own partner unless it is alone, where CutMix does nothing."""
    boxes = sample_cutmix_boxes(batch, height, width, probability, device=device, generator=generator)
    ring = torch.randperm(batch, device=device, generator=generator)
    partners = torch.empty_like(ring)
    partners[ring] = ring.roll(1)
    return CutMixPlan(boxes, partners)


def cutmix(values: Tensor, boxes: Tensor, partners: Tensor) -> Tensor:
    """Pastes each image's partner into its box.

    Args:
        values: (B, ..., H, W), any dtype and any number of dimensions in between.
        boxes: (B, 1, H, W) bool.
        partners: (B,) int64.

    Returns:
        A new tensor like `values`.

    Raises:
        ValueError: batch or image size of `values` and `boxes` differ.
    """
    batch, _, height, width = boxes.shape
    if values.shape[0] != batch or values.shape[-2:] != (height, width):
        raise ValueError(f"values {tuple(values.shape)} do not fit the boxes {tuple(boxes.shape)}")
    inside = boxes.reshape(batch, *[1] * (values.ndim - 3), height, width)
    return torch.where(inside, values[partners], values)


class IntensityJitter:
    """Random brightness, contrast, gamma, blur and noise, drawn anew for every image and channel.

    Made for z-scored images: strengths are in units of the standard deviation 1, or with `relative` of the channel's
    own. Each effect is applied to an image channel with its own probability.

    Args:
        strength: scales the ranges below all at once; 0 leaves the images as they are.
        brightness: largest shift either way.
        contrast: largest log of the factor about the channel's mean, either way.
        gamma: largest log of the exponent, either way; the channel's range of intensities stays as it is.
        blur: largest standard deviation of the Gaussian, in pixels.
        noise: largest standard deviation of the noise.
        color_probability: chance of each of brightness, contrast and gamma.
        blur_probability, noise_probability: chance of blur and of noise.
        relative: brightness and noise are shares of the standard deviation of the image's channel, for images that are
            not z-scored.

    Raises:
        ValueError: a negative strength.
    """

    def __init__(
        self,
        strength: float = 1.0,
        brightness: float = 0.5,
        contrast: float = 0.5,
        gamma: float = 0.5,
        blur: float = 1.5,
        noise: float = 0.2,
        color_probability: float = 0.8,
        blur_probability: float = 0.5,
        noise_probability: float = 0.5,
        relative: bool = False,
    ):
        if strength < 0:
            raise ValueError(f"strength must not be negative, got {strength}")
        self.brightness = strength * brightness
        self.contrast = strength * contrast
        self.gamma = strength * gamma
        self.blur = strength * blur
        self.noise = strength * noise
        self.color_probability = color_probability
        self.blur_probability = blur_probability
        self.noise_probability = noise_probability
        self.relative = relative

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, H, W) z-scored images -> a new tensor of the same shape and dtype."""

        def drawn(low: float, high: float, probability: float) -> Tensor:
            # (B, C, 1, 1); 0 means for every effect that it changes nothing.
            chance, draw = torch.rand((2, *images.shape[:2], 1, 1), device=images.device, generator=generator)
            return torch.where(chance < probability, low + (high - low) * draw, 0.0)

        values = images.float()
        mean = values.mean(dim=(2, 3), keepdim=True)
        factor = drawn(-self.contrast, self.contrast, self.color_probability).exp()
        shift = drawn(-self.brightness, self.brightness, self.color_probability)
        unit = values.std(dim=(2, 3), keepdim=True) if self.relative else 1.0
        values = (values - mean) * factor + mean + shift * unit
        low = values.amin(dim=(2, 3), keepdim=True)
        span = (values.amax(dim=(2, 3), keepdim=True) - low).clamp(min=1e-6)
        exponent = drawn(-self.gamma, self.gamma, self.color_probability).exp()
        values = ((values - low) / span).pow(exponent) * span + low
        sigma = drawn(0.0, self.blur, self.blur_probability)
        values = _gaussian_blur(values, sigma, radius=math.ceil(3 * self.blur))
        strength = drawn(0.0, self.noise, self.noise_probability)
        noise = torch.randn(values.shape, device=values.device, generator=generator)
        return (values + strength * unit * noise).to(images.dtype)


def strong_view(
    images: Tensor, labels: Tensor, confidence: Tensor, jitter: IntensityJitter, probability: float = 0.5
) -> UnlabeledView:
    """Intensity jitter, then CutMix inside the batch, with labels and confidence mixed in the same way.

    Args:
        images: (B, C, H, W) weak view; labels, confidence: (B, ..., H, W) of the teacher.
        probability: chance of an image to get a box.

    Returns:
        New tensors; a batch of one is jittered only.
    """
    batch, _, height, width = images.shape
    plan = sample_cutmix_plan(batch, height, width, probability, device=images.device)
    return UnlabeledView(plan.apply(jitter(images)), plan.apply(labels), plan.apply(confidence), plan.apply(images))


def _gaussian_blur(values: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable blur with a standard deviation (B, C, 1, 1) per channel; sigma 0 changes nothing."""
    batch, channels, height, width = values.shape
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    kernels = (-0.5 * (offsets / sigma.reshape(-1, 1).clamp(min=1e-3)) ** 2).exp()  # (B * C, 2 * radius + 1)
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    stack = values.reshape(1, batch * channels, height, width)
    with torch.autocast(device_type=values.device.type, enabled=False):
        stack = F.pad(stack, (radius,) * 4, mode="replicate")
        stack = F.conv2d(stack, kernels[:, None, :, None], groups=batch * channels)
        stack = F.conv2d(stack, kernels[:, None, None, :], groups=batch * channels)
    return stack.reshape(values.shape)
