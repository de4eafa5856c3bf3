"""Entropy regulariser of the codebook (4.2, reference [46])."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import mean_over_processes

# Assignments of one chunk of tokens: 4 million, 16 MB in float32.
_CHUNK_ELEMENTS = 2**22


def assignment_entropy(tokens: Tensor, codes: Tensor, temperature: float | Tensor, ddp: bool = False) -> Tensor:
    """Mean entropy of the tokens' soft assignments minus entropy of the mean assignment.

    With p_n = softmax(-|x_n - c|^2 / temperature) and p their mean, this is -mean_n KL(p_n || p): minus the information
    (in nats) that a token's position carries about its code. Low when every token is sure and all codes are used.

    The gradient is written down instead of recorded, d/d logit_nk = p_nk (log p_k / p_nk + KL_n) / N, so that memory
    grows with one chunk of tokens x K and not with what autograd would keep of N x K. It can be differentiated once.

    Args:
        tokens: (N, d), N > 0.
        codes: (K, d).
        temperature: divides the squared distances, > 0.
        ddp: take the mean assignment over all processes, each with the same number of tokens; the value is then this
            process's part, and gradients averaged by DistributedDataParallel are those of one process with all tokens.

    Returns:
        Scalar in [-log(min(N, K)), 0].
    """
    gradient_tokens, gradient_codes, value = _value_and_gradients(tokens.detach(), codes.detach(), temperature, ddp)
    # A term that is linear in the inputs, has the gradient above and is zero in value.
    linear = (tokens * gradient_tokens).sum() + (codes * gradient_codes).sum()
    return value + (linear - linear.detach())


@torch.no_grad()
def _value_and_gradients(
    tokens: Tensor, codes: Tensor, temperature: float | Tensor, ddp: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = len(tokens)
    norms = codes.square().sum(dim=1)
    chunks = tokens.split(max(1, _CHUNK_ELEMENTS // len(codes)))

    def log_assignments(some_tokens: Tensor) -> Tensor:
        # |x|^2 is the same for all codes and drops out of the softmax.
        return ((2.0 * some_tokens @ codes.T - norms) / temperature).log_softmax(dim=1)

    mean = torch.zeros_like(norms)
    for some_tokens in chunks:
        mean += log_assignments(some_tokens).exp_().sum(dim=0)
    mean = mean_over_processes(mean / count) if ddp else mean / count
    log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    value = norms.new_zeros(())
    gradient_tokens = []
    gradient_codes = torch.zeros_like(codes)
    for some_tokens in chunks:
        log_p = log_assignments(some_tokens)
        p = log_p.exp()
        log_ratio = log_mean - log_p
        divergence = -(p * log_ratio).sum(dim=1, keepdim=True)
        value -= divergence.sum() / count
        gradient_logits = p * (log_ratio + divergence) / count
        # The rows of gradient_logits sum to zero, so the token's own 2x of d|x - c|^2 / dx drops out.
        gradient_tokens.append(gradient_logits @ codes * (2.0 / temperature))
        gradient_codes += (gradient_logits.T @ some_tokens - gradient_logits.sum(dim=0)[:, None] * codes) * (
            2.0 / temperature
        )
    return torch.cat(gradient_tokens), gradient_codes, value
