"""What a method is: an object that turns a batch into weighted loss terms, and what the trainer asks of it.

A method is one file: a small configuration, and `terms`, which reads from top to bottom. The trainer does the rest:
data, devices, processes, the optimiser's step, checkpoints. See docs/how-to/add-a-method.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Config, Key, Range
from nnunetv2_vqseg.methods.guard import Guard, GuardConfig
from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.modules.targets import foreground, full_resolution, split_ignored
from nnunetv2_vqseg.networks.backbone import Logits, NetworkPlan
from nnunetv2_vqseg.networks.modes import in_prediction

LambdaU = Annotated[float, Range(0, 1000), "weight of the unlabelled loss (Eq. 10, Table 3)"]
RampUp = Annotated[
    float, Range(0, 1), "share of the training over which the unlabelled loss rises, exp(-5(1-t/T)^2); 0: at once"
]
WeightDecay = Annotated[float | None, Range(0, 10), "null: nnU-Net's 3e-5 with SGD, PyTorch's 0.01 with AdamW"]
FasterStep = Annotated[
    bool,
    "what makes a step faster and leaves what it computes: LeakyReLU without its copies, and on one GPU a CUDA "
    "graph of forward and backward pass; false: nnU-Net's own step",
]
"""A key that is on for our methods, and off for stock nnU-Net."""
Terms = dict[str, tuple[float, Tensor]]
"""Loss terms by name: weight and value, a scalar; their weighted sum is minimised."""
Metrics = dict[str, Tensor]
"""Further scalars for the curves."""
Loss = Callable[[Logits, Tensor | list[Tensor]], Tensor]


@dataclass(frozen=True)
class BudgetConfig(Config):
    """How long a training is, and how many labelled images a step has."""

    num_epochs: Annotated[int, Range(1, 100_000), "epochs; 400 x 250 = 100,000 iterations (4.2)"] = 400
    iterations_per_epoch: Annotated[int, Range(1, 100_000), "training steps an epoch"] = 250
    val_iterations_per_epoch: Annotated[int, Range(1, 100_000), "online validation steps an epoch"] = 50
    seed: Annotated[
        int | None,
        Range(0, 2**31 - 1),
        "seed of weights and perturbations, and with nnUNet_n_proc_DA=0 of the data's order; null: not seeded",
    ] = None
    save_every: Annotated[int, Range(1, 100_000), "epochs between two writes of checkpoint_latest.pth"] = 10
    batch_size_range: Annotated[
        tuple[int, int], Range(1, 4096), "the plan's batch size is clamped into this range, in labelled images"
    ] = (8, 12)
    labeled_batch_size: Annotated[
        int | None,
        Range(1, 4096),
        "labelled images a step, all GPUs together; null: the plan's batch size, clamped (4.2: 8)",
    ] = None

    plot_every: Annotated[
        float,
        Range(0, 86_400),
        "seconds between two drawings of progress.png and progress_vqseg.png; the last epoch's are always drawn",
    ] = 60.0
    faster_step: FasterStep = False

    fused_norm: Annotated[
        bool,
        "InstanceNorm and LeakyReLU as one Triton kernel, in channels_last; on a GPU without torch.compile "
        "(nnUNet_compile=f). Sums in another order, and never measured yet",
    ] = False

    same_to_continue: ClassVar[frozenset[str]] = frozenset()
    """Keys beside the architecture's that must not change when a training is continued."""


