"""The planned U-Net with a vector-quantised encoder stage, or several (Section 3, Fig. 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.modules.image_decoder import ImageDecoder
from nnunetv2_vqseg.modules.nd import channel_dropout
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation
from nnunetv2_vqseg.modules.vq.quantizer import QuantizerOutput, VectorQuantizer
from nnunetv2_vqseg.networks.backbone import Logits, NetworkPlan, Strides, backbone_of
from nnunetv2_vqseg.networks.planned import StageConfig, stage_of


@dataclass(frozen=True)
class VQArchitecture(StageConfig):
    """What prediction needs to know about the quantiser."""

    quantize: Annotated[bool, "vector-quantise an encoder stage (3.3, Eq. 2)"] = True
    vq_more_stages: Annotated[
        tuple[int, ...],
        Range(0, 64),
        "further encoder stages that are quantised and perturbed, each with a codebook of its own; image decoder, "
        "alignment and the codes' opinion read that of vq_stage alone",
    ] = ()
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
        (
            "quantize",
            "vq_stage",
            "vq_more_stages",
            "min_tokens",
            "decoder_input",
            "num_codes",
            "code_dim",
            "normalize_codes",
        )
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
    `more_codes`: (indices, tokens) of each further quantised stage, the shallowest first.
    `vq_loss`, `entropy`, `feature_loss`: scalars, sums over the quantised stages.
    """

    segmentation: Logits
    reconstruction: Tensor | None = None
    adapted: Tensor | None = None
    indices: Tensor | None = None
    perturbed_indices: Tensor | None = None
    tokens: Tensor | None = None
    step: Tensor | None = None
    more_codes: tuple[tuple[Tensor, Tensor], ...] = ()
    vq_loss: Tensor | None = None
    entropy: Tensor | None = None
    feature_loss: Tensor | None = None


class _QuantizedFeatures(NamedTuple):
    """What a quantised stage makes of z (B, C_s, ...); absent parts are None.

    `read`: what deeper stages and the decoder read. `quantized`: q(z), perturbed where the images are (q'(z)).
    """

    read: Tensor
    code: QuantizerOutput | None = None
    quantized: Tensor | None = None
    perturbed_indices: Tensor | None = None
    step: Tensor | None = None
    feature_loss: Tensor | None = None


