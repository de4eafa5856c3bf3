"""Names of a file's tensors, turned into timm's.

- open_clip's files, as BiomedCLIP's: `visual.trunk.X` is timm's `X`; `visual.head` and the text tower are left out.
- open_clip's with OpenAI's towers, as CLIP's: timm renames those of `visual` itself; `visual.proj`, its head, and the
  text tower are left out.
- Those of transformers' Dinov2Model, as RAD-DINO's; `embeddings.mask_token` is left out:

| transformers | timm |
|---|---|
| `embeddings.cls_token`, `embeddings.position_embeddings` | `cls_token`, `pos_embed` |
| `embeddings.patch_embeddings.projection` | `patch_embed.proj` |
| `encoder.layer.N.attention.attention.query`, `key`, `value` | `blocks.N.attn.qkv`, one below the other |
| `encoder.layer.N.attention.output.dense` | `blocks.N.attn.proj` |
| `encoder.layer.N.layer_scale1.lambda1` | `blocks.N.ls1.gamma` |
| `encoder.layer.N.norm1`, `mlp.fc1`, ... | `blocks.N.norm1`, `mlp.fc1`, ... |
| `layernorm` | `norm` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

TRUNK = "visual.trunk."
PLAIN = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
)


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under timm's names, by what names it has; one that is of neither kind stays as it is."""
    if any(key.startswith(TRUNK) for key in state):
        return {key.removeprefix(TRUNK): value for key, value in state.items() if key.startswith(TRUNK)}
    if "visual.class_embedding" in state:
        return {key: value for key, value in state.items() if key.startswith("visual.") and key != "visual.proj"}
    if "embeddings.patch_embeddings.projection.weight" in state:
        return _of_transformers(state)
    return dict(state)


def _of_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        part = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", key)
        if part is None:
            if key != "embeddings.mask_token":
                found[_renamed(key)] = value
        elif part[2] == "query":
            three = (state[key.replace(".query.", f".{name}.")] for name in ("query", "key", "value"))
            found[f"blocks.{part[1]}.attn.qkv.{part[3]}"] = torch.cat(list(three))
    return found


def _renamed(key: str) -> str:
    for pattern, name in PLAIN:
        renamed, number = re.subn(pattern, name, key)
        if number:
            return renamed
    return key
