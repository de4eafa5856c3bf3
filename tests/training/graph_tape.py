"""What a CUDA graph does, on the CPU: operators are recorded with the tensors they had, and repeated without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

T = TypeVar("T")


class Tape(TorchDispatchMode):
    """`trainer.graph.Recorder` without a GPU.

    Numbers of Python are those of the record, tensors keep their places, random numbers are drawn anew: as in a graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero"):
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **kwargs)
        outputs = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
        self.steps.append((func, args, kwargs, outputs))
        return result

    def warm_up(self, work: Callable[[], T]) -> T:
        return work()

    def rehearse(self, work: Callable[[], T]) -> T:
        return self.record(work)

    def record(self, work: Callable[[], T]) -> T:
        self.steps = []
        with self:
            return work()

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, outputs in self.steps:
            known = {
                tensor.untyped_storage().data_ptr() for tensor in tree_flatten((args, kwargs))[0] if is_tensor(tensor)
            }
            if func.is_view or all(out.untyped_storage().data_ptr() in known for out in outputs):
                if not func._schema.is_mutable:
                    continue  # a view, which sees what is in its place
                func(*args, **kwargs)
                continue
            again = [value for value in tree_flatten(func(*args, **kwargs))[0] if isinstance(value, Tensor)]
            for place, value in zip(outputs, again, strict=True):
                place.copy_(value)


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
