"""Fill the first table of docs/performance.md on a GPU in at most eight minutes; needs torch, timm and scipy.

    python scripts/gpu_table.py --out gpu_table.json                       # on a GPU, most important first
    python scripts/gpu_table.py --device cpu --steps 1 --minutes 20 --out tried.json   # rehearsal: tiny, every command

No nnU-Net, no data set: the package's own methods, stepper, graph, EMA and checkpoints around a U-Net of the same
operators as nnU-Net's plan for ACDC (256 x 224, 12 + 6 images), and around a ViT-S with DPT (224 x 224, 8 + 4 images),
with random images from pinned memory. Variants, each with all that those before it have:

    read at once   LeakyReLU in place, SGD in many kernels, numbers waited for in the step
    read late      fused SGD, numbers read one step later
    activations    LeakyReLU without copies
    graph          forward and backward pass as one CUDA graph
    fused norm     InstanceNorm and LeakyReLU as one Triton kernel, channels_last
    compiled       torch.compile with channels_last inside the graph, instead of the fused norm
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.methods.base import Batch, Context, Method
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher
from nnunetv2_vqseg.methods.supervised import Supervised
from nnunetv2_vqseg.methods.vit import VQSegViT
from nnunetv2_vqseg.methods.vqseg import VQSeg
from nnunetv2_vqseg.modules import fused_norm
from nnunetv2_vqseg.modules.activation import use_cheap_activations
from nnunetv2_vqseg.modules.foundation import FoundationModel
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.networks.vit import ViTSegmenter
from nnunetv2_vqseg.trainer.checkpoint_files import BackgroundWriter, save_atomically
from nnunetv2_vqseg.trainer.curves import EpochCurves, draw_panels
from nnunetv2_vqseg.trainer.graph import CudaRecorder, StepGraph
from nnunetv2_vqseg.trainer.plots import Plots
from nnunetv2_vqseg.trainer.ranks import Ranks
from nnunetv2_vqseg.trainer.step import Reading, Stepper

VARIANTS = ("read at once", "read late", "activations", "graph", "fused norm", "compiled")
GRAPHED = VARIANTS[VARIANTS.index("graph") :]
VIT = "ViT-S + DPT"
KINDS: dict[str, type[Method[Any]]] = {"VQ-Seg": VQSeg, "mean teacher": MeanTeacher, VIT: VQSegViT, "stock": Supervised}
"""Methods; the ViT's is VQ-Seg, too."""
OF_VIT = ("read at once", "read late", "graph", "compiled")
"""Variants: it has neither InstanceNorm nor LeakyReLU."""
EPOCHS, STEPS_OF_EPOCH, VALIDATION_STEPS = 400, 250, 50
"""Of 100,000 steps, by the package's defaults."""
PREDICTED = {  # ms a step, docs/performance.md
    ("VQ-Seg", "read at once"): 66,
    ("VQ-Seg", "read late"): 53,
    ("VQ-Seg", "activations"): 52,
    ("VQ-Seg", "graph"): 15,
    ("VQ-Seg", "fused norm"): 9.5,
    ("VQ-Seg", "compiled"): 8.7,
    ("mean teacher", "read at once"): 45,
    ("mean teacher", "read late"): 40,
    ("mean teacher", "activations"): 39,
    ("mean teacher", "graph"): 13.5,
    ("mean teacher", "fused norm"): 8.3,
    ("mean teacher", "compiled"): 7.8,
    ("stock", "read at once"): 29,
    ("stock", "read late"): 27,
    ("stock", "activations"): 26,
    ("stock", "graph"): 8.3,
    ("stock", "fused norm"): 5,
    ("stock", "compiled"): 4.7,
}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch")


