"""nnU-Net's U-Nets in small, in two and three dimensions, and what a plan would say of them."""

from __future__ import annotations

from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunetv2_vqseg.methods.base import Context
from nnunetv2_vqseg.networks.backbone import NetworkPlan

KINDS = (PlainConvUNet, ResidualEncoderUNet)
WIDTHS = (8, 16, 24, 32)
PATCH = (32, 32)
CLASSES = 4


def strides(ndim: int = 2) -> list[list[int]]:
    return [[1] * ndim, *[[2] * ndim for _ in WIDTHS[1:]]]


def unet(kind: type = PlainConvUNet, ndim: int = 2, deep_supervision: bool = True, channels: int = 1) -> Any:
    """Four stages of widths 8 to 32, four classes or regions."""
    blocks = "n_conv_per_stage" if kind is PlainConvUNet else "n_blocks_per_stage"
    return kind(
        input_channels=channels,
        n_stages=len(WIDTHS),
        features_per_stage=WIDTHS,
        conv_op=nn.Conv2d if ndim == 2 else nn.Conv3d,
        kernel_sizes=[[3] * ndim] * len(WIDTHS),
        strides=strides(ndim),
        num_classes=CLASSES,
        n_conv_per_stage_decoder=[1, 1, 1],
        norm_op=nn.InstanceNorm2d if ndim == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True, "eps": 1e-5},
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
        **{blocks: [1] * len(WIDTHS)},
    )


def plan_of(network: nn.Module, ndim: int = 2, channels: int = 1) -> NetworkPlan:
    """A plan that builds this network itself, for patches of 32 x 32 or 16 x 16 x 16."""
    return NetworkPlan(PATCH if ndim == 2 else (16, 16, 16), strides(ndim), channels, lambda: network, CLASSES)


def context(plan: NetworkPlan, **labels: Any) -> Context:
    """A training of one process on the CPU; `labels` are the context's regions and ignore label."""
    return Context(plan, torch.device("cpu"), **labels)


def tiny_vit(channels: int = 1, deep_supervision: bool = False) -> Any:
    """A ViT of timm's tests (six blocks of width 64, tokens of 16 x 16 pixels) with DPT, four classes or regions."""
    from nnunetv2_vqseg.networks.vit import ViTSegmenter

    blocks, widths = [0, 2, 3, 5], [8, 16, 32, 64]
    return ViTSegmenter(channels, CLASSES, "test_vit.r160_in1k", blocks, 11, widths, deep_supervision=deep_supervision)
