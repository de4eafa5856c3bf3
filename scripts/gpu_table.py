"""Fill the first table of docs/performance.md on a GPU in at most eight minutes; needs torch and this repository alone.

    python scripts/gpu_table.py --out gpu_table.json                       # on a GPU, most important first
    python scripts/gpu_table.py --device cpu --steps 2 --out tried.json    # rehearsal: a tiny network, every command

No nnU-Net, no data set: the package's own methods, stepper, graph, EMA and checkpoints around a U-Net of the same
operators as nnU-Net's plan for ACDC (256 x 224, 12 + 6 images), with random images from pinned memory. Variants, each
with all that those before it have:

    read at once   LeakyReLU in place, SGD in many kernels, numbers waited for in the step
    read late      fused SGD, numbers read one step later
    activations    LeakyReLU without copies
    graph          forward and backward pass as one CUDA graph
    fused norm     InstanceNorm and LeakyReLU as one Triton kernel, channels_last
    compiled       torch.compile with channels_last inside the graph, instead of the fused norm
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.methods.base import Batch, Context, Method
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher
from nnunetv2_vqseg.methods.supervised import Supervised
from nnunetv2_vqseg.methods.vqseg import VQSeg
from nnunetv2_vqseg.modules import fused_norm
from nnunetv2_vqseg.modules.activation import use_cheap_activations
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.trainer.checkpoint_files import BackgroundWriter, save_atomically
from nnunetv2_vqseg.trainer.graph import CudaRecorder, StepGraph
from nnunetv2_vqseg.trainer.ranks import Ranks
from nnunetv2_vqseg.trainer.step import Reading, Stepper

VARIANTS = ("read at once", "read late", "activations", "graph", "fused norm", "compiled")
KINDS: dict[str, type[Method[Any]]] = {"VQ-Seg": VQSeg, "mean teacher": MeanTeacher, "stock": Supervised}
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
    """Of network and batch: ACDC's plan, or a tiny one."""

    def __init__(self, gpu: bool) -> None:
        self.features = (32, 64, 128, 256, 512, 512) if gpu else (4, 8, 8, 8)
        self.patch = (256, 224) if gpu else (64, 64)
        self.labeled, self.unlabeled = (12, 6) if gpu else (2, 2)
        self.strides = [[1, 1], *[[2, 2]] * (len(self.features) - 1)]
        small = {"num_codes": 64, "qpm_neighbors": 16, "qpm_perplexity": 4.0, "entropy_tokens": 8, "min_tokens": 8}
        self.keys: dict[str, Any] = {} if gpu else small


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


