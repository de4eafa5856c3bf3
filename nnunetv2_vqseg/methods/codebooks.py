"""What a network's codebooks need beside its gradient: a start, restarts, and a count of the codes in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.modules.vq.usage import CodebookUsage
from nnunetv2_vqseg.networks.vq import VQSegNet


class Codebooks:
    """The bookkeeping of all quantised stages, that of `vq_stage` first.

    seen: codes (B, ...) and tokens (N, d) of each quantised stage in this step, which `after_step` takes in.
    """

    def __init__(self, config: Any, context: Context) -> None:
        self.config = config
        self.ddp = context.ddp
        self.seen: Sequence[tuple[Tensor, Tensor]] = ()
        self.usage = CodebookUsage(config.num_codes, device=context.device) if config.quantize else None
        self._since_look = 0

    @torch.no_grad()
    def start(self, net: VQSegNet, batches: Iterator[Batch]) -> None:
        """Codes start from tokens of the untrained encoder, labelled and unlabelled."""
        quantizers = net.quantizers
        if not quantizers:
            return
        net.eval()
        tokens: dict[int, list[Tensor]] = {stage: [] for stage in quantizers}
        while (
            min(sum(map(len, own)) for own in tokens.values()) < self.config.num_codes and len(tokens[net.stage]) < 32
        ):
            batch = next(batches)
            images = batch.labeled if batch.unlabeled is None else torch.cat((batch.labeled, batch.unlabeled))
            maps = net.backbone.encode(net, images, max(quantizers))
            for stage, quantizer in quantizers.items():
                tokens[stage].append(quantizer.tokens(maps[stage]).float())
        for stage, quantizer in quantizers.items():
            quantizer.initialize_from_samples(torch.cat(tokens[stage]))
            if self.ddp:
                for state in quantizer.state_dict().values():
                    torch.distributed.broadcast(state, 0)

    @torch.no_grad()
    def after_step(self, net: VQSegNet) -> None:
        """Count the codes of the step, and restart unused ones now and then; every process must call this."""
        if self.usage is None or not self.seen:
            return
        self._since_look = (self._since_look + 1) % self.config.restart_every
        for quantizer, (indices, tokens) in zip(net.quantizers.values(), self.seen, strict=True):
            quantizer.observe(indices, tokens if self._since_look == 0 else None)
        self.usage.add(self.seen[0][0])

    def on_epoch_done(self) -> dict[str, float]:
        """Use of the codebook of `vq_stage` (Fig. 7), with the number of tokens it was counted over."""
        if self.usage is None:
            return {}
        self.usage.reduce()
        values = {
            "utilization": self.usage.utilization,
            "utilization_tokens": float(self.usage.num_tokens),
            "perplexity": self.usage.perplexity,
        }
        self.usage.reset()
        return values

    def state(self, net: VQSegNet) -> dict[str, Any]:
        """For the checkpoint."""
        main = None if net.quantizer is None else net.quantizer.bookkeeping_state()
        others = {stage: other.bookkeeping_state() for stage, other in net.quantizers.items() if stage != net.stage}
        return {"quantizer": main, "more_quantizers": others, "steps_since_look": self._since_look}

    def load_state(self, net: VQSegNet, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        for stage, quantizer in net.quantizers.items():
            quantizer.load_bookkeeping_state(
                state["quantizer"] if stage == net.stage else state["more_quantizers"][stage]
            )
        self._since_look = state.get("steps_since_look", 0)
