"""Which patches of a picture pasted in the middle of a square show the picture. On the CPU, in float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Padding = Literal["area", "crop", "bilinear"]


def covered_cells(width: int, height: int, side: int) -> Tensor:
    """[side, side] float64 in [0, 1], share of every cell of the square that the picture covers."""
    cell, long = torch.arange(side, dtype=torch.float64), max(width, height)

    def along(extent: int) -> Tensor:
        pad = side * (long - extent) / (2 * long)
        return ((cell + 1).clamp_max(side - pad) - cell.clamp_min(pad)).clamp_min(0)

    return along(height)[:, None] * along(width)


def whole_cells(width: int, height: int, side: int) -> Tensor:
    """[side, side] float64, 1 inside a crop of whole cells in the middle, as many as fit the short side, else 0."""
    cell, long = torch.arange(side), max(width, height)

    def along(extent: int) -> Tensor:
        pad = (side - extent * side // long) // 2
        return (cell >= pad) & (cell < side - pad)

    return (along(height)[:, None] & along(width)).double()


def resized_cells(width: int, height: int, side: int) -> Tensor:
    """[side, side] float64 in [0, 1]: the square, 1 where the picture is, as Pillow's bilinear shrinks it."""
    long = max(width, height)
    scale = long / side
    reach, centre = max(scale, 1.0), (torch.arange(side, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(long, dtype=torch.float64)
    inside = (pixel >= (centre - reach + 0.5).floor()) & (pixel < (centre + reach + 0.5).floor())
    weights = (1 - (pixel + 0.5 - centre).abs() / reach).clamp_min(0) * inside
    weights = weights / weights.sum(1, keepdim=True)

    def along(extent: int) -> Tensor:
        start = (long - extent) // 2
        return weights[:, start : start + extent].sum(1)

    return along(height)[:, None] * along(width)


_COVERED = {"area": covered_cells, "crop": whole_cells, "bilinear": resized_cells}


def content_cells(sizes: list[tuple[int, int]], side: int, padding: Padding, threshold: float) -> Tensor:
    """[G, side * side] bool, True where at most a share `threshold` of the cell is padding, in raster order.

    Args:
        sizes: (width, height) of G pictures, each pasted in the middle of the smallest square that holds it.
        side: cells along the square.
        padding: how the share is taken: "area" exactly, "crop" of whole cells, "bilinear" as Pillow shrinks it.
    """
    covered = {size: _COVERED[padding](*size, side).flatten() for size in set(sizes)}
    return torch.stack([1 - covered[size] <= threshold for size in sizes])
