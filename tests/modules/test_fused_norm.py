"""InstanceNorm and LeakyReLU as one operation: Triton's kernels in its interpreter, and the plain way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import KINDS, unet
from torch import Tensor, nn

from nnunetv2_vqseg.modules import fused_norm
from nnunetv2_vqseg.modules.fused_norm import FusedNormLeakyReLU, use_fused_norms

LAYOUTS = {"plain": torch.contiguous_format, "last": torch.channels_last, "last 3d": torch.channels_last_3d}
CASES = [
    (layout, channels, size)
    for layout in LAYOUTS
    for channels in (1, 5, 96)
    for size in ((24, 20), (6, 8, 10))
    if layout == "plain" or (layout == "last 3d") == (len(size) == 3)
]


def plainly(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias), 0.01)


def errors() -> dict[str, float]:
    """Largest relative error of output and gradients for all cases; the kernels' against float64."""
    torch.manual_seed(0)
    found = {}
    for layout, channels, size in CASES:
        x = (torch.randn(2, channels, *size) * 3 + 7).contiguous(memory_format=LAYOUTS[layout])
        inputs = [x, torch.randn(channels), torch.randn(channels)]
        ours = [value.clone(memory_format=torch.preserve_format).requires_grad_() for value in inputs]
        exact = [value.double().clone().requires_grad_() for value in inputs]
        output, expected = fused_norm.NormLeakyReLU.apply(*ours, 1e-5, 0.01), plainly(*exact)
        assert output.stride() == x.stride()
        gradient = torch.randn(x.shape)
        output.backward(gradient)
        expected.backward(gradient.double())
        pairs = [(output, expected), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]
        found[f"{layout} {channels} {size}"] = max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)
    return found


INTERPRETED = "import test_fused_norm; print(sorted(test_fused_norm.errors().items(), key=lambda item: -item[1]))"


@pytest.mark.nightly
@pytest.mark.skipif(not fused_norm.is_available(), reason="there is no Triton")
def test_kernels_in_triton_s_interpreter_are_exact_in_every_layout():
    paths = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])  # noqa: PTH120
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    if "0 active drivers" in run.stderr:
        pytest.skip("this Triton's interpreter asks for a GPU")
    assert run.returncode == 0, run.stderr[-3000:]
    found = dict(eval(run.stdout))
    assert len(found) == len(CASES)
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_network_keeps_its_keys_and_its_numbers(kind, ndim):
    torch.manual_seed(0)
    network = unet(kind, ndim).train()
    names, x = list(network.state_dict()), torch.randn(2, 1, *[16] * ndim)
    before = [output.detach() for output in network(x)]
    assert use_fused_norms(network) > 5
    assert use_fused_norms(network) == 0
    assert list(network.state_dict()) == names
    for output, expected in zip(network(x), before, strict=True):
        torch.testing.assert_close(output, expected)
    network.load_state_dict(unet(kind, ndim).state_dict())
    sum(output.sum() for output in network(x)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_cannot_be_fused_stays():
    alone = nn.Sequential(nn.InstanceNorm2d(3), nn.LeakyReLU(), nn.InstanceNorm2d(3, affine=True), nn.ReLU())
    assert use_fused_norms(alone) == 0
    for norm in (nn.InstanceNorm2d(3), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)):
        with pytest.raises(ValueError, match="can be fused"):
            FusedNormLeakyReLU(norm, 0.01)
