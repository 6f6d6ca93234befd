"""Places on the token grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def even_points(n: int, k: int) -> list[int]:
    """k distinct places spread evenly over 0..n-1, ascending: the middle of each of k equal stretches."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


def points_on_grid(grid: tuple[int, int, int], k: int) -> list[int]:
    """k distinct raster indices spread evenly over a (frames, rows, columns) grid, ascending.

    Frames share k as evenly as they can; inside a frame the points form rows whose spacing is as near to square as k
    allows. With fewer points than frames, k evenly spread frames keep their middle token.
    """
    frames, rows, columns = grid
    area = rows * columns
    shares = torch.zeros(frames, dtype=torch.long)
    shares += k // frames
    shares[even_points(frames, k % frames)] += 1
    points = []
    for frame, share in enumerate(shares.tolist()):
        if share == 0:
            continue
        lines = round(math.sqrt(share * rows / columns))
        lines = min(max(lines, math.ceil(share / columns), 1), rows, share)
        per_line = [share // lines] * lines
        for extra in even_points(lines, share % lines):
            per_line[extra] += 1
        for y, count in zip(even_points(rows, lines), per_line, strict=True):
            points += [frame * area + y * columns + x for x in even_points(columns, count)]
    return points


def sources_on_grid(grid: tuple[int, int, int], points: list[int]) -> Tensor:
    """[N] long: for every place on the grid the nearest of `points` (Euclidean; the last among equals).

    Points of the same frame are preferred; a frame without points goes to those of the nearest frame. Where the points
    are the middles of equal blocks, every place belongs to the point of its block: the middle of an even block is the
    later of its two middle places, hence the last among equals.
    """
    frames, rows, columns = grid
    place = torch.stack(
        torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij"), -1
    ).reshape(-1, 3)
    place = place * torch.tensor([rows + columns, 1, 1])  # any frame step outweighs the frame
    # |p - q|^2 - |p|^2 = |q|^2 - 2 p q: whole numbers, exact while their parts are below 2^24, so ties are ties
    largest = (place.amax(0) ** 2).sum()
    place = place.to(torch.float32 if largest < 2**22 else torch.float64)
    last_first = place[points].flip(0)
    distance = torch.addmm(last_first.square().sum(1), place, last_first.T, alpha=-2)
    return len(points) - 1 - distance.argmin(-1)


def interleave_crops(keep: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Order of kept patches of an any-resolution image: base crop first, then all tiles in raster order of the whole.

    Args:
        keep: [1 + rows * columns, side * side] bool, crop 0 is the base image, tile (r, c) is crop 1 + r * columns + c.
        grid: (rows, columns) of tiles.

    Returns:
        crop and patch index of every kept token, each [K] long.
    """
    rows, columns = grid
    side = math.isqrt(keep.shape[1])
    tiles = torch.arange(1, 1 + rows * columns, device=keep.device).view(rows, 1, columns, 1)
    patches = torch.arange(side * side, device=keep.device).view(1, side, 1, side)
    crop = tiles.expand(rows, side, columns, side).reshape(-1)
    patch = patches.expand(rows, side, columns, side).reshape(-1)
    kept = keep[crop, patch]
    base = keep[0].nonzero().squeeze(1)
    return torch.cat([torch.zeros_like(base), crop[kept]]), torch.cat([base, patch[kept]])


def interleave_dominant(dominant: Tensor, contextual: int, side: int, columns: int) -> tuple[Tensor, Tensor]:
    """Final order of the tokens of C tiles that each list (class token, dominant patches, contextual tokens).

    First the dominant patches of all tiles in raster order of the whole image, then the class tokens tile by tile, then
    the contextual tokens tile by tile. Tile c is at row c // columns and column c % columns.

    Args:
        dominant: [C, d] long, ascending patches of each tile of side x side patches, in the order of its tokens.
        contextual: how many contextual tokens a tile has.

    Returns:
        tile and place within the tile's list of every token, each [C * (1 + d + contextual)] long.
    """
    tiles, d = dominant.shape
    tile = torch.arange(tiles, device=dominant.device)[:, None]
    place = torch.arange(1 + d + contextual, device=dominant.device)[None]
    y = tile // columns * side + dominant // side
    x = tile % columns * side + dominant % side
    tile, place = tile.expand(tiles, 1 + d + contextual), place.expand(tiles, -1)
    raster = (y * columns * side + x).flatten().argsort()

    def listed(part: Tensor) -> Tensor:
        return torch.cat([part[:, 1 : 1 + d].flatten()[raster], part[:, 0], part[:, 1 + d :].flatten()])

    return listed(tile), listed(place)