class Size:
    """Of network and batch: ACDC's plan, that of a ViT, or a tiny one."""

    def __init__(self, kind: str, gpu: bool) -> None:
        self.vit = kind == VIT
        self.features = (32, 64, 128, 256, 512, 512) if gpu else (4, 8, 8, 8)
        self.strides = [[1, 1], *[[2, 2]] * (len(self.features) - 1)]
        self.patch = (256, 224) if gpu else (64, 64)
        self.labeled, self.unlabeled = (12, 6) if gpu else (2, 2)
        small = {"num_codes": 64, "qpm_neighbors": 16, "qpm_perplexity": 4.0, "entropy_tokens": 8, "min_tokens": 8}
        self.keys: dict[str, Any] = {} if gpu else small
        if self.vit:
            self.encoder = "vit_small_patch14_dinov2.lvd142m" if gpu else "test_vit.r160_in1k"
            self.patch, token = ((224, 224), 14) if gpu else ((64, 64), 16)
            self.strides = [[token, token], *[[1, 1]] * 3]
            self.labeled, self.unlabeled = (8, 4) if gpu else (2, 2)
            self.decoder = ([2, 5, 8, 11], 64, [48, 96, 192, 384]) if gpu else ([0, 2, 3, 5], 11, [8, 16, 32, 64])
            self.keys |= {"encoder_weights": "random"}

    def network(self) -> nn.Module:
        """With fresh weights."""
        if self.vit:
            return ViTSegmenter(1, 4, self.encoder, *self.decoder, strides=self.strides)
        return UNet(self.features, self.strides)

    @property
    def scales(self) -> int:
        """Resolutions of the logits."""
        return 1 if self.vit else len(self.features) - 1