@dataclass(frozen=True)
class CommonConfig(BudgetConfig):
    """What every method but stock nnU-Net's has: loss, optimiser, safety."""

    faster_step: FasterStep = True
    supervised_loss: Annotated[
        Literal["nnunet", "literature", "ce"],
        "nnU-Net's Dice + CE with deep supervision, the original's own loss, or cross entropy alone (4.2)",
    ] = "nnunet"
    optimizer: Annotated[Literal["sgd", "adamw"], "nnU-Net's SGD with Nesterov momentum, or AdamW (4.2)"] = "sgd"
    initial_lr: Annotated[float, Range(1e-9, 10), "learning rate at the start"] = 1e-2
    head_lr_scale: Annotated[float, Range(1e-3, 1e4), "factor on the rate of everything but the encoder (4.2: 40)"] = (
        1.0
    )
    momentum: Annotated[float, Range(0, 1), "of SGD"] = 0.99
    weight_decay: WeightDecay = None
    max_gradient_norm: Annotated[float, Range(1e-6, 1e9), "norm at which the gradient is clipped"] = 12.0
    max_bad_steps: Annotated[
        int, Range(1, 100_000), "steps in a row with a NaN or infinite loss after which training stops"
    ] = 20

    bfloat16_on_cpu: Annotated[
        bool,
        "compute in bfloat16 on a CPU that has AMX: 0.6 of the time and the same Dice for the mean teacher, other "
        "methods were not compared. Without AMX it would be slower, and float32 stays",
    ] = False

    val_share_all_networks: Annotated[
        float,
        Range(0, 1),
        "share of the online validation steps that take all networks, as teacher and student, for progress_vqseg.png; "
        "0: the saved one alone",
    ] = 0.2

    same_to_continue: ClassVar[frozenset[str]] = frozenset({"optimizer"})


@dataclass(frozen=True)
class UnlabeledImagesConfig(GuardConfig, CommonConfig):
    """What every method that learns from unlabelled images has; of its weight decay see docs/results/arena.md."""

    weight_decay: WeightDecay = 0.003
    unlabeled_batch_size: Annotated[
        int | None,
        Range(1, 4096),
        "unlabelled images a step, all GPUs together; null: `unlabeled_per_labeled` times the labelled ones (4.2: 4)",
    ] = None
    unlabeled_per_labeled: Annotated[float, Range(0.01, 100), "unlabelled images a labelled one"] = 1.0
    labeled_as_unlabeled: Annotated[
        bool, "use the labelled images as the unlabelled set where there are no others (Table 6, 100 %)"
    ] = False
    unlabeled_memory_share: Annotated[
        float,
        Range(0, 0.9),
        "share of the machine's, container's or job's memory in which unlabelled images stay decompressed, in all "
        "loading processes of the training together; 0: read from disk each time",
    ] = 0.1


@dataclass(frozen=True)
class UnlabeledConfig(UnlabeledImagesConfig):
    """What every method has whose unlabelled loss has a weight."""

    lambda_u: LambdaU = 0.3
    ramp_up: RampUp = 0.8

    def unlabeled_weight(self, progress: float) -> float:
        """`lambda_u` times the ramp at this share of the training; of a tensor, which stays one."""
        return self.lambda_u * ramp(progress, self.ramp_up)


def ramp(progress: float, length: float) -> float:
    """Sigmoid ramp-up exp(-5 (1 - t/T)^2), from e^-5 to 1.

    Args:
        progress: share of the training that is over, in [0, 1]; while a step is recorded a float64 scalar, of which
            the ramp is one, too.
        length: share of the training over which the ramp rises; 0 for no ramp.
    """
    if length <= 0:
        return 1.0
    if isinstance(progress, Tensor):
        return torch.where(progress >= length, 1.0, torch.exp(-5.0 * (1.0 - progress / length) ** 2))
    if progress >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - progress / length) ** 2)


class Batch(NamedTuple):
    """One step's images on the device, after nnU-Net's augmentation.

    labeled: (B, C, ...).
    target: as nnU-Net's loader gives it.
    unlabeled: the weak view (B', C, ...); None for methods without.
    unlabeled_target: as `target`, once the cases have labels of the training's own; the images are then augmented as
        labelled ones.
    """

    labeled: Tensor
    target: Tensor | list[Tensor]
    unlabeled: Tensor | None = None
    unlabeled_target: Tensor | list[Tensor] | None = None


