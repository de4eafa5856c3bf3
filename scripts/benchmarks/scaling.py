"""`scaling`: how time and memory grow with the numbers of codes and tokens, the batch and the patch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from benchmarks.measure import compare, exponent, peak_memory
from benchmarks.output import Row, print_table
from nnunetv2_vqseg.methods.base import Context
from nnunetv2_vqseg.methods.vqseg import VQSeg, VQSegConfig
from nnunetv2_vqseg.modules.vq.entropy import assignment_entropy
from nnunetv2_vqseg.modules.vq.lookup import nearest_codes
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.networks.vq import BatchLayout, VQSegNet

CODE_DIM = 16
CODES, TOKENS = (1024, 4096, 16384, 65536), (512, 2048, 8192, 32768)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--codes", type=int, nargs="+", metavar="K", help=f"default: {CODES}; a CPU leaves out the last"
    )
    parser.add_argument(
        "--tokens", type=int, nargs="+", metavar="N", help=f"default: {TOKENS}; a CPU leaves out the last"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=(4, 8, 16), metavar="B", help="default: 4 8 16")
    parser.add_argument("--patches", type=int, nargs="+", metavar="PX", help="default: 64 128; on a GPU 128 256 512")
    parser.add_argument("--features", type=int, metavar="N", help="of the first stage (default: 16; on a GPU 32)")


def run(args: argparse.Namespace, device: torch.device) -> dict[str, list[Row]]:
    sweep = Sweep(args, device)
    gpu = device.type == "cuda"
    features = args.features or (32 if gpu else 16)
    patches = args.patches or ((128, 256, 512) if gpu else (64, 128))
    all_codes, all_tokens = args.codes or CODES[: None if gpu else -1], args.tokens or TOKENS[: None if gpu else -1]
    middle_codes, middle_tokens = (sorted(sizes)[len(sizes) // 2] for sizes in (all_codes, all_tokens))
    for what, run_of in MODULES.items():
        sweep(what, "codes", all_codes, lambda codes, run_of=run_of: run_of(middle_tokens, codes, device))
        if what != REBUILD:
            sweep(what, "tokens", all_tokens, lambda tokens, run_of=run_of: run_of(tokens, middle_codes, device))
    student = partial(_student, features=features, device=device)
    sweep("student", "batch", args.batches, lambda batch: student(batch, min(patches)))
    sweep("student", "pixels", [patch**2 for patch in patches], lambda pixels: student(4, round(pixels**0.5)))
    print_table(sweep.points, "Points")
    print_table(sweep.exponents, "Exponents b of time and memory = a * size^b")
    return {"points": sweep.points, "exponents": sweep.exponents}


class Sweep:
    """Collects what each quantity costs at each size, and the exponent of its growth."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.points: list[Row] = []
        self.exponents: list[Row] = []

    def __call__(self, what: str, size: str, sizes: Sequence[int], make: Callable[[int], Callable[[], object]]) -> None:
        runs = {str(value): make(value) for value in sizes}
        seconds = compare(runs, self.device, self.args.repeats, self.args.seconds)
        memory = {name: peak_memory(run, self.device) for name, run in runs.items()}
        for name in runs:
            milliseconds, megabytes = 1e3 * seconds[name], memory[name] / 1e6
            self.points.append({"what": what, "size": size, "value": int(name), "ms": milliseconds, "MB": megabytes})
        growth = [exponent(sizes, list(measured.values())) for measured in (seconds, memory)]
        self.exponents.append({"what": what, "size": size, "time": growth[0], "memory": growth[1]})


def _book(tokens: int, codes: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and codes on the unit sphere, as the default configuration has them."""
    torch.manual_seed(0)
    tokens_and_codes = F.normalize(torch.randn(tokens + codes, CODE_DIM, device=device), dim=1)
    return tokens_and_codes[:tokens], tokens_and_codes[tokens:]


def _lookup(tokens: int, codes: int, device: torch.device) -> Callable[[], object]:
    return partial(nearest_codes, *_book(tokens, codes, device))


def _entropy(tokens: int, codes: int, device: torch.device) -> Callable[[], object]:
    x, book = (values.requires_grad_() for values in _book(tokens, codes, device))
    return lambda: assignment_entropy(x, book, 0.05).backward()


def _sampling(tokens: int, codes: int, device: torch.device) -> Callable[[], object]:
    _, book = _book(tokens, codes, device)
    perturbation = QuantizedPerturbation(0.7, num_neighbors=128)
    perturbation.prepare(book)
    return partial(perturbation, torch.randint(codes, (tokens,), device=device), book)


def _rebuild(tokens: int, codes: int, device: torch.device) -> Callable[[], object]:
    _, book = _book(1, codes, device)
    perturbation = QuantizedPerturbation(0.7, num_neighbors=128)

    def run() -> None:
        perturbation.discard_table()
        perturbation.prepare(book)

    return run


REBUILD = "QPM, rebuild of its table"
MODULES: dict[str, Callable[[int, int, torch.device], Callable[[], object]]] = {
    "lookup": _lookup,
    "entropy term, forward + backward": _entropy,
    "QPM 0.7, sampling": _sampling,
    REBUILD: _rebuild,
}


def _student(batch: int, patch: int, features: int, device: torch.device) -> Callable[[], object]:
    """Forward and backward of a student with two views and an image decoder, square patch; half the images labelled."""
    torch.manual_seed(0)
    stages = 5
    strides = [[1, 1]] + [[2, 2]] * (stages - 1)
    unet = PlainConvUNet(
        input_channels=1,
        n_stages=stages,
        features_per_stage=[min(features * 2**stage, 512) for stage in range(stages)],
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=strides,
        n_conv_per_stage=2,
        num_classes=4,
        n_conv_per_stage_decoder=2,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )
    config = VQSegConfig(foundation_policy="off", reconstruct=True)
    plan = NetworkPlan((patch, patch), strides, 1, lambda: unet)
    network = VQSeg(config, Context(plan, device, log=lambda text: None)).training_network()
    assert isinstance(network, VQSegNet)
    network.to(device).train()
    assert network.perturbation is not None
    assert network.quantizer is not None
    network.perturbation.prepare(network.quantizer.codes().detach())
    images = torch.randn(batch, 1, patch, patch, device=device)
    layout = BatchLayout(batch - 2 * (batch // 4), batch // 4, batch // 4)

    def run() -> None:
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            output = network(images, layout)
            loss = torch.stack([segmentation.float().square().mean() for segmentation in output.segmentation]).sum()
            loss = loss + output.vq_loss + output.entropy + output.feature_loss + output.reconstruction.abs().mean()
        loss.backward()

    return run