class Encoder(nn.Module):
    """Two convolutions a stage, the first with the stage's stride."""

    def __init__(self, features: Sequence[int], strides: list[list[int]]) -> None:
        super().__init__()
        self.output_channels, self.strides = list(features), strides
        pairs = zip((1, *features), features, strides, strict=False)
        self.stages = nn.ModuleList(nn.Sequential(block(i, o, stride[0]), block(o, o)) for i, o, stride in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Transposed convolutions, two convolutions a stage, and logits of each."""

    def __init__(self, features: Sequence[int], classes: int) -> None:
        super().__init__()
        self.deep_supervision, self.num_classes = True, classes
        steps = list(zip(features[:0:-1], features[-2::-1], strict=True))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in steps)
        self.stages = nn.ModuleList(nn.Sequential(block(2 * o, o), block(o, o)) for _, o in steps)
        self.seg_layers = nn.ModuleList(nn.Conv2d(o, classes, 1) for _, o in steps)

    def forward(self, skips: list[Tensor]) -> Any:
        x, outputs = skips[-1], []
        parts = zip(self.transpconvs, self.stages, self.seg_layers, strict=True)
        for number, (up, stage, head) in enumerate(parts):
            x = stage(torch.cat((up(x), skips[-2 - number]), 1))
            if self.deep_supervision or number == len(self.stages) - 1:
                outputs.append(head(x))
        return outputs[::-1] if self.deep_supervision else outputs[-1]


class UNet(nn.Module):
    """nnU-Net's PlainConvUNet by its operators: InstanceNorm, then LeakyReLU in place."""

    def __init__(self, features: Sequence[int], strides: list[list[int]], classes: int = 4) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(features, strides), Decoder(features, classes)

    def forward(self, x: Tensor) -> Any:
        return self.decoder(self.encoder(x))


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.InstanceNorm2d(outputs, eps=1e-5, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


def supervised_loss(outputs: list[Tensor] | Tensor, targets: list[Tensor]) -> Tensor:
    """Dice and cross entropy, of U-Nets with deep supervision, with nnU-Net's operators."""
    outputs = outputs if isinstance(outputs, list) else [outputs]
    weights = [0.5**number for number in range(max(1, len(outputs) - 1))]
    parts = [w * dice_and_ce(o, t) for w, o, t in zip(weights, outputs, targets, strict=False)]
    return torch.stack(parts).sum() / sum(weights)


def dice_and_ce(logits: Tensor, labels: Tensor) -> Tensor:
    p = logits.softmax(1)
    with torch.no_grad():
        truth = torch.zeros(logits.shape, device=logits.device).scatter_(1, labels.long(), 1)[:, 1:]
        size = truth.sum((2, 3)).sum(0)
    both = (p[:, 1:] * truth).sum((2, 3), dtype=torch.float32).sum(0)
    found = p[:, 1:].sum((2, 3), dtype=torch.float32).sum(0)
    dice = (2 * both + 1e-5) / (size + found + 1e-5).clamp_min(1e-8)
    return F.cross_entropy(logits, labels[:, 0].long()) - dice.mean()


class Training:
    """The step of `trainer.trainer.MethodTrainer`, without nnU-Net around it."""

    def __init__(self, kind: str, variant: str, device: torch.device, messages: list[str]) -> None:
        torch.manual_seed(0)
        self.device, size = device, Size(kind, device.type == "cuda")
        gpu, place = device.type == "cuda", VARIANTS.index(variant)
        plan = NetworkPlan(size.patch, size.strides, 1, size.network, 4, deep_supervision=not size.vit)
        config = KINDS[kind].Config(**{k: v for k, v in size.keys.items() if k in KINDS[kind].Config.declared()})
        self.method = KINDS[kind](config, Context(plan, device, autocast=self.autocast, log=messages.append))
        network = self.method.training_network()
        if place >= VARIANTS.index("activations"):
            use_cheap_activations(network)
        if variant == "fused norm":
            fused_norm.use_fused_norms(network)
        network = network.to(device).train()
        if place >= VARIANTS.index("fused norm"):
            network = network.to(memory_format=torch.channels_last)
        student: Any = network
        if variant == "compiled":
            import torch._inductor.config as inductor

            inductor.force_layout_optimization = True
            student = torch.compile(network, dynamic=False, backend="inductor" if gpu else "aot_eager")
        self.method.begin(student, supervised_loss)
        late = place >= VARIANTS.index("read late")
        optimizer = torch.optim.SGD(
            list(network.parameters()), 1e-2, 0.99, weight_decay=3e-5, nesterov=True, fused=True if late else None
        )
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
        silent: Any = (lambda: False, messages.append, lambda: "")
        self.stepper = Stepper(student, optimizer, scaler, Ranks(), 12.0, 20, *silent, late=late)
        graphed = gpu and place >= VARIANTS.index("graph")
        self.graph = StepGraph(self.losses, network, CudaRecorder() if graphed else None, messages.append)
        self.network, self.unread = network, None
        self.batches = [self.batch(size, torch.Generator().manual_seed(number)) for number in range(4)]
        self.method.start(self.on_device(batch) for _ in range(64) for batch in self.batches)
        network.train()
        self.method.on_epoch_start()

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, enabled=self.device.type == "cuda")

    def batch(self, size: Size, generator: torch.Generator) -> Batch:
        labels = torch.randint(0, 4, (size.labeled, 1, *size.patch), generator=generator, dtype=torch.int16)
        scales = [labels[:, :, :: 2**k, :: 2**k].contiguous() for k in range(size.scales)]
        images = [torch.randn(n, 1, *size.patch, generator=generator) for n in (size.labeled, size.unlabeled)]
        pin = (lambda tensor: tensor.pin_memory()) if self.device.type == "cuda" else (lambda tensor: tensor)
        return Batch(pin(images[0]), [pin(scale) for scale in scales], pin(images[1]))

    def on_device(self, batch: Batch) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        unlabeled = move(batch.unlabeled) if self.method.uses_unlabeled else None
        return Batch(move(batch.labeled), [move(level) for level in batch.target], unlabeled)

    def losses(self, batch: Batch, progress: Any) -> Any:
        with self.autocast():
            terms, metrics = self.method.terms(batch, progress)
        return self.stepper.gradients(terms, metrics)

    def __call__(self) -> Reading:
        progress = min(1.0, self.stepper.step / 10_000)
        batch = self.on_device(self.batches[self.stepper.step % 4])
        self.method.before_step(progress)
        reading = self.stepper(self.graph(batch, progress))
        if self.stepper.late:
            self.method.after_step()
            before, self.unread = self.unread, reading
            if before is not None:
                self.stepper.settle(before)
        elif self.stepper.settle(reading):
            self.method.after_step()
        return reading


def finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    finished(device)
    started = time.perf_counter()
    work()
    finished(device)
    return time.perf_counter() - started


def measure(kind: str, variant: str, device: torch.device, steps: int) -> dict[str, Any]:
    """Milliseconds a step and what they are made of."""
    gpu, messages = device.type == "cuda", []
    if gpu:
        gc.collect()  # a graph and what it calls know each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    training: list[Training] = []

    def begin() -> None:
        training.append(Training(kind, variant, device, messages))
        for _ in range(4):
            training[0]()

    start = seconds(begin, device)
    step = training[0]
    losses = step().values()
    times = [seconds(lambda: [step() for _ in range(steps)], device) / steps * 1e3 for _ in range(3)]
    started = time.perf_counter()
    step()
    row: dict[str, Any] = {"what": "step", "kind": kind, "variant": variant}
    row |= {
        "ms": statistics.median(times),
        "predicted_ms": PREDICTED.get((kind, variant)) if gpu else None,
        "rounds": times,
    }
    row |= {"recorded": step.graph.recorder is not None}
    row |= {"host_ms": (time.perf_counter() - started) * 1e3, "start_s": start, "losses": losses, "log": messages}
    if gpu:
        row |= {"peak_GB": torch.cuda.max_memory_allocated() / 1e9} | profiled(step, device)
    return row


def profiled(step: Training, device: torch.device) -> dict[str, Any]:
    """Time of the kernels, how many there are, launches and waits of a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            step()
        finished(device)
    events = list(profiler.events())
    kernels = [e for e in events if e.device_type.name == "CUDA" and "#" not in e.name]
    names = [event.name for event in events]
    layout = [e for e in kernels if "nchwToNhwc" in e.name or "nhwcToNchw" in e.name]
    return {
        "busy_ms": sum(e.time_range.elapsed_us() for e in kernels) / 2e3,
        "kernels": len(kernels) / 2,
        "layout_ms": sum(e.time_range.elapsed_us() for e in layout) / 2e3,
        "launches": sum(name in LAUNCHES for name in names) / 2,
        "waits": sum(name in WAITS for name in names) / 2,
    }


def epoch_end(device: torch.device, folder: Path) -> dict[str, Any]:
    """Seconds that the end of an epoch costs a training of VQ-Seg: validation, best checkpoint, plots."""
    training = Training("VQ-Seg", "activations", device, [])
    reading = training()
    curves, problems = EpochCurves(training.method.panels, training.method.saved_name), []
    curves.add(reading.curves())
    curves.close_epoch(0, {})
    method, optimizer = training.method, training.stepper.optimizer
    content = {"network": training.network.state_dict(), "optimizer": optimizer.state_dict(), **method.state()}
    writer, file = BackgroundWriter(), folder / "checkpoint_best.pth"
    row: dict[str, Any] = {"what": "end of an epoch"}
    validate(training, 2)
    row["validation_s"] = seconds(lambda: validate(training, VALIDATION_STEPS if device.type == "cuda" else 2), device)
    row["checkpoint_in_the_step_s"] = seconds(lambda: save_atomically(content, file), device)
    started = time.perf_counter()
    row["checkpoint_s"] = seconds(lambda: writer.write(content, lambda kept: save_atomically(kept, file)), device)
    problem = writer.wait()
    assert problem is None, problem
    row |= {"until_written_s": time.perf_counter() - started, "MB": file.stat().st_size / 1e6}
    plots = Plots(lambda name, why: problems.append(f"{name}: {why}"), 0.0)
    curves.draw = partial(plots.draw, "progress_vqseg.png", draw_panels)
    row["plots_s"] = seconds(lambda: curves.plot(folder / "progress_vqseg.png"), device)
    plots.close()
    return row | {"s": row["validation_s"] + row["checkpoint_s"] + row["plots_s"], "problems": problems}


@torch.no_grad()
def validate(training: Training, steps: int) -> list[float]:
    """Loss and counts of the predictor on patches, read once at the end."""
    network, found = training.method.predictor(), []
    trains = network.training
    network.eval()
    for number in range(steps):
        batch = training.on_device(training.batches[number % 4])
        with training.autocast():
            output = network(batch.labeled)
            loss = supervised_loss(output, batch.target)
        finest = output[0] if isinstance(output, list) else output
        predicted = torch.zeros(finest.shape, device=finest.device, dtype=torch.float16)
        predicted.scatter_(1, finest.argmax(1)[:, None], 1)
        truth = torch.zeros_like(predicted).scatter_(1, batch.target[0].long(), 1)
        counts = [(one * other).sum((0, 2, 3), dtype=torch.float32) for one, other in _pairs(predicted, truth)]
        found.append(torch.cat((loss[None].float(), *counts)))
    network.train(trains)
    return torch.stack(found).cpu().mean(0).tolist()


def _pairs(predicted: Tensor, truth: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Whose products are true positives, false positives and false negatives."""
    return [(predicted, truth), (predicted, 1 - truth), (1 - predicted, truth)]


def several(variant: str, device: torch.device, steps: int, number: int = 4) -> dict[str, Any]:
    """Steps a second of trainings that share the card, together, from a common start on.

    Raises:
        RuntimeError: one of them ended early.
    """
    server = shutil.which("nvidia-cuda-mps-control") if device.type == "cuda" else None
    if server:
        subprocess.run([server, "-d"], check=False)
    command = [sys.executable, __file__, "--device", device.type, "--steps", str(steps), "--alone", variant]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(number)]
        running = [subprocess.Popen(command, stderr=error, **pipes) for error in errors]
        patience = threading.Timer(SECONDS_OF_SEVERAL[device.type], lambda: [process.kill() for process in running])
        patience.start()
        try:
            for process, error in zip(running, errors, strict=True):
                said(process, error, "before its first step")
            for process in running:
                process.stdin.write("go\n")
                process.stdin.flush()
            found = [said(p, error, "in its steps").split() for p, error in zip(running, errors, strict=True)]
        finally:
            patience.cancel()
            for process in running:
                process.kill()
                process.wait()
            if server:
                subprocess.run([server], input="quit\n", text=True, check=False)
    row = {"what": f"{number} trainings on one card", "variant": variant, "mps": bool(server)}
    recorded = all(words[1] == "recorded" for words in found)
    return row | {"recorded": recorded, "steps_a_second": sum(1e3 / float(words[0]) for words in found)}


