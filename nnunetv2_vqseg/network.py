"""The planned U-Net with one vector-quantised encoder stage (Section 3, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.config import VQSegConfig
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.modules.image_decoder import ImageDecoder
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation
from nnunetv2_vqseg.modules.vq.quantizer import VectorQuantizer

Strides = Sequence[Sequence[int]]


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

    `segmentation`: logits (B, K, H, W), or a list of them, finest first, with deep supervision.
    `reconstruction`: (labeled + perturbed, C, H, W), decoded from q(z) and QPM's q'(z) (Eq. 7).
    `adapted`: (aligned, C', H', W'), output of the feature adapter, which reads q(z) before QPM (3.5).
    `tokens`: (B * h * w, d), without gradient, for the codebook's bookkeeping.
    `indices`, `perturbed_indices`: (B, h, w) codes before and (perturbed, h, w) codes after QPM.
    `vq_loss`, `entropy`, `feature_loss`: scalars.
    """

    segmentation: Tensor | list[Tensor]
    reconstruction: Tensor | None = None
    adapted: Tensor | None = None
    indices: Tensor | None = None
    perturbed_indices: Tensor | None = None
    tokens: Tensor | None = None
    vq_loss: Tensor | None = None
    entropy: Tensor | None = None
    feature_loss: Tensor | None = None


def choose_stage(patch_size: Sequence[int], strides: Strides, min_tokens: int = 14) -> int:
    """The deepest encoder stage with at least `min_tokens` tokens on the patch's shorter side.

    Args:
        patch_size: (H, W) in pixels.
        strides: one (sh, sw) a stage, as in the plan.

    Returns:
        Index of the stage, 0 is the shallowest; stage 0 where even that has fewer tokens.
    """
    sizes = _token_grids(patch_size, strides)
    deep_enough = [stage for stage, grid in enumerate(sizes) if min(grid) >= min_tokens]
    return max(deep_enough, default=0)


def _token_grids(patch_size: Sequence[int], strides: Strides) -> list[tuple[int, int]]:
    height, width = patch_size
    grids = []
    for stride_h, stride_w in strides:
        height, width = height // stride_h, width // stride_w
        grids.append((height, width))
    return grids


