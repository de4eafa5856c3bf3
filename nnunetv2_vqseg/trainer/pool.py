"""The unlabelled cases that a training draws from, where its method may leave some out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor, nn

from nnunetv2_vqseg.core.errors import DatasetError

if TYPE_CHECKING:
    from nnunetv2_vqseg.trainer.trainer import MethodTrainer


class CasePool:
    """`methods.base.Cases` of a trainer; what was left out is in the checkpoint.

    Attributes:
        has_changed: the loader draws from other cases than it should.
    """

    def __init__(self, trainer: MethodTrainer) -> None:
        self.trainer = trainer
        self.found: list[str] = []
        self.dropped: set[str] = set()
        self.has_changed = False

    def fill(self, found: Sequence[str]) -> None:
        """These are the prepared cases; those that were left out before the training was stopped stay out.

        Raises:
            DatasetError: nothing is left.
        """
        self.found = list(found)
        if not self.names:
            raise DatasetError(
                f"The method has left out all of the {len(found)} unlabelled cases that are there now; put back those "
                f"that the training was started with, or start anew without --c."
            )

    @property
    def names(self) -> list[str]:
        """The cases that batches are drawn from."""
        return [case for case in self.found if case not in self.dropped]

    def keep(self, names: Sequence[str]) -> None:
        """Draw from these alone from the next epoch on."""
        self.dropped = set(self.found) - set(names)
        self.has_changed = True
        self.trainer.print_to_log_file(f"{len(self.names)} of {len(self.found)} unlabelled cases are in use.")

    def predict(self, look: Callable[[str, Tensor], float]) -> dict[str, float]:
        """`look(name, logits)` of each case; on rank 0, and the same answers on all.

        Raises:
            SystemExit: the training was asked to stop; it is saved, and predicts them all when it is continued.
        """
        ranks = self.trainer.ranks
        answers = ranks.rank_0_first("predicting the unlabelled cases", lambda: self._predict(look), lambda: {})
        self.trainer.stop_if_asked()
        return ranks.from_rank_0(answers)

    @torch.no_grad()
    def _predict(self, look: Callable[[str, Tensor], float]) -> dict[str, float]:
        trainer = self.trainer
        trainer.print_to_log_file(f"Predicting {len(self.names)} unlabelled cases.")
        dataset = nnUNetDatasetBlosc2(trainer.cases.unlabeled_folder, self.names)
        answers = {}
        with in_prediction(trainer.method.predictor()) as network:
            predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
            managers = (trainer.plans_manager, trainer.configuration_manager)
            axes = trainer.inference_allowed_mirroring_axes
            predictor.manual_initialization(
                network, *managers, None, trainer.dataset_json, type(trainer).__name__, axes
            )
            for case in dataset.identifiers:
                if trainer.asked_to_stop():
                    break
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the array cannot be written to
                    image = torch.from_numpy(dataset.load_case(case)[0][:])
                answers[case] = look(case, predictor.predict_sliding_window_return_logits(image))
        compute_gaussian.cache_clear()
        return answers

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"dropped": sorted(self.dropped)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """As `state` gave it; without cases where an earlier version wrote the checkpoint."""
        self.dropped = set(state.get("dropped", ()))


@contextmanager
def in_prediction(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode with one output, for a while."""
    parts: list[Any] = list(network.modules())
    modes = [(part, part.training) for part in parts]
    deep = [(part, part.deep_supervision) for part in parts if hasattr(part, "deep_supervision")]
    try:
        for part, _ in deep:
            part.deep_supervision = False
        yield network.eval()
    finally:
        for part, value in deep:
            part.deep_supervision = value
        for part, mode in modes:
            part.training = mode
