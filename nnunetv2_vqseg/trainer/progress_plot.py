"""nnU-Net's `progress.png` from its plain lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def draw_progress(logged: Mapping[str, list[Any]], output_folder: str) -> None:
    """As nnU-Net draws it.

    Args:
        logged: what its logger knows.
    """
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    logger = LocalLogger()
    logger.load_checkpoint(dict(logged))
    logger.plot_progress_png(output_folder)
