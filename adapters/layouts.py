"""Layouts and patch orders that several families share."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor

from .base import Features, Grid, Layout, whole


def square(n: int) -> Grid | None:
    """The grid of n tokens of a square picture, None if n is no square."""
    side = isqrt(n)
    return (1, side, side) if side * side == n else None


def filled(grid: Grid) -> Layout:
    """One crop of a known grid."""
    return whole(prod(grid), grid)


def merged(n: int, grid: Grid) -> Layout:
    """One crop of n tokens, each made of a square of the patches of a (frames, rows, columns) grid."""
    frames, rows, columns = grid
    side = round((prod(grid) / n) ** 0.5) or 1
    grid = (frames, rows // side, columns // side)
    return whole(n, grid if prod(grid) == n else None)


def squares(config: Any, features: Features) -> list[Layout]:
    """Every entry is one square image, tile or frame."""
    return [whole(n, square(n)) for n in features.rows]


def crops(sizes: list[Grid], *, skip: int = 0) -> Layout:
    """Several crops behind each other, each with `skip` rows before it that are no patches."""
    parts = []
    for number, (frames, rows, columns) in enumerate(sizes):
        parts += [torch.full((skip,), -1), torch.full((frames * rows * columns,), number)]
    return Layout(crop=torch.cat(parts), grids=tuple(sizes))


def square_videos(config: Any, features: Features, *, newline: int = 0) -> list[Layout]:
    """Every entry holds the frames of one video, square ones, and then `newline` rows that are no patches.

    Older versions of transformers append the newline behind the encoding.
    """
    frames = features.pixels.shape[1]
    result = []
    for n in features.rows:
        patches = n - n % frames
        grid = square(patches // frames)
        crop = torch.cat([torch.zeros(patches), -torch.ones(newline)]).long()
        result.append(Layout(crop=crop, grids=(None if grid is None else (frames, *grid[1:]),)))
    return result


def merge_size(config: Any) -> int:
    """How many rows, and columns, of patches make one token."""
    vision = config.vision_config
    size = getattr(vision, "spatial_merge_size", None) or getattr(vision, "merge_size", None)
    return size or vision.merge_kernel_size[0]


def grid_thw(config: Any, features: Features) -> list[Layout]:
    """Sizes from `image_grid_thw` or `video_grid_thw`, in patches, of which a square makes a token."""
    merge = merge_size(config)
    grids = features.arguments[f"{features.modality}_grid_thw"].tolist()
    return [filled((t, h // merge, w // merge)) for t, h, w in grids]


def image_sizes(config: Any, features: Features) -> list[Layout]:
    """Sizes from `image_sizes`, in pixels; a row-break token follows every line but the last."""
    side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    sizes = [(int(h) // side, int(w) // side) for h, w in features.arguments["image_sizes"]]
    return [whole(h * w, (1, h, w), breaks=True) for h, w in sizes]


def packed_tiles(config: Any, features: Features) -> list[Layout]:
    """Any-resolution images: a base view, then all tiles as one picture whose lines end with a newline row."""
    return [_packed(index, features.tile) for index in features.packed]


def _packed(index: Tensor, tile: int) -> Layout:
    newline, patches = index < 0, index.long()
    crop, end = torch.where(newline, -1, torch.zeros_like(patches)), torch.full_like(patches, -1)
    grids: list[Grid | None] = [square(tile)]
    if len(index) > tile + 1:  # more than the base view
        rest = newline[tile:]
        lines = int(rest.sum()) or isqrt(len(rest))
        width = len(rest) // lines
        line = torch.arange(len(rest)) // width
        if rest.any():
            end[tile:] = torch.where(rest, -1, tile + line * width + width - 1)
        if bool((index % 1 != 0).any()):  # interpolated: a row is no longer of one tile
            crop[tile:] = torch.where(rest, -1, 1)
            grids.append((1, lines, width - bool(rest.any())))
            patches[tile:] = -1
        else:
            number = torch.where(rest, -1, patches[tile:] // tile)
            for one in number[~rest].unique().tolist():
                crop[tile:][number == one] = len(grids)
                rows = len(line[number == one].unique())
                grids.append((1, rows, int((number == one).sum()) // rows))
    return Layout(crop=crop, grids=tuple(grids), line_end=end, patches=patches)


def one_to_one(config: Any, features: Features, entered: Tensor) -> Tensor:
    """The merger makes one row of every row."""
    return entered.flatten(0, -2)[:, None]


def neighbours(config: Any, features: Features, entered: Tensor) -> Tensor:
    """Patches of one token follow each other in the rows of the merger's input."""
    return entered.reshape(-1, merge_size(config) ** 2, entered.shape[-1])


def stacked(config: Any, features: Features, entered: Tensor) -> Tensor:
    """Pixel shuffle: patches of one token follow each other in the channels of the merger's input."""
    width = config.vision_config.hidden_size
    return entered.reshape(-1, entered.shape[-1] // width, width)


def pooled(config: Any, features: Features, entered: Tensor) -> Tensor:
    """Average pooling of a square picture [images, patches, d] in square blocks."""
    images, patches, _ = entered.shape
    side = isqrt(patches) // isqrt(features.rows[0])
    return in_blocks(entered.flatten(0, 1), (images, isqrt(patches), isqrt(patches)), side)


def in_blocks(values: Tensor, grid: Grid, side: int) -> Tensor:
    """[frames rows columns, c] of patches in raster order -> [.., side side, c], a square of patches a token."""
    frames, rows, columns = grid
    blocks = values.view(frames, rows // side, side, columns // side, side, -1).transpose(2, 3)
    return blocks.reshape(-1, side * side, values.shape[-1])


def in_squares(config: Any, features: Features, values: Tensor, patches: int) -> Tensor:
    """Every image or tile is a square picture [B, patches of it, c] in raster order."""
    count, across, _ = square(values.shape[1])
    return in_blocks(values.flatten(0, 1), (len(values) * count, across, across), isqrt(patches))


def in_grids(layouts: Callable[[Any, Features], list[Layout]]) -> Callable[[Any, Features, Tensor, int], Tensor]:
    """Images of any size follow each other, each in raster order; `layouts` tells their grids in tokens."""

    def inside(config: Any, features: Features, values: Tensor, patches: int) -> Tensor:
        side, result, rest = isqrt(patches), [], values.flatten(0, 1)
        for layout in layouts(config, features):
            frames, rows, columns = layout.grids[0]
            grid = (frames, rows * side, columns * side)
            result.append(in_blocks(rest[: prod(grid)], grid, side))
            rest = rest[prod(grid) :]
        return torch.cat(result)

    return inside


def by_modality(image: Callable, video: Callable) -> Callable[[Any, Features], list[Layout]]:
    """One layout for images and another for videos."""
    return lambda config, features: (video if features.modality == "video" else image)(config, features)
