"""The paper's argument in one figure: KL(P||Q) of dropout (Eq. 1) and of QPM (Eq. 5, 6) over their parameter.

python scripts/probes/theory.py -o docs/results/theory.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from nnunetv2_vqseg.modules.vq.divergence import dropout_kl, qpm_kl
from nnunetv2_vqseg.modules.vq.qpm import transition_matrix

MODES = {"literal": "QPM, literal (Eq. 4)", "calibrated": "QPM, calibrated, perplexity 32"}


def main(argv: Sequence[str] | None = None) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--codes", type=int, default=512, metavar="K")
    parser.add_argument("--dim", type=int, default=16, metavar="D")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", type=Path, required=True, help="the .png file to write")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    codes = torch.nn.functional.normalize(torch.randn(args.codes, args.dim), dim=1)
    strengths = torch.linspace(0, 1, 51)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    for axis in (left, right):
        axis.plot(strengths, dropout_kl(strengths), label="dropout, rate p (Eq. 1)", color="tab:red")
        for mode, label in MODES.items():
            divergence = [float(qpm_kl(transition_matrix(codes, float(e), mode=mode))) for e in strengths]
            axis.plot(strengths, divergence, label=label)
            print(f"{label}: largest {max(divergence):.4f}, at epsilon 0.7 {divergence[35]:.4f}")
        axis.set_xlabel("dropout rate p, or QPM's epsilon")
        axis.set_ylabel("KL(P || Q), nats")
        axis.grid(alpha=0.3)
    left.set_ylim(0, 5)
    left.set_title("dropout has no bound", fontsize=10)
    right.set_yscale("log")
    right.set_ylim(1e-6, 50)
    right.set_title("the same, logarithmic", fontsize=10)
    left.legend(fontsize=8)
    figure.suptitle(f"{args.codes} unit codes in {args.dim} dimensions, drawn at random (seed {args.seed})", fontsize=9)
    figure.tight_layout()
    figure.savefig(args.o, dpi=100)


if __name__ == "__main__":
    main()