def supervised_loss(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Dice and cross entropy with deep supervision, with nnU-Net's operators."""
    weights = [0.5**number for number in range(len(outputs) - 1)]
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
        self.device, size = device, Size(device.type == "cuda")
        gpu, place = device.type == "cuda", VARIANTS.index(variant)
        plan = NetworkPlan(size.patch, size.strides, 1, lambda: UNet(size.features, size.strides), 4)
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
        scales = [labels[:, :, :: 2**k, :: 2**k].contiguous() for k in range(len(size.features) - 1)]
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
    row |= {"ms": statistics.median(times), "predicted_ms": PREDICTED[kind, variant] if gpu else None, "rounds": times}
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
    """What the best checkpoint costs a training, and how long it is written."""
    training = Training("mean teacher", "activations", device, [])
    training()
    method, optimizer = training.method, training.stepper.optimizer
    content = {"network": training.network.state_dict(), "optimizer": optimizer.state_dict(), **method.state()}
    writer, file = BackgroundWriter(), folder / "checkpoint_best.pth"
    alone = seconds(lambda: save_atomically(content, file), device)
    behind = seconds(lambda: writer.write(content, lambda kept: save_atomically(kept, file)), device)
    started = time.perf_counter()
    problem = writer.wait()
    assert problem is None, problem
    whole = behind + time.perf_counter() - started
    row = {"what": "best checkpoint", "MB": file.stat().st_size / 1e6, "in_the_step_s": alone}
    return row | {"behind_it_s": behind, "until_written_s": whole}


def several(variant: str, device: torch.device, steps: int, number: int = 4) -> dict[str, Any]:
    """Steps a second of trainings that share the card, together."""
    server = shutil.which("nvidia-cuda-mps-control") if device.type == "cuda" else None
    if server:
        subprocess.run([server, "-d"], check=False)
    command = [sys.executable, __file__, "--device", device.type, "--steps", str(steps), "--alone", variant]
    try:
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
        found = [float(process.communicate(timeout=150)[0].split()[-1]) for process in running]
    finally:
        for process in running:
            process.kill()
        if server:
            subprocess.run([server], input="quit\n", text=True, check=False)
    row = {"what": f"{number} trainings on one card", "variant": variant, "mps": bool(server)}
    return row | {"steps_a_second": sum(1e3 / ms for ms in found)}


def alone(variant: str, device: torch.device, steps: int) -> None:
    """One of several: its milliseconds a step are its last word."""
    training = Training("VQ-Seg", variant, device, [])
    for _ in range(6):
        training()
    print(seconds(lambda: [training() for _ in range(steps)], device) / steps * 1e3)


def foundation_model(device: torch.device) -> dict[str, Any]:
    """Milliseconds of a model of DINOv2's size for the images that a step of VQ-Seg aligns."""
    import timm

    gpu = device.type == "cuda"
    name = "vit_small_patch14_dinov2.lvd142m" if gpu else "vit_tiny_patch16_224"
    model = timm.create_model(name, pretrained=False, img_size=224, num_classes=0).to(device).eval()
    images = torch.randn(18 if gpu else 1, 3, 224, 224, device=device)

    @torch.no_grad()
    def look() -> None:
        with torch.autocast(device.type, enabled=gpu):
            model.forward_features(images)

    look()
    return {"what": "foundation model", "ms": statistics.median(seconds(look, device) for _ in range(5)) * 1e3}


def print_table(rows: list[dict[str, Any]]) -> None:
    """As it goes into docs/performance.md."""
    found = {(row["kind"], row["variant"]): row for row in rows if row["what"] == "step"}
    print(f"\n| ms a step | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for variant in VARIANTS:
        cells = []
        for kind in KINDS:
            row = found.get((kind, variant))
            cells.append("not measured" if row is None else f"{row['ms']:.1f} ({PREDICTED[kind, variant]:g} predicted)")
        print(f"| {variant} | {' | '.join(cells)} |")
    for row in rows:
        if row["what"] != "step":
            print(
                ", ".join(
                    f"{key} {value:.3g}" if isinstance(value, float) else f"{value}" for key, value in row.items()
                )
            )
    best = min((row["ms"] for (kind, _), row in found.items() if kind == "VQ-Seg"), default=None)
    if best is not None:
        print(f"100,000 steps of VQ-Seg at its best, without ends of epochs: {best * 100 / 60:.1f} min")


def jobs(
    args: argparse.Namespace, device: torch.device, folder: Path
) -> list[tuple[float, Callable[[], dict[str, Any]]]]:
    """Seconds that must be left, and what to do, the most important first."""
    plain = [variant for variant in VARIANTS if variant != "compiled"]
    steps = args.steps

    def of(kind: str, variant: str) -> Callable[[], dict[str, Any]]:
        return lambda: measure(kind, variant, device, steps)

    found: list[tuple[float, Callable[[], dict[str, Any]]]] = [(15, of(k, v)) for k in KINDS for v in plain]
    found += [(20, lambda: epoch_end(device, folder)), (20, lambda: foundation_model(device))]
    found += [(70, lambda v=v: several(v, device, 5 * steps)) for v in ("read late", "graph", "fused norm")]  # type: ignore[misc]
    return found + [(110, of(kind, "compiled")) for kind in KINDS]


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
    content: dict[str, Any] = {"command": sys.argv, "device": name, "torch": torch.__version__, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for least, job in jobs(args, device, Path(folder)):
            left = args.minutes * 60 - (time.monotonic() - started)
            if left < least:
                print(f"No time for the rest: {left:.0f} s are left, {least:.0f} are needed.")
                continue
            try:
                row = job()
            except Exception as error:
                traceback.print_exc(limit=-3)
                row = {"what": "failed", "error": f"{type(error).__name__}: {error}"[:300]}
            content["rows"].append(row)
            args.out.write_text(json.dumps(content, indent=1), encoding="utf-8")
            shown = {key: row[key] for key in row if key not in ("losses", "rounds", "log")}
            print(json.dumps(shown), *row.get("log", ()), flush=True)
    print_table(content["rows"])
    return None


if __name__ == "__main__":
    main()
