"""InstanceNorm and LeakyReLU as one operation: two Triton kernels forward, two backward, in either memory layout.

Only the convolution's output is kept for the backward pass. PyTorch's own InstanceNorm makes its input contiguous,
which costs a copy of each map where a network is in channels_last, as cuDNN wants it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.modules.activation import LeakyReLU

try:
    import triton
    import triton.language as tl
except ImportError:  # Windows, macOS, builds for a CPU
    triton = None

BLOCKS = 528
"""Four for each of the 132 multiprocessors of an H100: so many share out the sums of few large maps."""
ELEMENTS = 2048
"""Of a block."""


def is_available() -> bool:
    """Whether there is a Triton."""
    return triton is not None


class FusedNormLeakyReLU(nn.Module):
    """leaky_relu(instance_norm(x)) with the parameters of an InstanceNorm, under the same names.

    Without a GPU or Triton it computes the plain way. Sums are float32 in another order than PyTorch's.

    Args:
        norm: InstanceNorm2d or 3d with weight and bias, whose parameters are taken over.
        negative_slope: of the LeakyReLU, > 0.

    Raises:
        ValueError: the norm has no parameters, or running statistics.
    """

    def __init__(self, norm: Any, negative_slope: float) -> None:
        super().__init__()
        if norm.weight is None or norm.track_running_stats:
            raise ValueError("only an InstanceNorm with weight and bias and without running statistics can be fused")
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.activation = LeakyReLU(negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C, D, H, W), in the layout of x."""
        if x.device.type == "cuda" and is_available():
            return NormLeakyReLU.apply(x, self.weight, self.bias, self.eps, self.activation.negative_slope)
        return self.activation(nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps))


def use_fused_norms(network: nn.Module) -> int:
    """Fuse each InstanceNorm with the LeakyReLU right behind it; returns how many there were.

    Parameters and their names stay.
    """
    norms: dict[int, FusedNormLeakyReLU] = {}
    gone: set[int] = set()
    for container in network.modules():
        if not isinstance(container, nn.Sequential):
            continue
        parts: list[Any] = list(container)
        for norm, activation in pairwise(parts):
            is_pair = isinstance(norm, (nn.InstanceNorm2d, nn.InstanceNorm3d)) and isinstance(
                activation, (nn.LeakyReLU, LeakyReLU)
            )
            if is_pair and norm.weight is not None and not norm.track_running_stats and activation.negative_slope > 0:
                norms[id(norm)] = FusedNormLeakyReLU(norm, activation.negative_slope)
                gone.add(id(activation))
    for container in list(network.modules()):
        for name, part in list(container.named_children()):
            if id(part) in norms:
                setattr(container, name, norms[id(part)])
            elif id(part) in gone and not isinstance(container, FusedNormLeakyReLU):
                setattr(container, name, nn.Identity())
    return len(norms)


