"""Loading what fits: weights of a network that has the same parts beside others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def load_fitting(module: nn.Module, state: Mapping[str, Tensor], strict: bool) -> None:
    """Load a `state_dict`; without `strict` only what has a name and a shape of the module's, the rest stays.

    Raises:
        RuntimeError: with `strict`, as torch does.
    """
    if not strict:
        own = module.state_dict()
        state = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    module.load_state_dict(state, strict=strict)
