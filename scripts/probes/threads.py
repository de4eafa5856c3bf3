"""Wall-clock time of a small U-Net's forward and backward pass beside processes that keep a core busy.

OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python scripts/probes/threads.py --busy 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes beside it (default: 0)")
    parser.add_argument("--repeats", type=int, default=12, metavar="N", help="measured passes (default: 12)")
    args = parser.parse_args()
    stages = 5
    net = PlainConvUNet(
        *(1, stages, [16, 32, 64, 128, 128], nn.Conv2d, 3, [1, 2, 2, 2, 2], 2, 4, [2] * (stages - 1)),
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    images = torch.randn(12, 1, 80, 80)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        seconds = []
        for _ in range(args.repeats + 2):  # two to warm up
            started = time.perf_counter()
            torch.stack([output.square().mean() for output in net(images)]).sum().backward()
            seconds.append(time.perf_counter() - started)
    finally:
        for other in others:
            other.kill()
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    milliseconds = 1e3 * statistics.median(seconds[2:])
    print(f"{torch.get_num_threads()} threads, {policy}, {args.busy} busy: {milliseconds:.0f} ms")


if __name__ == "__main__":
    main()
