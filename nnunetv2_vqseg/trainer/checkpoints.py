"""What a checkpoint holds, how it is written so that training goes on, and how a training is continued from it."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from nnunetv2_vqseg import __version__
from nnunetv2_vqseg.core.errors import CheckpointError, reason_of
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.modules.fitting import load_fitting
from nnunetv2_vqseg.trainer.checkpoint_files import (
    BackgroundWriter,
    random_states,
    read_checkpoint,
    save_atomically,
    to_continue_from,
    to_plain,
)

if TYPE_CHECKING:
    from nnunetv2_vqseg.trainer.trainer import MethodTrainer

# A full disk at the very end: worth waiting for whoever can make room, but not until the other ranks time out (10 min).
SECONDS_FOR_FINAL = 300.0
SECONDS_BETWEEN_TRIES = 20.0

UNTOUCHED = "the last good checkpoint is untouched"

OWN = ("lr_scale", "weight_decay", "momentum", "nesterov", "fused", "foreach")
"""What a group of the optimiser does not take from a checkpoint."""

POLY = 0.9
"""Exponent of nnU-Net's learning rate."""


class Checkpoints:
    """The predictor as `network_weights`, everything else that continuing needs under `vqseg`.

    Plain tensors and values only, so that they are read with `weights_only=True`.
    """

    def __init__(self, trainer: MethodTrainer) -> None:
        self.trainer = trainer
        self.problem: str | None = None
        """Why what was loaded can be validated but not continued."""
        self.random_states: dict[str, Any] | None = None
        """Of the checkpoint that was loaded, until they are restored."""
        self._writer = BackgroundWriter()

    def save(self, filename: str, epochs_done: int) -> bool:
        """Write on rank 0; training goes on where that fails, unless it is the final checkpoint.

        `checkpoint_best.pth`, which nearly every epoch writes at first, is written while training goes on.

        Returns:
            Whether it was written, or is being written.

        Raises:
            OSError: `checkpoint_final.pth` could not be written, not even later.
        """
        trainer = self.trainer
        if trainer.local_rank != 0:
            return False
        if trainer.disable_checkpointing:
            trainer.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return False
        if trainer.is_swapped:
            raise RuntimeError("Never save while the predictor's weights are in the network.")
        self.wait()
        content = self._content(epochs_done)
        if Path(filename).name == "checkpoint_best.pth":
            self._writer.write(content, lambda kept: save_atomically(kept, filename))
            return True
        is_final = Path(filename).name == "checkpoint_final.pth"
        give_up = monotonic() + (SECONDS_FOR_FINAL if is_final else 0.0)
        while True:
            try:
                save_atomically(content, filename)
                return True
            except OSError as error:
                if not is_final:
                    self._warn(error)
                    return False
                problem = f"{error}; {UNTOUCHED}."
                if monotonic() >= give_up:
                    raise OSError(f"{problem} Free disk space and continue with --c.") from error
                trainer.print_to_log_file(f"WARNING: {problem} Trying again for some minutes; free disk space now.")
            sleep(SECONDS_BETWEEN_TRIES)

    def wait(self) -> None:
        """Until `checkpoint_best.pth`, which is written while training goes on, is there, or could not be written."""
        problem = self._writer.wait()
        if problem is not None:
            self._warn(problem)

    def _warn(self, problem: Exception) -> None:
        what, advice = str(problem), "free disk space or make the folder writable"
        if not isinstance(problem, OSError):
            what = f"The best checkpoint could not be written ({type(problem).__name__}: {problem})"
            advice = "the final checkpoint may fail alike"
        self.trainer.print_to_log_file(f"WARNING: {what}; {UNTOUCHED}. Training goes on; {advice}.")

    def _content(self, epochs_done: int) -> dict[str, Any]:
        trainer = self.trainer
        scaler, logged = trainer.grad_scaler, trainer.logger.get_checkpoint()
        predicted = trainer.method.predictor().state_dict()
        return {
            "network_weights": {key: predicted[key] for key in trainer.predicted_keys},
            "optimizer_state": trainer.optimizer.state_dict(),
            "grad_scaler_state": scaler.state_dict() if scaler is not None else None,
            "logging": to_plain({key: values[:epochs_done] for key, values in logged.items()}),
            "_best_ema": to_plain(trainer._best_ema),
            "current_epoch": epochs_done,
            "init_args": trainer.my_init_kwargs,
            "trainer_name": type(trainer).__name__,
            "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
            "vqseg": {
                "version": __version__,
                "config": trainer.config.as_dict(),
                "student": unwrap(trainer.network).state_dict(),
                "step": trainer.stepper.step,
                "skipped_steps": trainer.stepper.skipped_steps,
                "curves": to_plain(trainer.curves.history),
                "panels": trainer.curves.panels,
                "random_states": random_states(),
                "runtime": trainer.runtime(),
                "cases": trainer.pool.state(),
                "guard": None if trainer.method.guard is None else trainer.method.guard.state(),
                **trainer.method.state(),
            },
        }

    def load(self, source: str | os.PathLike[str] | dict[str, Any]) -> None:
        """Continue from, or validate, a checkpoint that this trainer wrote.

        Raises:
            CheckpointError: it cannot be read, or another trainer or plan wrote it.
        """
        self.wait()
        trainer, name, checkpoint = self.trainer, "This checkpoint", source
        if isinstance(source, (str, os.PathLike)):
            name = str(source)
            if trainer.logger.resume:
                name = to_continue_from(name, trainer.print_to_log_file)
            checkpoint = read_checkpoint(name, trainer.device)
        assert isinstance(checkpoint, dict)
        if "vqseg" not in checkpoint:
            if not trainer.method.is_stock:
                raise CheckpointError(
                    f"{name} was not written by a VQ-Seg trainer and cannot be used with {type(trainer).__name__}; "
                    f"start anew without --c."
                )
            steps = checkpoint["current_epoch"] * trainer.num_iterations_per_epoch
            checkpoint["vqseg"] = {"student": checkpoint["network_weights"], "config": {}, "step": steps, "curves": {}}
        try:
            self._compare_settings(name, checkpoint["vqseg"]["config"])
            self._restore(checkpoint)
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{name} does not fit this trainer and plan ({reason_of(error).rstrip('.')}); use those that it was "
                f"trained with, or start anew without --c."
            ) from error

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        trainer, state = self.trainer, checkpoint["vqseg"]
        self.problem = trainer.method.why_not_continue(state)
        changed = trainer.config.changed_since(state["config"])
        # Without the same heads the weights still serve validation; to train on is refused, here or at the start.
        strict = self.problem is None and not trainer.config.same_to_continue & changed.keys()
        trainer.my_init_kwargs = checkpoint["init_args"]
        trainer.current_epoch = checkpoint["current_epoch"]
        trainer.logger.load_checkpoint(checkpoint["logging"])
        trainer._best_ema = checkpoint["_best_ema"]
        trainer.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        load_fitting(unwrap(trainer.network), state["student"], strict)
        trainer.method.load_state(state, strict)
        if not strict:  # what is validated must fit all the same
            trainer.method.predictor().load_state_dict(checkpoint["network_weights"], strict=False)
        trainer.pool.load_state(state.get("cases", {}))
        if trainer.method.guard is not None and state.get("guard") is not None:
            trainer.method.guard.load_state(state["guard"])
        if strict:
            # The plan's and the device's, not the checkpoint's.
            own = [{key: group[key] for key in OWN if key in group} for group in trainer.optimizer.param_groups]
            trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
            for group, kept in zip(trainer.optimizer.param_groups, own, strict=True):
                group.update(kept)
        if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        trainer.stepper.step = state["step"]
        trainer.stepper.skipped_steps = state.get("skipped_steps", 0)
        trainer.curves.restore(state["curves"], trainer.current_epoch)
        self.random_states = state.get("random_states")
        self._tell_of_another_length(state["config"].get("num_epochs"))

    def _tell_of_another_length(self, before: int | None) -> None:
        """Rate and ramp are those of a training that had its new length from the start: both may step back up."""
        trainer = self.trainer
        if before in (None, trainer.num_epochs) or trainer.only_validates:
            return
        left = max(0.0, 1.0 - trainer.current_epoch / trainer.num_epochs)
        trainer.print_to_log_file(
            f"num_epochs was {before} and is {trainer.num_epochs}: learning rate and ramp go on as in a training of "
            f"{trainer.num_epochs} epochs that has done {trainer.current_epoch}; the rate is {left**POLY:.3g} of "
            f"initial_lr now."
        )

    def _compare_settings(self, source: str, before: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network or optimiser, and name the other settings that have changed since."""
        trainer, config = self.trainer, self.trainer.config
        changed = config.changed_since(before)
        of_training = frozenset() if trainer.only_validates else config.same_to_continue
        fixed = [
            changed[key] for key in config.declared() if key in changed and key in config.architecture | of_training
        ]
        if fixed:
            raise CheckpointError(
                f"{source} was trained with {'; '.join(fixed)}; set the old value in the plan's vqseg block to "
                f"continue or validate it, or start anew without --c."
            )
        if changed and not trainer.only_validates:
            trainer.print_to_log_file(
                f"WARNING: {source} was trained with other settings: {'; '.join(changed.values())}."
            )
