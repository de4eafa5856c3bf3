"""`nnUNetTrainerVQSeg`: semi-supervised training inside nnU-Net v2."""

from __future__ import annotations

import os
from time import sleep
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import isdir, isfile, join, load_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, autocast, nn
from torch import distributed as dist

from nnunetv2_vqseg import __version__
from nnunetv2_vqseg.config import ConfigError, VQSegConfig
from nnunetv2_vqseg.data.cases import DatasetError, UnlabeledCases, find_unlabeled_cases, labeled_as_unlabeled
from nnunetv2_vqseg.data.loader import build_unlabeled_loader, weak_transforms
from nnunetv2_vqseg.data.preprocessing import load_prepared_identifiers, prepare_unlabeled_cases, unlabeled_folder
from nnunetv2_vqseg.modules.alignment import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.ema import build_teacher, unwrap, update_teacher
from nnunetv2_vqseg.modules.foundation import FoundationModel, load_foundation_model
from nnunetv2_vqseg.modules.losses import kept_share, pseudo_labels
from nnunetv2_vqseg.modules.quantizer import CodebookUsage
from nnunetv2_vqseg.modules.strong_view import IntensityJitter, strong_view
from nnunetv2_vqseg.network import VQSegNet, VQSegOutput, build_image_decoder, build_vqseg_net
from nnunetv2_vqseg.planning.plans import resolve_vqseg_block
from nnunetv2_vqseg.training.checkpoint import (
    random_states,
    remove_leftovers,
    restore_random_states,
    save_atomically,
    seed_everything,
    to_plain,
)
from nnunetv2_vqseg.training.curves import EpochCurves
from nnunetv2_vqseg.training.objective import Objective, Views, ramp
from nnunetv2_vqseg.training.preview import draw_preview, preview_slices
from nnunetv2_vqseg.training.weights import WeightSwap


