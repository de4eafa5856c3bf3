"""Entropy regulariser of the codebook (4.2, reference [46])."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import mean_over_processes

# Assignments of one chunk of tokens: 4 MB in float32, larger ones leave a CPU's cache; 32 MB to fill a GPU.
_CPU_ELEMENTS = 2**20
_GPU_ELEMENTS = 2**23
# Up to so many assignments (64 MB) are kept for the second pass; computing them again takes half as long again.
_KEPT_ELEMENTS = 2**24


def assignment_entropy(tokens: Tensor, codes: Tensor, temperature: float | Tensor, ddp: bool = False) -> Tensor:
    """Mean entropy of the tokens' soft assignments minus entropy of the mean assignment.

    With p_n = softmax(-|x_n - c|^2 / temperature) and p their mean, this is -mean_n KL(p_n || p): minus the information
    (in nats) that a token's position carries about its code. Low when every token is sure and all codes are used.

    The gradient is written down instead of recorded, d/d logit_nk = p_nk (log p_k / p_nk + KL_n) / N, so that memory
    grows with N + K, apart from one chunk of tokens x K and, for small N x K, the p_nk for the length of this call. It
    can be differentiated once.

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
    elements = _CPU_ELEMENTS if tokens.device.type == "cpu" else _GPU_ELEMENTS
    chunks = tokens.split(max(1, elements // len(codes)))
    # Logits up to a constant a token: |x|^2 is the same for all codes and drops out of the softmax.
    slope = codes.T * (2.0 / temperature)
    offset = -codes.square().sum(dim=1) / temperature

    def assign(some_tokens: Tensor) -> Tensor:
        return torch.addmm(offset, some_tokens, slope).softmax(dim=1)

    kept = [assign(some_tokens) for some_tokens in chunks] if count * len(codes) <= _KEPT_ELEMENTS else None
    mean = torch.zeros_like(offset)
    for number, some_tokens in enumerate(chunks):
        mean += (assign(some_tokens) if kept is None else kept[number]).sum(dim=0)
    mean = mean_over_processes(mean / count) if ddp else mean / count
    tiny = torch.finfo(mean.dtype).tiny
    log_mean = mean.clamp_min(tiny).log()

    value = offset.new_zeros(())
    gradient_tokens = []
    gradient_slope, gradient_offset = torch.zeros_like(codes), torch.zeros_like(offset)
    for number, some_tokens in enumerate(chunks):
        p = assign(some_tokens) if kept is None else kept[number]
        gradient_logits = (log_mean - p.clamp_min(tiny).log_()).mul_(p)
        divergence = -gradient_logits.sum(dim=1, keepdim=True)
        value -= divergence.sum() / count
        gradient_logits.addcmul_(p, divergence).div_(count)
        # The rows of gradient_logits sum to zero, so the token's own 2x of d|x - c|^2 / dx drops out.
        gradient_tokens.append(gradient_logits @ slope.T)
        gradient_slope.addmm_(gradient_logits.T, some_tokens)
        gradient_offset += gradient_logits.sum(dim=0)
    gradient_codes = gradient_slope.addcmul_(gradient_offset[:, None], codes, value=-1.0).mul_(2.0 / temperature)
    return torch.cat(gradient_tokens), gradient_codes, value
