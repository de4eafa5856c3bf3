"""Vector quantisation with a frozen codebook behind a trainable linear map (3.3, 4.2; SimVQ, reference [45])."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.modules.collectives import is_distributed, mean_over_processes
from nnunetv2_vqseg.modules.nd import AXES, CONV
from nnunetv2_vqseg.modules.vq.entropy import assignment_entropy
from nnunetv2_vqseg.modules.vq.lookup import nearest_codes

# Spread of the copies made when there are fewer samples than codes, in standard deviations of the samples.
_JITTER = 0.1


class QuantizerOutput(NamedTuple):
    """What quantising features z, (B, C, H, W) or (B, C, D, H, W), gives; N is the number of their positions.

    `quantized`: q(z), straight-through, in the shape and dtype of z.
    `indices`: codes, int64 in the shape of z without C (Eq. 2).
    `loss`, `entropy`: scalars, L_vq and the entropy regulariser, which is zero when not training or switched off.
    `embedded`: as `quantized` in value, with the gradient of the codebook's own losses: for losses that train the
        projections but not, without `codebook_trains_features`, what came before them.
    `tokens`, `codes`: (N, d) and (K, d), what was looked up and the mapped book, without gradient.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    entropy: Tensor
    embedded: Tensor
    tokens: Tensor
    codes: Tensor