SECONDS_OF_SEVERAL = {"cuda": 70, "cpu": 400}
"""After which they are stopped."""


def said(process: subprocess.Popen, errors: Any, when: str) -> str:
    """The next line of one of several trainings.

    Raises:
        RuntimeError: it ended instead.
    """
    line = process.stdout.readline()  # type: ignore[union-attr]
    if line:
        return line
    errors.seek(0)
    last = (errors.read().strip().splitlines() or ["it was stopped"])[-1]
    raise RuntimeError(f"one of the trainings ended {when} with status {process.wait()}: {last}")


def alone(variant: str, device: torch.device, steps: int) -> None:
    """One of several: says when it is ready, waits for a line, and says its milliseconds a step."""
    training = Training("VQ-Seg", variant, device, [])
    for _ in range(6):
        training()
    print("ready", flush=True)
    sys.stdin.readline()
    ms = seconds(lambda: [training() for _ in range(steps)], device) / steps * 1e3
    print(ms, "recorded" if training.graph.recorder is not None else "eager", flush=True)


def foundation_model(device: torch.device) -> dict[str, Any]:
    """Milliseconds of a model of DINOv2's size for the images that a step of VQ-Seg aligns."""
    gpu = device.type == "cuda"
    size = Size("VQ-Seg", gpu)
    name, side = ("vit_small_patch14_dinov2.lvd142m", 224) if gpu else ("test_vit.r160_in1k", 64)
    model = FoundationModel(name, image_size=side, random_weights=True).to(device)
    images = torch.randn(size.labeled + size.unlabeled, 1, *size.patch, device=device)

    @torch.no_grad()
    def look() -> None:
        with torch.autocast(device.type, enabled=gpu):
            model(images)
            model.foreground(images)

    look()
    return {"what": "foundation model", "ms": statistics.median(seconds(look, device) for _ in range(5)) * 1e3}