class Cases(Protocol):
    """The unlabelled cases of a training, for a method that chooses among them; every rank calls the same."""

    @property
    def names(self) -> list[str]:
        """Of those that batches are drawn from."""

    def predict(self, look: Callable[[str, Tensor], float]) -> dict[str, float]:
        """`look(name, logits)` of each of them by its name; the logits (K, ...) of the whole case are those of the
        predictor with a sliding window and mirroring, as in nnU-Net's validation. Rank 0 does it for all."""

    def keep(self, names: Sequence[str]) -> None:
        """Draw from these alone from the next epoch on; to be called from `before_epoch`."""

    def label(self) -> dict[str, float]:
        """Write the predictor's labels of all cases, also of those that are drawn no more; to be called from
        `before_epoch`, from when on batches have them. Of each case that had labels by its name: differing voxels over
        foreground voxels of the new ones."""


@dataclass(frozen=True)
class Context:
    """What a method knows of the training around it.

    plan: of the network.
    regions: labels are overlapping regions (sigmoid) instead of classes (softmax).
    ignore_label: value of pixels without a label; None where all have one.
    z_scored: images have a standard deviation of about 1.
    masked: of each channel, whether its background was set to 0.
    ddp: there are several processes.
    only_validates: nothing will be trained.
    restores: weights come from a checkpoint of the same training.
    autocast: context manager for forward passes.
    log: a line for the training's log.
    require_same: (value, message) stops all processes where one has another value.
    cases: the unlabelled cases; None outside a training.
    reset_optimizer: forget what the optimiser remembers of earlier steps.
    """

    plan: NetworkPlan
    device: Any
    regions: bool = False
    ignore_label: int | None = None
    z_scored: bool = True
    masked: Sequence[bool] = ()
    ddp: bool = False
    only_validates: bool = False
    restores: bool = False
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    log: Callable[[str], None] = print
    require_same: Callable[[object, str], None] = lambda value, message: None
    cases: Cases | None = None
    reset_optimizer: Callable[[], None] = lambda: None


C = TypeVar("C", bound=BudgetConfig)


