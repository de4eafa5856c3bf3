"""`nnUNetTrainerVQSeg`: semi-supervised training inside nnU-Net v2."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import isfile, join
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn
from torch import distributed as dist

from nnunetv2_vqseg import __version__
from nnunetv2_vqseg.core.errors import CheckpointError, ConfigError
from nnunetv2_vqseg.data.checks.dataset_json import number_of_channels
from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.ema import update_teacher
from nnunetv2_vqseg.modules.foundation import load_foundation_model
from nnunetv2_vqseg.modules.losses.pseudo_label import kept_share, pseudo_labels
from nnunetv2_vqseg.modules.views.jitter import IntensityJitter
from nnunetv2_vqseg.modules.views.strong import UnlabeledView, strong_view
from nnunetv2_vqseg.modules.vq.usage import CodebookUsage
from nnunetv2_vqseg.network import VQSegNet, VQSegOutput, build_image_decoder, build_vqseg_net
from nnunetv2_vqseg.training.checkpoint import remove_leftovers, restore_random_states, seed_everything
from nnunetv2_vqseg.training.objective import Objective, Views, ramp
from nnunetv2_vqseg.training.optimizers import FullResolutionCrossEntropy, build_optimizer
from nnunetv2_vqseg.training.preview import PreviewSlices, draw_preview, preview_slices
from nnunetv2_vqseg.training.reliable_trainer import ReliableTrainer

Z_SCORES = frozenset({"ZScoreNormalization", "CTNormalization"})
"""nnU-Net's normalisation schemes after which intensities have a standard deviation of about 1."""


