"""Intensity jitter of the strong view (Section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.nd import CONVOLVE, spatial_axes


@dataclass(frozen=True)
class IntensityJitter:
    """Random brightness, contrast, gamma, blur and noise, drawn anew for every image and channel.

    Made for z-scored images: strengths are in units of the standard deviation 1, or with `relative` of the channel's
    own. Each effect is applied to an image channel with its own probability.

    Args:
        strength: scales the ranges below all at once; 0 leaves the images as they are.
        brightness: largest shift either way.
        contrast: largest log of the factor about the channel's mean, either way.
        gamma: largest log of the exponent, either way; the channel's range of intensities stays as it is.
        blur: largest standard deviation of the Gaussian, in pixels, along every axis.
        noise: largest standard deviation of the noise.
        color_probability: chance of each of brightness, contrast and gamma.
        blur_probability, noise_probability: chance of blur and of noise.
        relative: brightness and noise are shares of the standard deviation of the image's channel, for images that are
            not z-scored.

    Raises:
        ValueError: a negative strength.
    """

    strength: float = 1.0
    brightness: float = 0.5
    contrast: float = 0.5
    gamma: float = 0.5
    blur: float = 1.5
    noise: float = 0.2
    color_probability: float = 0.8
    blur_probability: float = 0.5
    noise_probability: float = 0.5
    relative: bool = False

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength must not be negative, got {self.strength}")

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, H, W) or (B, C, D, H, W) z-scored images -> a new tensor of the same shape and dtype."""
        axes = spatial_axes(images)
        channels = (*images.shape[:2], *[1] * len(axes))

        def drawn(low: float, high: float, probability: float) -> Tensor:
            # One number a channel; 0 means for every effect that it changes nothing.
            chance, draw = torch.rand((2, *channels), device=images.device, generator=generator)
            return torch.where(chance < probability, low + (high - low) * draw, 0.0)

        effects = (self.brightness, self.contrast, self.gamma, self.blur, self.noise)
        brightness, contrast, gamma, blur, noise = (self.strength * effect for effect in effects)
        values = images.float()
        mean = values.mean(dim=axes, keepdim=True)
        factor = drawn(-contrast, contrast, self.color_probability).exp()
        shift = drawn(-brightness, brightness, self.color_probability)
        unit = values.std(dim=axes, keepdim=True) if self.relative else 1.0
        values = (values - mean) * factor + mean + shift * unit
        low = values.amin(dim=axes, keepdim=True)
        span = (values.amax(dim=axes, keepdim=True) - low).clamp(min=1e-6)
        exponent = drawn(-gamma, gamma, self.color_probability).exp()
        values = ((values - low) / span).pow(exponent) * span + low
        sigma = drawn(0.0, blur, self.blur_probability)
        values = _gaussian_blur(values, sigma, radius=math.ceil(3 * blur))
        spread = drawn(0.0, noise, self.noise_probability) * unit
        return (values + spread * torch.randn(values.shape, device=values.device, generator=generator)).to(images.dtype)


def _gaussian_blur(values: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable blur with a standard deviation per channel, sigma (B, C, 1, ...); sigma 0 changes nothing."""
    ndim = values.ndim - 2
    stack = values.flatten(0, 1)[None]
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    kernels = (-0.5 * (offsets / sigma.reshape(-1, 1).clamp(min=1e-3)) ** 2).exp()  # (B * C, 2 * radius + 1)
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    with torch.autocast(device_type=values.device.type, enabled=False):
        stack = F.pad(stack, (radius,) * 2 * ndim, mode="replicate")
        for axis in range(ndim):
            kernel = kernels.view(len(kernels), *[1] * (axis + 1), -1, *[1] * (ndim - axis - 1))
            stack = CONVOLVE[ndim](stack, kernel, groups=len(kernels))
    return stack.reshape(values.shape)
