"""Every hyper-parameter of VQ-Seg, in one frozen dataclass with two constructors: `literal` and `default`.

Section and equation numbers are those of VQ-Seg (NeurIPS 2025). A field's description, unit and valid range stand in
its metadata, from which the README's table is made (`python -m nnunetv2_vqseg.config`).
"""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nnunetv2_vqseg.core.errors import ConfigError

Check = Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(default: float, low: float, high: float, doc: str) -> Any:
    valid = f"number in [{low:g}, {high:g}]"
    return field(
        default=default, metadata={"doc": doc, "valid": valid, "check": lambda v: _is_number(v) and low <= v <= high}
    )


def _integer(default: int, low: int, high: int, doc: str) -> Any:
    valid = f"integer in [{low}, {high}]"
    return field(
        default=default, metadata={"doc": doc, "valid": valid, "check": lambda v: _is_int(v) and low <= v <= high}
    )


def _optional_integer(default: int | None, low: int, high: int, doc: str) -> Any:
    valid = f"null or integer in [{low}, {high}]"
    check: Check = lambda v: v is None or (_is_int(v) and low <= v <= high)  # noqa: E731
    return field(default=default, metadata={"doc": doc, "valid": valid, "check": check})


def _choice(default: str, choices: tuple[str, ...], doc: str) -> Any:
    return field(default=default, metadata={"doc": doc, "valid": " or ".join(choices), "check": lambda v: v in choices})


def _switch(default: bool, doc: str) -> Any:
    return field(
        default=default, metadata={"doc": doc, "valid": "true or false", "check": lambda v: isinstance(v, bool)}
    )


def _is_batch_range(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(_is_int(v) and v >= 1 for v in value)
        and value[0] <= value[1]
    )