class nnUNetTrainerVQSeg(ReliableTrainer):
    """VQ-Seg (NeurIPS 2025) on nnU-Net's 2D plan, preprocessing and augmentation.

    Unlabelled cases come from `imagesUl` and from the fold's `unlabeled` list in `splits_final.json`. Hyper-parameters
    are those of `default_config`, then of the `vqseg` block of the plan's configuration. The saved `network_weights`
    are the EMA teacher's: they are what validation scores and what prediction loads.
    """

    objective: Objective
    usage: CodebookUsage | None = None
    bad_steps = 0
    _preview: PreviewSlices | None = None

    @classmethod
    def build_network_architecture(
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
            ConfigError: there is no such foundation model, or it cannot see such images.
        """
        if self.config.seed is not None:
            seed_everything(self.config.seed + self.local_rank)
        elif self.is_ddp:
            torch.seed()  # torch starts from the same number on every rank
        self._load_foundation_model()
        self.build_network_architecture = self._build_training_network  # type: ignore[method-assign]
        super().initialize()
        z_scored = set(self.configuration_manager.normalization_schemes) <= Z_SCORES
        self.jitter = IntensityJitter(self.config.jitter_strength, relative=not z_scored)
        self.objective = Objective(
            self.config,
            self._supervised_loss(),
            regions=self.label_manager.has_regions,
            standardize=not z_scored,
            ddp=self.is_ddp,
        )
        if self.vqseg_network.quantizer is not None:
            self.usage = CodebookUsage(self.config.num_codes, device=self.device)

    def _load_foundation_model(self) -> None:
        config = self.config
        if self._only_validates:
            self.foundation_status = "The foundation model was not loaded, validation does not need it."
            return
        channels = number_of_channels(self.dataset_json)
        if config.foundation_policy != "off" and channels > 3 and max(config.foundation_channels) >= channels:
            raise ConfigError(
                f"vqseg.foundation_channels = {list(config.foundation_channels)} is not valid; images have channels "
                f"0 to {channels - 1} only."
            )
        try:
            self.foundation_model, self.foundation_status = load_foundation_model(
                config.foundation_policy,  # type: ignore[arg-type]
                config.foundation_model,
                config.foundation_checkpoint,
                image_size=config.foundation_image_size,
                channel_pick=config.foundation_channels,
            )
        except ValueError as error:  # the model's name or its image size
            raise ConfigError(f"The plan's vqseg block cannot be used: {error}.") from error
        self.require_same(
            "with" if self.foundation_model is not None else "without",
            "Rank {rank} on {host} would train {value} the foundation model, rank 0 on {first_host} {first} it; give "
            "all machines its weights with vqseg.foundation_checkpoint, or set vqseg.foundation_policy to 'off'.",
        )
        if self.foundation_model is not None:
            self.foundation_model.to(self.device)
        frame = "#" * 100
        loud = config.foundation_policy == "auto" and self.foundation_model is None
        message = f"\n{frame}\n{self.foundation_status}\n{frame}\n" if loud else self.foundation_status
        self.print_to_log_file(message)

    def _supervised_loss(self) -> Any:
        if self.config.supervised_loss == "nnunet":
            return self.loss
        if self.label_manager.has_regions:
            raise NotImplementedError(
                "vqseg.supervised_loss = 'ce' is not implemented for region-based labels; use 'nnunet'."
            )
        return FullResolutionCrossEntropy(self.label_manager.ignore_label)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's own, or the paper's (4.2)."""
        if self.config.optimizer == "sgd" and self.config.head_lr_scale == 1:
            return super().configure_optimizers()
        return build_optimizer(self.network, self.vqseg_network.encoder, self.config, self.weight_decay)

    def on_train_start(self) -> None:
        """Prepare the unlabelled cases, start the loaders, give codebook and teacher their first values.

        Raises:
            CheckpointError: a training that began with the foundation model is to go on without it, or vice versa.
        """
        if self._resume_problem:
            raise CheckpointError(self._resume_problem)
        if not self.was_initialized:
            self.initialize()
        self.print_to_log_file(f"nnunetv2_vqseg {__version__}, {type(self).__name__}:\n{self.config.describe()}")
        if self.local_rank == 0:
            remove_leftovers(self.output_folder)
        super().on_train_start()
        if self.step == 0:
            self._initialize_codebook()
            self.teacher.module.load_state_dict(self.vqseg_network.state_dict())  # pretrained weights came after it
        _, dataset_val = self.get_tr_and_val_datasets()
        self._preview = preview_slices(dataset_val, self.configuration_manager.patch_size)
        if self._resumed_random_states is not None:
            restore_random_states(self._resumed_random_states)
            self._resumed_random_states = None
            if self.is_ddp:
                self.separate_random_numbers()

    @torch.no_grad()
    def _initialize_codebook(self) -> None:
        """Codes start from tokens of the untrained encoder, eagerly and once."""
        student, quantizer = self.vqseg_network, self.vqseg_network.quantizer
        if quantizer is None:
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

    def on_train_epoch_start(self) -> None:
        """nnU-Net's; QPM's neighbours are looked up anew, so that resuming changes nothing."""
        super().on_train_epoch_start()
        if self.vqseg_network.perturbation is not None:
            self.vqseg_network.perturbation.discard_table()

    def train_step(self, batch: dict) -> dict:
        """One iteration: views, teacher, student, losses, step (README, How it works)."""
        self._prepare_perturbation()  # waits for the device, which has nothing to do yet
        views, statistics = self._teacher_views(batch)
        images, layout = views.batch()
        alignment_target = self._alignment_target(images[: layout.aligned])
        progress = self.step / (self.num_epochs * self.num_iterations_per_epoch)

        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            output = self.network(images, layout)
            terms = self.objective.terms(output, layout, views, progress, alignment_target)
            loss = torch.stack([weight * term for weight, term in terms.values()]).sum()
        grad_norm = self._backward_and_step(loss)

        # Losses first: the first that is not finite is the one to blame.
        values = self.mean_over_ranks(
            {name: term for name, (_, term) in terms.items()}
            | {"loss": loss, "gradient_norm": grad_norm}
            | statistics
            | self._displacement(output)
        )
        if self._step_was_finite(values):
            update_teacher(self.teacher, self.vqseg_network)
            self._update_codebook(output)
        self.step += 1
        self.curves.add(values | {"ramp": ramp(progress, self.config.ramp_up)})
        self.stop_if_asked()
        return {"loss": np.float32(values["loss"])}

    @torch.no_grad()
    def _teacher_views(self, batch: dict) -> tuple[Views, dict[str, Tensor]]:
        """Labelled batch, the views of the unlabelled one, and the teacher's labels for them."""
        labeled = self._to_device(batch["data"])
        target = self._to_device(batch["target"])
        if self.dataloader_unlabeled is None:
            return Views(labeled, target), {}
        weak = self._to_device(next(self.dataloader_unlabeled)["data"])
        with self._autocast():
            logits = self.teacher(weak)
        labels, confidence = pseudo_labels(logits.float(), self.label_manager.has_regions)

        def strong() -> UnlabeledView:
            return strong_view(weak, labels, confidence, self.jitter, self.config.cutmix_probability)

        views = Views(labeled, target, strong=strong() if self.config.strong_view else None)
        if self.config.has_perturbed_stream:
            on_strong = self.config.perturbed_view == "strong"
            views = views._replace(perturbed=strong() if on_strong else UnlabeledView(weak, labels, confidence, weak))
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

    def _prepare_perturbation(self) -> None:
        network = self.vqseg_network
        if network.perturbation is not None and network.quantizer is not None:
            with torch.no_grad():
                network.perturbation.prepare(network.quantizer.codes())

    def _backward_and_step(self, loss: Tensor) -> Tensor:
        """Backward, clip at 12 as nnU-Net does, step unless loss or gradient are not finite; returns the latter's norm.

        The norm is NaN where the loss is not finite: an infinite loss may have a finite gradient, as L1 has.
        """
        parameters = list(self.network.parameters())
        loss = loss * (1 + 0 * loss.detach())  # times 1, or times NaN, on the device
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
        """Count skipped steps, and those in a row whose loss was NaN or infinite; stop after too many of the latter.

        Raises:
            RuntimeError: naming the term that went bad and the checkpoint to go back to.
        """
        finite = bool(np.isfinite(values["gradient_norm"]))
        self.skipped_steps += not finite
        # AMP finds its scale by overflowing now and then; where even a scale below 1 does, it is not AMP's doing.
        overflow_of_amp = (
            self.grad_scaler is not None and np.isfinite(values["loss"]) and self.grad_scaler.get_scale() >= 1
        )
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

    @torch.no_grad()
    def _displacement(self, output: VQSegOutput) -> dict[str, Tensor]:
        """How far QPM moved its tokens, in code space."""
        quantizer = self.vqseg_network.quantizer
        if quantizer is None or output.indices is None or output.perturbed_indices is None:
            return {}
        before = output.indices[-len(output.perturbed_indices) :]
        codes = quantizer.codes()
        moved = codes[output.perturbed_indices.flatten()] - codes[before.flatten()]
        return {"qpm_displacement": moved.norm(dim=1).mean()}

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Close the epoch's curves: loss terms, pseudo-labels, codebook, QPM."""
        super().on_train_epoch_end(train_outputs)
        extra: dict[str, float] = {"skipped_steps": self.skipped_steps}
        if self.usage is not None:
            self.usage.reduce()
            extra |= {
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

    def on_epoch_end(self) -> None:
        """nnU-Net's bookkeeping, then our plots."""
        super().on_epoch_end()
        if self.local_rank == 0:
            last = self.current_epoch == self.num_epochs
            with self.warn_where_disk_fails("progress_vqseg.png or preview.png"):
                self.curves.plot(join(self.output_folder, "progress_vqseg.png"))
                if last or self.current_epoch % self.save_every == 0:
                    self._draw_preview()

    def _draw_preview(self) -> None:
        if self._preview is None:
            return
        draw_preview(
            join(self.output_folder, "preview.png"),
            self._preview,
            self.vqseg_network,
            self.teacher.module,
            self.label_manager.regions_class_order if self.label_manager.has_regions else None,
            self.device,
            self.objective.standardize,
        )
