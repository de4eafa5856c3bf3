"""Quantised perturbation module: codes are replaced by codes of their neighbourhood (3.3, Eq. 4)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.modules.vq.lookup import score_factors
from nnunetv2_vqseg.modules.vq.qpm_table import NeighborTable, build_table, neighborhood, rows_of_chunk

Mode = Literal["calibrated", "literal"]

_BLOCK = 128
# Draws end just below 1, so that a draw times a total stays below that total in float32.
_BELOW_ONE = 1.0 - 2.0**-23


class QuantizedPerturbation(nn.Module):
    """Samples pi(j|i) = 1 - epsilon for j = i, else epsilon times a distribution over the other codes (Eq. 4).

    *literal*: that distribution is exp(-d(c_i, c_j)) / Z_i with the Euclidean d, over all K - 1 other codes. What it
    does depends on the scale of the codes, which training changes.

    *calibrated*: softmax(-d^2 / tau_i) over the `num_neighbors` nearest codes, with tau_i such that the perplexity is
    `perplexity` in every row, so that epsilon is the only strength. It is sampled from a table of neighbours and
    cumulative probabilities at the same cost for every epsilon. In a book with fewer other codes than `num_neighbors`
    all of them are neighbours, and the perplexity is at most half their number (but at least 1).

    The table is neither a buffer (DDP would broadcast it in each step) nor copied or pickled with the module: a copy
    builds its own. Draws use one that is at most `rebuild_every` steps old, so a code that was restarted since is found
    at its old place. They come from torch's global generator of the indices' device.

    Args:
        epsilon: probability of replacing a code, in [0, 1].
        mode: see above.
        perplexity: effective number of neighbours, in [1, num_neighbors) (calibrated).
        num_neighbors: neighbours a code kept in the table, at least 2 (calibrated).
        rebuild_every: calls of `prepare` for which a table serves, at least 1 (calibrated).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        epsilon: float = 0.7,
        mode: Mode = "calibrated",
        perplexity: float = 32.0,
        num_neighbors: int = 128,
        rebuild_every: int = 50,
    ) -> None:
        super().__init__()
        if not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon is a probability between 0 and 1, got {epsilon}.")
        if mode not in ("calibrated", "literal"):
            raise ValueError(f"mode must be 'calibrated' or 'literal', got {mode!r}.")
        if mode == "calibrated" and not 1.0 <= perplexity < num_neighbors:
            raise ValueError(
                f"perplexity must be at least 1 and less than num_neighbors, got {perplexity} with {num_neighbors} "
                "neighbours."
            )
        if rebuild_every < 1:
            raise ValueError(f"rebuild_every must be at least 1, got {rebuild_every}.")
        self.epsilon = epsilon
        self.mode = mode
        self.perplexity = perplexity
        self.num_neighbors = num_neighbors
        self.rebuild_every = rebuild_every
        self._table: NeighborTable | None = None
        self._outdated = False
        self._calls = 0  # of `prepare` since the table was built
        self._literal_neighbors = float("nan")

    def extra_repr(self) -> str:
        names = ("epsilon", "mode", "perplexity", "num_neighbors", "rebuild_every")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def discard_table(self) -> None:
        """Forget the neighbour table; the next `prepare` builds one and counts its steps from there.

        At the start of an epoch it makes a resumed training draw what an uninterrupted one would have drawn.
        """
        self._outdated = True

    @torch.no_grad()
    def prepare(self, codes: Tensor) -> bool:
        """Build the table if there is none for a book of this size and device, or it has served `rebuild_every` calls.

        To be called before each step, outside compiled code, with the mapped codes (K, d). Returns whether it was
        built, which it never is in literal mode.

        Raises:
            ValueError: fewer than 2 codes.
        """
        _check_codes(codes)
        if self.mode == "literal":
            return False
        self._calls += 1
        if self._fitting_table(codes) is not None and self._calls < self.rebuild_every:
            return False
        self._build(codes)
        return True

    @torch.no_grad()
    def forward(self, indices: Tensor, codes: Tensor) -> Tensor:
        """Draw j ~ pi(.|i) for every code i.

        Args:
            indices: int64 codes of any shape.
            codes: (K, d) mapped codes. Calibrated sampling reads the table and only builds one where none fits.

        Returns:
            int64 codes of the same shape.

        Raises:
            ValueError: fewer than 2 codes.
        """
        _check_codes(codes)
        if self.epsilon == 0.0:
            return indices.clone()
        flat = indices.flatten()
        # Two draws: one has 24 bits, too few to say where to go among those below a small epsilon.
        chance, uniform = torch.rand((2, len(flat)), device=flat.device)
        moves, uniform = chance < self.epsilon, uniform.clamp(max=_BELOW_ONE)
        if self.mode == "literal":
            moved = self._move_literal(flat, codes.detach(), moves, uniform)
        else:
            moved = torch.where(moves, self._sample_table(flat, codes, uniform), flat)
        return moved.view(indices.shape)

    @property
    def effective_neighbors(self) -> float:
        """Mean over codes of exp(entropy) of the neighbour distribution, nan before there is one.

        Literal mode has no table: there it is the mean over some of the codes that the latest call moved.
        """
        if self.mode == "literal":
            return self._literal_neighbors
        if self._table is None:
            return float("nan")
        return float(torch.special.entr(self._table.probabilities).sum(dim=1).exp().mean())

    def _fitting_table(self, codes: Tensor) -> NeighborTable | None:
        table = self._table
        fits = table is not None and len(table.neighbors) == len(codes) and table.neighbors.device == codes.device
        return table if fits and not self._outdated else None

    @torch.no_grad()
    def _build(self, codes: Tensor) -> NeighborTable:
        before, table = self._table, build_table(codes.float(), self.perplexity, self.num_neighbors)
        if before is not None and all(map(_alike, before, table)):
            for old, new in zip(before, table, strict=True):
                old.copy_(new)  # where a recorded CUDA graph reads them
            table = before
        self._table, self._outdated, self._calls = table, False, 0
        return table

    def _sample_table(self, indices: Tensor, codes: Tensor, uniform: Tensor) -> Tensor:
        table = self._fitting_table(codes) or self._build(codes)
        slot = torch.searchsorted(table.cumulative[indices], uniform[:, None], right=True)
        return table.neighbors[indices].gather(1, slot).squeeze(1).long()

    @torch.compiler.disable
    def _move_literal(self, indices: Tensor, codes: Tensor, moves: Tensor, uniform: Tensor) -> Tensor:
        """Sizes depend on the data throughout: one break in a compiled graph instead of one at each of them."""
        moved = indices.clone()
        distinct, row = indices[moves].unique(return_inverse=True)
        left, right = score_factors(codes.float(), codes.float(), _BLOCK)
        sampled, uniform = torch.empty_like(row), uniform[moves]
        num_rows = rows_of_chunk(len(codes), codes.device)
        for first in range(0, len(distinct), num_rows):
            weights, entropy = _literal_weights(left, right, distinct[first : first + num_rows])
            tokens = ((row >= first) & (row < first + num_rows)).nonzero().flatten()
            sampled[tokens] = _draw(weights, row[tokens] - first, uniform[tokens])
            if first == 0:
                self._literal_neighbors = float(entropy.exp().mean())
        moved[moves] = sampled
        return moved


