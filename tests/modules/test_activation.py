"""The LeakyReLU behind an InstanceNorm: same bits as nn.LeakyReLU in place, without its copies and memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tiny_networks import KINDS, unet
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_vqseg.modules.activation import LeakyReLU, use_cheap_activations


def with_gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    outputs = network(x)
    sum(output.square().sum() for output in outputs).backward()
    return [x.grad, *(parameter.grad for parameter in network.parameters()), *outputs]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_keeps_its_bits_names_and_parameters(kind, ndim):
    torch.manual_seed(0)
    network = unet(kind, ndim).train()
    for module in network.modules():
        if isinstance(module, nn.LeakyReLU):
            module.inplace = True  # as nnU-Net's plans say
    x = torch.randn(2, 1, *[16] * ndim)
    names = list(network.state_dict())
    before = with_gradients(network, x)
    network.zero_grad(set_to_none=True)
    assert use_cheap_activations(network) > 5
    assert use_cheap_activations(network) == 0
    assert list(network.state_dict()) == names
    assert all(map(torch.equal, before, with_gradients(network, x)))


def test_special_values():
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, float("inf"), -float("inf"), float("nan"), -3.0], requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours, theirs = LeakyReLU(0.01)(x), nn.LeakyReLU(0.01)(y)
    ours.backward(torch.arange(1.0, 9.0))
    theirs.backward(torch.arange(1.0, 9.0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="positive"):
        LeakyReLU(0.0)


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def block(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3, affine=True), activation)


def test_neither_copies_nor_memory():
    copies, saved = [], []
    for activation in (nn.LeakyReLU(inplace=True), nn.LeakyReLU(), LeakyReLU()):
        maps: dict[int, int] = {}

        def remember(tensor: Tensor, maps: dict[int, int] = maps) -> Tensor:
            maps[tensor.data_ptr()] = tensor.numel()
            return tensor

        network = nn.Sequential(block(activation), nn.Conv2d(3, 3, 3))
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            output = network(torch.randn(2, 3, 32, 32))
        with Count() as count:
            output.sum().backward()
        copies.append(count.names["aten::copy_"] + count.names["aten::clone"])
        saved.append(sum(size for size in maps.values() if size == 2 * 3 * 32 * 32))
    in_place, plain, ours = copies
    assert in_place >= ours + 3
    assert ours <= plain
    assert saved[2] == saved[0] < saved[1]


def test_an_activation_of_its_own_place_stays():
    alone = nn.Sequential(nn.Conv2d(1, 1, 1), nn.LeakyReLU(inplace=True), nn.InstanceNorm2d(1), nn.ReLU())
    assert use_cheap_activations(alone) == 0


def test_it_compiles_into_one_graph():
    network = block(LeakyReLU())
    x = torch.randn(1, 3, 8, 8)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    gradient = network[0].weight.grad.clone()
    network.zero_grad()
    network(x).sum().backward()
    torch.testing.assert_close(gradient, network[0].weight.grad)
