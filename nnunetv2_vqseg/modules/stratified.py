"""Stratified group sampling: drawing from a list equally from all of its parts (ARCO, NeurIPS 2023)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.pixels import Drawn

Sampling = Literal["stratified", "antithetic", "naive"]
CUTS = 4
"""Cells along each side of the square."""


@torch.no_grad()
def stratified_indices(
    counts: Tensor, number: int, sampling: Sampling = "stratified", generator: torch.Generator | None = None
) -> Tensor:
    """`number` draws with replacement from each of several lists, without waiting for the device.

    A list lies row by row on the smallest square that holds it, which is cut into 4 x 4 cells. `stratified` (SG) draws
    number // 16 times in each cell; `antithetic` (SAG) half as often, and for each draw also its mirror image about the
    cell's mean; `naive` draws anywhere. Draws that meet the end of the square behind the list, or an empty cell of a
    square smaller than 4, are made anew anywhere, and so is what 16 leaves over of `number`.

    Args:
        counts: (K,) integers, lengths of the lists.

    Returns:
        (K, number) int64, each from 0 to its list's length - 1, and 0 where that is empty.
    """
    counts = counts.long()[:, None]  # (K, 1)

    def chances(*size: int) -> Tensor:
        return torch.rand((len(counts), *size), device=counts.device, generator=generator, dtype=torch.float32)

    anywhere = (chances(number) * counts).long().clamp(max=(counts - 1).clamp(min=0))
    if sampling == "naive":
        return anywhere
    side = counts.float().sqrt().ceil().long()  # (K, 1)
    cells = torch.arange(CUTS * CUTS, device=counts.device)
    draws = number // len(cells) // (2 if sampling == "antithetic" else 1)
    places, fits = [], torch.ones((), dtype=torch.bool, device=counts.device)
    for cell in (cells // CUTS, cells % CUTS):  # rows, then columns
        begin, end = (cell * side // CUTS)[..., None], ((cell + 1) * side // CUTS)[..., None]  # (K, 16, 1)
        place = begin + (chances(len(cells), draws) * (end - begin)).long().clamp(max=(end - begin - 1).clamp(min=0))
        if sampling == "antithetic":
            place = torch.cat((place, begin + end - 1 - place), dim=2)
        places.append(place)
        fits = fits & (end > begin)
    index = (places[0] * side[..., None] + places[1]).flatten(1)
    fits = fits.expand_as(places[0]).flatten(1) & (index < counts)
    anywhere[:, : index.shape[1]] = torch.where(fits, index, anywhere[:, : index.shape[1]])
    return anywhere


@torch.no_grad()
def draw_stratified(
    labels: Tensor,
    classes: int,
    number: int,
    sampling: Sampling = "stratified",
    generator: torch.Generator | None = None,
) -> Drawn:
    """`number` pixels of each class with replacement, by `stratified_indices` of its pixels in raster order.

    Args:
        labels: (B, ...) integers; those outside 0 to `classes` - 1 are never drawn.

    Returns:
        Places (K, number); none of a class that is absent is valid.
    """
    labels = labels.flatten()
    labels = torch.where((labels < 0) | (labels >= classes), classes, labels)
    keys, order = labels.sort(stable=True)
    borders = torch.searchsorted(keys, torch.arange(classes + 1, device=labels.device))
    counts = borders.diff()
    places = borders[:-1, None] + stratified_indices(counts, number, sampling, generator)
    return Drawn(order[places.clamp(max=len(labels) - 1)], (counts > 0)[:, None].expand_as(places))
