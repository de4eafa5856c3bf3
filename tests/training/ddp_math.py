"""What the processes of test_distributed.py run; nnU-Net's losses, but not its trainer, which takes 10 s to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_vqseg.commands.rendezvous import leave_process_group
from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.vqseg import Views, VQSeg, VQSegConfig
from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.modules.ema import build_teacher, update_teacher
from nnunetv2_vqseg.modules.losses.pseudo_label import pseudo_labels
from nnunetv2_vqseg.modules.views.strong import UnlabeledView
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.networks.vq import BatchLayout, VQSegNet, build_image_decoder

STRIDES = [[1, 1], [2, 2], [2, 2]]
PATCH = (16, 16)
CLASSES = 3
CODES = 32
# Images of each kind a process has in a step.
SHARE = 2

CASES: dict[str, dict[str, Any]] = {
    "decoder reads q(z)": {"decoder_input": "quantized"},
    "decoder reads z": {"decoder_input": "continuous"},
    "raw codes": {"decoder_input": "quantized", "code_dim": None, "normalize_codes": False},
    "no quantiser": {"quantize": False, "perturbation": "none", "reconstruct": False, "foundation_policy": "off"},
}


class Shift(nn.Module):
    """A perturbation without chance: the next code."""

    def forward(self, indices: Tensor, codes: Tensor) -> Tensor:
        return (indices + 1) % len(codes)


def config_of(case: str) -> VQSegConfig:
    block = {
        "num_codes": CODES,
        "min_tokens": 4,
        "entropy_tokens": 65_536,
        "confidence_threshold": 0.6,
        "strong_view": True,
        "cutmix_probability": 1.0,
    }
    return VQSegConfig().override(block | {"foundation_policy": "off"} | CASES[case])


def unet() -> nn.Module:
    return PlainConvUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=[6, 8, 10],
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[1, 2, 2],
        n_conv_per_stage=1,
        num_classes=CLASSES,
        n_conv_per_stage_decoder=1,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


def build_method(case: str, ddp: bool) -> VQSeg:
    """With nnU-Net's supervised loss as its trainer builds it."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": ddp}
    loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    plan = NetworkPlan(PATCH, STRIDES, 1, unet)
    method = VQSeg(config_of(case), Context(plan, device="cpu", ddp=ddp, log=lambda line: None))
    method.supervised = DeepSupervisionWrapper(loss, [1.0, 1e-6])
    return method


def build(case: str, fixed: bool = True) -> VQSegNet:
    """The same network in every process."""
    torch.manual_seed(1)
    network = build_method(case, ddp=False).training_network()
    assert isinstance(network, VQSegNet)
    if network.quantizer is not None:
        network.attach_heads(build_image_decoder(network, 1, STRIDES, 32), PostVQFeatureAdapter(10, 5), (4, 4))
        if fixed:
            network.perturbation = Shift()  # type: ignore[assignment]
    return network.train()