def _is_channel_pick(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(_is_int(v) and v >= 0 for v in value)


def _is_stage(value: object) -> bool:
    return value == "auto" or (_is_int(value) and value >= 0)  # type: ignore[operator]


ARCHITECTURE = ("quantize", "vq_stage", "min_tokens", "decoder_input", "num_codes", "code_dim", "normalize_codes")
"""Fields that decide what prediction computes."""


@dataclass(frozen=True)
class VQSegConfig:
    """Hyper-parameters of one training; immutable, checked on construction.

    Raises:
        ConfigError: a value outside its valid range.
    """

    # Which parts of the method take part (Table 2)
    use_unlabeled: bool = _switch(True, "learn from unlabelled images at all (Eq. 9, 10)")
    quantize: bool = _switch(True, "vector-quantise one encoder stage (3.3, Eq. 2)")
    perturbation: str = _choice(
        "qpm", ("qpm", "dropout", "none"), "feature perturbation of the unlabelled stream (3.3, Fig. 1)"
    )
    perturbed_view: str = _choice(
        "strong",
        ("weak", "strong"),
        "view of the unlabelled images whose features are perturbed: x_u itself (Eq. 9), or one with an intensity "
        "jitter and a CutMix of its own",
    )
    reconstruct: bool = _switch(False, "image reconstruction decoder, the dual branch DB (3.4, Eq. 7 to 9)")
    foundation_policy: str = _choice(
        "auto", ("auto", "required", "off"), "what to do about foundation model weights for the alignment PFA (3.5)"
    )
    strong_view: bool = _switch(
        False,
        "third term of Eq. 9: a view with intensity jitter and CutMix whose features are not perturbed, beside the "
        "perturbed one",
    )
    labeled_as_unlabeled: bool = _switch(
        False, "use the labelled images as the unlabelled set where there are no others (Table 6, 100 %)"
    )

    # Budget and batch (4.2)
    num_epochs: int = _integer(400, 1, 100_000, "epochs; 400 x 250 = 100,000 iterations (4.2)")
    iterations_per_epoch: int = _integer(250, 1, 100_000, "training steps an epoch")
    val_iterations_per_epoch: int = _integer(50, 1, 100_000, "online validation steps an epoch")
    seed: int | None = _optional_integer(
        None,
        0,
        2**31 - 1,
        "seed of weights and perturbations, and with nnUNet_n_proc_DA=0 of the data's order; null: not seeded",
    )
    save_every: int = _integer(10, 1, 100_000, "epochs between two writes of checkpoint_latest.pth")
    batch_size_range: tuple[int, int] = field(
        default=(8, 12),
        metadata={
            "doc": "the plan's batch size is clamped into this range, in labelled images",
            "valid": "[low, high], integers >= 1",
            "check": _is_batch_range,
        },
    )
    labeled_batch_size: int | None = _optional_integer(
        None, 1, 4096, "labelled images a step, all GPUs together; null: the plan's batch size, clamped (4.2: 8)"
    )
    unlabeled_batch_size: int | None = _optional_integer(
        None, 1, 4096, "unlabelled images a step, all GPUs together; null: half the labelled ones (4.2: 4)"
    )

    # Quantiser (Eq. 2, 4.2)
    vq_stage: int | str = field(
        default="auto",
        metadata={
            "doc": "encoder stage that is quantised, 0 is the shallowest; auto: the deepest with at least "
            "`min_tokens` tokens on the patch's shorter side",
            "valid": "auto or integer >= 0",
            "check": _is_stage,
        },
    )
    min_tokens: int = _integer(14, 1, 512, "tokens on the patch's shorter side for vq_stage auto")
    decoder_input: str = _choice(
        "continuous",
        ("quantized", "continuous"),
        "what deeper stages and the segmentation decoder read: q(z) as in the paper, or z itself, which QPM then moves "
        "by c_j - c_i",
    )
    num_codes: int = _integer(16_384, 2, 1_048_576, "codebook size K (4.2, Table 5)")
    code_dim: int | None = _optional_integer(
        16, 1, 4096, "width of a code; null: the stage's width, without projections (literal)"
    )
    normalize_codes: bool = _switch(
        True, "compare tokens and codes by angle (LayerNorm, then unit length); off: raw L2"
    )
    commitment: float = _number(0.25, 0, 100, "beta of the commitment loss")
    weight_vq: float = _number(1.0, 0, 1000, "weight of the embedding and commitment loss")
    weight_entropy: float = _number(0.1, 0, 1000, "weight of the entropy regulariser (4.2, reference [46])")
    entropy_tokens: int = _integer(512, 2, 65_536, "tokens drawn a step for the entropy regulariser")
    codebook_trains_features: bool = _switch(
        False, "let the gradients of the embedding, commitment, entropy and feature losses reach the encoder"
    )
    restart_after: int = _integer(500, 0, 10_000_000, "steps without use after which a code is restarted; 0: never")

    # QPM (3.3, Eq. 3 to 6)
    qpm: str = _choice("calibrated", ("calibrated", "literal"), "neighbour distribution: fixed perplexity, or Eq. 4")
    epsilon: float = _number(0.7, 0, 1, "share of the tokens that QPM replaces (Eq. 4, Table 3)")
    qpm_perplexity: float = _number(32.0, 1, 4096, "effective neighbours a code can move to (calibrated)")
    qpm_neighbors: int = _integer(128, 2, 65_536, "neighbours a code kept in the table (calibrated)")
    dropout_rate: float = _number(0.5, 0, 1, "channel dropout rate where perturbation is dropout (Fig. 1)")

    # Losses (Eq. 8 to 12)
    supervised_loss: str = _choice(
        "nnunet", ("nnunet", "ce"), "nnU-Net's Dice + CE with deep supervision, or cross entropy alone (4.2)"
    )
    pseudo_loss: str = _choice("ce_dice", ("ce_dice", "ce"), "loss against the teacher's labels (Eq. 9)")
    confidence_threshold: float = _number(0.95, 0, 1, "teacher's probability under which a pixel is left out; 0: none")
    lambda_u: float = _number(0.3, 0, 1000, "weight of the unlabelled loss (Eq. 10, Table 3)")
    lambda_a: float = _number(0.5, 0, 1000, "weight of the alignment loss (Eq. 12, Table 3)")
    weight_perturbed: float = _number(1.0, 0, 1000, "weight of the perturbed stream's term in Eq. 9")
    weight_strong: float = _number(1.0, 0, 1000, "weight of the strong view's term in Eq. 9")
    weight_reconstruction: float = _number(0.1, 0, 1000, "weight of the L1 reconstruction terms in Eq. 8 and 9")
    ramp_up: float = _number(
        0.8, 0, 1, "share of the training over which the unlabelled loss rises, exp(-5(1-t/T)^2); 0: at once"
    )
    temperature: float = _number(0.07, 1e-4, 100, "tau of the contrastive alignment loss (Eq. 11)")

    # Foundation model (3.5)
    foundation_model: str = field(
        default="vit_small_patch14_dinov2.lvd142m",
        metadata={"doc": "timm name", "valid": "a timm model name", "check": lambda v: isinstance(v, str) and bool(v)},
    )
    foundation_checkpoint: str | None = field(
        default=None,
        metadata={
            "doc": "local file with its weights (.safetensors or .pth); null: timm's cache or download",
            "valid": "null or a path",
            "check": lambda v: v is None or (isinstance(v, str) and bool(v)),
        },
    )
    foundation_image_size: int = _integer(224, 16, 4096, "pixels on a side of the foundation model's input")
    foundation_channels: tuple[int, int, int] = field(
        default=(0, 1, 2),
        metadata={
            "doc": "which three channels it sees where there are more than three",
            "valid": "three channel numbers",
            "check": _is_channel_pick,
        },
    )

    # Teacher and optimiser (4.2)
    ema_decay: float = _number(0.996, 0, 1, "largest decay of the EMA teacher, alpha (4.2)")
    ema_warmup: float = _number(
        10.0,
        1,
        1000,
        "w of the teacher's decay min(1 - w / (t + w), alpha): at first it follows the last 1/w of the steps",
    )
    optimizer: str = _choice("sgd", ("sgd", "adamw"), "nnU-Net's SGD with momentum 0.99, or AdamW (4.2)")
    initial_lr: float = _number(1e-2, 1e-9, 10, "learning rate at the start")
    head_lr_scale: float = _number(1.0, 1e-3, 1e4, "factor on the rate of everything but the encoder (4.2: 40)")

    # Strong view
    jitter_strength: float = _number(1.0, 0, 5, "scale of the intensity jitter's ranges")
    cutmix_probability: float = _number(0.5, 0, 1, "share of the strong views that get a CutMix box [43]")

    # Safety
    max_bad_steps: int = _integer(
        20, 1, 100_000, "steps in a row with a NaN or infinite loss after which training stops"
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not item.metadata["check"](value):
                raise ConfigError(
                    f"vqseg.{item.name} = {reprlib.repr(value)} is not valid; it must be {item.metadata['valid']}."
                )
            if isinstance(value, list):
                object.__setattr__(self, item.name, tuple(value))
        if self.perturbation == "qpm" and not self.quantize:
            raise ConfigError(
                "vqseg.perturbation = 'qpm' needs vqseg.quantize = true; use 'none' or 'dropout' instead."
            )
        if self.reconstruct and not self.quantize:
            raise ConfigError(
                "vqseg.reconstruct = true needs vqseg.quantize = true: the image decoder reads q(z) only."
            )
        if self.foundation_policy != "off" and not self.quantize:
            raise ConfigError(
                "vqseg.foundation_policy must be 'off' where vqseg.quantize = false: PFA reads q(z) only."
            )
        calibrated = self.perturbation == "qpm" and self.qpm == "calibrated"
        if calibrated and self.qpm_perplexity >= self.qpm_neighbors:
            raise ConfigError(
                f"vqseg.qpm_perplexity = {self.qpm_perplexity:g} must be less than vqseg.qpm_neighbors = "
                f"{self.qpm_neighbors}; raise qpm_neighbors to about four times the perplexity."
            )
        if self.quantize and self.normalize_codes and self.code_dim is not None and self.code_dim < 3:
            raise ConfigError(
                f"vqseg.code_dim = {self.code_dim} leaves too few directions for codes of unit length and zero mean; "
                "set 3 or more (16 by default), or normalize_codes = false."
            )
        if self.quantize and self.code_dim is None and self.decoder_input == "continuous" and self.normalize_codes:
            raise ConfigError(
                "vqseg.normalize_codes must be false with vqseg.code_dim = null: unit-length codes cannot stand for "
                "features; set a code_dim, or normalize_codes = false."
            )
        if self.use_unlabeled and not self.strong_view and self.perturbation == "none":
            raise ConfigError(
                "vqseg.strong_view = false with vqseg.perturbation = 'none' leaves no view that learns the teacher's "
                "labels; set strong_view = true, or use_unlabeled = false."
            )

    @property
    def has_perturbed_stream(self) -> bool:
        """Whether a view of x_u passes the student to be perturbed, by QPM or dropout, or to be reconstructed."""
        return self.use_unlabeled and (self.perturbation != "none" or self.reconstruct)

    @property
    def unlabeled_streams(self) -> int:
        """Views of each unlabelled image that pass the student in a step."""
        return int(self.use_unlabeled and self.strong_view) + int(self.has_perturbed_stream)

    @classmethod
    def default(cls) -> VQSegConfig:
        """What `nnUNetTrainerVQSeg` does out of the box."""
        return cls()

    @classmethod
    def literal(cls) -> VQSegConfig:
        """The paper to the letter, as far as it says (4.2); the backbone stays the planned U-Net."""
        return cls(
            labeled_batch_size=8,
            unlabeled_batch_size=4,
            perturbed_view="weak",
            reconstruct=True,
            strong_view=True,
            decoder_input="quantized",
            code_dim=None,
            normalize_codes=False,
            codebook_trains_features=True,
            restart_after=0,
            qpm="literal",
            epsilon=0.7,
            supervised_loss="ce",
            pseudo_loss="ce",
            confidence_threshold=0.0,
            lambda_u=1.0,
            lambda_a=5.0,
            weight_reconstruction=1.0,
            ramp_up=0.0,
            ema_warmup=1.0,
            optimizer="adamw",
            initial_lr=5e-6,
            head_lr_scale=40.0,
        )

    def override(self, block: Mapping[str, Any], locked: frozenset[str] = frozenset()) -> VQSegConfig:
        """This configuration with the keys of a sparse `vqseg` block of the plans put over it.

        Args:
            block: key -> value, as read from JSON.
            locked: keys that define a variant and may only repeat the variant's own value.

        Raises:
            ConfigError: an unknown key (the message lists the valid ones), a locked one, or a value out of range.
        """
        known = [item.name for item in fields(self)]
        for key, value in block.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                raise ConfigError(
                    f"Unknown key {key!r} in the plan's vqseg block{hint}; valid keys are {', '.join(known)}."
                )
            if key in locked and value != getattr(self, key):
                raise ConfigError(
                    f"vqseg.{key} is what defines this trainer ({key} = {getattr(self, key)!r}) and cannot be set to "
                    f"{value!r} in the plan; remove it there or use another trainer."
                )
        return replace(self, **block)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able dictionary, for the log and the checkpoint."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def changed_since(self, stored: Mapping[str, Any]) -> dict[str, str]:
        """Keys that have another value than in a stored `as_dict`, with both values as text.

        Left out are keys that only one of both has, because another version wrote it, and the weights and the views of
        what this configuration does without.
        """
        now = self.as_dict()
        in_use = {
            "lambda_u": self.use_unlabeled,
            "perturbed_view": self.has_perturbed_stream,
            "weight_perturbed": self.use_unlabeled and self.perturbation != "none",
            "strong_view": self.use_unlabeled,
            "lambda_a": self.foundation_policy != "off",
            "weight_reconstruction": self.reconstruct,
        }
        return {
            key: f"{key} {value!r}, now {now[key]!r}"
            for key, value in stored.items()
            if key in now and value != now[key] and in_use.get(key, True)
        }

    def describe(self) -> str:
        """One line a field, for the log."""
        return "\n".join(f"  {key}: {value}" for key, value in self.as_dict().items())


def markdown_table() -> str:
    """Table of every field with its default, its literal (paper) value, valid range and meaning."""
    default, literal = VQSegConfig.default().as_dict(), VQSegConfig.literal().as_dict()
    rows = ["| key | default | paper | valid | meaning |", "|---|---|---|---|---|"]
    for item in fields(VQSegConfig):
        paper = "" if literal[item.name] == default[item.name] else f"`{_json(literal[item.name])}`"
        rows.append(
            f"| `{item.name}` | `{_json(default[item.name])}` | {paper} | {item.metadata['valid']} "
            f"| {item.metadata['doc']} |"
        )
    return "\n".join(rows)


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    print(markdown_table())