def transition_matrix(
    codes: Tensor,
    epsilon: float = 0.7,
    mode: Mode = "calibrated",
    perplexity: float = 32.0,
    num_neighbors: int = 128,
) -> Tensor:
    """pi(j|i) of Eq. 4 as a matrix, row i for i: for small books, tests and figures.

    Args:
        codes: (K, d); the others as in `QuantizedPerturbation`.

    Returns:
        (K, K) float64, rows sum to 1.

    Raises:
        ValueError: an argument is out of range, or fewer than 2 codes.
    """
    QuantizedPerturbation(epsilon, mode, perplexity, num_neighbors)
    _check_codes(codes)
    codes = codes.detach().double()
    if mode == "literal":
        distances = torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist")
        moves = (-distances).fill_diagonal_(-torch.inf).softmax(dim=1)
    else:
        neighbors, probabilities = neighborhood(codes, perplexity, num_neighbors)
        moves = codes.new_zeros(len(codes), len(codes))
        moves.scatter_(1, neighbors.long(), probabilities.to(codes.dtype))
    moves = epsilon * moves / moves.sum(dim=1, keepdim=True)
    return moves.fill_diagonal_(1.0 - epsilon)


def _literal_weights(left: Tensor, right: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-d(c_i, c_j)) up to a factor a row, (R, K padded) with 0 for j = i, and the entropy of each row, (R,)."""
    with torch.autocast(left.device.type, enabled=False):  # half precision would not tell near codes apart
        squared = -right[-1, rows][:, None] - left[rows] @ right
    distances = squared.clamp_min_(0.0).sqrt_()
    distances[torch.arange(len(rows), device=rows.device), rows] = torch.inf
    excess = distances - distances.amin(dim=1, keepdim=True)
    weights = (-excess).exp_()
    total = weights.sum(dim=1)
    entropy = total.log() + (weights * excess.nan_to_num_(posinf=0.0)).sum(dim=1) / total
    return weights, entropy


def _draw(weights: Tensor, row: Tensor, uniform: Tensor) -> Tensor:
    """Inverse distribution function in two steps, first the block and then the element inside it.

    A row of cumulative weights for each token would be as large as (tokens, K); this needs K / 128 + 128 of them.

    Args:
        weights: (R, K), K a multiple of 128.
        row: (n,) int64, the row each token draws from.
        uniform: (n,) in [0, 1).

    Returns:
        (n,) int64.
    """
    blocks = weights.view(len(weights), -1, _BLOCK)
    mass = blocks.sum(dim=2).cumsum(dim=1)[row]
    target = uniform[:, None] * mass[:, -1:]
    block = torch.searchsorted(mass, target, right=True)
    rest = target - F.pad(mass, (1, 0)).gather(1, block)
    inside = blocks[row, block[:, 0]].cumsum(dim=1)
    # Rounding must not push the draw past the block's last weight, into padding or the code itself.
    rest = torch.minimum(rest, inside[:, -1:] * _BELOW_ONE)
    return (block * _BLOCK + torch.searchsorted(inside, rest, right=True)).squeeze(1)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _check_codes(codes: Tensor) -> None:
    if codes.ndim != 2 or len(codes) < 2:
        raise ValueError(f"QPM moves between at least 2 codes (K, d), got {tuple(codes.shape)}.")
