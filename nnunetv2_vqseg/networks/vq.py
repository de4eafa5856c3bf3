"""The planned U-Net with one vector-quantised encoder stage (Section 3, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.modules.image_decoder import ImageDecoder
from nnunetv2_vqseg.modules.nd import channel_dropout
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation
from nnunetv2_vqseg.modules.vq.quantizer import VectorQuantizer
from nnunetv2_vqseg.networks.backbone import Logits, NetworkPlan, Strides, backbone_of
from nnunetv2_vqseg.networks.planned import StageConfig, stage_of


@dataclass(frozen=True)
class VQArchitecture(StageConfig):
    """What prediction needs to know about the quantiser."""

    quantize: Annotated[bool, "vector-quantise one encoder stage (3.3, Eq. 2)"] = True
    decoder_input: Annotated[
        Literal["quantized", "continuous"],
        "what deeper stages and the segmentation decoder read: q(z) as in the paper, or z itself, which QPM then moves "
        "by c_j - c_i",
    ] = "continuous"
    num_codes: Annotated[int, Range(2, 1_048_576), "codebook size K (4.2, Table 5)"] = 16_384
    code_dim: Annotated[
        int | None, Range(1, 4096), "width of a code; null: the stage's width, without projections (literal)"
    ] = 16
    normalize_codes: Annotated[bool, "compare tokens and codes by angle (LayerNorm, then unit length); off: raw L2"] = (
        True
    )

    architecture: ClassVar[frozenset[str]] = frozenset(
        ("quantize", "vq_stage", "min_tokens", "decoder_input", "num_codes", "code_dim", "normalize_codes")
    )


class BatchLayout(NamedTuple):
    """How many images of each kind a training batch holds, in this order along its first axis."""

    labeled: int
    strong: int = 0
    perturbed: int = 0

    @property
    def aligned(self) -> int:
        """Images whose codes PFA aligns, x_l and x_a (3.5): where the only view is the perturbed one, that is x_a."""
        return self.labeled + (self.strong or self.perturbed)


class VQSegOutput(NamedTuple):
    """What the network returns in training; absent parts are None.

    `segmentation`: logits (B, K, ...), or a list of them, finest first, with deep supervision.
    `reconstruction`: (labeled + perturbed, C, ...), decoded from q(z) and QPM's q'(z) (Eq. 7).
    `adapted`: (aligned, C', H', W'), output of the feature adapter, which reads q(z) before QPM (3.5).
    `tokens`: (B * tokens, d), without gradient, for the codebook's bookkeeping.
    `indices`, `perturbed_indices`: (B, ...) codes before and (perturbed, ...) codes after QPM.
    `step`: scalar, the length of QPM's move of a token as the decoder sees it, over z's standard deviation.
    `vq_loss`, `entropy`, `feature_loss`: scalars.
    """

    segmentation: Logits
    reconstruction: Tensor | None = None
    adapted: Tensor | None = None
    indices: Tensor | None = None
    perturbed_indices: Tensor | None = None
    tokens: Tensor | None = None
    step: Tensor | None = None
    vq_loss: Tensor | None = None
    entropy: Tensor | None = None
    feature_loss: Tensor | None = None


class VQSegNet(nn.Module):
    """nnU-Net's planned encoder and decoder, quantised after one stage.

    The keys of `state_dict()` are those of stock nnU-Net plus `quantizer.*` (and those of the training heads where they
    are attached). In eval mode `forward` returns exactly what nnU-Net's own network returns.

    Args:
        unet: PlainConvUNet or ResidualEncoderUNet.
        stage: index of the quantised stage.
        quantizer: None for a plain U-Net with the same interface.
        continuous: the decoder reads z, and QPM moves it by c_j - c_i; otherwise it reads q(z) (Eq. 7).
        perturbation: QPM; None leaves the perturbed stream as it is.
        strength: length of QPM's move of a token in standard deviations of z; None: as long as c_j - c_i is.
        dropout_rate: channel dropout on the perturbed stream, Fig. 1's alternative to QPM; 0 for none.
    """

    encoder: Any  # what nn.Module's own annotations do not know: stages, stem, output_channels
    decoder: Any

    def __init__(
        self,
        unet: Any,
        stage: int = 0,
        quantizer: VectorQuantizer | None = None,
        continuous: bool = False,
        perturbation: QuantizedPerturbation | None = None,
        strength: float | None = None,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone_of(unet)
        if not 0 <= stage < len(self.backbone.widths):
            raise ValueError(f"stage must be between 0 and {len(self.backbone.widths) - 1} for this plan, got {stage}.")
        self.encoder = unet.encoder
        self.decoder = unet.decoder
        self.stage = stage
        self.quantizer = quantizer
        self.continuous = continuous
        self.perturbation = perturbation
        self.strength = strength
        self.dropout_rate = dropout_rate
        self.image_decoder: ImageDecoder | None = None
        self.adapter: PostVQFeatureAdapter | None = None
        self.alignment_grid: tuple[int, int] = (0, 0)

    @property
    def width(self) -> int:
        """Channels of the quantised stage."""
        return self.backbone.widths[self.stage]

    def attach_heads(
        self,
        image_decoder: ImageDecoder | None,
        adapter: PostVQFeatureAdapter | None,
        alignment_grid: tuple[int, int] = (0, 0),
    ) -> None:
        """Add the heads that only training needs: D_i (Eq. 7) and the feature adapter (3.5)."""
        self.image_decoder, self.adapter, self.alignment_grid = image_decoder, adapter, alignment_grid

    def forward(self, x: Tensor, layout: BatchLayout | None = None) -> VQSegOutput | Logits:
        """Segment images (B, C, ...), each axis divisible by the plan's strides.

        Args:
            layout: in training, how the batch is made up; None: all images are labelled ones.
        """
        if self.training:
            return self._training_forward(x, layout or BatchLayout(labeled=x.shape[0]))
        maps = self.backbone.encode(self, x, self.stage)
        if self.quantizer is not None and not self.continuous:
            maps[-1] = self.quantizer(maps[-1]).quantized
        return self._decode(maps)

    def segment_with_codes(self, x: Tensor) -> tuple[Logits, Tensor]:
        """As `forward` in eval mode, and the codes (B, ...) of the quantised stage.

        Raises:
            RuntimeError: nothing is quantised.
        """
        if self.quantizer is None:
            raise RuntimeError("This network has no codes: it was built with quantize = false.")
        maps = self.backbone.encode(self, x, self.stage)
        code = self.quantizer(maps[-1])
        maps[-1] = maps[-1] if self.continuous else code.quantized
        return self._decode(maps), code.indices

    def stage_features(self, x: Tensor) -> Tensor:
        """z: output of the quantised stage, (B, C_s, ...)."""
        return self.backbone.encode(self, x, self.stage)[-1]

    def reconstruct(self, x: Tensor) -> Tensor:
        """The image that D_i decodes from the unperturbed q(z), like x; for previews.

        Raises:
            RuntimeError: the network has no image decoder.
        """
        if self.image_decoder is None or self.quantizer is None:
            raise RuntimeError("This network has no image decoder: it was built for prediction or without DB.")
        return self.image_decoder(self.quantizer(self.stage_features(x)).quantized)

    def predict_perturbed(self, x: Tensor) -> Logits:
        """Segmentation of x with every image perturbed as the unlabelled stream is; for previews."""
        maps = self.backbone.encode(self, x, self.stage)
        if self.quantizer is not None:
            z = maps[-1]
            code = self.quantizer(z)
            maps[-1] = z if self.continuous else code.quantized
            if self.perturbation is not None:
                after = self.perturbation(code.indices, code.codes)
                move = self.quantizer.displacement(code.indices, after)
                maps[-1] = maps[-1] + scaled_move(move, code.indices != after, z, self.strength)[0].to(z.dtype)
        if self.dropout_rate:
            maps[-1] = channel_dropout(maps[-1], self.dropout_rate)
        return self._decode(maps)

    def _decode(self, maps: list[Tensor]) -> Logits:
        return self.backbone.decode(self, self.backbone.resume(self, maps, self.stage))

    def _training_forward(self, x: Tensor, layout: BatchLayout) -> VQSegOutput:
        maps = self.backbone.encode(self, x, self.stage)
        z = maps[-1]
        clean = layout.labeled + layout.strong
        code = self.quantizer(z) if self.quantizer is not None else None
        read = z if code is None or self.continuous else code.quantized
        quantized = perturbed_indices = step = None
        if code is not None:
            quantized = code.quantized
        if layout.perturbed and code is not None and self.quantizer is not None and self.perturbation is not None:
            before = code.indices[clean:]
            perturbed_indices = self.perturbation(before, code.codes)
            move = self.quantizer.displacement(before, perturbed_indices)
            move, step = scaled_move(move, before != perturbed_indices, z[clean:], self.strength)
            move = move.to(read.dtype)
            read = torch.cat((read[:clean], read[clean:] + move))
            quantized = torch.cat((code.quantized[:clean], code.quantized[clean:] + move))
        elif layout.perturbed and self.dropout_rate:
            read = torch.cat((read[:clean], channel_dropout(read[clean:], self.dropout_rate)))
        maps[-1] = read
        if code is None or quantized is None:
            return VQSegOutput(segmentation=self._decode(maps))

        reconstruction = adapted = None
        if self.image_decoder is not None:
            reconstruction = self.image_decoder(torch.cat((quantized[: layout.labeled], quantized[clean:])))
        if self.adapter is not None:
            adapted = self.adapter(code.quantized[: layout.aligned], self.alignment_grid)
        return VQSegOutput(
            segmentation=self._decode(maps),
            reconstruction=reconstruction,
            adapted=adapted,
            indices=code.indices,
            perturbed_indices=perturbed_indices,
            tokens=code.tokens,
            step=step,
            vq_loss=code.loss,
            entropy=code.entropy,
            feature_loss=_relative_error(code.embedded, z) if self.continuous else None,
        )


def build_vqseg_net(plan: NetworkPlan, config: VQArchitecture, **training: Any) -> VQSegNet:
    """Put the configured quantiser into the planned U-Net.

    Args:
        training: arguments of `VectorQuantizer` that training needs beside those of the architecture.

    Raises:
        NotImplementedError: another architecture.
        ConfigError: a `vq_stage` that the plan does not have.
    """
    unet = plan.build()
    stage = stage_of(unet, plan, config)
    if not config.quantize:
        return VQSegNet(unet, stage)
    quantizer = VectorQuantizer(
        backbone_of(unet).widths[stage],
        ndim=plan.ndim,
        num_codes=config.num_codes,
        code_dim=config.code_dim,
        normalize=config.normalize_codes,
        **training,
    )
    return VQSegNet(unet, stage, quantizer, continuous=config.decoder_input == "continuous")


def build_image_decoder(network: VQSegNet, num_channels: int, strides: Strides, base_features: int) -> ImageDecoder:
    """D_i for the network's quantised stage: from its token grid back to the image.

    Strides of 1, such as a plan's first, are no step: they would put another convolution at full resolution, and twice
    the width at every other. Large ones, as a ViT's, are one step a prime factor, the largest first.
    """
    steps = [step for stride in strides[: network.stage + 1][::-1] if prod(stride) > 1 for step in _prime_steps(stride)]
    return ImageDecoder(network.width, num_channels, steps, base_features, ndim=len(strides[0]))


def _prime_steps(stride: Sequence[int]) -> list[tuple[int, ...]]:
    """Steps whose product is the stride, of prime factors per axis, the largest first."""
    return list(zip_longest(*(_prime_factors(int(side)) for side in stride), fillvalue=1))


def _prime_factors(number: int) -> list[int]:
    for factor in range(2, number):
        if number % factor == 0:
            return [*_prime_factors(number // factor), factor]
    return [number] if number > 1 else []


def scaled_move(move: Tensor, moved: Tensor, z: Tensor, strength: float | None) -> tuple[Tensor, Tensor]:
    """QPM's move with a chosen length, and that length.

    The output projection's scale is free, and the losses make it small: only its direction is QPM's.

    Args:
        move: (B, C, ...) from P c_i to P c_j, zero where a token stays.
        moved: (B, ...) bool, tokens that do not stay.
        z: (B, C, ...) features that are moved.
        strength: root mean square of the moved tokens' elements over z's standard deviation, both over the batches of
            all processes; None leaves the move as it is.

    Returns:
        The move, without gradient where it has a chosen length, and its length in the same units.
    """
    with torch.no_grad():
        values = z.detach().float()
        sums = (values.mean(), values.square().mean(), move.detach().float().square().mean(), moved.float().mean())
        mean, square, energy, share = mean_over_processes(torch.stack(sums))
        spread = (square - mean**2).clamp_min(1e-12).sqrt()
        length = (energy / share.clamp_min(1e-12)).sqrt() / spread
        if strength is None:
            return move, length
        scaled = move.detach().float() * (strength / length.clamp_min(1e-12))
        return scaled, length * (strength / length.clamp_min(1e-12))


def _relative_error(embedded: Tensor, z: Tensor) -> Tensor:
    """Squared error of q(z) against z without gradient to z as target, over z's variance in all processes' batches.

    Where the decoder reads z, this is what gives q(z), and with it QPM's c_j - c_i, the scale of features.
    """
    target = z.detach().float()
    mean, mean_square = mean_over_processes(torch.stack((target.mean(), target.var(correction=0) + target.mean() ** 2)))
    return F.mse_loss(embedded.float(), target) / (mean_square - mean**2).clamp_min(1e-6)