class VectorQuantizer(nn.Module):
    """Replaces each feature vector by the nearest entry of a mapped codebook (Eq. 2).

    The codebook (K, d) is a buffer that the optimiser never touches; `mapping`, a (d, d) matrix, moves all its codes at
    once. `project_in` takes features to the code space and `project_out` takes codes back.

    Gradients: the straight-through estimator acts in the code space, q = project_out(c) with dq/dt = dproject_out/dt
    for the token t = project_in(z), so the task's gradient reaches project_out, project_in and z. Without projections
    it reaches z unchanged. `mapping` learns from L_vq and the entropy term alone: a decoder that could move codes would
    make perturbations small instead of learning to bear them.

    L_vq = |sg[t] - c|^2 + beta |t - sg[c]|^2, averaged over tokens and their d elements, as in VQGAN and SimVQ.

    Args:
        channels: C of the features.
        num_codes: K, at least 2.
        code_dim: d; None keeps the features' width and has no projections (literal setting, with normalize=False).
        normalize: compare directions. Tokens go through LayerNorm and then to unit length, mapped codes to unit length,
            so that the squared distance is 2 - 2 cos. A norm over the batch would leak the student's statistics into
            the teacher.
        beta: weight of the commitment term, >= 0.
        entropy_tokens: tokens drawn at random in each training step for the entropy term; 0 switches it off.
        entropy_temperature: divides the squared distances in the entropy term, without `normalize` scaled to the mean
            of 2 that they have on the sphere. With 0.05, a token among 16,384 codes spread evenly over the 16-d sphere
            has about 10 effective codes.
        codebook_trains_features: let the gradients of L_vq and of the entropy term reach z. Otherwise they end at
            project_in: the commitment alone would draw all features to few codes, and the entropy term that prevents
            it pulls harder at z than a segmentation loss.
        restart_after: steps without use after which `observe` restarts a code; 0: never.
        ndim: spatial dimensions of the features, 2 or 3.

    Raises:
        ValueError: an argument is out of range.
    """

    codebook: Tensor

    def __init__(
        self,
        channels: int,
        num_codes: int = 16384,
        code_dim: int | None = 16,
        normalize: bool = True,
        beta: float = 0.25,
        entropy_tokens: int = 512,
        entropy_temperature: float = 0.05,
        codebook_trains_features: bool = False,
        restart_after: int = 500,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        if channels < 1 or (code_dim is not None and code_dim < 1):
            raise ValueError(f"channels and code_dim must be at least 1, got {channels} and {code_dim}.")
        if num_codes < 2:
            raise ValueError(f"num_codes must be at least 2, got {num_codes}.")
        if beta < 0 or entropy_tokens < 0 or restart_after < 0:
            raise ValueError(
                f"beta, entropy_tokens and restart_after must not be negative, got {beta}, {entropy_tokens} and "
                f"{restart_after}."
            )
        if entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature must be positive, got {entropy_temperature}.")
        if ndim not in CONV:
            raise ValueError(f"ndim must be 2 or 3, got {ndim}.")
        self.channels = channels
        self.num_codes = num_codes
        self.code_dim = channels if code_dim is None else code_dim
        self.normalize = normalize
        self.beta = beta
        self.entropy_tokens = entropy_tokens
        self.entropy_temperature = entropy_temperature
        self.codebook_trains_features = codebook_trains_features
        self.restart_after = restart_after
        self.ndim = ndim

        self.project_in: nn.Module = nn.Identity() if code_dim is None else CONV[ndim](channels, code_dim, 1)
        self.project_out: nn.Module = nn.Identity() if code_dim is None else CONV[ndim](code_dim, channels, 1)
        self.mapping = nn.Linear(self.code_dim, self.code_dim, bias=False)
        nn.init.eye_(self.mapping.weight)
        self.register_buffer("codebook", torch.randn(num_codes, self.code_dim) * self.code_dim**-0.5)

        self.initialized = False
        # Not a buffer: the network's state is loaded by key at prediction, and DDP would overwrite it from rank 0.
        self._steps_since_use = torch.zeros(num_codes, dtype=torch.int64)

    def extra_repr(self) -> str:
        names = ["channels", "num_codes", "code_dim", "normalize", "beta", "entropy_tokens", "entropy_temperature"]
        names += ["codebook_trains_features", "restart_after", "ndim"]
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantise features, (B, C, H, W) or, with `ndim` 3, (B, C, D, H, W).

        Raises:
            ValueError: z has another shape or another C.
        """
        tokens = self.tokens(z)
        own = tokens if self.codebook_trains_features or not self.training else self.tokens(z.detach())
        with torch.autocast(z.device.type, enabled=False):
            wants_entropy = self.training and self.entropy_tokens > 0
            with torch.set_grad_enabled(wants_entropy and torch.is_grad_enabled()):
                codes = self.codes()
            indices = nearest_codes(tokens, codes)
            # Mapping the chosen rows again is cheaper than a gradient of the size of the book.
            chosen = self._mapped(self.codebook[indices])
            loss = (own.detach() - chosen).square().mean()
            loss = loss + self.beta * (own - chosen.detach()).square().mean()
            entropy = self._entropy(own, codes) if wants_entropy else loss.new_zeros(())
            # Value c exactly, gradient of the token.
            straight_through = chosen.detach() + (tokens - tokens.detach())
        grid = (z.shape[0], *z.shape[2:])
        quantized = embedded = self._to_features(straight_through, grid).to(z.dtype)
        if own is not tokens:
            embedded = self._to_features(chosen.detach() + (own - own.detach()), grid).to(z.dtype)
        return QuantizerOutput(quantized, indices.view(grid), loss, entropy, embedded, tokens.detach(), codes.detach())

    def tokens(self, z: Tensor) -> Tensor:
        """Features z as float32 tokens (N, d) of the code space, normalised if the setting says so.

        Raises:
            ValueError: as `forward`.
        """
        if z.ndim != self.ndim + 2 or z.shape[1] != self.channels:
            raise ValueError(f"features must be (B, {self.channels}, {AXES[self.ndim]}), got {tuple(z.shape)}.")
        projected = self.project_in(z)
        with torch.autocast(z.device.type, enabled=False):
            tokens = projected.movedim(1, -1).flatten(0, -2)
            tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            if self.normalize:
                tokens = F.normalize(F.layer_norm(tokens, (self.code_dim,)), dim=1)
        return tokens

    def codes(self) -> Tensor:
        """The mapped book (K, d), unit vectors if normalised; differentiable with respect to `mapping`."""
        return self._mapped(self.codebook)

    def embed(self, indices: Tensor) -> Tensor:
        """Codes (B, ...) as features (B, C, ...), without a gradient to `mapping`."""
        with torch.no_grad():
            codes = self._mapped(self.codebook[indices.flatten()])
        return self._to_features(codes, indices.shape)

    def displacement(self, before: Tensor, after: Tensor) -> Tensor:
        """project_out(c_after) - project_out(c_before), (B, C, ...), of codes (B, ...); no gradient to `mapping`."""
        return self.embed(after) - self.embed(before)

    @torch.no_grad()
    def initialize_from_samples(self, tokens: Tensor) -> None:
        """Place the mapped codes on samples, without repeats as long as there are distinct ones.

        With fewer distinct samples than codes, the others are jittered copies. All ranks get rank 0's book.

        Args:
            tokens: (N, d) as `tokens` returns them.

        Raises:
            ValueError: no token, or tokens of another width.
        """
        self._check_tokens(tokens)
        if len(tokens) == 0:
            raise ValueError("The codebook cannot start from 0 tokens; pass at least one batch of features.")
        samples = tokens.to(self.codebook).unique(dim=0)
        samples = samples[torch.randperm(len(samples), device=samples.device)[: self.num_codes]]
        missing = self.num_codes - len(samples)
        if missing:
            copies = samples[torch.randint(len(samples), (missing,), device=samples.device)]
            spread = samples.std(dim=0, correction=0)
            copies = copies + _JITTER * spread * torch.randn_like(copies)
            samples = torch.cat((samples, F.normalize(copies, dim=1) if self.normalize else copies))
        self.codebook.copy_(self._unmapped(samples))
        self._steps_since_use.zero_()
        self.initialized = True
        if is_distributed():
            dist.broadcast(self.codebook, 0)

    @torch.no_grad()
    def observe(self, indices: Tensor, tokens: Tensor | None = None) -> int:
        """Book-keeping once a training step, after the optimiser's step and outside compiled code.

        Counts the steps since each code was last used, on any rank. Codes unused for `restart_after` steps are put on
        tokens of this batch drawn at random, at most one a token; the others wait for the next step. Every rank must
        call this: rank 0 draws and all get its book. Without tokens, and so without a restart, no GPU is waited for.

        Args:
            indices: int64 of any shape, the codes of this step's tokens.
            tokens: (N, d) as `tokens` returns them; None: no restart.

        Returns:
            Number of codes restarted.

        Raises:
            ValueError: tokens of another width.
        """
        used = torch.zeros(self.num_codes, dtype=torch.uint8, device=indices.device)
        used.index_fill_(0, indices.flatten(), 1)
        if is_distributed():
            dist.all_reduce(used, dist.ReduceOp.MAX)
        self._steps_since_use = (self._steps_since_use.to(used.device) + 1) * (1 - used)
        if not self.restart_after or tokens is None:
            return 0
        self._check_tokens(tokens)
        # The same on every rank, so that all take part in the broadcast or none does.
        dead = (self._steps_since_use >= self.restart_after).nonzero().flatten()
        if not len(dead):
            return 0
        tokens = tokens[tokens.isfinite().all(dim=1)]  # a step that was skipped may have others
        drawn = torch.randperm(len(tokens), device=tokens.device)[: len(dead)]
        dead = dead[torch.randperm(len(dead), device=dead.device)[: len(drawn)]]
        self.codebook[dead] = self._unmapped(tokens[drawn])
        self._steps_since_use[dead] = 0
        if is_distributed():
            dist.broadcast(self.codebook, 0)
            dist.broadcast(self._steps_since_use, 0)
        return len(drawn)

    def bookkeeping_state(self) -> dict[str, Any]:
        """What resuming needs beside `state_dict()`: steps since each code's use, and whether codes were placed."""
        return {"steps_since_use": self._steps_since_use.cpu().clone(), "initialized": self.initialized}

    def load_bookkeeping_state(self, state: dict[str, Any]) -> None:
        """Restore what `bookkeeping_state` returned.

        Raises:
            ValueError: it belongs to a codebook of another size.
        """
        steps = state["steps_since_use"]
        if steps.shape != (self.num_codes,):
            raise ValueError(
                f"The checkpoint's book-keeping is for {len(steps)} codes, this quantiser has {self.num_codes}; resume "
                "with the configuration of the checkpoint."
            )
        self._steps_since_use = steps.to(self.codebook.device, copy=True)
        self.initialized = state["initialized"]

    def _mapped(self, rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            mapped = self.mapping(rows)
            return F.normalize(mapped, dim=1) if self.normalize else mapped

    def _unmapped(self, codes: Tensor) -> Tensor:
        """Rows of the book that `mapping` takes to these codes; least squares where it has lost a dimension."""
        # Small and rare: on the CPU every backend has it in double precision.
        inverse = torch.linalg.pinv(self.mapping.weight.detach().double().cpu())
        return codes.to(self.codebook) @ inverse.to(self.codebook).T

    def _to_features(self, codes: Tensor, grid: tuple[int, ...]) -> Tensor:
        return self.project_out(codes.view(*grid, self.code_dim).movedim(-1, 1))

    def _entropy(self, tokens: Tensor, codes: Tensor) -> Tensor:
        if len(tokens) > self.entropy_tokens:
            tokens = tokens[torch.randperm(len(tokens), device=tokens.device)[: self.entropy_tokens]]
        temperature: float | Tensor = self.entropy_temperature
        if not self.normalize:
            temperature = temperature * _mean_squared_distance(tokens.detach(), codes.detach()) / 2.0
        return assignment_entropy(tokens, codes, temperature, ddp=is_distributed())

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.ndim != 2 or tokens.shape[1] != self.code_dim:
            raise ValueError(f"tokens must be (N, {self.code_dim}), got {tuple(tokens.shape)}.")


def _mean_squared_distance(tokens: Tensor, codes: Tensor) -> Tensor:
    """Mean of |x - c|^2 over all pairs (tokens of all processes), at least a tiny positive number."""
    center = codes.mean(dim=0)
    around_codes = (codes - center).square().sum(dim=1).mean()
    spread = around_codes + mean_over_processes((tokens - center).square().sum(dim=1).mean())
    return spread.clamp_min(torch.finfo(spread.dtype).tiny)
