"""Quantised perturbation module: codes are replaced by codes of their neighbourhood (3.3, Eq. 4)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.modules.vq.lookup import score_factors
from nnunetv2_vqseg.modules.vq.neighbors import calibrated_probabilities, nearest_neighbors

# Eq. 4's weights of one chunk of codes x K.
_CPU_ELEMENTS = 2**20
_GPU_ELEMENTS = 2**24
_BLOCK = 128
# New neighbours of a restarted code whose drift is taken for its own.
_NEAR = 8
# Draws end just below 1, so that a draw times a total stays below that total in float32.
_BELOW_ONE = 1.0 - 2.0**-23


class NeighborTable(NamedTuple):
    """Row i: where code i may move, (K, k) int32, and cumulative probabilities of those codes, (K, k) float32."""

    neighbors: Tensor
    cumulative: Tensor


class QuantizedPerturbation(nn.Module):
    """Samples pi(j|i) = 1 - epsilon for j = i, else epsilon times a distribution over the other codes (Eq. 4).

    *literal*: that distribution is exp(-d(c_i, c_j)) / Z_i with the Euclidean d, over all K - 1 other codes. What it
    does depends on the scale of the codes, which training changes.

    *calibrated*: softmax(-d^2 / tau_i) over the `num_neighbors` nearest codes, with tau_i such that the perplexity is
    `perplexity` in every row, so that epsilon is the only strength. It is sampled from a table of neighbours and
    cumulative probabilities at the same cost for every epsilon. In a book with fewer other codes than `num_neighbors`
    all of them are neighbours, and the perplexity is at most half their number (but at least 1).

    The table is neither a buffer (DDP would broadcast it in each step) nor copied or pickled with the module: a copy
    builds its own. Draws come from torch's global generator of the indices' device.

    Args:
        epsilon: probability of replacing a code, in [0, 1].
        mode: see above.
        perplexity: effective number of neighbours, in [1, num_neighbors) (calibrated).
        num_neighbors: neighbours a code kept in the table, at least 2 (calibrated).
        max_strain: how stale the table may get, see `prepare`; >= 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        epsilon: float = 0.7,
        mode: Literal["calibrated", "literal"] = "calibrated",
        perplexity: float = 32.0,
        num_neighbors: int = 256,
        max_strain: float = 0.3,
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
        if not max_strain >= 0.0:
            raise ValueError(f"max_strain must not be negative, got {max_strain}.")
        self.epsilon = epsilon
        self.mode = mode
        self.perplexity = perplexity
        self.num_neighbors = num_neighbors
        self.max_strain = max_strain
        self._table: NeighborTable | None = None
        self._reference = torch.empty(0, 0)  # the codes as the table's rows saw them
        self._probe = torch.empty(0, dtype=torch.int64)  # of each code, a neighbour to watch
        self._offset = torch.empty(0, 0)  # from each code to that neighbour, then
        self._num_jumped = 0  # codes whose rows were replaced one by one since the whole table was built
        self._literal_neighbors = float("nan")

    def extra_repr(self) -> str:
        return (
            f"epsilon={self.epsilon}, mode={self.mode!r}, perplexity={self.perplexity}, "
            f"num_neighbors={self.num_neighbors}, max_strain={self.max_strain}"
        )

    def __getstate__(self) -> dict[str, Any]:
        nothing = torch.empty(0, 0)
        return {**self.__dict__, "_table": None, "_reference": nothing, "_probe": nothing, "_offset": nothing}

    def discard_table(self) -> None:
        """Forget the neighbour table; the next `prepare` builds a new one from the codes as they are then.

        Called at the start of an epoch, it makes what follows independent of when the table was built before, so that a
        resumed training draws what an uninterrupted one would have drawn.
        """
        self._table = None

    @torch.no_grad()
    def prepare(self, codes: Tensor) -> bool:
        """Bring the neighbour table up to date; call it before a step, outside compiled code.

        What matters is how codes have moved against their neighbours; all may move together. With v_ij = c_j - c_i and
        v'_ij the same when row i was made, |v_ij - v'_ij| / |v'_ij| is the strain between i and j. A code strained by
        more than 1 against most neighbours in its row has jumped (it was restarted); it gets a new row at once and is
        struck from the rows that list it, which is cheap. The whole table is rebuilt when

            mean over codes i of min(strain between i and its neighbour of rank `perplexity`, 1)  >  max_strain,

        a code that has jumped counting as 1 from then on. So drift of all codes costs nothing until their
        neighbourhoods have changed by that share, and no row is used after its own code or a neighbour has left its
        place altogether.

        Args:
            codes: (K, d) mapped codes.

        Returns:
            True if any row was rebuilt. Always False in literal mode, which has no table.

        Raises:
            ValueError: fewer than 2 codes.
        """
        _check_codes(codes)
        if self.mode == "literal":
            return False
        codes = codes.detach().float()
        if self._table is None or self._reference.shape != codes.shape or self._reference.device != codes.device:
            self._build(codes)
            return True
        change = codes.index_select(0, self._probe).sub_(codes).sub_(self._offset)
        strain = _relative_norm(change, self._offset)
        # One transfer for both numbers.
        total, num_suspects = torch.stack((strain.clamp(max=1.0).sum(), (strain > 1.0).sum())).tolist()
        jumped = None
        if num_suspects:
            jumped = self._find_jumped(codes, strain > 1.0)
            self._num_jumped += int(jumped.sum())
            total = float(strain[~(jumped | jumped[self._probe])].clamp(max=1.0).sum())
        if total + self._num_jumped > self.max_strain * len(codes):
            self._build(codes)
            return True
        if jumped is None or not jumped.any():
            return False
        self._replace_rows(codes, jumped)
        return True

    @torch.no_grad()
    def forward(self, indices: Tensor, codes: Tensor) -> Tensor:
        """Draw j ~ pi(.|i) for every code i.

        Args:
            indices: int64 codes of any shape.
            codes: (K, d) mapped codes. Calibrated sampling reads the table of the last `prepare`, and only makes one
                where there is none for a book of this size and device.

        Returns:
            int64 codes of the same shape.

        Raises:
            ValueError: fewer than 2 codes.
        """
        _check_codes(codes)
        if self.epsilon == 0.0:
            return indices.clone()
        flat = indices.flatten()
        draw = torch.rand(flat.shape, device=flat.device)
        moves = draw < self.epsilon
        # Given that a token moves, its draw is uniform below epsilon: it serves a second time.
        uniform = (draw / self.epsilon).clamp(max=_BELOW_ONE)
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
        return float(torch.special.entr(table_probabilities(self._table)).sum(dim=1).exp().mean())

    def _sample_table(self, indices: Tensor, codes: Tensor, uniform: Tensor) -> Tensor:
        table = self._table
        if table is None or len(table.neighbors) != len(codes) or table.neighbors.device != codes.device:
            self.prepare(codes)
            table = self._table
            assert table is not None
        slot = torch.searchsorted(table.cumulative[indices], uniform[:, None], right=True)
        return table.neighbors[indices].gather(1, slot).squeeze(1).long()

    @torch.compiler.disable
    def _move_literal(self, indices: Tensor, codes: Tensor, moves: Tensor, uniform: Tensor) -> Tensor:
        """Sizes depend on the data throughout: one break in a compiled graph instead of one at each of them."""
        moved = indices.clone()
        if moves.any():
            moved[moves] = self._sample_literal(indices[moves], codes, uniform[moves])
        return moved

    def _sample_literal(self, indices: Tensor, codes: Tensor, uniform: Tensor) -> Tensor:
        distinct, row, counts = indices.unique(return_inverse=True, return_counts=True)
        by_row = row.argsort()
        elements = _CPU_ELEMENTS if indices.device.type == "cpu" else _GPU_ELEMENTS
        num_rows = max(1, elements // len(codes))
        tokens_of_chunk = by_row.split([int(chunk.sum()) for chunk in counts.split(num_rows)])
        sampled = torch.empty_like(indices)
        for number, (some, tokens) in enumerate(zip(distinct.split(num_rows), tokens_of_chunk, strict=True)):
            weights, entropy = _literal_weights(codes, some)
            sampled[tokens] = _draw(weights, row[tokens] - number * num_rows, uniform[tokens])
            if number == 0:
                self._literal_neighbors = float(entropy.exp().mean())
        return sampled

    def _build(self, codes: Tensor) -> None:
        every = torch.arange(len(codes), device=codes.device)
        _, neighbors, probabilities = _neighborhood(codes, every, self.perplexity, self.num_neighbors)
        self._table = NeighborTable(neighbors, _cumulative(probabilities))
        self._reference = codes.clone()
        self._probe = neighbors[:, self._probe_rank].long()
        self._offset = codes[self._probe] - codes
        self._num_jumped = 0

    @property
    def _probe_rank(self) -> int:
        assert self._table is not None
        return min(round(self.perplexity), self._table.neighbors.shape[1]) - 1

    def _find_jumped(self, codes: Tensor, suspects: Tensor) -> Tensor:
        """Which of the suspects, (K,) bool, were left by most neighbours and not only by one that jumped itself."""
        assert self._table is not None
        rows = suspects.nonzero().flatten()
        neighbors = self._table.neighbors[rows].long()
        before = self._reference[neighbors] - self._reference[rows, None]
        strain = _relative_norm(codes[neighbors] - codes[rows, None] - before, before)
        jumped = torch.zeros_like(suspects)
        jumped[rows] = (strain > 1.0).float().mean(dim=1) > 0.5
        return jumped

    def _replace_rows(self, codes: Tensor, jumped: Tensor) -> None:
        assert self._table is not None
        neighbors, cumulative = self._table
        # Rows that list a code which is no longer there: its probability goes to the row's other neighbours.
        # (index_select takes 3 ms here where indexing takes 22, for 16,384 codes with 128 neighbours on one core.)
        listing = jumped.index_select(0, neighbors.flatten()).view(neighbors.shape).any(dim=1).nonzero().flatten()
        remaining = table_probabilities(NeighborTable(neighbors[listing], cumulative[listing]))
        remaining.masked_fill_(jumped[neighbors[listing].long()], 0.0)
        cumulative[listing] = _cumulative(remaining)
        stale = jumped.clone()
        stale[listing] |= remaining.sum(dim=1) == 0
        rows = stale.nonzero().flatten()
        _, neighbors[rows], probabilities = _neighborhood(codes, rows, self.perplexity, self.num_neighbors)
        cumulative[rows] = _cumulative(probabilities)
        # In the frame of their new neighbours, which have drifted since the table was built; some may be new there too.
        near = neighbors[jumped, :_NEAR].long()
        drift = (codes[near] - self._reference[near]).median(dim=1).values
        self._reference[jumped] = codes[jumped] - drift
        lost = (jumped | jumped[self._probe]).nonzero().flatten()
        listed = table_probabilities(NeighborTable(neighbors[lost], cumulative[lost])) > 0
        # The first neighbour from the probe's rank on that is still listed.
        rank = (listed.roll(-self._probe_rank, dims=1).int().argmax(dim=1) + self._probe_rank) % listed.shape[1]
        self._probe[lost] = neighbors[lost, rank].long()
        self._offset[lost] = self._reference[self._probe[lost]] - self._reference[lost]


def transition_matrix(
    codes: Tensor,
    epsilon: float = 0.7,
    mode: Literal["calibrated", "literal"] = "calibrated",
    perplexity: float = 32.0,
    num_neighbors: int = 256,
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
    every = torch.arange(len(codes), device=codes.device)
    if mode == "literal":
        distances = torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist")
        moves = (-distances).fill_diagonal_(-torch.inf).softmax(dim=1)
    else:
        _, neighbors, probabilities = _neighborhood(codes, every, perplexity, num_neighbors)
        moves = torch.zeros(len(codes), len(codes), dtype=codes.dtype, device=codes.device)
        moves.scatter_(1, neighbors.long(), probabilities.to(codes.dtype))
    moves = epsilon * moves / moves.sum(dim=1, keepdim=True)
    moves[every, every] = 1.0 - epsilon
    return moves


def table_probabilities(table: NeighborTable) -> Tensor:
    """Probabilities (K, k) of a table's neighbours."""
    return table.cumulative.diff(dim=1, prepend=torch.zeros_like(table.cumulative[:, :1]))


def _neighborhood(codes: Tensor, rows: Tensor, perplexity: float, num_neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances, neighbours and calibrated probabilities, each (R, k), of some codes."""
    others = len(codes) - 1
    if others < num_neighbors:
        num_neighbors, perplexity = others, min(perplexity, max(1.0, others / 2))
    squared, neighbors = nearest_neighbors(codes, rows, num_neighbors)
    return squared, neighbors, calibrated_probabilities(squared, perplexity)


def _relative_norm(change: Tensor, before: Tensor) -> Tensor:
    return change.norm(dim=-1) / before.norm(dim=-1).clamp_min(torch.finfo(before.dtype).tiny)


def _cumulative(probabilities: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(dim=1)
    # Ends at exactly 1, so that every draw below 1 finds a neighbour of positive probability.
    return cumulative / cumulative[:, -1:]


def _literal_weights(codes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-d(c_i, c_j)) up to a factor a row, (R, K padded) with 0 for j = i, and the entropy of each row, (R,)."""
    with torch.autocast(codes.device.type, enabled=False):  # half precision would not tell near codes apart
        left, right = score_factors(codes.float(), codes.float(), _BLOCK)
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


def _check_codes(codes: Tensor) -> None:
    if codes.ndim != 2 or len(codes) < 2:
        raise ValueError(f"QPM moves between at least 2 codes (K, d), got {tuple(codes.shape)}.")
