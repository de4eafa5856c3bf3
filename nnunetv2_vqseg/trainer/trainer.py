"""The one subclass of nnU-Net's trainer: its life cycle around a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import isfile, join
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn

from nnunetv2_vqseg import __version__
from nnunetv2_vqseg.core.config import locked_message
from nnunetv2_vqseg.core.errors import CheckpointError, ConfigError, explained_disk_errors
from nnunetv2_vqseg.core.versions import package
from nnunetv2_vqseg.data.checks.dataset_json import number_of_channels
from nnunetv2_vqseg.data.checks.preprocessed import check_split, preprocessed_cases, require_enough_cases
from nnunetv2_vqseg.data.loader import EndWithParent
from nnunetv2_vqseg.data.patients import same_patient_message, shared_patients
from nnunetv2_vqseg.data.splits_file import load_fold_entry, load_splits, patient_pattern
from nnunetv2_vqseg.methods.base import (
    Batch,
    CommonConfig,
    Context,
    Loss,
    Method,
    UnlabeledImagesConfig,
    finest,
    known_keys,
    switch_deep_supervision,
)
from nnunetv2_vqseg.modules import fused_norm
from nnunetv2_vqseg.modules.activation import use_cheap_activations
from nnunetv2_vqseg.modules.collectives import alone
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.modules.targets import full_resolution
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.planning.plan_checks import check_network, check_plans
from nnunetv2_vqseg.planning.plans import resolve_vqseg_block
from nnunetv2_vqseg.planning.vit_planner import NETWORK as VIT_NETWORK
from nnunetv2_vqseg.trainer.cases import FoldCases
from nnunetv2_vqseg.trainer.checkpoint_files import remove_leftovers, restore_random_states, seed_everything
from nnunetv2_vqseg.trainer.checkpoints import Checkpoints
from nnunetv2_vqseg.trainer.cpu import half_precision, keep_freed_memory, obey_omp_num_threads
from nnunetv2_vqseg.trainer.curves import EpochCurves, draw_panels
from nnunetv2_vqseg.trainer.graph import CudaRecorder, Recorder, StepGraph, why_not
from nnunetv2_vqseg.trainer.log import peak_memory, printable, reset_peak_memory
from nnunetv2_vqseg.trainer.online_dice import OnlineDice, deep_supervision
from nnunetv2_vqseg.trainer.optimizers import InFullPrecision, build_optimizer, chosen_loss
from nnunetv2_vqseg.trainer.plots import Plots
from nnunetv2_vqseg.trainer.pool import CasePool
from nnunetv2_vqseg.trainer.preview import PreviewSlices, draw_preview, preview_slices
from nnunetv2_vqseg.trainer.preview_plot import draw_slices
from nnunetv2_vqseg.trainer.progress_plot import draw_progress
from nnunetv2_vqseg.trainer.ranks import Ranks, distribute
from nnunetv2_vqseg.trainer.step import Losses, Reading, Stepper
from nnunetv2_vqseg.trainer.stopping import EXIT_INTERRUPTED, StopRequest, exit_when_asked
from nnunetv2_vqseg.trainer.validation import hard_counts, on_host
from nnunetv2_vqseg.trainer.weight_swap import WeightSwap

Z_SCORES = frozenset({"ZScoreNormalization", "CTNormalization"})
"""nnU-Net's normalisation schemes after which intensities have a standard deviation of about 1."""
UNIT_RANGE = frozenset({"RescaleTo01Normalization", "RGBTo01Normalization"})
"""Those after which they are from 0 to 1."""

VALIDATE_AGAIN = "the training is finished and saved; to repeat the validation, run the same command with --val or --c"