class VQSegNet(nn.Module):
    """nnU-Net's planned encoder and decoder, quantised after one stage.

    The keys of `state_dict()` are those of stock nnU-Net plus `quantizer.*` (and those of the training heads where they
    are attached). In eval mode `forward` returns exactly what nnU-Net's own network returns.

    Args:
        encoder: PlainConvEncoder or ResidualEncoder with `stages` and, for the latter, `stem`.
        decoder: nnU-Net's UNetDecoder over that encoder.
        stage: index of the quantised stage.
        quantizer: None for a plain U-Net with the same interface (mean teacher, supervised baselines).
        continuous: the decoder reads z, and QPM moves it by c_j - c_i; otherwise it reads q(z) (Eq. 7).
        perturbation: QPM; None leaves the perturbed stream as it is.
        dropout_rate: channel dropout on the perturbed stream, Fig. 1's alternative to QPM; 0 for none.
    """

    encoder: Any  # what nn.Module's own annotations do not know: stages, stem, output_channels
    decoder: Any

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        stage: int = 0,
        quantizer: VectorQuantizer | None = None,
        continuous: bool = False,
        perturbation: QuantizedPerturbation | None = None,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= stage < len(encoder.stages):
            raise ValueError(f"stage must be between 0 and {len(encoder.stages) - 1} for this plan, got {stage}.")
        self.encoder = encoder
        self.decoder = decoder
        self.stage = stage
        self.quantizer = quantizer
        self.continuous = continuous
        self.perturbation = perturbation
        self.dropout_rate = dropout_rate
        self.image_decoder: ImageDecoder | None = None
        self.adapter: PostVQFeatureAdapter | None = None
        self.alignment_grid: tuple[int, int] = (0, 0)

    def attach_heads(
        self,
        image_decoder: ImageDecoder | None,
        adapter: PostVQFeatureAdapter | None,
        alignment_grid: tuple[int, int] = (0, 0),
    ) -> None:
        """Add the heads that only training needs: D_i (Eq. 7) and the feature adapter (3.5)."""
        self.image_decoder, self.adapter, self.alignment_grid = image_decoder, adapter, alignment_grid

    def inference_state_dict(self) -> dict[str, Tensor]:
        """`state_dict()` without the training heads: what prediction loads."""
        return {
            key: value for key, value in self.state_dict().items() if not key.startswith(("image_decoder.", "adapter."))
        }

    def forward(self, x: Tensor, layout: BatchLayout | None = None) -> VQSegOutput | Tensor | list[Tensor]:
        """Segment images (B, C, H, W); H and W divisible by the plan's strides.

        Args:
            layout: in training, how the batch is made up; None: all images are labelled ones.
        """
        if not self.training:
            return self.decoder(self._clean_features(x))
        return self._training_forward(x, layout or BatchLayout(labeled=x.shape[0]))

    def stage_features(self, x: Tensor) -> Tensor:
        """z: output of the quantised stage, (B, C_s, h, w)."""
        return self._shallow(x)[-1]

    def reconstruct(self, x: Tensor) -> Tensor:
        """The image that D_i decodes from the unperturbed q(z), (B, C, H, W); for previews.

        Raises:
            RuntimeError: the network has no image decoder.
        """
        if self.image_decoder is None or self.quantizer is None:
            raise RuntimeError("This network has no image decoder: it was built for prediction or without DB.")
        return self.image_decoder(self.quantizer(self.stage_features(x)).quantized)

    def predict_perturbed(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segmentation of x with every image perturbed as the unlabelled stream is; for previews."""
        skips = self._shallow(x)
        if self.quantizer is not None:
            code = self.quantizer(skips[-1])
            skips[-1] = skips[-1] if self.continuous else code.quantized
            if self.perturbation is not None:
                after = self.perturbation(code.indices, code.codes)
                skips[-1] = skips[-1] + self.quantizer.displacement(code.indices, after)
        if self.dropout_rate:
            skips[-1] = F.dropout2d(skips[-1], self.dropout_rate)
        return self.decoder(self._deepen(skips))

    def _shallow(self, x: Tensor) -> list[Tensor]:
        stem = getattr(self.encoder, "stem", None)
        if stem is not None:
            x = stem(x)
        skips = []
        for stage in self.encoder.stages[: self.stage + 1]:
            x = stage(x)
            skips.append(x)
        return skips

    def _deepen(self, skips: list[Tensor]) -> list[Tensor]:
        x = skips[-1]
        for stage in self.encoder.stages[self.stage + 1 :]:
            x = stage(x)
            skips.append(x)
        return skips

    def _clean_features(self, x: Tensor) -> list[Tensor]:
        skips = self._shallow(x)
        if self.quantizer is not None and not self.continuous:
            skips[-1] = self.quantizer(skips[-1]).quantized
        return self._deepen(skips)

    def _training_forward(self, x: Tensor, layout: BatchLayout) -> VQSegOutput:
        skips = self._shallow(x)
        z = skips[-1]
        clean = layout.labeled + layout.strong
        if self.quantizer is None:
            if self.dropout_rate and layout.perturbed:
                skips[-1] = torch.cat((z[:clean], F.dropout2d(z[clean:], self.dropout_rate)))
            return VQSegOutput(segmentation=self.decoder(self._deepen(skips)))

        code = self.quantizer(z)
        read, quantized = (z if self.continuous else code.quantized), code.quantized
        perturbed_indices = None
        if layout.perturbed and self.perturbation is not None:
            before = code.indices[clean:]
            perturbed_indices = self.perturbation(before, code.codes)
            move = self.quantizer.displacement(before, perturbed_indices).to(read.dtype)
            read = torch.cat((read[:clean], read[clean:] + move))
            quantized = torch.cat((quantized[:clean], quantized[clean:] + move))
        elif layout.perturbed and self.dropout_rate:
            read = torch.cat((read[:clean], F.dropout2d(read[clean:], self.dropout_rate)))

        reconstruction = adapted = None
        if self.image_decoder is not None:
            reconstruction = self.image_decoder(torch.cat((quantized[: layout.labeled], quantized[clean:])))
        if self.adapter is not None:
            adapted = self.adapter(code.quantized[: layout.aligned], self.alignment_grid)
        skips[-1] = read
        return VQSegOutput(
            segmentation=self.decoder(self._deepen(skips)),
            reconstruction=reconstruction,
            adapted=adapted,
            indices=code.indices,
            perturbed_indices=perturbed_indices,
            tokens=code.tokens,
            vq_loss=code.loss,
            entropy=code.entropy,
            feature_loss=_relative_error(code.embedded, z) if self.continuous else None,
        )


def build_vqseg_net(unet: nn.Module, config: VQSegConfig, patch_size: Sequence[int], strides: Strides) -> VQSegNet:
    """Put the configured quantiser into a planned U-Net.

    Args:
        unet: PlainConvUNet or ResidualEncoderUNet, as nnU-Net builds it from the plans.
        patch_size: (H, W) in pixels.
        strides: one (sh, sw) a stage.

    Raises:
        NotImplementedError: another architecture.
        ConfigError: a `vq_stage` that the plan does not have.
    """
    encoder, decoder = getattr(unet, "encoder", None), getattr(unet, "decoder", None)
    if encoder is None or decoder is None or not hasattr(encoder, "stages"):
        raise NotImplementedError(
            f"VQ-Seg knows PlainConvUNet and ResidualEncoderUNet plans, this plan asks for {type(unet).__name__}; "
            "plan with nnU-Net's default or ResEnc planners."
        )
    dropout_rate = config.dropout_rate if config.perturbation == "dropout" else 0.0
    stage = choose_stage(patch_size, strides, config.min_tokens) if config.vq_stage == "auto" else int(config.vq_stage)
    if stage >= len(encoder.stages):
        raise ConfigError(
            f"vqseg.vq_stage = {stage} is not valid; this plan has stages 0 to {len(encoder.stages) - 1}."
        )
    if not config.quantize:
        return VQSegNet(encoder, decoder, stage, dropout_rate=dropout_rate)
    quantizer = VectorQuantizer(
        encoder.output_channels[stage],
        num_codes=config.num_codes,
        code_dim=config.code_dim,
        normalize=config.normalize_codes,
        beta=config.commitment,
        entropy_tokens=config.entropy_tokens if config.weight_entropy else 0,  # the dearest term of the quantiser
        codebook_trains_features=config.codebook_trains_features,
        restart_after=config.restart_after,
    )
    perturbation = None
    if config.perturbation == "qpm":
        perturbation = QuantizedPerturbation(
            epsilon=config.epsilon,
            mode=config.qpm,  # type: ignore[arg-type]
            perplexity=config.qpm_perplexity,
            num_neighbors=config.qpm_neighbors,
        )
    return VQSegNet(
        encoder,
        decoder,
        stage,
        quantizer,
        continuous=config.decoder_input == "continuous",
        perturbation=perturbation,
        dropout_rate=dropout_rate,
    )


def build_image_decoder(network: VQSegNet, num_channels: int, strides: Strides) -> ImageDecoder:
    """D_i for the network's quantised stage: from its token grid back to the image.

    Strides of 1, such as a plan's first, are no step: they would put another convolution at full resolution, and twice
    the width at every other.
    """
    steps = [(int(h), int(w)) for h, w in strides[: network.stage + 1] if h * w > 1][::-1]
    return ImageDecoder(network.encoder.output_channels[network.stage], num_channels, steps)


def _relative_error(embedded: Tensor, z: Tensor) -> Tensor:
    """Squared error of q(z) against z without gradient to z as target, over z's variance in all processes' batches.

    Where the decoder reads z, this is what gives q(z), and with it QPM's c_j - c_i, the scale of features.
    """
    target = z.detach().float()
    mean, mean_square = mean_over_processes(torch.stack((target.mean(), target.var(correction=0) + target.mean() ** 2)))
    return F.mse_loss(embedded.float(), target) / (mean_square - mean**2).clamp_min(1e-6)