def holds(row: dict[str, Any]) -> bool:
    """Whether a row measured what it is called: a step that could not be recorded is one without a graph."""
    return row["recorded"] or row["variant"] not in GRAPHED


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What follows from the rows, as far as they are there."""
    steps = [row["ms"] for row in rows if row["what"] == "step" and row["kind"] == "VQ-Seg" and holds(row)]
    found = {row["what"]: row for row in rows}
    if not steps:
        return {}
    best, numbers = min(steps), {}
    if "foundation model" in found:
        looked = found["foundation model"]["ms"]
        numbers["foundation model's share of VQ-Seg's fastest step"] = looked / (best + looked)
    if "end of an epoch" in found:
        whole = EPOCHS * (STEPS_OF_EPOCH * best / 1e3 + found["end of an epoch"]["s"])
        numbers["minutes of 100,000 steps of VQ-Seg with ends of epochs"] = whole / 60
    return numbers


def cell(row: dict[str, Any] | None, kind: str, variant: str) -> str:
    if row is None:
        return "" if kind == VIT and variant not in OF_VIT else "not measured"
    predicted = f" ({PREDICTED[kind, variant]:g} predicted)" if (kind, variant) in PREDICTED else ""
    return f"{row['ms']:.1f}{predicted}" if holds(row) else "not recorded"


def print_table(rows: list[dict[str, Any]]) -> None:
    """As it goes into docs/performance.md."""
    found = {(row["kind"], row["variant"]): row for row in rows if row["what"] == "step"}
    print(f"\n| ms a step | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for variant in VARIANTS:
        print(f"| {variant} | {' | '.join(cell(found.get((kind, variant)), kind, variant) for kind in KINDS)} |")
    for row in rows:
        if row["what"] == "failed":
            print(f"FAILED: {row['job']}: {row['error']}")
        elif row["what"] != "step":
            further = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()}
            print(further.pop("what"), *(f"{key} {value}" for key, value in further.items()), sep=", ")
    for name, value in summary(rows).items():
        print(f"{name}: {value:.3g}")


class Job(NamedTuple):
    """name: for the reader. least: seconds that must be left to begin it. work: gives a row."""

    name: str
    least: float
    work: Callable[[], dict[str, Any]]


def jobs(args: argparse.Namespace, device: torch.device, folder: Path) -> list[Job]:
    """The most important first."""
    steps = args.steps

    def step(kind: str, variant: str, least: float) -> Job:
        return Job(f"{kind}, {variant}", least, lambda: measure(kind, variant, device, steps))

    def shared(variant: str) -> Job:
        work = partial(several, variant, device, 5 * steps)
        return Job(f"several trainings, {variant}", SECONDS_OF_SEVERAL["cuda"], work)

    variants = {kind: OF_VIT if kind == VIT else VARIANTS for kind in KINDS}
    found = [step(kind, v, 15) for kind in KINDS for v in variants[kind] if v != "compiled"]
    found.append(Job("foundation model", 20, lambda: foundation_model(device)))
    found.append(Job("end of an epoch", 20, lambda: epoch_end(device, folder)))
    found += [shared(variant) for variant in ("read late", "graph", "fused norm")]
    return found + [step(kind, "compiled", 110) for kind in KINDS]


def commit() -> str | None:
    """Of the repository, with -dirty where files differ from it; None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def main() -> None:
    """Measure, write after each measurement, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="of a round (default: 40)")
    parser.add_argument("--minutes", type=float, default=8.0, metavar="M", help="in all (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("gpu_table.json"), metavar="FILE")
    parser.add_argument("--alone", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    started, device = time.monotonic(), torch.device(args.device)
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    if args.alone:
        return alone(args.alone, device, args.steps)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    content: dict[str, Any] = {"command": sys.argv, "commit": commit(), "device": name, "torch": torch.__version__}
    content |= {"rows": [], "summary": {}}
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(args, device, Path(folder)):
            left = args.minutes * 60 - (time.monotonic() - started)
            if left < job.least:
                print(f"No time for {job.name}: {left:.0f} s are left, {job.least:.0f} are needed.")
                continue
            try:
                row = job.work()
            except Exception as error:
                traceback.print_exc(limit=-3)
                row = {"what": "failed", "job": job.name, "error": f"{type(error).__name__}: {error}"[:300]}
            content["rows"].append(row)
            content["summary"] = summary(content["rows"])
            args.out.write_text(json.dumps(content, indent=1), encoding="utf-8")
            shown = {key: row[key] for key in row if key not in ("losses", "rounds", "log")}
            print(json.dumps(shown), *row.get("log", ()), flush=True)
    print_table(content["rows"])
    return None


if __name__ == "__main__":
    main()
