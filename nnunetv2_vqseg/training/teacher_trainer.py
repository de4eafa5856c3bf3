"""The EMA teacher in nnU-Net's life cycle: validated, saved and resumed."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from torch.optim.swa_utils import AveragedModel

from nnunetv2_vqseg import __version__
from nnunetv2_vqseg.config import ARCHITECTURE
from nnunetv2_vqseg.core.errors import CheckpointError, reason_of
from nnunetv2_vqseg.modules.ema import build_teacher, unwrap
from nnunetv2_vqseg.modules.foundation import FoundationModel
from nnunetv2_vqseg.network import VQSegNet
from nnunetv2_vqseg.training.checkpoint import (
    random_states,
    read_checkpoint,
    save_atomically,
    to_continue_from,
    to_plain,
)
from nnunetv2_vqseg.training.curves import EpochCurves
from nnunetv2_vqseg.training.data_trainer import UnlabeledDataTrainer
from nnunetv2_vqseg.training.weights import WeightSwap

# A full disk at the very end: worth waiting for whoever can make room, but not until the other ranks time out (10 min).
SECONDS_FOR_FINAL = 300.0
SECONDS_BETWEEN_TRIES = 20.0


class TeacherTrainer(UnlabeledDataTrainer):
    """Teacher's weights are scored and saved as `network_weights`; the student's state is kept for resuming."""

    teacher: AveragedModel
    curves: EpochCurves
    foundation_model: FoundationModel | None = None
    foundation_status = "not loaded yet"
    step = 0
    skipped_steps = 0
    _only_validates = False
    _swap: WeightSwap | None = None
    _resume_problem: str | None = None
    _resumed_random_states: dict[str, Any] | None = None

    def initialize(self) -> None:
        """nnU-Net's, then the teacher as a copy of the student."""
        super().initialize()
        self.teacher = build_teacher(self.vqseg_network, self.config.ema_decay, self.config.ema_warmup)
        self.teacher_network.decoder.deep_supervision = False
        self.curves = EpochCurves()

    @property
    def teacher_network(self) -> VQSegNet:
        """The teacher, without the averaging around it."""
        network = unwrap(self.teacher)
        assert isinstance(network, VQSegNet)
        return network

    @property
    def vqseg_network(self) -> VQSegNet:
        """The student, without DDP's and torch.compile's wrappers."""
        network = unwrap(self.network)
        assert isinstance(network, VQSegNet)
        return network

    def on_validation_epoch_start(self) -> None:
        """The online pseudo Dice is the teacher's."""
        self._swap = WeightSwap(self.vqseg_network, self.teacher.module)
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Give the network the student's weights back."""
        try:
            super().on_validation_epoch_end(val_outputs)
        finally:
            self._end_validation()

    def _end_validation(self) -> None:
        if self._swap is not None:
            self._swap.undo()
            self._swap = None

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's final validation with the teacher's weights, which are also those that are saved."""
        self._swap = WeightSwap(self.vqseg_network, self.teacher.module)
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self._end_validation()

    def save_checkpoint(self, filename: str) -> None:
        """Save at the end of an epoch; training goes on where that fails, unless it is the final checkpoint.

        Raises:
            OSError: `checkpoint_final.pth` could not be written, not even later.
        """
        self._save(filename, epochs_done=self.current_epoch + 1)

    def save_unfinished_epoch(self, filename: str) -> bool:
        """Save in the middle of an epoch, which will be repeated with the weights of now; returns whether it worked."""
        return self._save(filename, epochs_done=self.current_epoch)

    def _save(self, filename: str, epochs_done: int) -> bool:
        if self.local_rank != 0:
            return False
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return False
        if self._swap is not None:
            raise RuntimeError("Never save while the teacher's weights are in the network.")
        content = self._checkpoint(epochs_done)
        give_up = monotonic() + (SECONDS_FOR_FINAL if Path(filename).name == "checkpoint_final.pth" else 0.0)
        while True:
            try:
                save_atomically(content, filename)
                return True
            except OSError as error:
                problem = f"{error}; the last good checkpoint is untouched."
                if Path(filename).name != "checkpoint_final.pth":
                    self.print_to_log_file(
                        f"WARNING: {problem} Training goes on; free disk space or make the folder writable."
                    )
                    return False
                if monotonic() >= give_up:
                    raise OSError(f"{problem} Free disk space and continue with --c.") from error
                self.print_to_log_file(f"WARNING: {problem} Trying again for some minutes; free disk space now.")
            sleep(SECONDS_BETWEEN_TRIES)

    def _checkpoint(self, epochs_done: int) -> dict[str, Any]:
        """Teacher as `network_weights`, everything else that resuming needs under `vqseg`."""
        return {
            "network_weights": self.teacher_network.inference_state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": to_plain({key: values[:epochs_done] for key, values in self.logger.get_checkpoint().items()}),
            "_best_ema": to_plain(self._best_ema),
            "current_epoch": epochs_done,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "vqseg": self._training_state(),
        }

    def _training_state(self) -> dict[str, Any]:
        quantizer = self.vqseg_network.quantizer
        return {
            "version": __version__,
            "config": self.config.as_dict(),
            "student": self.vqseg_network.state_dict(),
            "teacher": self.teacher.state_dict(),
            "quantizer": quantizer.bookkeeping_state() if quantizer is not None else None,
            "step": self.step,
            "skipped_steps": self.skipped_steps,
            "curves": to_plain(self.curves.history),
            "random_states": random_states(),
            "foundation_model": self.foundation_status,
            "alignment": self.foundation_model is not None,
            "method_has_alignment": self.default_config().foundation_policy != "off",
            "runtime": self._runtime(),
        }

    def _runtime(self) -> dict[str, Any]:
        return self.runtime() | {
            "steps": self.step,
            "labeled_batch_size": self.labeled_batch_size,
            "unlabeled_batch_size": self.unlabeled_batch_size,
            "processes": self.world_size,
            "seed": self.config.seed,
        }

    def load_checkpoint(self, filename_or_checkpoint: str | dict) -> None:
        """Continue from, or validate, a checkpoint that this trainer wrote.

        Raises:
            CheckpointError: it cannot be read, or another trainer or plan wrote it.
        """
        if not self.was_initialized:
            self._only_validates = not self.logger.resume
            self.initialize()
        source, checkpoint = "This checkpoint", filename_or_checkpoint
        if isinstance(checkpoint, (str, os.PathLike)):
            source = str(checkpoint)
            if self.logger.resume:
                source = to_continue_from(source, self.print_to_log_file)
            checkpoint = read_checkpoint(source, self.device)
        if "vqseg" not in checkpoint:
            raise CheckpointError(
                f"{source} was not written by a VQ-Seg trainer and cannot be used with {type(self).__name__}; start "
                f"anew without --c."
            )
        try:
            self._compare_settings(str(source), checkpoint["vqseg"]["config"])
            self._restore(checkpoint)
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source} does not fit this trainer and plan ({reason_of(error).rstrip('.')}); use those that it was "
                f"trained with, or start anew without --c."
            ) from error

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["vqseg"]
        same_alignment = state["alignment"] == (self.foundation_model is not None)
        self._resume_problem = None if same_alignment else _alignment_mismatch(state, self.foundation_status)
        same_heads = same_alignment and "reconstruct" not in self.config.changed_since(state["config"])
        self.my_init_kwargs = checkpoint["init_args"]
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        # Without the same heads the weights still serve validation; to train on is refused, here or in on_train_start.
        self.vqseg_network.load_state_dict(state["student"], strict=same_heads)
        self.teacher.load_state_dict(state["teacher"], strict=same_heads)
        if self.vqseg_network.quantizer is not None:
            self.vqseg_network.quantizer.load_bookkeeping_state(state["quantizer"])
        if same_heads:
            scales = [group.get("lr_scale") for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(checkpoint["optimizer_state"])
            for group, scale in zip(self.optimizer.param_groups, scales, strict=True):
                if scale is not None:  # the plan's, not the checkpoint's
                    group["lr_scale"] = scale
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.step = state["step"]
        self.skipped_steps = state.get("skipped_steps", 0)
        self.curves.restore(state["curves"], self.current_epoch)
        self._resumed_random_states = state["random_states"]

    def _compare_settings(self, source: str, before: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network or optimiser, and name the other settings that have changed since."""
        changed = self.config.changed_since(before)
        of_training = () if self._only_validates else ("reconstruct", "optimizer")
        fixed = [changed[key] for key in (*ARCHITECTURE, *of_training) if key in changed]
        if fixed:
            raise CheckpointError(
                f"{source} was trained with {'; '.join(fixed)}; set the old value in the plan's vqseg block to "
                f"continue or validate it, or start anew without --c."
            )
        if changed and not self._only_validates:
            self.print_to_log_file(f"WARNING: {source} was trained with other settings: {'; '.join(changed.values())}.")


def _alignment_mismatch(state: dict[str, Any], status: str) -> str:
    if state["alignment"]:
        return (
            "This training began with the foundation model and cannot go on without it: "
            f"{status.rstrip('.')}; provide the weights, or start anew without --c."
        )
    return (
        "This training began without the foundation model, which is there now; set vqseg.foundation_policy to 'off' in "
        "the plan to continue without it, or start anew without --c."
    )
