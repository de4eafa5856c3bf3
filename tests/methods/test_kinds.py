"""Every method takes colour images, regions, an ignore label and residual encoders, or says at the start that not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from test_dimensions import IGNORED, LABELED, METHODS, started

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Method

KINDS: list[dict[str, Any]] = [{"regions": True}, {"ignore_label": IGNORED}, {"regions": True, "ignore_label": IGNORED}]


def take_two_steps(method: Method[Any], batch: Any) -> None:
    """Late in a training, when everything is switched on."""
    optimizer = torch.optim.SGD(method.parameter_groups(method.student), lr=0.01)
    for progress in (0.5, 0.9):
        method.before_step(progress)
        terms, _ = method.terms(batch, progress)
        assert all(torch.isfinite(value) for _, value in terms.values())
        optimizer.zero_grad()
        torch.stack([weight * value for weight, value in terms.values()]).sum().backward()
        optimizer.step()
        method.after_step()
    assert all(torch.isfinite(parameter).all() for parameter in method.student.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_several_channels(name):
    method, batch = started(METHODS[name], 2, channels=3)
    assert batch.labeled.shape[:2] == (LABELED, 3)
    take_two_steps(method, batch)


@pytest.mark.parametrize("name", METHODS)
def test_residual_encoders(name):
    method, batch = started(METHODS[name], 2, kind=ResidualEncoderUNet)
    take_two_steps(method, batch)


@pytest.mark.parametrize("labels", KINDS, ids=" and ".join)
@pytest.mark.parametrize("name", METHODS)
def test_kinds_of_labels(name, labels):
    refusal = None
    try:
        method, batch = started(METHODS[name], 2, **labels)
    except ConfigError as error:
        refusal = str(error)
    if refusal is None:
        take_two_steps(method, batch)
    else:
        assert any(word in refusal for word in ("region", "ignore"))
        assert "nnUNetTrainer" in refusal, "name a trainer that can"
