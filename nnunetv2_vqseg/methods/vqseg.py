"""VQ-Seg (NeurIPS 2025): perturbation of quantised features, a dual branch and alignment with a foundation model.

Section and equation numbers are the paper's. What differs from it by default, and why, is in docs/design.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.core.errors import CheckpointError, ConfigError
from nnunetv2_vqseg.methods.base import Batch, Context, Metrics, Terms, split
from nnunetv2_vqseg.methods.code_opinion import CodeOpinionMethod
from nnunetv2_vqseg.methods.codebooks import Codebooks
from nnunetv2_vqseg.methods.taught_views import TaughtViewsConfig
from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.modules.foundation import DEFAULT_MODEL, FoundationModel, load_foundation_model
from nnunetv2_vqseg.modules.losses.infonce import patch_contrastive_loss
from nnunetv2_vqseg.modules.losses.reconstruction import channel_scale, reconstruction_loss
from nnunetv2_vqseg.modules.views.strong import UnlabeledView
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation
from nnunetv2_vqseg.networks.backbone import Logits, NetworkPlan
from nnunetv2_vqseg.networks.vq import (
    BatchLayout,
    VQArchitecture,
    VQSegNet,
    VQSegOutput,
    build_image_decoder,
    build_vqseg_net,
)

FoundationName = Annotated[str, "a ViT or CNN by its timm name, biomedclip or rad-dino"]


@dataclass(frozen=True)
class VQSegConfig(VQArchitecture, TaughtViewsConfig):
    """Hyper-parameters of VQ-Seg."""

    # Which parts of the method take part (Table 2)
    use_unlabeled: Annotated[bool, "learn from unlabelled images at all (Eq. 9, 10)"] = True
    perturbation: Annotated[
        Literal["qpm", "dropout", "none"], "feature perturbation of the unlabelled stream (3.3, Fig. 1)"
    ] = "qpm"
    perturbed_view: Annotated[
        Literal["weak", "strong"],
        "view of the unlabelled images whose features are perturbed: x_u itself (Eq. 9), or one with an intensity "
        "jitter and a CutMix of its own",
    ] = "strong"
    reconstruct: Annotated[bool, "image reconstruction decoder, the dual branch DB (3.4, Eq. 7 to 9)"] = False
    strong_view: Annotated[
        bool,
        "third term of Eq. 9: a view with intensity jitter and CutMix whose features are not perturbed, beside the "
        "perturbed one",
    ] = False
    foundation_policy: Annotated[
        Literal["auto", "required", "off"],
        "what to do about foundation model weights for the alignment PFA (3.5)",
    ] = "off"

    # Quantiser (Eq. 2, 4.2)
    commitment: Annotated[float, Range(0, 100), "beta of the commitment loss"] = 0.25
    weight_codebook: Annotated[
        float, Range(0, 100_000), "weight of the embedding and commitment loss, a mean over a code's dimensions"
    ] = 16.0
    weight_feature: Annotated[
        float, Range(0, 1000), "weight of the loss that gives q(z) the scale of z where the decoder reads z"
    ] = 1.0
    weight_entropy: Annotated[float, Range(0, 1000), "weight of the entropy regulariser (4.2, reference [46])"] = 0.1
    entropy_tokens: Annotated[int, Range(2, 65_536), "tokens drawn a step for the entropy regulariser"] = 512
    entropy_temperature: Annotated[
        float, Range(1e-4, 100), "divides the squared distances in the entropy regulariser"
    ] = 0.05
    codebook_trains_features: Annotated[
        bool, "let the gradients of the embedding, commitment, entropy and feature losses reach the encoder"
    ] = False
    restart_after: Annotated[
        int, Range(0, 10_000_000), "steps without use after which a code is restarted; 0: never"
    ] = 500
    restart_every: Annotated[
        int, Range(1, 1_000_000), "steps between two looks for such codes, for each of which a GPU is waited for"
    ] = 25
    codes_from_data: Annotated[bool, "start the codes from tokens of the untrained encoder"] = True

    # Codes as a second opinion on the teacher's labels (not of the paper)
    code_agreement: Annotated[
        float,
        Range(0, 1),
        "leave a pixel's pseudo-label out where its class has less than this share of the labelled tokens that had the "
        "pixel's code; a code that none had has no opinion; 0: ask no code",
    ] = 0.0
    code_momentum: Annotated[float, Range(0, 1), "share of those counts that a step keeps"] = 0.99

    # QPM (3.3, Eq. 3 to 6)
    qpm: Annotated[Literal["calibrated", "literal"], "neighbour distribution: fixed perplexity, or Eq. 4"] = (
        "calibrated"
    )
    epsilon: Annotated[float, Range(0, 1), "share of the tokens that QPM replaces (Eq. 4, Table 3)"] = 0.7
    qpm_strength: Annotated[
        float | None,
        Range(0, 100),
        "length of QPM's move of a token, in standard deviations of z as the decoder sees it; null: as long as the "
        "difference of the codes is (Eq. 4)",
    ] = 0.25
    qpm_perplexity: Annotated[float, Range(1, 4096), "effective neighbours a code can move to (calibrated)"] = 32.0
    qpm_neighbors: Annotated[int, Range(2, 65_536), "neighbours a code kept in the table (calibrated)"] = 128
    qpm_rebuild_every: Annotated[int, Range(1, 1_000_000), "steps between two rebuilds of that table"] = 50
    dropout_rate: Annotated[float, Range(0, 1), "channel dropout rate where perturbation is dropout (Fig. 1)"] = 0.5

    # Losses (Eq. 8 to 12)
    lambda_a: Annotated[float, Range(0, 1000), "weight of the alignment loss (Eq. 12, Table 3)"] = 0.5
    weight_perturbed: Annotated[float, Range(0, 1000), "weight of the perturbed stream's term in Eq. 9"] = 1.0
    weight_strong: Annotated[float, Range(0, 1000), "weight of the strong view's term in Eq. 9"] = 1.0
    weight_reconstruction: Annotated[float, Range(0, 1000), "weight of the L1 reconstruction terms in Eq. 8 and 9"] = (
        0.1
    )
    decoder_features: Annotated[
        int, Range(2, 4096), "width of the image decoder one step below full resolution, even"
    ] = 32
    temperature: Annotated[float, Range(1e-4, 100), "tau of the contrastive alignment loss (Eq. 11)"] = 0.07

    # Foundation model (3.5)
    foundation_model: FoundationName = DEFAULT_MODEL
    foundation_checkpoint: Annotated[
        str | None, "local file with its weights (.safetensors or .pth); null: the hub's cache or download"
    ] = None
    foundation_image_size: Annotated[int, Range(16, 4096), "pixels on a side of the foundation model's input"] = 224
    foundation_block: Annotated[
        int | None, Range(0, 1000), "block of it whose features guide q(z), counted from 0; null: the last"
    ] = None
    foundation_channels: Annotated[
        tuple[int, int, int], Range(0, 4096), "which three channels it sees where there are more than three"
    ] = (0, 1, 2)
    foundation_dark: Annotated[
        float, Range(0, 1), "patches are air, and left out, where their mean is below this share of the image's range"
    ] = 0.07
    foundation_quiet: Annotated[float, Range(0, 1), "and their standard deviation is below this share"] = 0.03
    foundation_flat: Annotated[float, Range(0, 1), "patches are padding where their values span less than this"] = 0.01

    same_to_continue: ClassVar[frozenset[str]] = frozenset({"optimizer", "reconstruct"})
    retired: ClassVar[Mapping[str, str]] = {
        "weight_vq": "that loss was a sum over a code's dimensions and is a mean now; set weight_codebook to the old "
        "value times code_dim (16 by default), and weight_feature to the old value"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for problem in self._contradictions():
            raise ConfigError(problem)

    def _contradictions(self) -> Iterator[str]:
        if self.perturbation == "qpm" and not self.quantize:
            yield "vqseg.perturbation = 'qpm' needs vqseg.quantize = true; use 'none' or 'dropout' instead."
        if self.reconstruct and not self.quantize:
            yield "vqseg.reconstruct = true needs vqseg.quantize = true: the image decoder reads q(z) only."
        if self.foundation_policy != "off" and not self.quantize:
            yield "vqseg.foundation_policy must be 'off' where vqseg.quantize = false: PFA reads q(z) only."
        calibrated = self.perturbation == "qpm" and self.qpm == "calibrated"
        if calibrated and self.qpm_perplexity >= self.qpm_neighbors:
            yield (
                f"vqseg.qpm_perplexity = {self.qpm_perplexity:g} must be less than vqseg.qpm_neighbors = "
                f"{self.qpm_neighbors}; raise qpm_neighbors to about four times the perplexity."
            )
        if self.quantize and self.normalize_codes and self.code_dim is not None and self.code_dim < 3:
            yield (
                f"vqseg.code_dim = {self.code_dim} leaves too few directions for codes of unit length and zero mean; "
                "set 3 or more (16 by default), or normalize_codes = false."
            )
        if self.quantize and self.code_dim is None and self.decoder_input == "continuous" and self.normalize_codes:
            yield (
                "vqseg.normalize_codes must be false with vqseg.code_dim = null: unit-length codes cannot stand for "
                "features; set a code_dim, or normalize_codes = false."
            )
        if self.vq_more_stages and not self.quantize:
            yield "vqseg.vq_more_stages needs vqseg.quantize = true; leave it out."
        if self.code_agreement > 0 and not (self.quantize and self.use_unlabeled):
            yield "vqseg.code_agreement > 0 needs vqseg.quantize = true and vqseg.use_unlabeled = true; set it to 0."
        if self.decoder_features % 2:
            yield f"vqseg.decoder_features = {self.decoder_features} is not valid; it must be even."
        if self.use_unlabeled and not self.strong_view and self.perturbation == "none":
            yield (
                "vqseg.strong_view = false with vqseg.perturbation = 'none' leaves no view that learns the teacher's "
                "labels; set strong_view = true, or use_unlabeled = false."
            )

    @property
    def has_perturbed_stream(self) -> bool:
        """Whether a view of x_u passes the student to be perturbed, by QPM or dropout, or to be reconstructed."""
        return self.use_unlabeled and (self.perturbation != "none" or self.reconstruct)

    @property
    def unlabeled_views(self) -> int:
        """Views of each unlabelled image that pass the student in a step."""
        return int(self.use_unlabeled and self.strong_view) + int(self.has_perturbed_stream)

    @property
    def images_a_label(self) -> float:
        """Images with gradient in a step for each labelled one, for planning memory.

        The image decoder keeps 0.15 (PlainConvUNet) or 0.10 (ResidualEncoderUNet) of the U-Net's activations of the
        images it decodes (saved tensors at 256 x 256, 7 stages, tokens at stride 16).
        """
        share = self.unlabeled_per_labeled
        if self.labeled_batch_size is not None and self.unlabeled_batch_size is not None:
            share = self.unlabeled_batch_size / self.labeled_batch_size
        share = share if self.use_unlabeled else 0.0
        decoded = (1.0 + share * self.has_perturbed_stream) if self.reconstruct else 0.0
        return 1.0 + share * self.unlabeled_views + 0.15 * decoded

    def in_use(self, key: str) -> bool:
        """Whether this key changes anything: not the weights and views of what this configuration does without."""
        needs = {
            "lambda_u": self.use_unlabeled,
            "perturbed_view": self.has_perturbed_stream,
            "weight_perturbed": self.use_unlabeled and self.perturbation != "none",
            "strong_view": self.use_unlabeled,
            "lambda_a": self.foundation_policy != "off",
            "weight_reconstruction": self.reconstruct,
        }
        return needs.get(key, True)


PAPER: dict[str, Any] = {
    "labeled_batch_size": 8,
    "unlabeled_batch_size": 4,
    "use_unlabeled": True,
    "quantize": True,
    "perturbation": "qpm",
    "perturbed_view": "weak",
    "reconstruct": True,
    "strong_view": True,
    "weight_strong": 1.0,
    "weight_perturbed": 1.0,
    "decoder_input": "quantized",
    "code_dim": None,
    "normalize_codes": False,
    "codebook_trains_features": True,
    "weight_codebook": 1.0,
    "codes_from_data": False,
    "vq_more_stages": (),
    "restart_after": 0,
    "qpm": "literal",
    "qpm_strength": None,
    "foundation_policy": "auto",
    "supervised_loss": "ce",
    "pseudo_loss": "ce",
    "confidence_threshold": 0.0,
    "lambda_u": 1.0,
    "lambda_a": 5.0,
    "weight_reconstruction": 1.0,
    "ramp_up": 0.0,
    "ema_decay": 0.996,
    "ema_warmup": 1.0,
    "turn_probability": 0.0,
    "copy_paste": "off",
    "largest_component": False,
    "class_thresholds": "off",
    "guard": False,
    "code_agreement": 0.0,
    "optimizer": "adamw",
    "initial_lr": 5e-6,
    "head_lr_scale": 40.0,
}
"""The paper to the letter, as far as it says (4.2)."""

FREE_IN_PAPER = frozenset(
    {
        "labeled_batch_size",
        "unlabeled_batch_size",
        "initial_lr",
        "head_lr_scale",
        "lambda_u",
        "lambda_a",
        "foundation_policy",
    }
)
"""The batch, the rates, which depend on the budget, what Table 3 varies, what to do without the foundation model."""


class Views(NamedTuple):
    """The unlabelled images' views of one step.

    strong: the strong view x_a (third term of Eq. 9); None where there is none.
    perturbed: the view whose features are perturbed or reconstructed (first and second term); None where there is none.
    """

    strong: UnlabeledView | None = None
    perturbed: UnlabeledView | None = None


class VQSeg(CodeOpinionMethod[VQSegConfig]):
    """The student learns the teacher's labels while QPM moves the codes of its features (Eq. 8 to 12)."""

    Config = VQSegConfig
    Architecture = VQArchitecture
    literature = (1.0, 0.0)
    panels: ClassVar = {
        **CodeOpinionMethod.panels,
        "QPM's step (standard deviations of z)": ("qpm_step",),
        "codebook": ("utilization",),
        "codes in use (perplexity)": ("perplexity",),
        "QPM's effective neighbours": ("qpm_effective_neighbors",),
    }

    def __init__(self, config: VQSegConfig, context: Context) -> None:
        super().__init__(config, context)
        self.foundation: FoundationModel | None = None
        self.foundation_status = "not loaded yet"
        self._load_foundation_model()
        self.codebooks = Codebooks(config, context)

    @property
    def uses_unlabeled(self) -> bool:
        """Unless the configuration does without."""
        return self.config.use_unlabeled

    @property
    def unlabeled_views(self) -> int:
        """Views of each unlabelled image that pass the student in a step."""
        return self.config.unlabeled_views

    @property
    def is_static(self) -> bool:  # type: ignore[override]
        """But for literal QPM, whose sizes depend on the codes that are drawn."""
        return super().is_static and (self.config.perturbation != "qpm" or self.config.qpm != "literal")

    @property
    def net(self) -> VQSegNet:
        """The student, without DDP's and torch.compile's wrappers."""
        network = unwrap(self.student)
        assert isinstance(network, VQSegNet)
        return network

    @property
    def foundation_file(self) -> str | None:
        """File of the foundation model's weights; None: the hub's cache or download."""
        return self.config.foundation_checkpoint

    # Networks

    @classmethod
    def network(cls, plan: NetworkPlan, architecture: Any) -> nn.Module:
        """The planned U-Net with its quantiser."""
        # For prediction there is no whole configuration, and what only training reads has its default.
        settings: Any = architecture if isinstance(architecture, VQSegConfig) else VQSegConfig
        return build_vqseg_net(
            plan,
            architecture,
            beta=settings.commitment,
            # Without weight the dearest term of the quantiser is not computed.
            entropy_tokens=settings.entropy_tokens if settings.weight_entropy else 0,
            entropy_temperature=settings.entropy_temperature,
            codebook_trains_features=settings.codebook_trains_features,
            restart_after=settings.restart_after,
        )

    def training_network(self) -> nn.Module:
        """The same with QPM or dropout, image decoder (Eq. 7) and feature adapter (3.5)."""
        config, plan = self.config, self.context.plan
        network = self.network(plan, config)
        assert isinstance(network, VQSegNet)
        if config.perturbation == "qpm":
            table = config.qpm_perplexity, config.qpm_neighbors, config.qpm_rebuild_every
            network.perturb_by(lambda: QuantizedPerturbation(config.epsilon, config.qpm, *table), config.qpm_strength)
        network.dropout_rate = config.dropout_rate if config.perturbation == "dropout" else 0.0
        image_decoder = adapter = None
        if config.reconstruct:
            image_decoder = build_image_decoder(network, plan.channels, plan.strides, config.decoder_features)
        if self.foundation is None:
            network.attach_heads(image_decoder, None)
        else:
            adapter = PostVQFeatureAdapter(network.width, self.foundation.embed_dim)
            network.attach_heads(image_decoder, adapter, self.foundation.grid)
        return network

    def _load_foundation_model(self) -> None:
        config, context = self.config, self.context
        if context.only_validates:
            self.foundation_status = "The foundation model was not loaded, validation does not need it."
            return
        channels = context.plan.channels
        if config.foundation_policy != "off" and channels > 3 and max(config.foundation_channels) >= channels:
            raise ConfigError(
                f"vqseg.foundation_channels = {list(config.foundation_channels)} is not valid; images have channels "
                f"0 to {channels - 1} only."
            )
        try:
            self.foundation, self.foundation_status = load_foundation_model(
                config.foundation_policy,
                config.foundation_model,
                self.foundation_file,
                image_size=config.foundation_image_size,
                block=config.foundation_block,
                channel_pick=config.foundation_channels,
                dark=config.foundation_dark,
                quiet=config.foundation_quiet,
                flat=config.foundation_flat,
            )
        except ConfigError:
            raise
        except ValueError as error:  # the model's name or its image size
            raise ConfigError(f"The plan's vqseg block cannot be used: {error}.") from error
        context.require_same(
            "with" if self.foundation is not None else "without",
            "Rank {rank} on {host} would train {value} the foundation model, rank 0 on {first_host} {first} it; give "
            "all machines its weights with vqseg.foundation_checkpoint, or set vqseg.foundation_policy to 'off'.",
        )
        if self.foundation is not None:
            self.foundation.to(context.device)
        frame = "#" * 100
        loud = config.foundation_policy == "auto" and self.foundation is None
        context.log(f"\n{frame}\n{self.foundation_status}\n{frame}\n" if loud else self.foundation_status)

    # A training

    @torch.no_grad()
    def start(self, batches: Iterator[Batch]) -> None:
        """Codes start from tokens of the untrained encoder, eagerly and once; then the teacher takes over."""
        if self.config.codes_from_data:
            self.codebooks.start(self.net, batches)
        super().start(batches)

    def on_epoch_start(self) -> None:
        """QPM's neighbours are looked up anew, so that continuing changes nothing."""
        for perturbation in self.net.perturbations.values():
            perturbation.discard_table()

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        """Bring QPM's tables up to date; it waits for the device, which has nothing to do yet."""
        for stage, perturbation in self.net.perturbations.items():
            perturbation.prepare(self.net.quantizers[stage].codes())

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """Views, student, and the loss term by term (Eq. 8 to 12)."""
        views, metrics = self.views(batch)
        strong, perturbed = ([] if view is None else [view.images] for view in views)
        layout = BatchLayout(len(batch.labeled), sum(map(len, strong)), sum(map(len, perturbed)))
        images = torch.cat([batch.labeled, *strong, *perturbed])
        target = self.alignment_target(images[: layout.aligned])
        output = self.student(images, layout)
        if output.indices is not None and output.tokens is not None:
            self.codebooks.seen = (output.indices, output.tokens), *output.more_codes
            self.remember_labeled(output.indices[: layout.labeled], batch)
        terms = self.weighted(output, layout, batch, views, progress, target)
        varies = output.step is not None and self.config.qpm_strength is None  # else it is what the key says
        return terms, metrics | {"qpm_step": output.step} if varies else metrics

    @torch.no_grad()
    def views(self, batch: Batch) -> tuple[Views, Metrics]:
        """The views of the unlabelled images with the teacher's labels for them."""
        weak = batch.unlabeled
        if weak is None:
            return Views(), {}
        config = self.config
        labels, confidence, metrics = self.teach(weak)
        strong = self.view(batch, labels, confidence) if config.strong_view else None
        perturbed = None
        if config.has_perturbed_stream:
            itself = UnlabeledView(weak, labels, confidence, weak)
            perturbed = self.view(batch, labels, confidence) if config.perturbed_view == "strong" else itself
        return Views(strong, perturbed), metrics

    @torch.no_grad()
    def alignment_target(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """The foundation model's features of images, and the patches that count."""
        if self.foundation is None:
            return None
        with self.context.autocast():
            return self.foundation(images), self.foundation.foreground(images)

    def weighted(
        self,
        output: VQSegOutput,
        layout: BatchLayout,
        batch: Batch,
        views: Views,
        progress: float,
        alignment_target: tuple[Tensor, Tensor] | None = None,
    ) -> Terms:
        """Every loss term with its weight (Eq. 10, 12 and Section 4.2)."""
        config = self.config
        labeled_out, strong_out, perturbed_out = split(output.segmentation, *layout)
        unlabeled = self.unlabeled_weight(progress)
        terms: Terms = {"supervised": (1.0, self.supervised(labeled_out, batch.target))}
        strong, perturbed = views
        if strong is not None:
            value = self.learn(strong_out, strong)
            terms["pseudo_strong"] = (unlabeled * config.weight_strong, value)
        if perturbed is not None and config.perturbation != "none":
            value = self.learn(perturbed_out, perturbed)
            terms["pseudo_perturbed"] = (unlabeled * config.weight_perturbed, value)
        if output.reconstruction is not None:
            weight, scaled = config.weight_reconstruction, not self.context.z_scored
            labeled_images, others = output.reconstruction.split((layout.labeled, layout.perturbed))
            terms["reconstruction"] = (weight, reconstruction_loss(batch.labeled, labeled_images, scaled))
            if perturbed is not None:
                value = reconstruction_loss(perturbed.clean, others, scaled)
                terms["reconstruction_unlabeled"] = (unlabeled * weight, value)
        if output.adapted is not None and alignment_target is not None:
            features, mask = alignment_target
            value = patch_contrastive_loss(output.adapted, features, config.temperature, mask, ddp=self.context.ddp)
            terms["alignment"] = (config.lambda_a, value)
        if output.vq_loss is not None and output.entropy is not None:
            terms["vq"] = (config.weight_codebook, output.vq_loss)
            terms["entropy"] = (config.weight_entropy, output.entropy)
        if output.feature_loss is not None:
            terms["feature"] = (config.weight_feature, output.feature_loss)
        return terms

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """Teacher, then the codebook's bookkeeping and now and then restarts."""
        values = super().after_step()
        self.codebooks.after_step(self.net)
        self.count_labeled()
        return values

    def schedule(self, progress: float) -> dict[str, float]:
        """The ramp, where there is an unlabelled loss."""
        return super().schedule(progress) if self.uses_unlabeled else {}

    def on_epoch_done(self) -> dict[str, float]:
        """Use of the codebook (Fig. 7), with the number of tokens it was counted over, and QPM's neighbours."""
        values = self.codebooks.on_epoch_done()
        if self.net.perturbation is not None and self.config.qpm == "literal":  # else it is `qpm_perplexity`
            values["qpm_effective_neighbors"] = self.net.perturbation.effective_neighbors
        return values

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Teacher, codebooks' bookkeeping, and whether the foundation model took part."""
        return {
            **super().state(),
            **self.codebooks.state(self.net),
            "foundation_model": self.foundation_status,
            "alignment": self.foundation is not None,
            "method_has_alignment": self.config.foundation_policy != "off",
            "stage": self.net.stage,
        }

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore teacher and bookkeeping."""
        super().load_state(state, strict)
        before = state.get("stage", self.net.stage)
        if before != self.net.stage:
            raise CheckpointError(
                f"This training quantised stage {before}, and 'auto' takes stage {self.net.stage} of the plan as it is "
                f"now; set vqseg.vq_stage = {before} in the plan to continue or validate it, or start anew without --c."
            )
        self.codebooks.load_state(self.net, state)

    def why_not_continue(self, state: Mapping[str, Any]) -> str | None:
        """A training with the foundation model never goes on without it, nor the other way round."""
        if state["alignment"] == (self.foundation is not None):
            return None
        if state["alignment"]:
            return (
                "This training began with the foundation model and cannot go on without it: "
                f"{self.foundation_status.rstrip('.')}; provide the weights, or start anew without --c."
            )
        return (
            "This training began without the foundation model, which is there now; set vqseg.foundation_policy to "
            "'off' in the plan to continue without it, or start anew without --c."
        )

    @torch.no_grad()
    def preview(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Logits]]:
        """Reconstruction from q(z), teacher, and student under perturbation."""
        net, pictures = self.net, {}
        if net.image_decoder is not None:
            mean, std = (0.0, 1.0) if self.context.z_scored else channel_scale(images)
            pictures["reconstruction"] = net.reconstruct(images).float() * std + mean
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # a preview must not change the training's random numbers
            perturbed = net.predict_perturbed(images)
        return pictures, {"teacher": self.teacher(images), "student, perturbed": perturbed}
