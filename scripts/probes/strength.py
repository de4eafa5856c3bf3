"""How strong QPM is: a trained model's validation Dice while every image is perturbed, beside feature dropout.

    python scripts/probes/strength.py -d 503 -c 2d_98e66360 -tr nnUNetTrainerVQSegQPM -o strength.json

Nothing is trained. All tokens of the quantised stage pass QPM at several perplexities, or have channels dropped, as the
perturbed stream of a training has; what costs no Dice here can teach a training nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from trained_model import load_model, model_parser

from nnunetv2_vqseg.core.json import write_json
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation
from nnunetv2_vqseg.networks.vq import VQSegNet


class Perturbed(nn.Module):
    """The network with the perturbation of its training's second stream."""

    def __init__(self, network: VQSegNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output = self.network.predict_perturbed(x)
        return output[0] if isinstance(output, list) else output


def settings(
    network: VQSegNet, epsilon: float, perplexities: Sequence[int], rates: Sequence[float]
) -> Iterator[tuple[str, QuantizedPerturbation | None, float]]:
    """Name, QPM and dropout rate of each row."""
    assert network.quantizer is not None
    codes = network.quantizer.codes()
    for perplexity in perplexities:
        neighbors = min(4 * perplexity, len(codes) - 1)
        if perplexity >= neighbors:
            print(f"Left out: perplexity {perplexity}, which {len(codes)} codes cannot have.")
            continue
        yield (
            f"QPM {epsilon:g}, perplexity {perplexity}",
            QuantizedPerturbation(epsilon, perplexity=perplexity, num_neighbors=neighbors),
            0.0,
        )
    yield f"QPM {epsilon:g}, literal", QuantizedPerturbation(epsilon, mode="literal"), 0.0
    for rate in rates:
        yield f"channel dropout {rate:g}", None, rate


@torch.no_grad()
def displacement(network: VQSegNet, perturbation: QuantizedPerturbation) -> float:
    """Mean distance in code space that a replaced code moves, every code taken once."""
    assert network.quantizer is not None
    codes = network.quantizer.codes()
    before = torch.arange(len(codes))
    after = perturbation(before, codes)
    return float((codes[after] - codes[before])[after != before].norm(dim=1).mean())


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = model_parser(__doc__.split("\n")[0], "nnUNetTrainerVQSegQPM")
    parser.add_argument("--epsilon", type=float, default=0.7, help="default: %(default)s")
    parser.add_argument("--perplexities", type=int, nargs="+", default=[8, 32, 128, 512], metavar="P")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7], metavar="R")
    args = parser.parse_args(argv)
    model = load_model(args)
    network = model.network
    if not isinstance(network, VQSegNet) or network.quantizer is None:
        parser.error(f"{args.tr} has no codebook; choose a trainer with one.")
    rows: list[dict[str, Any]] = [{"setting": "none", "dice": model.dice()}]
    model.predictor.network = Perturbed(network).eval()
    for name, perturbation, rate in settings(network, args.epsilon, args.perplexities, args.rates):
        torch.manual_seed(args.seed)
        network.perturbation, network.dropout_rate = perturbation, rate
        row: dict[str, Any] = {"setting": name}
        if perturbation is not None:
            perturbation.prepare(network.quantizer.codes())
            row["displacement"] = displacement(network, perturbation)
        row["dice"] = model.dice()
        rows.append(row)
        print(row, flush=True)
        write_json(rows, args.o)


if __name__ == "__main__":
    main()
