"""Self-training: what a round begins with, what it learns from, and which cases are left out."""

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.case_filter import most_stable
from nnunetv2_vqseg.methods.self_training import SelfTraining, SelfTrainingConfig
from nnunetv2_vqseg.networks.backbone import NetworkPlan


class Cases:
    """Cases whose labels change by these shares, one list a case, as `methods.base.Cases`."""

    def __init__(self, changes: dict[str, list[float]]) -> None:
        self.changes = changes
        self.names = list(changes)
        self.labeled = 0

    def label(self):
        self.labeled += 1
        return {name: values[self.labeled - 2] for name, values in self.changes.items()} if self.labeled > 1 else {}

    def keep(self, names):
        self.names = names


def method(cases=None, reset=lambda: None, **settings: object) -> SelfTraining:
    plan = NetworkPlan((4, 4), [[1, 1]], 1, lambda: nn.Conv2d(1, 2, 1))
    made = SelfTraining(
        SelfTrainingConfig(**{"num_epochs": 300, **settings}), Context(plan, "cpu", cases=cases, reset_optimizer=reset)
    )
    made.begin(made.training_network(), lambda outputs, target: outputs.mean())
    return made


def test_every_round_has_its_share_of_the_epochs_and_the_whole_schedule():
    made = method()
    assert [made.round_of(epoch) for epoch in (0, 99, 100, 199, 200, 299)] == [0, 0, 1, 1, 2, 2]
    assert [made.rate_epoch(epoch) for epoch in (0, 50, 99, 100, 150, 200, 299)] == pytest.approx(
        [0, 150, 297, 0, 150, 0, 297]
    )
    uneven = method(num_epochs=4)
    assert [uneven.round_of(epoch) for epoch in range(4)] == [0, 1, 2, 2]
    assert [uneven.rate_epoch(epoch) for epoch in range(4)] == [0, 0, 0, 2]
    assert [method(rounds=1).rate_epoch(epoch) for epoch in (0, 150, 299)] == pytest.approx([0, 150, 299])


def test_the_rate_of_a_round_begins_as_the_first():
    from nnunetv2_vqseg.trainer.optimizers import build_optimizer

    made = method()
    groups = [{"params": list(made.student.parameters()), "lr_scale": 1.0}]
    optimizer, schedule = build_optimizer(groups, made.config, 0.01, 3e-5)
    plain, rates = [], []
    for place, found in ((None, plain), (made.rate_epoch, rates)):
        if place is not None:
            schedule.place = place
        for epoch in (0, 50, 100, 150, 200):
            schedule.step(epoch)
            found.append(optimizer.param_groups[0]["lr"])
    assert plain == [0.01 * (1 - epoch / 300) ** 0.9 for epoch in (0, 50, 100, 150, 200)]
    assert rates == pytest.approx([0.01, 0.01 * 0.5**0.9] * 2 + [0.01])


def test_rounds_begin_with_labels_of_all_cases_and_fresh_weights():
    cases, resets = Cases({"a": [0.1], "b": [0.3], "c": [0.2]}), []
    made = method(cases, lambda: resets.append(1), unstable_share=0.34)
    made.start(iter(()))
    trained = {}
    for epoch in range(300):
        before = made.student.weight.clone()
        made.before_epoch(epoch)
        fresh = not torch.equal(before, made.student.weight)
        assert fresh == (epoch in (100, 200)), epoch
        assert made.reads_unlabeled(0.0) == (epoch >= 100)
        if epoch in (99, 199):
            trained[epoch] = made.student.weight.data.fill_(7.0)
        if epoch == 100:
            assert cases.names == ["a", "b", "c"], "there is nothing yet to compare the first labels with"
    assert cases.labeled == len(resets) == 2
    assert cases.names == ["a", "c"]
    assert made.state()["changes"] == {"a": 0.1, "b": 0.3, "c": 0.2}
    assert made.on_epoch_done() == {"round": 3.0, "unlabeled_cases": 2.0}


@pytest.mark.parametrize(("later", "back"), [(0.4, ["a", "c"]), (0.15, ["b", "c"])])
def test_what_counts_is_the_mean_over_all_rounds_so_that_a_case_can_come_back(later, back):
    cases = Cases({"a": [0.5, 0.1], "b": [0.4, later], "c": [0.0, 0.0]})
    made = method(cases, rounds=4, unstable_share=0.34)
    names = []
    for epoch in (75, 150, 225):
        made.before_epoch(epoch)
        names.append(cases.names)
    assert names == [["a", "b", "c"], ["b", "c"], back]


def test_a_round_that_was_begun_is_not_begun_again_when_continued():
    cases = Cases({"a": [0.1]})
    made, continued = method(cases), method(cases)
    made.before_epoch(100)
    continued.load_state(made.state())
    weight = continued.student.weight.clone()
    continued.before_epoch(101)
    assert cases.labeled == 1
    assert torch.equal(continued.student.weight, weight)
    assert continued.reads_unlabeled(0.5)


def test_rounds_begin_with_pretrained_weights_where_there_are_any():
    made = method(Cases({"a": [0.1]}))
    made.student.weight.data.fill_(3.0)  # what -pretrained_weights does between `begin` and `start`
    made.start(iter(()))
    made.student.weight.data.fill_(7.0)
    continued = method(Cases({"a": [0.1]}))
    continued.load_state(made.state())
    for each in (made, continued):
        each.before_epoch(100)
        assert (each.student.weight == 3.0).all()


def test_both_halves_of_a_batch_have_one_loss_at_all_scales():
    made = method()
    made.student = nn.Identity()
    seen = []
    made.supervised = lambda outputs, target: seen.append((outputs, target)) or outputs.mean()
    images, own = torch.zeros(2, 1, 4, 4), torch.ones(3, 1, 4, 4)
    target, own_target = ([torch.full((n, 1, side, side), n) for side in (4, 2)] for n in (2, 3))
    terms, _ = made.terms(Batch(images, target, own, own_target), 0.5)
    assert {name: weight for name, (weight, _) in terms.items()} == {"supervised": 1.0}
    outputs, targets = seen[-1]
    assert outputs.flatten(1).mean(1).tolist() == [0, 0, 1, 1, 1]
    assert [level.shape[2] for level in targets] == [4, 2]
    assert all(level.flatten(1).float().mean(1).tolist() == [2, 2, 3, 3, 3] for level in targets)
    made.terms(Batch(images, target[0], own, own_target[0]), 0.5)
    assert torch.equal(seen[-1][1], targets[0])
    made.terms(Batch(images, target), 0.0)
    assert seen[-1][1] is target
    assert len(seen[-1][0]) == 2


def test_as_many_cases_stay_as_of_flare():
    names = {f"{number:04}": float(number) for number in range(2000)}
    kept = most_stable(names, SelfTrainingConfig().unstable_share)
    assert len(kept) == 1924
    assert max(kept) == "1923"
    assert most_stable({"a": 1.0}, 0.99) == ["a"]


def test_more_rounds_than_epochs_are_refused():
    with pytest.raises(ConfigError, match=r"vqseg\.rounds = 3 needs as many epochs, this training has 2"):
        method(num_epochs=2)