def whole_batch(world: int, seed: int) -> tuple[Batch, Views, tuple[Tensor, Tensor]]:
    """Batch and views of all processes together, each process's views made by the method itself, and PFA's targets."""
    random = torch.Generator().manual_seed(seed)
    count = SHARE * world

    def images() -> Tensor:
        return torch.randn(count, 1, *PATCH, generator=random)

    def logits() -> Tensor:
        # Ever surer from image to image, so that processes keep different numbers of pixels.
        return torch.randn(count, CLASSES, *PATCH, generator=random) * torch.linspace(0.5, 4, count).view(-1, 1, 1, 1)

    target = torch.randint(CLASSES, (count, 1, *PATCH), generator=random)
    weak, (labels, confidence) = images(), pseudo_labels(logits())
    features = torch.randn(2 * count, 5, 4, 4, generator=random)
    mask = torch.rand(2 * count, 4, 4, generator=random) < torch.linspace(0.1, 0.9, 2 * count).view(-1, 1, 1)
    batch = Batch(images(), [target, target[:, :, ::2, ::2]], weak)
    method = build_method("decoder reads z", ddp=False)
    shares = [slice(SHARE * rank, SHARE * (rank + 1)) for rank in range(world)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        strong = [method.strong(weak[own], labels[own], confidence[own]) for own in shares]
    mixed = UnlabeledView(*(torch.cat(parts) for parts in zip(*strong, strict=True)))
    return batch, Views(mixed, UnlabeledView(weak, labels, confidence, weak)), (features, mask)


def part(
    batch: Batch, views: Views, alignment: tuple[Tensor, Tensor], rank: int
) -> tuple[Batch, Views, tuple[Tensor, Tensor]]:
    """What one process sees of it."""
    own = slice(SHARE * rank, SHARE * (rank + 1))
    views = Views(*(UnlabeledView(*(values[own] for values in view)) for view in views if view is not None))
    batch = Batch(batch.labeled[own], [level[own] for level in batch.target])
    features, mask = (torch.cat([half[own] for half in values.chunk(2)]) for values in alignment)
    return batch, views, (features, mask)


def backward(
    network: nn.Module, method: VQSeg, batch: Batch, views: Views, alignment: tuple[Tensor, Tensor]
) -> tuple[Any, Tensor]:
    """Forward and backward as `terms` and the step do; the network's output and the loss."""
    if not method.config.has_perturbed_stream:
        views = views._replace(perturbed=None)
    unlabeled = [[] if view is None else [view.images] for view in views]
    layout = BatchLayout(len(batch.labeled), *(sum(map(len, images)) for images in unlabeled))
    output = network(torch.cat([batch.labeled, *unlabeled[0], *unlabeled[1]]), layout)
    terms = method.weighted(output, layout, batch, views, progress=0.5, alignment_target=alignment)
    loss = sum((weight * term for weight, term in terms.values()), start=torch.zeros(()))
    loss.backward()
    return output, loss


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in network.named_parameters() if p.grad is not None}


def run_rank(rank: int, world: int, folder: str) -> None:
    """Every case's gradients, then twenty steps on different data a rank; results to `folder/<rank>.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    result: dict[str, Any] = {}
    for case in CASES:
        network = DistributedDataParallel(build(case), broadcast_buffers=False)
        _, loss = backward(network, build_method(case, ddp=True), *part(*whole_batch(world, seed=5), rank))
        result[case] = (gradients(network), loss.detach())
    result["trained"] = train(rank, world, steps=20)
    torch.save(result, Path(folder) / f"{rank}.pt")
    leave_process_group()


def train(rank: int, world: int, steps: int) -> dict[str, Any]:
    """Twenty optimiser steps with QPM, restarts of codes and the teacher, as the trainer does them."""
    case = "decoder reads z"
    student = build(case, fixed=False)
    quantizer = student.quantizer
    assert quantizer is not None
    torch.manual_seed(100 + rank)
    quantizer.initialize_from_samples(torch.nn.functional.normalize(torch.randn(CODES, quantizer.code_dim), dim=1))
    started_from = quantizer.codebook.clone()
    quantizer.restart_after = 3
    teacher = build_teacher(student, 0.996, 1.0)
    network = DistributedDataParallel(student, broadcast_buffers=False)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    method = build_method(case, ddp=True)
    restarted = 0
    for step in range(steps):
        optimizer.zero_grad()
        output, _ = backward(network, method, *part(*whole_batch(world, seed=1000 + step), rank))
        optimizer.step()
        update_teacher(teacher, student)
        restarted += quantizer.observe(output.indices, output.tokens)
    return {
        "student": student.state_dict(),
        "teacher": teacher.state_dict(),
        "bookkeeping": quantizer.bookkeeping_state()["steps_since_use"],
        "restarted": restarted,
        "codebook_moved": not torch.equal(started_from, quantizer.codebook),
        "generator": torch.get_rng_state(),
    }
