"""The EMA teacher on nnU-Net's own network, whose decoder holds its encoder a second time."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from nnunetv2_vqseg.modules.ema import build_teacher, ema_decay, unwrap, update_teacher


def small_unet() -> nn.Module:
    network = PlainConvUNet(
        1, 3, [4, 8, 8], nn.Conv2d, 3, [1, 2, 2], 1, 2, 1, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"affine": True}
    )
    network.register_buffer("codebook", torch.randn(5, 2))
    network.register_buffer("age", torch.zeros(5, dtype=torch.long))
    return network


def move_student(student: nn.Module) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
        student.codebook.normal_()
        student.age.add_(3)


def test_decay_follows_the_schedule():
    """METHOD: a = min(1 - 1/(t+1), 0.996)."""
    assert [ema_decay(t, 0.996, 1.0) for t in (0, 1, 3)] == [0.0, 0.5, 0.75]
    assert ema_decay(248, 0.996, 1.0) == pytest.approx(1 - 1 / 249)
    assert ema_decay(249, 0.996, 1.0) == pytest.approx(0.996)
    assert ema_decay(10**6, 0.996, 1.0) == 0.996
    with pytest.raises(ValueError, match="max_decay"):
        ema_decay(1, 1.5, 1.0)


def test_longer_warmup_follows_the_last_tenth():
    assert [ema_decay(t, 0.996, warmup=10) for t in (0, 10, 90)] == pytest.approx([0.0, 0.5, 0.9])
    assert ema_decay(10**6, 0.996, warmup=10) == 0.996
    with pytest.raises(ValueError, match="warmup"):
        ema_decay(1, 0.996, warmup=-0.5)


def test_without_warmup_the_decay_is_constant_from_the_first_update_on():
    assert [ema_decay(t, 0.9, warmup=0) for t in (0, 1, 1000)] == [0.9] * 3
    student = nn.Linear(1, 1, bias=False)
    nn.init.ones_(student.weight)
    teacher = build_teacher(student, max_decay=0.9, warmup=0)
    nn.init.zeros_(student.weight)
    for expected in (0.9, 0.81):
        update_teacher(teacher, student)
        assert teacher.module.weight.item() == pytest.approx(expected)


def test_every_parameter_moves_by_exactly_one_minus_a_and_shared_ones_once():
    student = small_unet()
    assert len(student.state_dict()) > len(list(student.parameters())) + 2  # aliases, the trap this test is about
    teacher = build_teacher(student, max_decay=0.7, warmup=1.0)
    for update in range(8):
        move_student(student)
        before = {name: p.clone() for name, p in teacher.module.named_parameters()}
        update_teacher(teacher, student)
        share = 1 - min(1 - 1 / (update + 1), 0.7)
        for name, parameter in student.named_parameters():
            expected = before[name] + share * (parameter - before[name])
            torch.testing.assert_close(dict(teacher.module.named_parameters())[name], expected, rtol=1e-5, atol=1e-6)


def test_aliases_still_are_the_same_tensor_in_the_teacher():
    teacher = build_teacher(small_unet(), 0.996, 1.0)
    assert teacher.module.decoder.encoder is teacher.module.encoder


def test_buffers_are_copied_not_averaged():
    student = small_unet()
    teacher = build_teacher(student, 0.996, 1.0)
    for _ in range(3):
        move_student(student)
        update_teacher(teacher, student)
        assert torch.equal(teacher.module.codebook, student.codebook)
        assert torch.equal(teacher.module.age, student.age)


def test_teacher_is_frozen_independent_and_stays_in_eval():
    student = small_unet().train()
    teacher = build_teacher(student, 0.996, 1.0)
    start = copy.deepcopy(teacher.state_dict())
    move_student(student)
    assert all(torch.equal(value, start[key]) for key, value in teacher.state_dict().items())
    nn.ModuleList([teacher]).train()
    update_teacher(teacher, student)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_resumed_teacher_goes_on_as_if_never_stopped():
    student = small_unet()
    teacher = build_teacher(student, 0.996, 1.0)
    for _ in range(3):
        move_student(student)
        update_teacher(teacher, student)
    resumed = build_teacher(small_unet(), 0.996, 1.0)
    resumed.load_state_dict(teacher.state_dict())
    assert int(resumed.n_averaged) == 3
    move_student(student)
    update_teacher(teacher, student)
    update_teacher(resumed, student)
    for mine, theirs in zip(resumed.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_teacher_can_be_pickled_and_copied():
    teacher = build_teacher(nn.Linear(2, 2), 0.996, 1.0)
    for other in (pickle.loads(pickle.dumps(teacher)), copy.deepcopy(teacher)):
        update_teacher(other, nn.Linear(2, 2))
        assert int(other.n_averaged) == 1


def test_wrapped_students_are_unwrapped(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        inner = nn.Linear(3, 2)
        compiled = torch.compile(inner)
        wrapped = DistributedDataParallel(compiled)
        assert unwrap(wrapped) is inner
        assert unwrap(AveragedModel(inner)) is not inner
        assert unwrap(inner) is inner
        teacher = build_teacher(wrapped, 0.996, 1.0)
        with torch.no_grad():
            inner.weight.add_(1.0)
        update_teacher(teacher, wrapped)
        assert set(teacher.module.state_dict()) == {"weight", "bias"}
        assert torch.equal(teacher.module.weight, inner.weight)
    finally:
        torch.distributed.destroy_process_group()


def test_a_module_with_an_attribute_called_module_is_no_wrapper():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(1, 1)

    holder = Holder()
    assert unwrap(holder) is holder
