"""Fig. 7: the codebook at three stages of a training, by t-SNE, with the codes that were used in the epoch before.

python scripts/probes/codebook.py 503 2d -tr nnUNetTrainerVQSegQPMDB --epochs 1 7 15 -o codebook.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from in_process import started_training, train_epochs, training_parser
from sklearn.manifold import TSNE

from nnunetv2_vqseg.methods.vqseg import VQSeg


def draw(snapshots: Sequence[dict[str, Any]], file: Path, seed: int) -> None:
    """One panel a snapshot: all mapped codes (K, d), used ones in orange, unused ones in blue."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(snapshots), figsize=(4.2 * len(snapshots), 4.4), squeeze=False)
    for axis, snapshot in zip(axes[0], snapshots, strict=True):
        points = TSNE(perplexity=30, init="pca", random_state=seed).fit_transform(snapshot["codes"].numpy())
        used = snapshot["used"].numpy()
        axis.scatter(*points[~used].T, s=3, color="tab:blue", label="not used")
        axis.scatter(*points[used].T, s=3, color="tab:orange", label="used")
        axis.set_title(
            f"after epoch {snapshot['epoch']}: {used.mean():.1%} of {len(used)} codes\nused by {snapshot['tokens']:,} "
            "tokens",
            fontsize=9,
        )
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].legend(loc="lower left", fontsize=8, markerscale=3)
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    parser = training_parser(__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 7, 15], help="when to look (default: 1 7 15)")
    parser.add_argument("--seed", type=int, default=0, help="of the t-SNE")
    parser.add_argument("-o", type=Path, required=True, help="the .png file to write")
    args = parser.parse_args(argv)
    snapshots: list[dict[str, Any]] = []
    with started_training(args) as trainer:
        quantizer = trainer.method.net.quantizer if isinstance(trainer.method, VQSeg) else None
        if quantizer is None:
            parser.error(f"{args.tr} has no codebook; choose a trainer with one.")
        usage = trainer.method.codebooks.usage

        def look() -> None:
            if trainer.current_epoch + 1 in args.epochs:
                with torch.no_grad():
                    codes = quantizer.codes().float().cpu()
                used = (usage.counts > 0).cpu()
                tokens = usage.num_tokens
                snapshots.append({"epoch": trainer.current_epoch + 1, "codes": codes, "used": used, "tokens": tokens})
            usage.reset()

        train_epochs(trainer, max(args.epochs), look)
    draw(snapshots, args.o, args.seed)


if __name__ == "__main__":
    main()
