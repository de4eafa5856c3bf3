"""Which encoder stage can be quantised: replace its features in a trained stock model and read validation Dice.

    python scripts/probes/stages.py -d 503 -tr nnUNetTrainerSupervised -p nnUNetVQSegPlans -c 2d -o probe.json

Nothing is trained. At one encoder stage after another the features are replaced by the nearest of K k-means centres
(also as a sum of several residual codebooks), by random ones of these centres, by zeros, and by what calibrated QPM
makes of them, z + c_j - c_i. A good stage for VQ-Seg loses much with random codes, so that the decoder depends on it,
and little with k-means codes; a stage that loses little with zeros is bypassed by the skip connections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from trained_model import load_model, model_parser

from nnunetv2_vqseg.core.json import write_json
from nnunetv2_vqseg.modules.vq.lookup import nearest_codes
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation

Replace = Callable[[Tensor], Tensor]
TOKENS = 40_000  # a stage, for k-means


def as_tokens(z: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C)."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def as_features(tokens: Tensor, z: Tensor) -> Tensor:
    """(B * H * W, C) -> (B, C, H, W) like z."""
    batch, _, height, width = z.shape
    return tokens.view(batch, height, width, -1).permute(0, 3, 1, 2).contiguous()


def fit(tokens: Tensor, num_codes: int, seed: int) -> Tensor:
    """k-means centres (K, C)."""
    kmeans = MiniBatchKMeans(num_codes, batch_size=4096, n_init=1, max_iter=20, random_state=seed)
    return torch.from_numpy(kmeans.fit(tokens.numpy()).cluster_centers_).float()


def quantize(books: Sequence[Tensor]) -> Replace:
    """Sum of the nearest centres of one or several residual codebooks."""

    def replace(z: Tensor) -> Tensor:
        rest = as_tokens(z)
        total = torch.zeros_like(rest)
        for book in books:
            chosen = book[nearest_codes(rest, book)]
            total, rest = total + chosen, rest - chosen
        return as_features(total, z)

    return replace


def random_codes(book: Tensor) -> Replace:
    """Any centre for any token."""
    return lambda z: as_features(book[torch.randint(len(book), (z.shape[0] * z.shape[2] * z.shape[3],))], z)


def perturb(book: Tensor, epsilon: float, keep_z: bool) -> Replace:
    """Calibrated QPM: q + c_j - c_i, or z + c_j - c_i."""
    module = QuantizedPerturbation(epsilon)
    module.prepare(book)

    def replace(z: Tensor) -> Tensor:
        tokens = as_tokens(z)
        before = nearest_codes(tokens, book)
        after = module(before, book)
        return as_features(book[after] + (tokens - book[before] if keep_z else 0.0), z)

    return replace


def slices(folder: Path, cases: Sequence[str], count: int, patch: Sequence[int], seed: int) -> Tensor:
    """`count` central crops (N, C, H, W) of slices of some preprocessed cases."""
    dataset = infer_dataset_class(str(folder))(str(folder), list(cases))
    generator = np.random.default_rng(seed)
    crops = []
    for case in generator.choice(list(cases), count):
        data = np.asarray(dataset.load_case(case)[0])
        image = torch.from_numpy(data[:, generator.integers(data.shape[1])]).float()
        pad = [max(0, size - length) for size, length in zip(patch, image.shape[1:], strict=True)]
        image = torch.nn.functional.pad(image, (0, pad[1], 0, pad[0]))
        top, left = ((length - size) // 2 for size, length in zip(patch, image.shape[1:], strict=True))
        crops.append(image[:, top : top + patch[0], left : left + patch[1]])
    return torch.stack(crops)


@torch.no_grad()
def collect(network: Any, images: Tensor, seed: int) -> list[Tensor]:
    """Tokens (TOKENS, C) of every encoder stage."""
    generator = torch.Generator().manual_seed(seed)
    outputs: list[list[Tensor]] = [[] for _ in network.encoder.stages]
    hooks = [
        stage.register_forward_hook(lambda _m, _i, output, kept=kept: kept.append(as_tokens(output)))
        for stage, kept in zip(network.encoder.stages, outputs, strict=True)
    ]
    for batch in images.split(8):
        network(batch)
    for hook in hooks:
        hook.remove()
    tokens = [torch.cat(kept) for kept in outputs]
    return [some[torch.randperm(len(some), generator=generator)[:TOKENS]] for some in tokens]


def main(argv: Sequence[str] | None = None) -> None:
    parser = model_parser(__doc__.split("\n")[0], "nnUNetTrainerSupervised")
    parser.add_argument("--stages", type=int, nargs="+", metavar="I", help="from 0 on (default: all)")
    parser.add_argument("--codes", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--books", type=int, nargs="+", default=[2, 4], help="residual codebooks of 512 codes")
    parser.add_argument("--slices", type=int, default=200, help="training slices for k-means (default: 200)")
    args = parser.parse_args(argv)

    model = load_model(args)
    network, folder = model.network, model.folder
    stages = range(len(network.encoder.stages))
    if unknown := sorted({*(args.stages or ())} - {*stages}):
        parser.error(f"--stages {' '.join(map(str, unknown))}: the encoder has the stages 0 to {len(stages) - 1}.")
    unlabeled = Path(f"{folder}_unlabeled")
    shelf = unlabeled if unlabeled.is_dir() else folder
    shelf_cases = infer_dataset_class(str(shelf)).get_identifiers(str(shelf))
    torch.manual_seed(args.seed)
    images = slices(shelf, shelf_cases, args.slices, model.predictor.configuration_manager.patch_size, args.seed)
    tokens = collect(network, images, args.seed)

    result: dict[str, Any] = {"unchanged": model.dice(), "stages": []}
    print(f"unchanged: {result['unchanged']:.3f}", flush=True)
    for index in args.stages or stages:
        stage, samples = network.encoder.stages[index], tokens[index]
        books = {count: fit(samples, count, args.seed) for count in sorted({*args.codes, 512})}
        residual = [books[512]]
        while len(residual) < max(args.books, default=1):
            left = samples.clone()
            for book in residual:
                left -= book[nearest_codes(left, book)]
            residual.append(fit(left, 512, args.seed))
        largest = books[max(args.codes)]
        settings: dict[str, Replace] = {"zeros": torch.zeros_like, "random codes": random_codes(largest)}
        settings |= {f"k-means {count}": quantize([books[count]]) for count in args.codes}
        settings |= {f"{count} residual books of 512": quantize(residual[:count]) for count in args.books}
        settings |= {
            "QPM 0.7 on q": perturb(largest, 0.7, keep_z=False),
            "QPM 0.7 on z": perturb(largest, 0.7, keep_z=True),
        }
        row: dict[str, Any] = {"stage": index, "channels": samples.shape[1], "dice": {}}
        row["unexplained_variance"] = {
            f"k-means {count}": float((samples - books[count][nearest_codes(samples, books[count])]).square().sum()
                                      / (samples - samples.mean(0)).square().sum())
            for count in args.codes
        }  # fmt: skip
        for label, replace in settings.items():
            hook = stage.register_forward_hook(lambda _m, _i, output, replace=replace: replace(output))
            row["dice"][label] = model.dice()
            hook.remove()
            print(f"stage {index}, {label}: {row['dice'][label]:.3f}", flush=True)
        result["stages"].append(row)
        write_json(result, args.o)


if __name__ == "__main__":
    main()