class VQSegNet(nn.Module):
    """nnU-Net's planned encoder and decoder, quantised after one stage, or after several.

    The keys of `state_dict()` are those of stock nnU-Net plus `quantizer.*` and `more_quantizers.*` (and those of the
    training heads where they are attached). In eval mode `forward` returns exactly what nnU-Net's own network returns.

    Args:
        unet: PlainConvUNet or ResidualEncoderUNet.
        stage: index of the quantised stage.
        quantizer: None for a plain U-Net with the same interface.
        continuous: the decoder reads z, and QPM moves it by c_j - c_i; otherwise it reads q(z) (Eq. 7).
        perturbation: QPM; None leaves the perturbed stream as it is.
        strength: length of QPM's move of a token in standard deviations of z; None: as long as c_j - c_i is.
        dropout_rate: channel dropout on the perturbed stream, Fig. 1's alternative to QPM; 0 for none.
        more_quantizers: those of further stages, by their index.
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
        more_quantizers: Mapping[int, VectorQuantizer] | None = None,
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
        more = dict(more_quantizers or {})
        self.stages = tuple(sorted({stage, *more}))
        self.more_quantizers = nn.ModuleDict({str(index): more[index] for index in sorted(more)})
        self.more_perturbations = nn.ModuleDict()
        self.image_decoder: ImageDecoder | None = None
        self.adapter: PostVQFeatureAdapter | None = None
        self.alignment_grid: tuple[int, int] = (0, 0)

    @property
    def width(self) -> int:
        """Channels of the quantised stage."""
        return self.backbone.widths[self.stage]

    @property
    def quantizers(self) -> dict[int, VectorQuantizer]:
        """The quantiser of every quantised stage, by its index, that of `stage` first."""
        return {stage: quantizer for stage in self._main_first() if (quantizer := self._quantizer(stage)) is not None}

    @property
    def perturbations(self) -> dict[int, QuantizedPerturbation]:
        """QPM of every stage that has it, by its index."""
        return {stage: module for stage in self._main_first() if (module := self._perturbation(stage)) is not None}

    def perturb_by(self, make: Callable[[], QuantizedPerturbation], strength: float | None = None) -> None:
        """Give every quantised stage a QPM of its own, whose moves have this length in standard deviations of z."""
        self.perturbation, self.strength = make(), strength
        for stage in self.more_quantizers:
            self.more_perturbations[stage] = make()

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
        if self.quantizer is None or self.continuous:
            return self.backbone.decode(self, self.backbone.encode(self, x))
        return self.backbone.decode(self, self._features(x, len(x))[0])

    def segment_with_codes(self, x: Tensor) -> tuple[Logits, Tensor]:
        """As `forward` in eval mode, and the codes (B, ...) of the quantised stage.

        Raises:
            RuntimeError: nothing is quantised.
        """
        maps, stages = self._features(x, len(x))
        code = stages[self.stage].code
        if code is None:
            raise RuntimeError("This network has no codes: it was built with quantize = false.")
        return self.backbone.decode(self, maps), code.indices

    def stage_features(self, x: Tensor) -> Tensor:
        """z: output of the quantised stage, (B, C_s, ...), where no stage before it is quantised."""
        return self.backbone.encode(self, x, self.stage)[-1]

    def reconstruct(self, x: Tensor) -> Tensor:
        """The image that D_i decodes from the unperturbed q(z), like x; for previews.

        Raises:
            RuntimeError: the network has no image decoder.
        """
        if self.image_decoder is None or self.quantizer is None:
            raise RuntimeError("This network has no image decoder: it was built for prediction or without DB.")
        quantized = self._features(x, len(x))[1][self.stage].quantized
        assert quantized is not None
        return self.image_decoder(quantized)

    def predict_perturbed(self, x: Tensor) -> Logits:
        """Segmentation of x with every image perturbed as the unlabelled stream is; for previews."""
        return self.backbone.decode(self, self._features(x, 0)[0])

    def _main_first(self) -> list[int]:
        return sorted(self.stages, key=lambda stage: (stage != self.stage, stage))

    def _quantizer(self, stage: int) -> VectorQuantizer | None:
        return self.quantizer if stage == self.stage else self.more_quantizers[str(stage)]  # type: ignore[return-value]

    def _perturbation(self, stage: int) -> QuantizedPerturbation | None:
        if stage == self.stage:
            return self.perturbation
        known = str(stage) in self.more_perturbations
        return self.more_perturbations[str(stage)] if known else None  # type: ignore[return-value]

    def _features(self, x: Tensor, clean: int) -> tuple[list[Tensor], dict[int, _QuantizedFeatures]]:
        """What the decoder reads, and what each quantised stage did, where images from `clean` on are perturbed."""
        maps = self.backbone.encode(self, x, self.stages[0])
        quantized = {}
        for stage, following in zip(self.stages, (*self.stages[1:], None), strict=True):
            quantized[stage] = self._quantize(stage, maps[-1], clean)
            maps[-1] = quantized[stage].read
            maps = self.backbone.resume(self, maps, stage, following)
        return maps, quantized

    def _quantize(self, stage: int, z: Tensor, clean: int) -> _QuantizedFeatures:
        quantizer, perturbation = self._quantizer(stage), self._perturbation(stage)
        code = None if quantizer is None else quantizer(z)
        read = z if code is None or self.continuous else code.quantized
        if clean < len(z) and self.dropout_rate and (code is None or perturbation is None):
            read = torch.cat((read[:clean], channel_dropout(read[clean:], self.dropout_rate)))
        if code is None or quantizer is None:
            return _QuantizedFeatures(read)
        feature_loss = _relative_error(code.embedded, z) if self.continuous and self.training else None
        if clean == len(z) or perturbation is None:
            return _QuantizedFeatures(read, code, code.quantized, feature_loss=feature_loss)
        before = code.indices[clean:]
        after = perturbation(before, code.codes)
        move, step = scaled_move(quantizer.displacement(before, after), before != after, z[clean:], self.strength)
        move = move.to(read.dtype)
        read = torch.cat((read[:clean], read[clean:] + move))
        quantized = torch.cat((code.quantized[:clean], code.quantized[clean:] + move))
        return _QuantizedFeatures(read, code, quantized, after, step, feature_loss)

    def _training_forward(self, x: Tensor, layout: BatchLayout) -> VQSegOutput:
        clean = layout.labeled + layout.strong
        maps, stages = self._features(x, clean)
        segmentation = self.backbone.decode(self, maps)
        main = stages[self.stage]
        if main.code is None or main.quantized is None:
            return VQSegOutput(segmentation=segmentation)
        codes = {stage: features.code for stage, features in stages.items() if features.code is not None}
        reconstruction = adapted = None
        if self.image_decoder is not None:
            images = torch.cat((main.quantized[: layout.labeled], main.quantized[clean:]))
            reconstruction = self.image_decoder(images)
        if self.adapter is not None:
            adapted = self.adapter(main.code.quantized[: layout.aligned], self.alignment_grid)
        return VQSegOutput(
            segmentation=segmentation,
            reconstruction=reconstruction,
            adapted=adapted,
            indices=main.code.indices,
            perturbed_indices=main.perturbed_indices,
            tokens=main.code.tokens,
            step=main.step,
            more_codes=tuple((code.indices, code.tokens) for stage, code in codes.items() if stage != self.stage),
            vq_loss=_sum([code.loss for code in codes.values()]),
            entropy=_sum([code.entropy for code in codes.values()]),
            feature_loss=_sum([features.feature_loss for features in stages.values()]) if self.continuous else None,
        )


def build_vqseg_net(plan: NetworkPlan, config: VQArchitecture, **training: Any) -> VQSegNet:
    """Put the configured quantiser into the planned U-Net.

    Args:
        training: arguments of `VectorQuantizer` that training needs beside those of the architecture.

    Raises:
        NotImplementedError: another architecture.
        ConfigError: a `vq_stage` or `vq_more_stages` that the plan does not have.
    """
    unet = plan.build()
    stage = stage_of(unet, plan, config)
    if not config.quantize:
        return VQSegNet(unet, stage)

    def quantizer_of(index: int) -> VectorQuantizer:
        return VectorQuantizer(
            backbone_of(unet).widths[index],
            ndim=plan.ndim,
            num_codes=config.num_codes,
            code_dim=config.code_dim,
            normalize=config.normalize_codes,
            **training,
        )

    main = quantizer_of(stage)
    more = {index: quantizer_of(index) for index in _further_stages(unet, stage, config)}
    return VQSegNet(unet, stage, main, continuous=config.decoder_input == "continuous", more_quantizers=more)


def _further_stages(unet: nn.Module, stage: int, config: VQArchitecture) -> list[int]:
    possible = backbone_of(unet).replaceable
    for index in config.vq_more_stages:
        if index not in possible or index == stage:
            others = [str(other) for other in possible if other != stage]
            allowed = f"beside stage {stage}, this plan has stages {', '.join(others)}"
            if not others:
                allowed = f"this plan has stage {stage} only, so leave it out"
            raise ConfigError(f"vqseg.vq_more_stages = {list(config.vq_more_stages)} is not valid; {allowed}.")
    return sorted(set(config.vq_more_stages))


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


def _sum(values: Sequence[Tensor | None]) -> Tensor:
    """Of scalars, where one alone stays what it is."""
    first, *others = [value for value in values if value is not None]
    for value in others:
        first = first + value
    return first


def _relative_error(embedded: Tensor, z: Tensor) -> Tensor:
    """Squared error of q(z) against z without gradient to z as target, over z's variance in all processes' batches.

    Where the decoder reads z, this is what gives q(z), and with it QPM's c_j - c_i, the scale of features.
    """
    target = z.detach().float()
    mean, mean_square = mean_over_processes(torch.stack((target.mean(), target.var(correction=0) + target.mean() ** 2)))
    return F.mse_loss(embedded.float(), target) / (mean_square - mean**2).clamp_min(1e-6)