class Method(Generic[C]):
    """One method. Subclasses set `Config` and write `terms`; everything else has a default.

    Attributes:
        student: the training network, as DDP and torch.compile wrap it; a method may call it several times a step.
        supervised: nnU-Net's loss, (outputs, target) -> scalar.
    """

    Architecture: ClassVar[Any] = Config
    """The part of the configuration that decides what prediction computes."""
    Config: type[C]
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Curves that are no loss terms, by the title of the panel they are drawn in."""

    is_stock: ClassVar[bool] = False
    """nnU-Net itself: takes any plan, and continues nnU-Net's checkpoints."""
    trains_vit: ClassVar[bool] = False
    """Whether its plan must be one of `nnUNetPlannerViT`; all others train U-Nets."""
    has_one_output: ClassVar[bool] = False
    """The network has no coarser outputs for deep supervision, in a plan for networks that have."""

    literature: ClassVar[tuple[float, float] | None] = None
    """The original's own loss of labelled images: weights of cross entropy and squared Dice; None: it is nnU-Net's."""

    runs_ahead: ClassVar[bool] = True
    """`after_step` does no harm after a step that was not finite: on a GPU nobody waits to hear whether it was."""

    is_static: bool = False
    """Shapes and work of `terms` are the same in every step: they depend on no value of a tensor and on nothing that
    Python draws or counts, and `progress` enters weights and limits alone, through `ramp`. Such steps can be recorded
    as a CUDA graph, while which `progress` is a scalar tensor."""

    student: nn.Module
    supervised: Loss

    def __init__(self, config: C, context: Context) -> None:
        self.config = config
        self.context = context
        self.guard: Guard | None = None
        if isinstance(config, UnlabeledImagesConfig) and config.guard and self.uses_unlabeled:
            self.guard = Guard(config, config.num_epochs, context.log)
        self.unlabeled_factor = 1.0
        """0 while the unlabelled loss waits."""

    # Networks

    @classmethod
    def network(cls, plan: NetworkPlan, architecture: Any) -> nn.Module:
        """What prediction builds and loads strictly; in eval mode it gives logits.

        Args:
            architecture: `Architecture`, or the whole configuration in training.
        """
        return plan.build()

    def training_network(self) -> nn.Module:
        """What is trained: that network, with heads, or several of them."""
        return self.network(self.context.plan, self.config)

    def begin(self, student: nn.Module, supervised: Loss) -> None:
        """The networks are built: make teachers and losses."""
        self.student = student
        self.supervised = supervised

    @property
    def main(self) -> nn.Module:
        """What answers for the student in evaluation mode, without wrappers: all of it, or one of its networks."""
        return unwrap(self.student)

    def predictor(self) -> nn.Module:
        """What is validated, saved as `network_weights` and predicts: `main`, or a twin of it."""
        return self.main

    def validated(self) -> dict[str, nn.Module]:
        """The networks whose Dice on validation patches is drawn, by name; `predictor` is one of them."""
        return {"network": self.predictor()}

    @property
    def saved_name(self) -> str:
        """What `validated` calls the predictor.

        Raises:
            TypeError: it is not among them, which is a mistake in the method.
        """
        predictor, networks = self.predictor(), self.validated()
        for name, network in networks.items():
            if network is predictor:
                return name
        raise TypeError(
            f"{type(self).__name__}.predictor() gives a network that is not one of those of validated() "
            f"({', '.join(networks) or 'none'}); make it in begin(), and name it there."
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of classes, or of each region, in float32: (B, K, ...) as the logits."""
        return logits.float().sigmoid() if self.context.regions else logits.float().softmax(dim=1)

    def pretrained(self) -> list[nn.Module]:
        """The networks that start from the file of `-pretrained_weights`."""
        return [self.main]

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """The optimiser's groups with their `lr_scale`: encoders at the plain rate, the rest `head_lr_scale` times."""
        scale = getattr(self.config, "head_lr_scale", 1.0)
        if scale == 1.0 and getattr(self.config, "optimizer", "sgd") == "sgd":
            return [{"params": list(network.parameters()), "lr_scale": 1.0}]
        parts: list[Any] = list(network.modules())
        unets = [module for module in parts if hasattr(module, "encoder") and hasattr(module, "decoder")]
        backbone = list(dict.fromkeys(parameter for unet in unets for parameter in unet.encoder.parameters()))
        known = set(map(id, backbone))
        heads = [parameter for parameter in network.parameters() if id(parameter) not in known]
        return [{"params": backbone, "lr_scale": 1.0}, {"params": heads, "lr_scale": scale}]

    # A training

    @property
    def uses_unlabeled(self) -> bool:
        """Whether there is a second loader."""
        return isinstance(self.config, UnlabeledImagesConfig)

    def reads_unlabeled(self, progress: float) -> bool:
        """Whether the step at this share of the training gets unlabelled images."""
        return self.uses_unlabeled

    @property
    def mixes_unlabeled(self) -> bool:
        """Whether unlabelled images of one process are mixed with each other, so that it needs two of them."""
        return False

    @property
    def unlabeled_views(self) -> int:
        """Views of each unlabelled image that pass the student in a step."""
        return int(self.uses_unlabeled)

    def rate_epoch(self, epoch: int) -> float:
        """The epoch of nnU-Net's schedule whose rate an epoch has."""
        return epoch

    def start(self, batches: Iterator[Batch]) -> None:
        """Before the first step of a training that is not continued: first values from data."""

    def before_epoch(self, epoch: int) -> None:
        """Before anything of an epoch: may change the unlabelled cases."""

    def on_epoch_start(self) -> None:
        """Before the first step of an epoch."""

    def before_step(self, progress: float) -> None:
        """Work before a step, outside compiled code. `progress`: share of the training that is over."""

    def guarded(self, batch: Batch, progress: float) -> Batch:
        """The batch as the guard lets it pass: where unlabelled images have no weight they are taken out instead.

        Every process must call this. Now and then the predictor labels the unlabelled images for it.
        """
        if self.guard is None:
            return batch
        if batch.unlabeled is not None and self.guard.is_due():
            self.guard.look(*self._foregrounds(batch))
        waits = self.guard.waits(progress)
        self.unlabeled_factor = 0.0 if waits else 1.0
        if not waits or isinstance(self.config, UnlabeledConfig):
            return batch
        return batch._replace(unlabeled=None, unlabeled_target=None)

    @torch.no_grad()
    def _foregrounds(self, batch: Batch) -> tuple[tuple[float, float], tuple[float, float]]:
        """Foreground pixels and pixels of the labels and of the pseudo-labels, means over processes."""
        regions, ignored = self.context.regions, self.context.ignore_label
        labels, known = split_ignored(full_resolution(batch.target), regions, ignored)
        if batch.unlabeled_target is not None:
            pseudo = foreground(split_ignored(full_resolution(batch.unlabeled_target), regions, ignored)[0])
        else:
            with in_prediction(self.predictor()) as network, self.context.autocast():
                logits = finest(network(batch.unlabeled))
            pseudo = (logits > 0).any(1) if regions else logits.argmax(1) > 0
        sums = (foreground(labels).sum(), known.sum(), pseudo.sum(), torch.tensor(pseudo.numel(), device=pseudo.device))
        found = mean_over_processes(torch.stack([value.float() for value in sums])).tolist()
        return (found[0], found[1]), (found[2], found[3])

    def unlabeled_weight(self, progress: float) -> float:
        """Of the unlabelled loss at this share of the training; 0 while it waits."""
        config: Any = self.config
        return self.unlabeled_factor * config.unlabeled_weight(progress)

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The method: every loss term with its weight, and further values for the curves."""
        raise NotImplementedError

    def schedule(self, progress: float) -> dict[str, float]:
        """What changes over a training, for the curves."""
        config: Any = self.config
        rises = isinstance(config, UnlabeledConfig) and config.ramp_up > 0
        values = {"ramp": ramp(progress, config.ramp_up)} if rises else {}
        if self.guard is not None:
            values |= {
                "unlabeled_waits": 1.0 - self.unlabeled_factor,
                "foreground_ratio": self.guard.foreground_ratio,
            }
        return values

    def after_step(self) -> dict[str, float]:
        """After a step that changed the weights: teachers, codebooks, memories; further values for the curves."""
        return {}

    def on_epoch_done(self) -> dict[str, float]:
        """Values of a whole epoch, for the curves."""
        return {}

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """What continuing needs beside the student's weights: plain tensors and values."""
        return {}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore what `state` gave; without `strict` as far as it fits, for a validation."""

    def why_not_continue(self, state: Mapping[str, Any]) -> str | None:
        """Why a training with this state can be validated but not continued; None where it can."""
        return None

    def preview(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Logits]]:
        """Images and logits of the preview's columns, by title, for images (N, C, ...)."""
        return {}, {"prediction": self.predictor()(images)}


def known_keys() -> dict[str, list[Key]]:
    """The keys of all methods that are imported, by name."""
    found: dict[str, list[Key]] = {}
    waiting: list[Any] = [Method]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting.extend(subclasses)
        for key in (key for cls in subclasses if hasattr(cls, "Config") for key in cls.Config.declared().values()):
            found.setdefault(key.name, []).append(key)
    return found


def switch_deep_supervision(network: nn.Module, enabled: bool) -> None:
    """Of every decoder in it."""
    parts: list[Any] = list(network.modules())
    for module in parts:
        if hasattr(module, "deep_supervision"):
            module.deep_supervision = enabled


def finest(logits: Logits) -> Tensor:
    """The logits at full resolution."""
    return logits[0] if isinstance(logits, list) else logits


def split(logits: Logits, *sizes: int) -> list[list[Tensor]]:
    """Logits of a batch in parts of these numbers of images, each a list, finest first."""
    outputs = logits if isinstance(logits, list) else [logits]
    return [list(part) for part in zip(*(output.split(list(sizes)) for output in outputs), strict=True)]
