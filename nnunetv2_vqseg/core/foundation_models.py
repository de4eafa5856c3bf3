"""Foundation models that timm does not know by name (VQ-Seg, Table 4), as plain facts."""

from __future__ import annotations

from typing import NamedTuple


class Described(NamedTuple):
    """A model whose architecture timm has, and its weights elsewhere.

    timm: name of the architecture.
    mean, std: of the pixels in [0, 1] that it was trained with.
    repository, file: of the weights on the Hugging Face hub.
    """

    timm: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    repository: str
    file: str


OTHERS = {
    # The image tower; pixels as its open_clip_config.json has them, which are those of OpenAI's CLIP.
    "biomedclip": Described(
        "vit_base_patch16_224",
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "open_clip_pytorch_model.bin",
    ),
    # Radiographs are grey: one value for all channels, as its preprocessor_config.json has it (in public copies of it).
    "rad-dino": Described(
        "vit_base_patch14_dinov2",
        (0.5307, 0.5307, 0.5307),
        (0.2583, 0.2583, 0.2583),
        "microsoft/rad-dino",
        "model.safetensors",
    ),
}
"""By the name that the key `foundation_model` and the planner's `-encoder` take."""


def timm_name(name: str) -> str:
    """timm's name of a model's architecture."""
    return OTHERS[name].timm if name in OTHERS else name
