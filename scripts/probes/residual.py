"""What a quantiser of several residual codebooks costs: short supervised trainings, one for each number of books.

    python scripts/probes/residual.py 503 2d_a8a12df0 -tr nnUNetTrainerSupervisedVQ --books 1 2 3 4 -o residual.json

The first book is the plug-in's own; each further one, of as many codes, takes the nearest code, by raw distance, to
what the books before have left of a token. The decoder reads the sum. One book alone is the training of that trainer
and plan, without online validation.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from in_process import started_training, train_epochs, training_parser
from torch import Tensor, nn

from nnunetv2_vqseg.core.json import read_json, write_json
from nnunetv2_vqseg.modules.vq.quantizer import QuantizerOutput, VectorQuantizer
from nnunetv2_vqseg.modules.vq.usage import CodebookUsage


class ResidualQuantizer(VectorQuantizer):
    """A `VectorQuantizer` whose code is the sum of one code of each of `books` books, in the code space."""

    def __init__(self, *args: Any, books: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.further = nn.ModuleList(
            VectorQuantizer(
                self.code_dim,
                self.num_codes,
                code_dim=None,
                normalize=False,
                beta=self.beta,
                entropy_tokens=self.entropy_tokens,
                codebook_trains_features=True,
                restart_after=self.restart_after,
            )
            for _ in range(books - 1)
        )
        self.usages = [CodebookUsage(self.num_codes) for _ in range(books)]
        self.squared_error, self.steps = 0.0, 0
        self._found: list[tuple[Tensor, Tensor]] = []

    def forward(self, z: Tensor) -> QuantizerOutput:
        first = super().forward(z)
        if not self.further:
            return self._noted(first, first.tokens - first.codes[first.indices.flatten()], [])
        left = self.tokens(z if self.codebook_trains_features else z.detach())
        left = left - first.codes[first.indices.flatten()]
        total, loss, entropy, found = torch.zeros_like(first.tokens), first.loss, first.entropy, []
        for book in self.further:
            code = book(left[:, :, None, None])
            chosen = code.quantized.detach().flatten(1)
            loss, entropy = loss + code.loss, entropy + code.entropy
            total, left = total + chosen, left - chosen
            found.append((code.indices.flatten(), code.tokens))
        # project_out is linear: what the further books add to its output, its bias left out.
        assert isinstance(self.project_out, nn.Conv2d)
        grid = (z.shape[0], *z.shape[2:], self.code_dim)
        more = F.conv2d(total.view(grid).permute(0, 3, 1, 2), self.project_out.weight)
        output = first._replace(
            quantized=first.quantized + more, embedded=first.embedded + more, loss=loss, entropy=entropy
        )
        return self._noted(output, left.detach(), found)

    def _noted(self, output: QuantizerOutput, left: Tensor, found: list[tuple[Tensor, Tensor]]) -> QuantizerOutput:
        """`output`; what is left of a training step's tokens, which have length 1, is counted."""
        if self.training:
            self._found = found
            self.squared_error += float(left.square().sum(dim=1).mean())
            self.steps += 1
            for usage, indices in zip(self.usages, [output.indices, *(some for some, _ in found)], strict=True):
                usage.add(indices)
        return output

    @torch.no_grad()
    def initialize_from_samples(self, tokens: Tensor) -> None:
        super().initialize_from_samples(tokens)
        codes = self.codes()
        left = tokens - codes[torch.cdist(tokens, codes).argmin(dim=1)]
        for book in self.further:
            book.initialize_from_samples(left)
            codes = book.codes()
            left = left - codes[torch.cdist(left, codes).argmin(dim=1)]

    def observe(self, indices: Tensor, tokens: Tensor | None = None) -> int:
        restarted = super().observe(indices, tokens)
        return restarted + sum(
            book.observe(indices, tokens) for book, (indices, tokens) in zip(self.further, self._found, strict=True)
        )

    def start_epoch(self) -> None:
        """Count anew."""
        self.squared_error, self.steps = 0.0, 0
        for usage in self.usages:
            usage.reset()


def train(args: Any, books: int) -> dict[str, Any]:
    """Validation Dice of one training, and what its last epoch's tokens were quantised to."""
    quantizer = functools.partial(ResidualQuantizer, books=books)
    started = time.monotonic()
    with patch("nnunetv2_vqseg.networks.vq.VectorQuantizer", quantizer), started_training(args) as trainer:
        trainer.disable_checkpointing = True
        own: ResidualQuantizer = trainer.method.net.quantizer
        row: dict[str, Any] = {"books": books, "codes": own.num_codes}

        def at_end() -> None:
            row["left"] = own.squared_error / own.steps
            row["utilization"] = [usage.utilization for usage in own.usages]
            own.start_epoch()

        train_epochs(trainer, trainer.num_epochs, at_end)
        trainer.perform_actual_validation()
        summary = read_json(Path(trainer.output_folder) / "validation" / "summary.json", "see the log", kind=dict)
        row["dice"] = summary["foreground_mean"]["Dice"]
        row["seconds"] = round(time.monotonic() - started)
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = training_parser(__doc__.split("\n")[0])
    parser.set_defaults(tr="nnUNetTrainerSupervisedVQ")
    parser.add_argument("--books", type=int, nargs="+", default=[1, 2, 3, 4], metavar="N", help="residual codebooks")
    parser.add_argument("-o", type=Path, required=True, help="the .json file to write")
    args = parser.parse_args(argv)
    rows = []
    for books in args.books:
        rows.append(train(args, books))
        print(rows[-1], flush=True)
        write_json(rows, args.o)


if __name__ == "__main__":
    main()