class NormLeakyReLU(torch.autograd.Function):
    """x (B, C, ...), weight (C,), bias (C,), eps, slope -> like x."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        x = _dense(x)
        place = _Place(x)
        sums = torch.zeros(*x.shape[:2], 2, device=x.device)
        mean, deviation = torch.empty(x.shape[:2], device=x.device), torch.empty(x.shape[:2], device=x.device)
        y = torch.empty_like(x)
        ends = (x, x, weight, bias, mean, deviation, sums)
        _sums[place.grid_of_sums](*ends, *place.sizes, slope, False, *place.block, place.split)
        _apply[place.grid](*ends, y, *place.sizes, eps, slope, False, *place.block)
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        ctx.slope = slope
        return y

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, bias, mean, deviation = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_layout(x))
        place = _Place(x)
        sums = torch.zeros(*x.shape[:2], 2, device=x.device)
        result = torch.empty_like(x)
        ends = (x, gradient, weight, bias, mean, deviation, sums)
        _sums[place.grid_of_sums](*ends, *place.sizes, ctx.slope, True, *place.block, place.split)
        _apply[place.grid](*ends, result, *place.sizes, 0.0, ctx.slope, True, *place.block)
        of_bias, of_weight = sums.sum(0).unbind(1)
        return result, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None


def _layout(x: Tensor) -> torch.memory_format:
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return last if x.shape[1] > 1 and x.is_contiguous(memory_format=last) else torch.contiguous_format


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_layout(x))


class _Place:
    """How a map lies in memory, and how it is shared out."""

    def __init__(self, x: Tensor) -> None:
        images, channels = x.shape[:2]
        pixels = math.prod(x.shape[2:])
        if _layout(x) is torch.contiguous_format:
            steps, width = (pixels * channels, 1, pixels), 1
        else:
            steps, width = (pixels * channels, channels, 1), min(64, triton.next_power_of_2(channels))
        rows = max(1, ELEMENTS // width)
        groups = triton.cdiv(channels, width)
        split = 1
        while images * groups * split < BLOCKS and pixels // (split * 2) >= 4 * rows:
            split *= 2
        self.sizes = (pixels, channels, *steps)
        self.block = (rows, width)
        self.split = split
        self.grid_of_sums = (images, groups, split)
        self.grid = (images, groups, triton.cdiv(pixels, rows))


if triton is not None:

    @triton.jit
    def _sums(
        x,
        g,
        weight,
        bias,
        mean,
        deviation,
        sums,
        P,
        C,
        sn,
        sp,
        sc,
        slope,
        BACK: tl.constexpr,
        BP: tl.constexpr,
        BC: tl.constexpr,
        SPLIT: tl.constexpr,
    ):
        """Forward: of x - shift and its square. Backward: of the gradient behind the norm, and times x's score."""
        n = tl.program_id(0)
        c = tl.program_id(1) * BC + tl.arange(0, BC)
        k = tl.program_id(2)
        in_c = c < C
        own = tl.cdiv(tl.cdiv(P, SPLIT), BP) * BP
        first = tl.zeros((BC,), tl.float32)
        second = tl.zeros((BC,), tl.float32)
        if BACK:
            m = tl.load(mean + n * C + c, in_c, 0.0)
            r = tl.load(deviation + n * C + c, in_c, 0.0)
            w = tl.load(weight + c, in_c, 0.0)
            b = tl.load(bias + c, in_c, 0.0)
        else:
            m = tl.load(x + n * sn + c * sc, in_c, 0.0).to(tl.float32)  # the first pixel, against cancellation
        for i in range(0, own, BP):
            p = k * own + i + tl.arange(0, BP)
            ok = (p < P)[:, None] & in_c[None, :]
            place = n * sn + p[:, None] * sp + c[None, :] * sc
            v = tl.load(x + place, ok, 0.0).to(tl.float32) - m[None, :]
            if BACK:
                score = v * r[None, :]
                d = tl.load(g + place, ok, 0.0).to(tl.float32)
                d = tl.where(score * w[None, :] + b[None, :] > 0, d, slope * d)
                first += tl.sum(d, 0)
                second += tl.sum(d * score, 0)
            else:
                v = tl.where(ok, v, 0.0)
                first += tl.sum(v, 0)
                second += tl.sum(v * v, 0)
        tl.atomic_add(sums + (n * C + c) * 2, first, in_c)
        tl.atomic_add(sums + (n * C + c) * 2 + 1, second, in_c)

    @triton.jit
    def _apply(
        x,
        g,
        weight,
        bias,
        mean,
        deviation,
        sums,
        y,
        P,
        C,
        sn,
        sp,
        sc,
        eps,
        slope,
        BACK: tl.constexpr,
        BP: tl.constexpr,
        BC: tl.constexpr,
    ):
        """Forward: y, and what the backward pass needs of each map. Backward: the gradient of x."""
        n = tl.program_id(0)
        c = tl.program_id(1) * BC + tl.arange(0, BC)
        p = tl.program_id(2) * BP + tl.arange(0, BP)
        in_c = c < C
        ok = (p < P)[:, None] & in_c[None, :]
        place = n * sn + p[:, None] * sp + c[None, :] * sc
        w = tl.load(weight + c, in_c, 0.0)[None, :]
        b = tl.load(bias + c, in_c, 0.0)[None, :]
        first = tl.load(sums + (n * C + c) * 2, in_c, 0.0) / P
        second = tl.load(sums + (n * C + c) * 2 + 1, in_c, 0.0) / P
        v = tl.load(x + place, ok, 0.0).to(tl.float32)
        if BACK:
            r = tl.load(deviation + n * C + c, in_c, 0.0)[None, :]
            score = (v - tl.load(mean + n * C + c, in_c, 0.0)[None, :]) * r
            d = tl.load(g + place, ok, 0.0).to(tl.float32)
            d = tl.where(score * w + b > 0, d, slope * d)
            out = w * r * (d - first[None, :] - score * second[None, :])
        else:
            m = tl.load(x + n * sn + c * sc, in_c, 0.0).to(tl.float32) + first
            r = 1.0 / tl.sqrt(tl.maximum(second - first * first, 0.0) + eps)
            if tl.program_id(2) == 0:
                tl.store(mean + n * C + c, m, in_c)
                tl.store(deviation + n * C + c, r, in_c)
            z = (v - m[None, :]) * r[None, :] * w + b
            out = tl.where(z > 0, z, slope * z)
        tl.store(y + place, out, ok)
