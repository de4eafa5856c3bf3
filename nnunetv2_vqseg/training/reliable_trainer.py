"""A training that stops when it is asked to, and goes on where it can."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from batchgenerators.utilities.file_and_folder_operations import join

from nnunetv2_vqseg.training.signals import EXIT_INTERRUPTED, StopRequest, exit_when_asked
from nnunetv2_vqseg.training.teacher_trainer import TeacherTrainer

VALIDATE_AGAIN = "the training is finished and saved; to repeat the validation, run the same command with --val or --c"


class ReliableTrainer(TeacherTrainer):
    """Saves and stops at SIGTERM and SIGUSR1; a plot that cannot be written does not end the training."""

    _stop_request: StopRequest | None = None

    def initialize(self) -> None:
        """Nothing new, but that `progress.png` may fail and leaves nothing in memory."""
        super().initialize()
        plot: Callable[[str], None] = self.logger.plot_progress_png

        def plot_or_warn(output_folder: str) -> None:
            with self.warn_where_disk_fails("progress.png"):
                plot(output_folder)
            gc.collect()  # Matplotlib's figure of 60 MB is in cycles

        self.logger.plot_progress_png = plot_or_warn

    def get_dataloaders(self) -> tuple[Any, Any]:
        """From here on signals ask for a stop; before, there is nothing to save. Workers forked here ignore them."""
        if self._stop_request is not None:
            self._stop_request.install()
        return super().get_dataloaders()

    def run_training(self) -> None:
        """nnU-Net's; no worker and no signal handler outlives it, however it ends.

        Raises:
            SystemExit: with `EXIT_INTERRUPTED` after a signal, once the state is saved.
        """
        with exit_when_asked("nothing was trained or saved yet; run the same command again"):
            self._stop_request = StopRequest()
            try:
                super().run_training()
                if self.any_rank(self._stop_requested):
                    self.print_to_log_file(f"Stopped before the final validation; {VALIDATE_AGAIN}.")
                    raise SystemExit(EXIT_INTERRUPTED)
            except RuntimeError:
                # Where workers are not forked the signal kills them, and the next batch does not come. On several ranks
                # there is no agreement left at that point; they continue from the last checkpoint.
                if not self._stop_requested or self.is_ddp:
                    raise
                self._save_and_stop()
            finally:
                self._stop_request.restore()
                self.stop_loaders()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's.

        Raises:
            SystemExit: with `EXIT_INTERRUPTED` after a signal.
        """
        with exit_when_asked(VALIDATE_AGAIN):
            super().perform_actual_validation(save_probabilities)

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's, then a look at whether to stop."""
        outputs = super().validation_step(batch)
        self.stop_if_asked()
        return outputs

    def stop_if_asked(self) -> None:
        """To be called after every step on every rank: save and stop if any rank was asked to.

        Raises:
            SystemExit: with `EXIT_INTERRUPTED`.
        """
        if self.any_rank(self._stop_requested):
            self._save_and_stop()

    @property
    def _stop_requested(self) -> bool:
        return self._stop_request is not None and self._stop_request.received is not None

    def _save_and_stop(self) -> None:
        self._end_validation()
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

    @contextmanager
    def warn_where_disk_fails(self, what: str) -> Iterator[None]:
        """A warning instead of an `OSError` while something is written that training can do without."""
        try:
            yield
        except OSError as error:
            self.print_to_log_file(f"WARNING: {what} could not be written ({error}); training goes on.")
