"""The literature's U-Net: what it is built from, and which loss trains it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_networks import CLASSES, context, plan_of, unet

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Context, switch_deep_supervision
from nnunetv2_vqseg.methods.unet import UNet, UNetArchitecture, UNetConfig
from nnunetv2_vqseg.modules.losses.cross_entropy_dice import CrossEntropyAndDice
from nnunetv2_vqseg.trainer.optimizers import chosen_loss


def method(**settings: object) -> UNet:
    made = UNet(UNetConfig(**settings), context(plan_of(unet())))
    made.begin(made.training_network(), lambda outputs, target: outputs[0].mean())
    return made


def test_its_loss_is_that_of_the_literature_unless_a_key_says_otherwise():
    def nnunet(outputs, target):
        return outputs[0].mean()

    assert chosen_loss(method(), nnunet) == CrossEntropyAndDice(cross_entropy=0.5, dice=0.5)
    assert chosen_loss(method(supervised_loss="nnunet"), nnunet) is nnunet


def test_other_widths_are_an_architecture_of_their_own():
    assert UNetConfig.architecture == {"unet_features"}
    plan = plan_of(unet())._replace(deep_supervision=False)
    narrow = UNet.network(plan, UNetArchitecture(unet_features=(2, 3, 4, 5, 6)))
    assert narrow.encoder.output_channels == [2, 3, 4, 5, 6]
    assert narrow.eval()(torch.randn(1, 1, 32, 32)).shape == (1, CLASSES, 32, 32), "logits, as prediction wants them"


def test_switching_deep_supervision_off_gives_logits():
    network = method().student.eval()
    x = torch.randn(1, 1, 32, 32)
    (logits,) = network(x)
    switch_deep_supervision(network, False)
    assert torch.equal(network(x), logits)


@pytest.mark.parametrize("patch", [(40, 32), (16, 16, 24)])
def test_a_patch_that_cannot_be_halved_is_refused(patch):
    plan = plan_of(unet())._replace(patch_size=patch)
    with pytest.raises(ConfigError, match=r"multiples of 16.*nnUNetTrainerSupervised"):
        UNet(UNetConfig(), context(plan))


def test_processes_share_their_running_statistics(monkeypatch):
    made = method()
    made.context = dataclasses.replace(made.context, ddp=True)
    assert isinstance(made.context, Context)
    monkeypatch.setattr("nnunetv2_vqseg.methods.unet.mean_over_processes", lambda values: values + 0.5)
    before = {key: value.clone() for key, value in made.student.state_dict().items()}
    made.after_step()
    for key, value in made.student.state_dict().items():
        changed = key.endswith(("running_mean", "running_var"))
        torch.testing.assert_close(value, before[key] + 0.5 if changed else before[key])


@pytest.mark.parametrize("then", [lambda made: made.before_step(0.1), lambda made: made.on_epoch_done()])
def test_a_step_that_was_not_finite_leaves_no_trace_in_the_running_statistics(then):
    made, images = method(), torch.randn(2, 1, 32, 32)
    made.student.train()
    made.before_step(0.0)
    made.student(images)
    made.before_step(0.1)
    before = {key: value.clone() for key, value in made.student.state_dict().items() if "running" in key}
    images[0, 0, 3, 3] = float("nan")
    made.student(images)
    assert not all(value.isfinite().all() for value in made.student.state_dict().values())
    then(made)
    assert all(torch.equal(value, made.student.state_dict()[key]) for key, value in before.items())


def test_what_is_saved_after_a_step_that_was_not_finite_is_finite():
    made = method()
    made.student.train()
    made.before_step(0.0)
    made.student(torch.full((2, 1, 32, 32), float("nan")))
    made.state()
    assert all(value.isfinite().all() for value in made.student.state_dict().values())