class MethodTrainer(nnUNetTrainer):
    """nnU-Net's plan, preprocessing, augmentation, validation and checkpoints around a method's step.

    Hyper-parameters are those of the method's configuration with the trainer's `preset`, then of the `vqseg` block of
    the plan's configuration. Unlabelled cases come from `imagesUl` and from the fold's `unlabeled` list in
    `splits_final.json`. The saved `network_weights` are the method's predictor's.
    """

    method_class: ClassVar[type[Method[Any]]]
    preset: ClassVar[Mapping[str, Any]] = {}
    """Values that differ from the method's defaults."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Values that define the trainer; a plan cannot change them. Keys the method lacks may not ask for another one."""
    named_epochs: ClassVar[int | None] = None
    """The number in the trainer's name. A training of so many epochs may go on to a larger one in the plan."""

    method: Method[Any]
    stepper: Stepper
    step_graph: StepGraph
    curves: EpochCurves
    online_dice: OnlineDice
    is_ddp: bool
    network: nn.Module
    grad_scaler: Any
    dataloader_unlabeled: Any = None
    only_validates = False
    restores = False
    labeled_cases: int | None = None
    package: str | None = None
    _swap: WeightSwap | None = None
    _preview: PreviewSlices | None = None
    _validation_step = 0
    _unread: Reading | None = None
    _draws = False
    _wants_preview = False

    # Set-up

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net reads this signature
    ) -> None:
        missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
        if missing.get(device.type):
            raise ConfigError(f"torch finds no GPU ({device.type}) here; add -device cpu to train without one.")
        if device.type == "cpu":
            keep_freed_memory()
            obey_omp_num_threads()
        block = resolve_vqseg_block(plans, configuration)
        self.config = self.configured(block)
        if not self.method_class.is_stock:
            check_plans(plans, configuration, dataset_json)
        # Whole, because nnU-Net's inherits_from would drop a parent's keys, and with the architecture, so that a model
        # predicts the same when the defaults of a later version differ.
        architecture = {key: value for key, value in self.config.as_dict().items() if key in self.config.architecture}
        if block or architecture:
            plans["configurations"][configuration]["vqseg"] = block | architecture
        with explained_disk_errors():
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = not plans_vit(self.configuration_manager)
        self.ranks = Ranks()
        if self.is_ddp:
            self.device = self.ranks.device(device)
            self.grad_scaler = self.grad_scaler if device.type == "cuda" else None
        self.stop_request: StopRequest | None = None
        self.checkpoints = Checkpoints(self)
        self.pool = CasePool(self)
        self.plots = Plots(self._warn_of_file, self.config.plot_every)
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch = self.config.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.val_iterations_per_epoch
        self.save_every = self.config.save_every
        self.initial_lr = getattr(self.config, "initial_lr", CommonConfig.initial_lr)
        self.labeled_batch_size, self.unlabeled_batch_size = self._batch_sizes()
        self.configuration_manager.configuration["batch_size"] = self.labeled_batch_size
        self._ignored = sorted(block.keys() - self.config.declared().keys())

    @classmethod
    def default_config(cls) -> Any:
        """The trainer's own configuration, before the plan's `vqseg` block."""
        own = cls.method_class.Config.declared()
        values = {**cls.preset, **cls.fixed}
        return cls.method_class.Config(**{key: value for key, value in values.items() if key in own})

    @classmethod
    def configured(cls, block: Mapping[str, Any]) -> Any:
        """The configuration with a plan's `vqseg` block.

        Raises:
            ConfigError: an unknown key, a value out of range, or one that contradicts what defines this trainer.
        """
        config = cls.default_config()
        for key in cls.fixed.keys() & block.keys() - config.declared().keys():
            if block[key] != cls.fixed[key]:
                raise ConfigError(locked_message(key, cls.fixed[key], block[key]))
        config = config.override(block, cls.fixed.keys(), known_keys())
        if cls.named_epochs is not None and config.num_epochs < cls.named_epochs:
            raise ConfigError(cls._length_message(config.num_epochs))
        return config

    @classmethod
    def _length_message(cls, planned: int) -> str:
        plain = cls.__name__.rpartition("_")[0]
        goes_on = "add --c to train on what has trained so long, " if planned > (cls.named_epochs or 0) else ""
        return (
            f"{cls.__name__} trains for {cls.named_epochs} epochs, and the plan's vqseg block has num_epochs = "
            f"{planned}: {goes_on}use -tr {plain} to train for {planned} from the start, in a folder of its own, or "
            f"remove num_epochs from the plan."
        )

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network that prediction loads; of the plan's `vqseg` block only what decides its architecture is read."""
        architecture = cls.method_class.Architecture()
        keys = architecture.declared()
        block = {key: value for key, value in {**cls.preset, **cls.fixed}.items() if key in keys}
        block |= {k: v for k, v in configuration_manager.configuration.get("vqseg", {}).items() if k in keys}
        plan = network_plan(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return cls.method_class.network(plan, architecture.override(block))

    def _batch_sizes(self) -> tuple[int, int]:
        """Labelled and unlabelled images a step, all ranks together."""
        fixed = self.config.labeled_batch_size
        low, high = self.config.batch_size_range
        labeled = fixed or min(max(int(self.configuration_manager.batch_size), low), high)
        labeled = self.ranks.even_batch(labeled, fixed is None, "labelled", "labeled_batch_size")
        if not isinstance(self.config, UnlabeledImagesConfig) or not getattr(self.config, "use_unlabeled", True):
            return labeled, 0
        fixed = self.config.unlabeled_batch_size
        unlabeled = fixed or max(1, round(labeled * self.config.unlabeled_per_labeled))
        return labeled, self.ranks.even_batch(unlabeled, fixed is None, "unlabelled", "unlabeled_batch_size")

    def initialize(self) -> None:
        """Build method, networks, optimiser and losses.

        Raises:
            PlansError: the planned network cannot be built.
            DatasetError: no labelled case is preprocessed.
            ConfigError, FoundationModelUnavailable: as the method says.
        """
        self._require_fitting_network()
        self.package = package()
        reset_peak_memory(self.device)
        if self.config.seed is not None:
            seed_everything(self.config.seed + self.local_rank)
        elif self.is_ddp:
            torch.seed()  # torch starts from the same number on every rank
        channels, heads = number_of_channels(self.dataset_json), self.label_manager.num_segmentation_heads
        managers = (self.plans_manager, self.configuration_manager)
        plan = network_plan(*managers, channels, heads, self.enable_deep_supervision)
        self.method = self.method_class(self.config, self._context(plan))
        self._require_partners()
        self.build_network_architecture = lambda *_: self._training_network()  # type: ignore[method-assign]
        self.predicted_keys = self._check_network(channels, heads)
        preprocessed_cases(self.preprocessed_dataset_folder)
        self._initialize_on_one_process()
        self.method.begin(self.network, self._supervised_loss())
        self.curves = EpochCurves(self.method.panels, self.method.saved_name)
        self.online_dice = OnlineDice()
        self.stepper = Stepper(
            self.network,
            self.optimizer,
            self.grad_scaler,
            self.ranks,
            getattr(self.config, "max_gradient_norm", CommonConfig.max_gradient_norm),
            getattr(self.config, "max_bad_steps", CommonConfig.max_bad_steps),
            self.asked_to_stop,
            self.print_to_log_file,
            self._what_next,
            late=self.device.type == "cuda" and self.grad_scaler is not None and self.method.runs_ahead,
        )
        self.step_graph = StepGraph(self._losses, self.network, self._recorder(), self.print_to_log_file)
        self._draw_elsewhere()

    def _require_fitting_network(self) -> None:
        """The plan's network is the one that the trainer's settings are for."""
        name, plan = type(self).__name__, self.plans_manager.plans_name
        vit = plans_vit(self.configuration_manager)
        if self.only_validates or vit == self.method_class.trains_vit:
            return
        if vit:
            raise ConfigError(
                f"{plan} plans a ViT, and {name} trains U-Nets; use a trainer whose name ends with ViT, or another "
                f"plan with -p."
            )
        raise ConfigError(
            f"{name} trains a ViT, and {plan} plans a U-Net; plan with `nnUNetv2_vqseg_plan_and_preprocess -d "
            f"{int(self.plans_manager.dataset_name[7:10])} -pl nnUNetPlannerViT` and add -p nnUNetViTPlans."
        )

    def _require_partners(self) -> None:
        """Mixing needs two unlabelled images on a process; with one it would do nothing and say nothing."""
        images, world = self.unlabeled_batch_size, self.ranks.world_size
        if self.method.mixes_unlabeled and images < 2 * world:
            raise ConfigError(
                f"With {images} unlabelled images a step on {world} process(es) CutMix has no partner for an image; "
                f"set vqseg.unlabeled_batch_size in the plan to {2 * world} or more, use fewer processes, or set "
                f"vqseg.cutmix_probability = 0 to train without CutMix."
            )

    def _context(self, plan: NetworkPlan) -> Context:
        autocasts: Any = dummy_context
        if self.device.type == "cuda":
            autocasts = partial(autocast, "cuda", enabled=True)
        elif self.device.type == "cpu" and getattr(self.config, "bfloat16_on_cpu", False):
            autocasts = half_precision(self.print_to_log_file) or dummy_context
        return Context(
            plan=plan,
            device=self.device,
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            z_scored=set(self.configuration_manager.normalization_schemes) <= Z_SCORES,
            masked=tuple(self.configuration_manager.use_mask_for_norm),
            ddp=self.is_ddp,
            only_validates=self.only_validates,
            restores=self.restores,
            autocast=autocasts,
            log=self.print_to_log_file,
            require_same=self.ranks.require_same,
            cases=self.pool,
            reset_optimizer=lambda: self.optimizer.state.clear(),
        )

    def _check_network(self, channels: int, heads: int) -> list[str]:
        """Build the network that predicts without memory; its keys."""
        managers = (self.plans_manager, self.configuration_manager)
        check_network(
            self.plans_manager.plans,
            self.configuration_name,
            self.configuration_manager.patch_size,
            channels,
            lambda: self.method.network(self.method.context.plan, self.config),
        )
        with torch.device("meta"):
            return list(type(self).build_network_architecture(*managers, channels, heads, False).state_dict())

    def _training_network(self) -> nn.Module:
        network = self.method.training_network()
        if self.config.faster_step:
            use_cheap_activations(network)
        if self.config.fused_norm:
            self._fuse_norms(network)
        return network

    def _fuse_norms(self, network: nn.Module) -> None:
        compiles = self.device.type == "cuda" and self._do_i_compile()
        reasons = {
            "there is no GPU": self.device.type != "cuda",
            "there is no Triton": not fused_norm.is_available(),
            "torch.compile does that (nnUNet_compile=f for without)": compiles,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is not None:
            self.print_to_log_file(f"fused_norm changes nothing: {reason}.")
            return
        number = fused_norm.use_fused_norms(network)
        flat = len(self.configuration_manager.patch_size) == 2
        network.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
        layout = "channels_last" if flat else "channels_last_3d"
        self.print_to_log_file(f"{number} InstanceNorms with LeakyReLU are one operation each, in {layout}.")

    def _initialize_on_one_process(self) -> None:
        """nnU-Net's for one process; then this rank's share of the batch, and DistributedDataParallel."""
        distributed, self.is_ddp = self.is_ddp, False
        try:
            super().initialize()
        finally:
            self.is_ddp = distributed
        if distributed:
            self._set_batch_size_and_oversample()
            self.network = distribute(self.network, self.device)
            self.loss = self._build_loss()

    def _build_loss(self) -> Any:
        """nnU-Net's; all of it is that of the one output, where a network has no coarser ones."""
        loss = super()._build_loss()
        of_one = self.method.has_one_output and self.enable_deep_supervision
        return _of_finest(loss.loss) if of_one else loss

    def _supervised_loss(self) -> Any:
        # Methods give lists of logits, and without deep supervision nnU-Net's loss wants one tensor.
        loss = chosen_loss(self.method, self.loss if self.enable_deep_supervision else _of_finest(self.loss))
        return InFullPrecision(loss) if getattr(self.config, "bfloat16_on_cpu", False) else loss

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's own, or the paper's (4.2)."""
        groups = self.method.parameter_groups(self.network)
        settings = (self.config, self.initial_lr, self.weight_decay)
        optimizer, schedule = build_optimizer(groups, *settings, device=self.device.type)
        schedule.place = self.method.rate_epoch
        return optimizer, schedule

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Of every decoder that is trained."""
        switch_deep_supervision(unwrap(self.network), enabled)

    # Data

    @property
    def cases(self) -> FoldCases:
        """What this fold reads."""
        return FoldCases(
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            self.fold,
            self.preprocessed_dataset_folder_base,
            self.preprocessed_dataset_folder,
            self.do_split,
            self.print_to_log_file,
        )

    @property
    def unlabeled_identifiers(self) -> list[str]:
        """The unlabelled cases that are drawn from."""
        return self.pool.names

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's, and every case that it names is there.

        Raises:
            DatasetError: a name that is not, an empty list, too few cases for nnU-Net to make up a split, or a fold
                that would read the labels of another fold's unlabelled cases.
        """
        base = self.preprocessed_dataset_folder_base
        load_fold_entry(base, self.fold)
        known = preprocessed_cases(self.preprocessed_dataset_folder)
        if self.fold != "all" and not load_splits(base):
            require_enough_cases(base, known)
        with explained_disk_errors():
            train, val = super().do_split()
        check_split(base, self.fold, {"train": train, "val": val}, known)
        self.labeled_cases = len(train)
        return train, val

    def on_train_start(self) -> None:
        """Check and prepare the cases, start the loaders, give the method its first values.

        Raises:
            CheckpointError: what was loaded cannot be continued.
            ConfigError: the plan asks for more epochs than the trainer's name, and nothing was loaded.
            DatasetError: a case cannot be used, or a file cannot be read or written.
        """
        if self.checkpoints.problem:
            raise CheckpointError(self.checkpoints.problem)
        if self.named_epochs is not None and self.config.num_epochs > self.named_epochs and not self.restores:
            raise ConfigError(self._length_message(self.config.num_epochs))
        if not self.was_initialized:
            self.initialize()
        self.print_to_log_file(f"nnunetv2_vqseg {__version__}, {type(self).__name__}:\n{self.config.describe()}")
        if self._ignored:
            self.print_to_log_file(f"Keys of other methods in the plan's vqseg block: {', '.join(self._ignored)}.")
        if self.local_rank == 0:
            remove_leftovers(self.output_folder)
        self.ranks.rank_0_first("checking the labelled cases", self.cases.check_labeled, lambda: None)
        if self.method.uses_unlabeled:
            self.pool.fill(self.cases.prepare_unlabeled(self.ranks, self.config.labeled_as_unlabeled))
        self._tell_of_shared_patients()
        self.ranks.require_same(
            self.current_epoch,
            "Rank {rank} on {host} would start at epoch {value}, rank 0 on {first_host} at epoch {first}; "
            "nnUNet_results must be one folder that all machines share.",
        )
        self.ranks.rank_0_first("making the split", self.do_split, self.do_split)
        with explained_disk_errors():
            super().on_train_start()
        if self.stepper.step == 0:
            self.method.start(self._batches())
        _, dataset_val = self.get_tr_and_val_datasets()
        self._preview = preview_slices(dataset_val, self.configuration_manager.patch_size)
        states, self.checkpoints.random_states = self.checkpoints.random_states, None
        if states is not None:
            restore_random_states(states)
            if self.is_ddp:
                self.ranks.separate_random_numbers()

    def _tell_of_shared_patients(self) -> None:
        """nnU-Net's own split goes by cases, and `imagesUl` may hold further scans of a validation patient."""
        if self.fold == "all":  # validates on what it trains on
            return
        train, val = self.do_split()
        pattern = patient_pattern(load_fold_entry(self.preprocessed_dataset_folder_base, self.fold))
        shared = shared_patients({*train, *self.unlabeled_identifiers}, val, pattern)
        if shared:
            where = f"the validation cases of fold {self.fold}"
            self.print_to_log_file(f"WARNING: {same_patient_message(shared, where)}")

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's, in workers that do not outlive a killed training."""
        return EndWithParent(nnUNetTrainer.get_training_transforms(*args, **kwargs))

    @staticmethod
    def get_validation_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """As `get_training_transforms`."""
        return EndWithParent(nnUNetTrainer.get_validation_transforms(*args, **kwargs))

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's two loaders, and the unlabelled one as an attribute beside them.

        From here on signals ask for a stop; before, there is nothing to save. Workers forked here ignore them.
        """
        if self.stop_request is not None:
            self.stop_request.install()
        loaders = super().get_dataloaders()
        if self.method.uses_unlabeled:
            self.dataloader_unlabeled = self.pool.loader()
            next(self.dataloader_unlabeled)
        return loaders

    def _join(self, batch: dict, progress: float) -> Batch:
        """nnU-Net's batch and the next unlabelled images, where the method reads them, on the device."""
        labeled, target = self._moved(batch["data"]), self._moved(batch["target"])
        if self.dataloader_unlabeled is None or not self.method.reads_unlabeled(progress):
            return Batch(labeled, target)
        drawn = next(self.dataloader_unlabeled)
        own = self._moved(drawn["target"]) if self.pool.labels is not None else None
        return Batch(labeled, target, self._moved(drawn["data"]), own)

    def _moved(self, tensor: Any) -> Any:
        """A tensor, or a list of them, on the device."""
        if isinstance(tensor, list):
            return [self._moved(level) for level in tensor]
        return tensor.to(self.device, non_blocking=True)

    def _batches(self) -> Iterator[Batch]:
        while True:
            yield self._join(next(self.dataloader_train), 0.0)

    # Training

    def run_training(self) -> None:
        """nnU-Net's; no worker and no signal handler outlives it, however it ends.

        Raises:
            SystemExit: with `EXIT_INTERRUPTED` after a signal, once the state is saved.
        """
        with exit_when_asked("nothing was trained or saved yet; run the same command again"):
            self.stop_request = StopRequest()
            try:
                super().run_training()
                self.plots.close()
                if self.ranks.any(self.asked_to_stop(), self.device):
                    self.print_to_log_file(f"Stopped before the final validation; {VALIDATE_AGAIN}.")
                    raise SystemExit(EXIT_INTERRUPTED)
            except RuntimeError:
                # Where workers are not forked the signal kills them, and the next batch does not come. On several ranks
                # there is no agreement left at that point; they continue from the last checkpoint.
                if not self.asked_to_stop() or self.is_ddp:
                    raise
                self._save_and_stop()
            finally:
                self.stop_request.restore()
                self.stop_loaders()
                self.plots.end()
                self.checkpoints.wait()

    def on_train_epoch_start(self) -> None:
        """The method may change the unlabelled cases first; then nnU-Net's, then the method's."""
        self.method.before_epoch(self.current_epoch)
        if self.pool.has_changed:
            self._stop_loader(self.dataloader_unlabeled)
            self.dataloader_unlabeled = self.pool.loader()
            self.pool.has_changed = False
        super().on_train_epoch_start()
        self.method.on_epoch_start()

    @property
    def progress(self) -> float:
        """Share of the training that is over; an epoch that was stopped and repeated does not make it more than 1."""
        return min(1.0, self.stepper.step / (self.num_epochs * self.num_iterations_per_epoch))

    def train_step(self, batch: dict) -> dict:
        """One step, the same for all methods: terms, backward, step, what follows it."""
        progress = self.progress
        joined = self.method.guarded(self._join(batch, progress), progress)
        self.method.before_step(progress)
        losses = self.step_graph(joined, progress)  # terms and their gradients
        reading = self.stepper(losses)
        reading.also = self.method.schedule(progress)
        return {"loss": self._read(reading)}

    def _losses(self, batch: Batch, progress: Any) -> Losses:
        """The method's terms and the gradients of their sum."""
        with self.method.context.autocast():
            terms, metrics = self.method.terms(batch, progress)
        return self.stepper.gradients(terms, metrics)

    def _recorder(self) -> Recorder | None:
        """For CUDA graphs, where a step can be one and is asked to."""
        static = self.method.is_static and self.method.guard is None  # whose factor is a number
        ignores = self.label_manager.has_ignore_label and not self.label_manager.has_regions
        loss_waits = ignores and getattr(self.config, "supervised_loss", "nnunet") != "ce"
        reason = why_not(self.config, static, self.device, self.ranks.distributed, loss_waits)
        if reason is None:
            return CudaRecorder()
        if self.device.type == "cuda" and not self.only_validates:
            self.print_to_log_file(f"No CUDA graph of a step: {reason}.")
        return None

    def _read(self, reading: Reading) -> Any:
        """What follows a step, and its numbers: at once, or where nothing waits for them those of the step before.

        Returns:
            The objective, or what will be it when asked.
        """
        if self.stepper.late:
            reading.also |= self.method.after_step()
            before, self._unread = self._unread, reading
            stop = self._settle(before) if before is not None else False
            if stop if self.ranks.distributed else self.asked_to_stop():
                self._save_and_stop()
            return reading
        if self.stepper.settle(reading):
            reading.also |= self.method.after_step()
        self.curves.add(reading.curves())
        if reading.stop:
            self._save_and_stop()
        return np.float32(reading.values()["loss"])

    def _settle(self, reading: Reading) -> bool:
        """Take in a step's numbers; whether any rank was asked to stop."""
        self.stepper.settle(reading)
        self.curves.add(reading.curves())
        return reading.stop

    def _settle_last(self) -> None:
        """Take in the numbers of the last step, where that is still to do."""
        last, self._unread = self._unread, None
        if last is not None:
            self._settle(last)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Close the epoch's curves."""
        self._settle_last()
        super().on_train_epoch_end([{"loss": np.float32(float(output["loss"]))} for output in train_outputs])
        extra = {"skipped_steps": float(self.stepper.skipped_steps), **self.method.on_epoch_done()}
        epoch = self.curves.close_epoch(self.current_epoch, extra)
        self._tell(epoch)

    def _tell(self, epoch: Mapping[str, float]) -> None:
        for logger in self.logger.loggers:
            for name, value in epoch.items():
                logger.log(f"vqseg/{name}", value, self.current_epoch)
        self.print_to_log_file(self.curves.summary_line(epoch))

    def on_epoch_end(self) -> None:
        """nnU-Net's bookkeeping, then our plots: now and then, and after the last epoch."""
        last = self.current_epoch + 1 == self.num_epochs
        self._wants_preview |= last or (self.current_epoch + 1) % self.save_every == 0
        self._draws = self.local_rank == 0 and self.plots.is_due(always=last)
        super().on_epoch_end()
        if not self._draws:
            return
        with self.warn_where_disk_fails("progress_vqseg.png or preview.png"):
            self.curves.plot(join(self.output_folder, "progress_vqseg.png"))
            if self._wants_preview:
                self._wants_preview = False
                self._draw_preview()

    def _draw_preview(self) -> None:
        if self._preview is not None:
            regions = self.label_manager.regions_class_order if self.label_manager.has_regions else None
            file, draw = join(self.output_folder, "preview.png"), partial(self.plots.draw, "preview.png", draw_slices)
            with alone():
                draw_preview(file, self._preview, self.method, regions, self.device, draw)

    def on_train_end(self) -> None:
        """Final checkpoint, then stop the loaders' workers."""
        super().on_train_end()
        self.stop_loaders()

    def stop_loaders(self) -> None:
        """Stop the workers of all three loaders; nnU-Net stops those of its own two, and only where all went well."""
        for loader in (self.dataloader_train, self.dataloader_val, self.dataloader_unlabeled):
            self._stop_loader(loader)

    @staticmethod
    def _stop_loader(loader: Any) -> None:
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader._finish()

    def asked_to_stop(self) -> bool:
        """Whether this process was."""
        return self.stop_request is not None and self.stop_request.received is not None

    def stop_if_asked(self) -> None:
        """Between steps; every rank calls this.

        Raises:
            SystemExit: with `EXIT_INTERRUPTED`, once the state is saved.
        """
        if self.ranks.any(self.asked_to_stop(), self.device):
            self._save_and_stop()

    def _save_and_stop(self) -> None:
        self._settle_last()
        self._end_swap()
        latest = join(self.output_folder, "checkpoint_latest.pth")
        saved = self.save_unfinished_epoch(latest)
        if self.is_ddp:
            dist.barrier()  # a rank that leaves earlier would take the one that saves with it
        if self.local_rank == 0:
            state = f"saved {latest}" if saved else "nothing was saved, older checkpoints are untouched"
            self.print_to_log_file(
                f"Stopped in epoch {self.current_epoch}: {state}. To continue, run the same command with --c."
            )
        raise SystemExit(EXIT_INTERRUPTED)

    def _what_next(self) -> str:
        names = ("checkpoint_latest.pth", "checkpoint_best.pth")
        good = next((name for name in names if isfile(join(self.output_folder, name))), None)
        return f"continue from {good} with --c" if good else "start anew"

    # Validation

    @property
    def is_swapped(self) -> bool:
        """Whether the network has the predictor's weights at the moment."""
        return self._swap is not None

    def _begin_swap(self) -> None:
        main, predictor = self.method.main, self.method.predictor()
        if all(module is not predictor for module in main.modules()):
            self._swap = WeightSwap(main, predictor)

    def _end_swap(self) -> None:
        if self._swap is not None:
            self._swap.undo()
            self._swap = None

    @contextmanager
    def _own_weights(self) -> Iterator[None]:
        swapped = self.is_swapped
        self._end_swap()
        try:
            yield
        finally:
            if swapped:
                self._begin_swap()

    def on_validation_epoch_start(self) -> None:
        """The online pseudo Dice is the predictor's."""
        self._begin_swap()
        self.online_dice, self._validation_step = OnlineDice(), 0
        super().on_validation_epoch_start()

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's without its waits, in a share of the steps for other networks too; then look whether to stop."""
        saved = self.method.saved_name
        others = {name: network for name, network in self.method.validated().items() if name != saved}
        share = getattr(self.config, "val_share_all_networks", 0.0)
        steps = math.ceil(share * self.num_val_iterations_per_epoch) if others and share else math.inf
        compared, self._validation_step = self._validation_step < steps, self._validation_step + 1
        if compared and share:
            for name, network in others.items():
                self.online_dice.add(name, self._validated(network, batch))
        outputs = self._count(batch)
        if compared:
            self.online_dice.add(saved, outputs)
        self.stop_if_asked()
        return outputs

    def _count(self, batch: dict) -> dict:
        """Loss and counts of the network with its weights of now, on the device."""
        data, target = self._moved(batch["data"]), self._moved(batch["target"])
        with self.method.context.autocast():
            output = self.network(data)
            loss = self.loss(output, target)
        finest, labels = (output[0], target[0]) if self.enable_deep_supervision else (output, target)
        return {"loss": loss.detach(), **hard_counts(finest, labels, self.label_manager)}

    def _validated(self, network: nn.Module, batch: dict) -> dict:
        """The same for another network with its own weights."""
        kept = self.network
        with self._own_weights(), deep_supervision(network, self.enable_deep_supervision):
            self.network = network
            try:
                return self._count(batch)
            finally:
                self.network = kept

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Give the network its own weights back, and complete the epoch's curves."""
        try:
            super().on_validation_epoch_end(on_host(val_outputs))
        finally:
            self._end_swap()
        if self.method.guard is not None:
            validated = float(self.logger.get_value("mean_fg_dice", step=-1))
            self.method.guard.validated(validated, (self.current_epoch + 1) / self.num_epochs)
        dice = self.online_dice.close(self.device)
        self.curves.complete(self.current_epoch, dice)
        self._tell(dice)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's final validation with the predictor's weights, which are also those that are saved.

        Raises:
            SystemExit: with `EXIT_INTERRUPTED` after a signal.
        """
        with exit_when_asked(VALIDATE_AGAIN):
            self._begin_swap()
            try:
                super().perform_actual_validation(save_probabilities)
            finally:
                self._end_swap()

    # Checkpoints and log

    def save_checkpoint(self, filename: str) -> None:
        """Save at the end of an epoch; training goes on where that fails, unless it is the final checkpoint.

        Raises:
            OSError: `checkpoint_final.pth` could not be written, not even later.
        """
        self.checkpoints.save(filename, epochs_done=self.current_epoch + 1)

    def save_unfinished_epoch(self, filename: str) -> bool:
        """Save in the middle of an epoch, which will be repeated with the weights of now; returns whether it worked."""
        return self.checkpoints.save(filename, epochs_done=self.current_epoch)

    def load_checkpoint(self, filename_or_checkpoint: str | dict) -> None:
        """Continue from, or validate, a checkpoint that this trainer wrote.

        Raises:
            CheckpointError: it cannot be read, or another trainer or plan wrote it.
        """
        if not self.was_initialized:
            self.only_validates, self.restores = not self.logger.resume, True
            self.initialize()
        self.checkpoints.load(filename_or_checkpoint)

    def runtime(self) -> dict[str, Any]:
        """What a report tells about how the training ran."""
        return {
            "device": str(self.device),
            "labeled_cases": self.labeled_cases,
            **peak_memory(self.device),
            "package": self.package,
            "steps": self.stepper.step,
            "labeled_batch_size": self.labeled_batch_size,
            "unlabeled_batch_size": self.unlabeled_batch_size,
            "images_a_step": [
                self.labeled_batch_size,
                *[self.unlabeled_batch_size] * self.method.unlabeled_views,
            ],
            "processes": self.ranks.world_size,
            "seed": self.config.seed,
        }

    def print_to_log_file(self, *args: object, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """nnU-Net's, with escapes for what the locale cannot write."""
        super().print_to_log_file(
            *map(printable, args), also_print_to_console=also_print_to_console, add_timestamp=add_timestamp
        )

    def _draw_elsewhere(self) -> None:
        """All plots are drawn by a process of their own, now and then; none of them stops a training."""
        plot: Callable[[str], None] = self.logger.plot_progress_png

        def plot_or_warn(output_folder: str) -> None:
            if self._draws:
                with self.warn_where_disk_fails("progress.png"):
                    plot(output_folder)

        def draw(output_folder: str) -> None:
            known = {key: list(values) for key, values in self.logger.get_checkpoint().items()}
            self.plots.draw("progress.png", draw_progress, known, output_folder)

        self.logger.plot_progress_png = plot_or_warn
        self.logger.local_logger.plot_progress_png = draw
        self.curves.draw = partial(self.plots.draw, "progress_vqseg.png", draw_panels)

    @contextmanager
    def warn_where_disk_fails(self, what: str) -> Iterator[None]:
        """A warning instead of an `OSError` while something is written that training can do without."""
        try:
            yield
        except OSError as error:
            self._warn_of_file(what, str(error))

    def _warn_of_file(self, what: str, problem: str) -> None:
        self.print_to_log_file(f"WARNING: {what} could not be written ({problem}); training goes on.")


def plans_vit(configuration_manager: ConfigurationManager) -> bool:
    """Whether the configuration's network is a ViT, which has no deep supervision."""
    return _architecture(configuration_manager).get("network_class_name") == VIT_NETWORK


def _architecture(configuration_manager: ConfigurationManager) -> dict:
    return configuration_manager.configuration.get("architecture", {})


def _of_finest(loss: Loss) -> Loss:
    return lambda outputs, target: loss(finest(outputs), full_resolution(target))


def network_plan(
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    channels: int,
    heads: int,
    deep_supervision: bool,
) -> NetworkPlan:
    """What nnU-Net's plan says about the network."""
    return NetworkPlan(
        configuration_manager.patch_size,
        configuration_manager.pool_op_kernel_sizes,
        channels,
        lambda: nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, channels, heads, deep_supervision
        ),
        heads,
        deep_supervision,
        _architecture(configuration_manager).get("arch_kwargs", {}).get("encoder"),
        set(configuration_manager.normalization_schemes) <= UNIT_RANGE,
    )
