"""`modules`: lookup, entropy term and QPM against a plain version, over tokens, codes and width."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.measure import compare, peak_memory
from benchmarks.output import Row, print_table
from nnunetv2_vqseg.modules.vq.entropy import assignment_entropy
from nnunetv2_vqseg.modules.vq.lookup import nearest_codes
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation
from nnunetv2_vqseg.modules.vq.quantizer import VectorQuantizer

TOKENS, CODES, WIDTHS = (512, 2048, 8192, 32768), (1024, 4096, 16384, 65536), (128, 384, 512)
ENTROPY_TOKENS = 512
TEMPERATURE = 0.05
PERPLEXITY, NEIGHBORS = 32.0, 128  # VQSegConfig's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, nargs="+", metavar="N", help=f"default: {TOKENS}; on a CPU 2048")
    parser.add_argument("--codes", type=int, nargs="+", metavar="K", help=f"default: {CODES}; on a CPU 16384")
    parser.add_argument(
        "--widths", type=int, nargs="+", metavar="D", help=f"of tokens and codes (default: 16 {WIDTHS}; on a CPU 16)"
    )
    parser.add_argument("--epsilons", type=float, nargs="+", default=(0.1, 0.3, 0.7), metavar="E")
    parser.add_argument(
        "--rebuild-every",
        type=int,
        default=50,
        metavar="STEPS",
        help="over how many steps a rebuild of the neighbour table is spread (default: that of QPM, 50)",
    )
    parser.add_argument(
        "--plain-elements",
        type=float,
        default=3e8,
        metavar="NK",
        help="largest tokens x codes for which the plain version runs (default: 3e8, 1.2 GB a matrix)",
    )


def run(args: argparse.Namespace, device: torch.device) -> dict[str, list[Row]]:
    gpu = device.type == "cuda"
    tokens = args.tokens or (TOKENS if gpu else (2048,))
    codes = args.codes or (CODES if gpu else (16384,))
    widths = args.widths or ((16, *WIDTHS) if gpu else (16,))
    rows = []
    for width, num_codes, num_tokens in product(widths, codes, tokens):
        point = Point(num_tokens, num_codes, width, args, device)
        found = point.rows()
        print_table(found, f"{num_tokens} tokens, {num_codes} codes of width {width}")
        rows += found
    return {"modules": rows}


class Point:
    """Everything at one number of tokens, number of codes and width."""

    def __init__(self, tokens: int, codes: int, width: int, args: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.rebuild_every = args.rebuild_every
        self.epsilons = args.epsilons
        self.compare = partial(compare, device=device, repeats=args.repeats, seconds=args.seconds)
        self.size = {"tokens": tokens, "codes": codes, "width": width}
        self.has_plain = tokens * codes <= args.plain_elements
        self.quantizer = _quantizer(width, codes, ENTROPY_TOKENS).to(device).train()
        self.z = torch.randn(1, width, tokens, 1, device=device).mul_(width**-0.5)
        self.tokens = self.z.flatten(2)[0].T.contiguous()
        self.codes = self.quantizer.codes().detach()
        self.indices = nearest_codes(self.tokens, self.codes)

    def rows(self) -> list[Row]:
        lookup = self.row(
            "lookup",
            lambda: nearest_codes(self.tokens, self.codes),
            lambda: plain.lookup(self.tokens, self.codes),
        )
        entropy = self.row(
            f"entropy of {ENTROPY_TOKENS} tokens, forward + backward",
            partial(self.entropy, partial(assignment_entropy, temperature=TEMPERATURE)),
            partial(self.entropy, partial(plain.entropy, temperature=TEMPERATURE)),
        )
        return [lookup, entropy, *self.perturbation_rows(lookup["ours_ms"]), *self.whole(), *self.other_library()]

    def row(self, what: str, ours: Callable[[], Any], plain_version: Callable[[], Any] | None) -> Row:
        runs = {"ours": ours}
        if plain_version is not None and self.has_plain:
            runs["plain"] = plain_version
        seconds = self.compare(runs)
        row: Row = {**self.size, "what": what}
        row |= {f"{name}_ms": value * 1e3 for name, value in seconds.items()}
        row |= {f"{name}_MB": peak_memory(run, self.device) / 1e6 for name, run in runs.items()}
        for quantity in ("ms", "MB"):
            if f"plain_{quantity}" in row:
                row[f"plain/ours_{quantity}"] = row[f"plain_{quantity}"] / row[f"ours_{quantity}"]
        return row

    def entropy(self, term: Callable[[Tensor, Tensor], Tensor]) -> None:
        tokens = self.tokens[:ENTROPY_TOKENS].clone().requires_grad_()
        codes = self.codes.clone().requires_grad_()
        term(tokens, codes).backward()

    def perturbation_rows(self, lookup_ms: float) -> list[Row]:
        """QPM at each epsilon; `of_lookup` counts the rebuild's share of a step in."""
        table = QuantizedPerturbation(0.7, "calibrated", PERPLEXITY, NEIGHBORS)

        def rebuild() -> None:
            table.discard_table()
            table.prepare(self.codes)

        rebuilt = self.row("QPM calibrated, rebuild of its table", rebuild, None)
        share = rebuilt["ours_ms"] / self.rebuild_every
        rows = [rebuilt]
        for epsilon in self.epsilons:
            for mode in ("calibrated", "literal"):
                perturbation = QuantizedPerturbation(epsilon, mode, PERPLEXITY, NEIGHBORS)
                perturbation.prepare(self.codes)  # a rebuild has a row of its own
                step = partial(perturbation, self.indices, self.codes)
                loop = partial(plain.perturb, self.indices, self.codes, epsilon)
                compared = loop if mode == "literal" else None
                row = self.row(f"QPM {mode}, epsilon {epsilon}", step, compared)
                per_step = row["ours_ms"] + (share if mode == "calibrated" else 0.0)
                rows.append({**row, "of_lookup": per_step / lookup_ms})
        return rows

    def whole(self) -> list[Row]:
        """Lookup, straight-through, L_vq, entropy term and QPM at 0.7, forward and backward.

        The plain version takes the entropy term over all tokens, and in a second row over as many as ours.
        """
        perturbation = QuantizedPerturbation(0.7, "calibrated", PERPLEXITY, NEIGHBORS)
        perturbation.prepare(self.codes)  # its table has a row of its own
        temperature = TEMPERATURE * self._mean_squared_distance() / 2.0
        mapping = self.quantizer.mapping.weight

        def ours() -> None:
            z = self.z.clone().requires_grad_()
            mapping.grad = None
            output = self.quantizer(z)
            moved = perturbation(output.indices, output.codes)
            quantized = output.quantized + self.quantizer.displacement(output.indices, moved)
            (output.loss + output.entropy + quantized.square().mean()).backward()

        def plain_version(entropy_tokens: int) -> None:
            tokens = self.tokens.clone().requires_grad_()
            mapping.grad = None
            beta, book = self.quantizer.beta, self.quantizer.codebook
            plain.forward_backward(tokens, book, mapping, 0.7, beta, temperature, entropy_tokens)

        what = "lookup + QPM 0.7 + losses, forward + backward"
        return [
            self.row(what, ours, partial(plain_version, self.size["tokens"])),
            self.row(f"the same, plain entropy of {ENTROPY_TOKENS}", ours, partial(plain_version, ENTROPY_TOKENS)),
        ]

    def other_library(self) -> list[Row]:
        """Lookup and L_vq, forward and backward, beside vector-quantize-pytorch's SimVQ where that is installed."""
        if find_spec("vector_quantize_pytorch") is None:
            return []
        from vector_quantize_pytorch import SimVQ

        width, codes = self.size["width"], self.size["codes"]
        ours = _quantizer(width, codes, entropy_tokens=0).to(self.device).train()
        theirs = SimVQ(dim=width, codebook_size=codes, rotation_trick=False).to(self.device).train()

        def run_ours() -> None:
            output = ours(self.z.clone().requires_grad_())
            (output.quantized.square().mean() + output.loss).backward()

        def run_theirs() -> None:
            quantized, _, loss = theirs(self.tokens[None].clone().requires_grad_())
            (quantized.square().mean() + loss).backward()

        row = self.row("lookup + L_vq, forward + backward; plain: SimVQ", run_ours, run_theirs)
        return [row]

    def _mean_squared_distance(self) -> float:
        center = self.codes.mean(dim=0)
        return sum(float((rows - center).square().sum(dim=1).mean()) for rows in (self.tokens, self.codes))


def _quantizer(width: int, codes: int, entropy_tokens: int) -> VectorQuantizer:
    """Without projections, and with all gradients to the features."""
    return VectorQuantizer(
        width, codes, None, normalize=False, entropy_tokens=entropy_tokens, codebook_trains_features=True
    )