class nnUNetTrainerVQSeg(nnUNetTrainer):
    """VQ-Seg (NeurIPS 2025) on nnU-Net's 2D plan, preprocessing and augmentation.

    Unlabelled cases come from `imagesUl` and from the fold's `unlabeled` list in `splits_final.json`. Hyper-parameters
    are those of `default_config`, then of the `vqseg` block of the plan's configuration. The saved `network_weights`
    are the EMA teacher's: they are what validation scores and what prediction loads.
    """

    locked: ClassVar[frozenset[str]] = frozenset()
    """Fields of the configuration that define the variant; a plan cannot change them."""

    @classmethod
    def default_config(cls) -> VQSegConfig:
        """The variant's own configuration, before the plan's `vqseg` block."""
        return VQSegConfig.default()

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net reads this signature
    ) -> None:
        require_2d(plans, configuration)
        block = resolve_vqseg_block(plans, configuration)
        self.config = self.default_config().override(block, self.locked)
        if block:  # nnU-Net's inherits_from would drop a parent's keys
            plans["configurations"][configuration]["vqseg"] = block
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch = self.config.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.val_iterations_per_epoch
        self.save_every = self.config.save_every
        self.initial_lr = self.config.initial_lr
        self.configuration_manager.configuration["batch_size"] = self._labeled_batch_size()

        self.step = 0
        self.bad_steps = 0
        self.curves = EpochCurves()
        self.usage: CodebookUsage | None = None
        self.teacher: torch.optim.swa_utils.AveragedModel | None = None
        self.foundation_model: FoundationModel | None = None
        self.foundation_status = "not loaded yet"
        self.dataloader_unlabeled: Any = None
        self.unlabeled_identifiers: list[str] = []
        self._random_states: dict[str, Any] | None = None
        self._resume_problem: str | None = None
        self._swap: WeightSwap | None = None
        self._preview: Any = None

    # ------------------------------------------------------------------------------------------------ building

    @classmethod
    def build_network_architecture(  # type: ignore[override]
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network that prediction loads: planned encoder and decoder, and the quantiser."""
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        config = cls.default_config().override(configuration_manager.configuration.get("vqseg", {}), cls.locked)
        return build_vqseg_net(
            unet, config, configuration_manager.patch_size, configuration_manager.pool_op_kernel_sizes
        )

    def _build_training_network(
        self,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The same with the heads that only training needs."""
        network = type(self).build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        assert isinstance(network, VQSegNet)
        image_decoder = adapter = None
        if self.config.reconstruct:
            strides = configuration_manager.pool_op_kernel_sizes
            image_decoder = build_image_decoder(network, num_input_channels, strides)
        if self.foundation_model is not None:
            adapter = PostVQFeatureAdapter(
                network.encoder.output_channels[network.stage], self.foundation_model.embed_dim
            )
            network.attach_heads(image_decoder, adapter, self.foundation_model.grid)
        else:
            network.attach_heads(image_decoder, None)
        return network

    def initialize(self) -> None:
        """Build network, optimiser, loss, teacher and foundation model.

        Raises:
            FoundationModelUnavailable: policy 'required' and no weights.
        """
        if self.config.seed is not None:
            seed_everything(self.config.seed + self.local_rank)
        self._load_foundation_model()
        self.build_network_architecture = self._build_training_network  # type: ignore[method-assign]
        super().initialize()
        self.teacher = build_teacher(self.vqseg_network, self.config.ema_decay)
        self.teacher.module.decoder.deep_supervision = False
        self.jitter = IntensityJitter(strength=self.config.jitter_strength)
        self.objective = Objective(
            self.config, self._supervised_loss(), regions=self.label_manager.has_regions, ddp=self.is_ddp
        )
        if self.vqseg_network.quantizer is not None:
            self.usage = CodebookUsage(self.config.num_codes, device=self.device)

    @property
    def vqseg_network(self) -> VQSegNet:
        """The student, without DDP's and torch.compile's wrappers."""
        network = unwrap(self.network)
        assert isinstance(network, VQSegNet)
        return network

    def _load_foundation_model(self) -> None:
        config = self.config
        self.foundation_model, self.foundation_status = load_foundation_model(
            config.foundation_policy,  # type: ignore[arg-type]
            config.foundation_model,
            config.foundation_checkpoint,
            image_size=config.foundation_image_size,
            channel_pick=config.foundation_channels,
        )
        if self.foundation_model is not None:
            self.foundation_model.to(self.device)
        frame = "#" * 100
        loud = config.foundation_policy == "auto" and self.foundation_model is None
        message = f"\n{frame}\nWARNING: {self.foundation_status}\n{frame}\n" if loud else self.foundation_status
        self.print_to_log_file(message)

    def _supervised_loss(self) -> Any:
        if self.config.supervised_loss == "nnunet":
            return self.loss
        if self.label_manager.has_regions:
            raise NotImplementedError(
                "vqseg.supervised_loss = 'ce' is not implemented for region-based labels; use 'nnunet'."
            )
        return _FullResolutionCrossEntropy(self.label_manager.ignore_label)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's SGD, or AdamW with the paper's rates (4.2); poly schedule with exponent 0.9 for both."""
        config = self.config
        if config.optimizer == "sgd" and config.head_lr_scale == 1:
            return super().configure_optimizers()
        encoder = list(self.vqseg_network.encoder.parameters())
        backbone = {id(parameter) for parameter in encoder}
        heads = [parameter for parameter in self.network.parameters() if id(parameter) not in backbone]
        groups = [{"params": encoder, "lr_scale": 1.0}, {"params": heads, "lr_scale": config.head_lr_scale}]
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups, self.initial_lr, weight_decay=self.weight_decay, momentum=0.99, nesterov=True
            )
        else:
            optimizer = torch.optim.AdamW(groups, self.initial_lr)
        return optimizer, _ScaledPolyLR(optimizer, self.initial_lr, self.num_epochs)

    def _labeled_batch_size(self) -> int:
        if self.config.labeled_batch_size is not None:
            return self.config.labeled_batch_size
        low, high = self.config.batch_size_range
        return int(min(max(self.configuration_manager.batch_size, low), high))

    def _unlabeled_batch_size(self) -> int:
        """Unlabelled images a step on this rank."""
        total = self.config.unlabeled_batch_size or max(1, round(self._labeled_batch_size() / 2))
        if not self.is_ddp:
            return total
        world, rank = dist.get_world_size(), dist.get_rank()
        if total < world:
            raise ConfigError(
                f"{total} unlabelled images a step cannot be split over {world} processes; raise "
                "vqseg.unlabeled_batch_size in the plan or use fewer processes."
            )
        return total // world + (rank < total % world)

    # ---------------------------------------------------------------------------------------------- unlabelled data

    def _fold_entry(self) -> dict[str, list[str]] | None:
        splits_file = join(self.preprocessed_dataset_folder_base, "splits_final.json")
        if not isfile(splits_file):
            return None
        splits = load_json(splits_file)
        if self.fold == "all":
            if any(entry.get("unlabeled") for entry in splits):
                raise DatasetError(
                    f"Fold 'all' would train on the labels of the cases that {splits_file} lists as unlabeled; "
                    "train a numbered fold instead."
                )
            return None
        return splits[self.fold] if self.fold < len(splits) else None

    def _unlabeled_cases(self) -> UnlabeledCases | None:
        """The fold's unlabelled cases; None where the raw dataset is not on this machine."""
        if not nnUNet_raw.is_set() or not isdir(join(nnUNet_raw, self.plans_manager.dataset_name)):
            return None
        raw = join(nnUNet_raw, self.plans_manager.dataset_name)
        entry = self._fold_entry()
        if not self.config.labeled_as_unlabeled:
            return find_unlabeled_cases(raw, self.dataset_json, entry)
        train_keys, _ = self.do_split()
        return labeled_as_unlabeled(raw, self.dataset_json, train_keys)

    def _prepare_unlabeled(self) -> None:
        """Preprocess what is missing on rank 0; the others wait for it without a barrier, which would time out."""
        folder = unlabeled_folder(self.preprocessed_dataset_folder)
        cases = self._unlabeled_cases()
        if cases is None:
            self.unlabeled_identifiers = load_prepared_identifiers(folder, None)
        elif self.local_rank == 0:
            self.unlabeled_identifiers = prepare_unlabeled_cases(
                cases,
                self.plans_manager,
                self.configuration_manager,
                self.dataset_json,
                folder,
                num_processes=get_allowed_n_proc_DA(),
                log=self.print_to_log_file,
            )
        else:
            self.unlabeled_identifiers = _wait_for(folder, cases)
        self.print_to_log_file(f"{len(self.unlabeled_identifiers)} unlabelled cases from {folder}.")

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders, and the unlabelled one beside them."""
        loaders = super().get_dataloaders()
        if self.config.use_unlabeled:
            rotation, _, initial_patch_size, mirror_axes = (
                self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            )
            patch_size = self.configuration_manager.patch_size
            workers = get_allowed_n_proc_DA()
            self.dataloader_unlabeled = build_unlabeled_loader(
                unlabeled_folder(self.preprocessed_dataset_folder),
                self.unlabeled_identifiers,
                self._unlabeled_batch_size(),
                initial_patch_size,
                patch_size,
                weak_transforms(patch_size, rotation, mirror_axes, self.configuration_manager.use_mask_for_norm),
                num_processes=0 if workers == 0 else max(1, workers // 2),
                pin_memory=self.device.type == "cuda",
            )
            next(self.dataloader_unlabeled)
        return loaders

    # --------------------------------------------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Prepare the unlabelled cases, start the loaders, give the codebook its first codes.

        Raises:
            RuntimeError: a training that began with the foundation model is to go on without it, or vice versa.
        """
        if self._resume_problem:
            raise RuntimeError(self._resume_problem)
        if not self.was_initialized:
            self.initialize()
        self.print_to_log_file(f"nnunetv2_vqseg {__version__}, {type(self).__name__}:\n{self.config.describe()}")
        if self.local_rank == 0:
            remove_leftovers(self.output_folder)
        if self.config.use_unlabeled:
            self._prepare_unlabeled()
        super().on_train_start()
        if self.step == 0:
            self._initialize_codebook()
        _, dataset_val = self.get_tr_and_val_datasets()
        self._preview = preview_slices(dataset_val, self.configuration_manager.patch_size)
        if self._random_states is not None:
            restore_random_states(self._random_states)
            self._random_states = None

    @torch.no_grad()
    def _initialize_codebook(self) -> None:
        """Codes start from tokens of the untrained encoder, eagerly and once."""
        student, quantizer = self.vqseg_network, self.vqseg_network.quantizer
        if quantizer is None or self.teacher is None:
            return
        student.eval()
        tokens: list[Tensor] = []
        while sum(map(len, tokens)) < self.config.num_codes and len(tokens) < 32:
            images = self._to_device(next(self.dataloader_train)["data"])
            if self.dataloader_unlabeled is not None:
                images = torch.cat((images, self._to_device(next(self.dataloader_unlabeled)["data"])))
            tokens.append(quantizer.tokens(student.stage_features(images)).float())
        quantizer.initialize_from_samples(torch.cat(tokens))
        if self.is_ddp:
            for state in quantizer.state_dict().values():
                dist.broadcast(state, 0)
        self.teacher.module.load_state_dict(student.state_dict())

    def train_step(self, batch: dict) -> dict:
        """One iteration: views, teacher, student, losses, step (METHOD of the README)."""
        views, statistics = self._teacher_views(batch)
        images, layout = views.batch(with_weak=self.objective.needs_weak_stream)
        alignment_target = self._alignment_target(images[: layout.labeled + layout.strong])
        progress = self.step / (self.num_epochs * self.num_iterations_per_epoch)
        self._prepare_perturbation()

        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            output = self.network(images, layout)
            terms = self.objective.terms(output, layout, views, progress, alignment_target)
            loss = sum(weight * term for weight, term in terms.values())
        grad_norm = self._backward_and_step(loss)

        statistics |= {name: term for name, (_, term) in terms.items()}
        statistics |= {"loss": loss, "gradient_norm": grad_norm}
        values = dict(zip(statistics, _to_floats(statistics.values()), strict=True))
        if self._step_was_finite(values):
            update_teacher(self.teacher, self.vqseg_network)
            self._update_codebook(output)
        self.step += 1
        self.curves.add(values | {"ramp": ramp(progress, self.config.ramp_up)})
        return {"loss": np.float32(values["loss"])}

    @torch.no_grad()
    def _teacher_views(self, batch: dict) -> tuple[Views, dict[str, Tensor]]:
        """Labelled batch, weak and strong view of the unlabelled one, and the teacher's labels for both."""
        labeled = self._to_device(batch["data"])
        target = self._to_device(batch["target"])
        if self.dataloader_unlabeled is None or self.teacher is None:
            return Views(labeled, target), {}
        weak = self._to_device(next(self.dataloader_unlabeled)["data"])
        with self._autocast():
            logits = self.teacher(weak)
        labels, confidence = pseudo_labels(logits.float(), self.label_manager.has_regions)
        views = Views(labeled, target, weak, labels, confidence)
        if self.config.strong_view:
            strong = strong_view(weak, labels, confidence, self.jitter, self.config.cutmix_probability)
            views = views._replace(
                strong=strong.images, strong_labels=strong.labels, strong_confidence=strong.confidence
            )
        return views, {
            "confidence": confidence.mean(),
            "kept_share": kept_share(confidence, self.config.confidence_threshold),
        }

    @torch.no_grad()
    def _alignment_target(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.foundation_model is None:
            return None
        with self._autocast():
            return self.foundation_model(images), self.foundation_model.foreground(images)

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, list):
            return [item.to(self.device, non_blocking=True) for item in value]
        return value.to(self.device, non_blocking=True)

    def _autocast(self) -> Any:
        return autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context()

    def _prepare_perturbation(self) -> None:
        network = self.vqseg_network
        if network.perturbation is not None and network.quantizer is not None:
            with torch.no_grad():
                network.perturbation.prepare(network.quantizer.codes())

    def _backward_and_step(self, loss: Tensor) -> Tensor:
        """Backward, clip at 12 as nnU-Net does, step unless the gradient is not finite; returns its norm."""
        parameters = list(self.network.parameters())
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            grad_norm = nn.utils.clip_grad_norm_(parameters, 12)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(parameters, 12)
            if torch.isfinite(grad_norm):
                self.optimizer.step()
        return grad_norm

    def _step_was_finite(self, values: dict[str, float]) -> bool:
        """Count steps in a row whose loss was NaN or infinite, and stop after too many.

        Raises:
            RuntimeError: naming the term that went bad and the checkpoint to go back to.
        """
        finite = bool(np.isfinite(values["gradient_norm"]))
        overflow_of_amp = self.grad_scaler is not None and np.isfinite(values["loss"])
        if finite or overflow_of_amp:
            self.bad_steps = 0 if finite else self.bad_steps
            return finite
        self.bad_steps += 1
        culprit = next((name for name, value in values.items() if not np.isfinite(value)), "gradient_norm")
        self.print_to_log_file(f"Step {self.step} skipped: {culprit} is {values[culprit]}.")
        if self.bad_steps >= self.config.max_bad_steps:
            good = next(
                (
                    name
                    for name in ("checkpoint_latest.pth", "checkpoint_best.pth")
                    if isfile(join(self.output_folder, name))
                ),
                None,
            )
            remedy = f"continue from {good} with --c" if good else "start anew"
            raise RuntimeError(
                f"Training stopped: {culprit} was not finite for {self.bad_steps} steps in a row; lower "
                f"vqseg.initial_lr or look at the images for extreme intensities, then {remedy}."
            )
        return False

    @torch.no_grad()
    def _update_codebook(self, output: VQSegOutput) -> None:
        quantizer = self.vqseg_network.quantizer
        if quantizer is None or output.indices is None or self.usage is None:
            return
        quantizer.observe(output.indices, output.tokens)
        self.usage.add(output.indices)
        if output.perturbed_indices is not None:
            before = output.indices[-len(output.perturbed_indices) :]
            codes = quantizer.codes()
            moved = (codes[output.perturbed_indices.flatten()] - codes[before.flatten()]).norm(dim=1).mean()
            self.curves.add({"qpm_displacement": float(moved)})

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Close the epoch's curves: loss terms, pseudo-labels, codebook, QPM."""
        super().on_train_epoch_end(train_outputs)
        extra: dict[str, float] = {}
        if self.usage is not None:
            self.usage.reduce()
            extra = {
                "utilization": self.usage.utilization,
                "utilization_tokens": float(self.usage.num_tokens),
                "perplexity": self.usage.perplexity,
            }
            self.usage.reset()
        perturbation = self.vqseg_network.perturbation
        if perturbation is not None:
            extra["qpm_effective_neighbors"] = perturbation.effective_neighbors
        epoch = self.curves.close_epoch(self.current_epoch, extra)
        for logger in self.logger.loggers:
            for name, value in epoch.items():
                logger.log(f"vqseg/{name}", value, self.current_epoch)
        self.print_to_log_file(self.curves.summary_line(epoch))

    # ------------------------------------------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        """The online pseudo Dice is the teacher's."""
        self._swap = WeightSwap(self.vqseg_network, self.teacher.module)  # type: ignore[union-attr]
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Give the network the student's weights back."""
        super().on_validation_epoch_end(val_outputs)
        if self._swap is not None:
            self._swap.undo()
            self._swap = None

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's final validation with the teacher's weights, which are also those that are saved."""
        assert self.teacher is not None
        swap = WeightSwap(self.vqseg_network, self.teacher.module)
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            swap.undo()

    def on_epoch_end(self) -> None:
        """nnU-Net's bookkeeping, then our plots."""
        super().on_epoch_end()
        if self.local_rank == 0:
            self.curves.plot(join(self.output_folder, "progress_vqseg.png"))
            last = self.current_epoch == self.num_epochs
            if last or self.current_epoch % self.save_every == 0:
                self._draw_preview()

    def _draw_preview(self) -> None:
        if self._preview is None or self.teacher is None:
            return
        draw_preview(
            join(self.output_folder, "preview.png"),
            self._preview,
            self.vqseg_network,
            self.teacher.module,
            self.label_manager.has_regions,
            self.device,
        )

    def on_train_end(self) -> None:
        """Final checkpoint, then stop the unlabelled loader's workers too."""
        super().on_train_end()
        if isinstance(self.dataloader_unlabeled, NonDetMultiThreadedAugmenter):
            self.dataloader_unlabeled._finish()

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Teacher as `network_weights`, everything else that resuming needs under `vqseg`; written atomically."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        assert self._swap is None, "never save while the teacher's weights are in the network"
        assert self.teacher is not None
        content = {
            "network_weights": self.teacher.module.inference_state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": to_plain(self.logger.get_checkpoint()),
            "_best_ema": to_plain(self._best_ema),
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "vqseg": self._training_state(),
        }
        try:
            save_atomically(content, filename)
        except OSError as error:
            if os.path.basename(filename) == "checkpoint_final.pth":  # noqa: PTH119
                raise
            self.print_to_log_file(
                f"WARNING: {filename} could not be written ({error}); the last good checkpoint is untouched and "
                "training goes on. Free disk space or make the folder writable."
            )

    def _training_state(self) -> dict[str, Any]:
        assert self.teacher is not None
        quantizer = self.vqseg_network.quantizer
        return {
            "version": __version__,
            "config": self.config.as_dict(),
            "student": self.vqseg_network.state_dict(),
            "teacher": self.teacher.state_dict(),
            "quantizer": quantizer.bookkeeping_state() if quantizer is not None else None,
            "step": self.step,
            "curves": to_plain(self.curves.history),
            "random_states": random_states(),
            "foundation_model": self.foundation_status,
            "alignment": self.foundation_model is not None,
            "runtime": self._runtime(),
        }

    def _runtime(self) -> dict[str, Any]:
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return {
            "device": str(self.device),
            "peak_gpu_memory_bytes": peak,
            "steps": self.step,
            "labeled_batch_size": self._labeled_batch_size(),
            "unlabeled_batch_size": self._unlabeled_batch_size() if self.config.use_unlabeled else 0,
            "seed": self.config.seed,
        }

    def load_checkpoint(self, filename_or_checkpoint: str | dict) -> None:
        """Continue from, or validate, a checkpoint that this trainer wrote.

        Raises:
            RuntimeError: a checkpoint of another trainer.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, (str, os.PathLike)):
            checkpoint = torch.load(checkpoint, map_location=self.device, weights_only=True)
        if "vqseg" not in checkpoint:
            raise RuntimeError(
                f"{filename_or_checkpoint if isinstance(filename_or_checkpoint, str) else 'This checkpoint'} was not "
                f"written by a VQ-Seg trainer and cannot be continued with {type(self).__name__}."
            )
        state = checkpoint["vqseg"]
        same_heads = state["alignment"] == (self.foundation_model is not None)
        self._resume_problem = None if same_heads else _alignment_mismatch(state, self.foundation_status)
        self.my_init_kwargs = checkpoint["init_args"]
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        # Without the same heads the weights still serve validation; on_train_start refuses to train on.
        self.vqseg_network.load_state_dict(state["student"], strict=same_heads)
        assert self.teacher is not None
        self.teacher.load_state_dict(state["teacher"], strict=same_heads)
        if self.vqseg_network.quantizer is not None:
            self.vqseg_network.quantizer.load_bookkeeping_state(state["quantizer"])
        if same_heads:
            self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.step = state["step"]
        self.curves.restore(state["curves"], self.current_epoch)
        self._random_states = state["random_states"]


class _FullResolutionCrossEntropy(nn.Module):
    """The paper's L_seg: cross entropy at full resolution; coarser outputs stay in the graph with weight zero (DDP)."""

    def __init__(self, ignore_label: int | None) -> None:
        super().__init__()
        self.cross_entropy = RobustCrossEntropyLoss(**({} if ignore_label is None else {"ignore_index": ignore_label}))

    def forward(self, outputs: list[Tensor] | Tensor, target: list[Tensor] | Tensor) -> Tensor:
        outputs = outputs if isinstance(outputs, list) else [outputs]
        target = target[0] if isinstance(target, list) else target
        return self.cross_entropy(outputs[0], target[:, 0]) + 0 * sum(output.sum() for output in outputs[1:])


class _ScaledPolyLR(PolyLRScheduler):
    """nnU-Net's poly schedule, times each parameter group's `lr_scale`."""

    def step(self, current_step: int | None = None) -> None:
        super().step(current_step)
        for group in self.optimizer.param_groups:
            group["lr"] *= group["lr_scale"]
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def require_2d(plans: dict, configuration: str) -> None:
    """Refuse what VQ-Seg does not support, before anything is written.

    Raises:
        NotImplementedError: a configuration whose patch is not 2D, or one of a cascade.
    """
    resolved = PlansManager(plans).get_configuration(configuration)
    if len(resolved.patch_size) != 2:
        raise NotImplementedError(
            f"VQ-Seg trains 2D configurations only, '{configuration}' has a {len(resolved.patch_size)}D patch; use 2d."
        )
    if resolved.previous_stage_name is not None:
        raise NotImplementedError(f"VQ-Seg does not train cascades, '{configuration}' is one; use 2d.")


def _alignment_mismatch(state: dict[str, Any], status: str) -> str:
    if state["alignment"]:
        return (
            "This training began with the foundation model and cannot go on without it: "
            f"{status} Provide the weights, or start anew without --c."
        )
    return (
        "This training began without the foundation model, which is there now; set vqseg.foundation_policy to 'off' in "
        "the plan to continue without it, or start anew without --c."
    )


def _wait_for(folder: str, cases: UnlabeledCases, seconds: float = 5.0) -> list[str]:
    while True:
        try:
            return load_prepared_identifiers(folder, cases)
        except DatasetError:
            sleep(seconds)


def _to_floats(values: Any) -> list[float]:
    """Scalars of one step, fetched from the device at once."""
    return torch.stack([value.detach().float().reshape(()) for value in values]).tolist()
