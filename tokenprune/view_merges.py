"""Pictures of what became of patches inside a vision transformer: each survivor's region in the mean of its pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .view import CELL, DROPPED, GAP, PAPER, STRIP, Entry, Fate, faded, headed, label, layout, spread

if TYPE_CHECKING:
    from PIL.Image import Image

    from .blocks import BlockTokens, Reduction
    from .policies.vision import VisionPolicy
    from .report import TowerReport

BETWEEN = 3  # pictures of what was left on the way, at most
LINE = 16  # a patch is so many lines wide
BRIGHTNESS = np.array([0.299, 0.587, 0.114])  # of red, green and blue
REGION: Entry = ("lines between tokens: the patches of each have their mean colour, also where they lie apart", ())
FUSED: Entry = ("dark: dropped, or fused into one token", DROPPED[1])
Cell = tuple["Image", str, str]  # a picture, and what is said under it, left and right


@dataclass(frozen=True)
class Noted:
    """One reduction of one image.

    Attributes:
        block, depth: where.
        prefix: P.
        places: [n] long, where the tokens stood in the tower's input.
        order: [m] long, which of them went on.
        source: [n] long, which of those carries each of them on, or -1.
    """

    block: int
    depth: int
    prefix: int
    places: Tensor
    order: Tensor
    source: Tensor

    @classmethod
    def of(cls, tokens: BlockTokens, answer: Reduction) -> Noted:
        """Of the first image of a group."""
        places, order = tokens.places[0].cpu(), answer.order[0].cpu()
        if answer.source is None:
            source = torch.full_like(places, -1).scatter(0, order, torch.arange(len(order)))
        else:
            source = answer.source[0].cpu()
        return cls(tokens.block, tokens.depth, tokens.prefix, places, order, source)


def watched(policy: VisionPolicy) -> tuple[VisionPolicy, list[Noted]]:
    """The policy, and a list that fills with what it does."""
    noted: list[Noted] = []

    def reduce(tokens: BlockTokens, k: int) -> Reduction:
        answer = policy.reduce(tokens, k)
        noted.append(Noted.of(tokens, answer))
        return answer

    watched = copy.copy(policy)
    watched.reduce = reduce
    return watched, noted


def on_the_way(noted: Sequence[Noted], tower: TowerReport) -> list[tuple[str, TowerReport]]:
    """What was left of the one image after some of the blocks that tokens left, and after how many that was."""
    count = min(BETWEEN, len(noted) - 1)
    chosen = {round((i + 1) * len(noted) / (count + 1)) - 1 for i in range(count)}
    carrier, found = torch.arange(tower.tokens), []
    for number, one in enumerate(noted):
        stand = one.places[one.order]
        onward = torch.full_like(carrier, -1)
        onward[one.places] = torch.where(one.source >= 0, stand[one.source.clamp_min(0)], -1)
        carrier = torch.where(carrier >= 0, onward[carrier.clamp_min(0)], -1)
        if number in chosen:
            indices, by = (stand[one.prefix :] - one.prefix).sort().values, carrier[one.prefix :] - one.prefix
            source = torch.where(by >= 0, torch.searchsorted(indices, by.clamp_min(0)), -1)
            at = f"after {one.block + 1} of {one.depth} blocks"
            found.append((at, replace(tower, kept=len(indices), indices=indices, source=source)))
    return found


def mosaic(picture: Image, fate: Fate, step: int = 0, *, fused: bool = False) -> Image:
    """One step: the region of each survivor in the mean colour of its pixels, dropped patches dark, lines between.

    Args:
        fused: tokens that carry several are what is left of those dropped, and dark, too.
    """
    from PIL import Image

    width, height = picture.size
    source = spread(fate.source[step], height, width)
    if fused:
        source = np.where((source >= 0) & (fate.color[source] < 0), source, -1)
    pixels, kept = np.asarray(picture.convert("RGB")) / 255, source >= 0
    shown = faded(pixels, kept)
    sums = np.stack([np.bincount(source[kept], channel) for channel in pixels[kept].T], -1)
    shown[kept] = (sums / np.bincount(source[kept]).clip(1)[:, None])[source[kept]]
    rows, columns = fate.source.shape[1:]
    line, edge = max(1, round(min(height / rows, width / columns) / LINE)), np.zeros(source.shape, bool)
    for axis in (0, 1):
        one, at = np.moveaxis(source, axis, 0), np.moveaxis(edge, axis, 0)
        apart = one[1:] != one[:-1]
        for far in range(line):  # on both sides
            at[1 + far :] |= apart[: len(apart) - far]
            at[: len(apart) - far] |= apart[far:]
    under = shown[edge]
    light = under @ BRIGHTNESS > 0.3
    shown[edge] = np.where(light[:, None], 0.55 * under, 0.6 * under + 0.4)  # seen on whatever colour
    return Image.fromarray((255 * shown).round().astype(np.uint8))


def merges(picture: np.ndarray, panels: Sequence[tuple[str, TowerReport]], *, title: str, fused: bool = False) -> Image:
    """The picture, beside it what was left of it in the end, and below what was left on the way.

    Args:
        picture: uint8 [height, width, 3], the part of it that the model sees.
        panels: what to say under it, and what became of every patch; the end is the last.
        fused: as of `mosaic`.
    """
    from PIL import Image

    aspect, (*before, end) = picture.shape[0] / picture.shape[1], panels
    small = min(CELL, (2 * CELL - GAP * (len(before) - 2)) // max(1, len(before)))

    def cell(width: int, panel: tuple[str, TowerReport] | None) -> Cell:
        size = width, max(1, round(width * aspect))
        shown = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
        if panel is None:
            return shown, "the picture", f"{end[1].total} patches"
        return mosaic(shown, Fate.of([panel[1]]), fused=fused), panel[0], f"{panel[1].kept} left"

    rows = [[cell(CELL, None), cell(CELL, end)], [cell(small, panel) for panel in before]]
    return _page([row for row in rows if row], title, [end[1]], fused)


def pairs(
    pictures: Sequence[np.ndarray], towers: Sequence[TowerReport], names: Sequence[str], *, title: str, fused: bool
) -> Image:
    """A cell for each picture that the tower saw by itself (tile, frame): it, and beside it what was left of it."""
    from PIL import Image

    height, width = pictures[0].shape[:2]
    wide, columns = layout(len(pictures), 2 * width / height)
    half, cells = wide // 2 - 2, []
    for picture, tower, name in zip(pictures, towers, names, strict=True):
        shown = Image.fromarray(picture).resize((half, max(1, round(half * height / width))), Image.Resampling.LANCZOS)
        pair = Image.new("RGB", (wide, shown.height), PAPER)
        pair.paste(shown, (0, 0))
        pair.paste(mosaic(shown, Fate.of([tower]), fused=fused), (wide - half, 0))
        cells.append((pair, name, f"{tower.kept} of {tower.total} left"))
    return _page([cells[i : i + columns] for i in range(0, len(cells), columns)], title, towers, fused)


def _page(rows: list[list[Cell]], title: str, towers: Sequence[TowerReport], fused: bool) -> Image:
    """Rows of pictures with words under each."""
    from PIL import ImageDraw

    kept, total = sum(tower.kept for tower in towers), sum(tower.total for tower in towers)
    grid = f"{len(towers)} times " * (len(towers) > 1) + "x".join(str(edge) for edge in towers[0].grid[1:])
    dark = FUSED if fused else DROPPED
    entries = [REGION] + ([dark] if fused or any((tower.source < 0).any() for tower in towers) else [])
    across = max(sum(cell[0].width + GAP for cell in row) for row in rows) + GAP
    below = sum(row[0][0].height + STRIP + GAP for row in rows)
    page, y = headed(across, below, title, f"{kept} of {total} patches left ({kept / total:.1%}) of {grid}", entries)
    draw = ImageDraw.Draw(page)
    for row in rows:
        x = GAP
        for shown, left, right in row:
            page.paste(shown, (x, y))
            label(draw, (x, y + shown.height, shown.width), left, right)
            x += shown.width + GAP
        y += row[0][0].height + STRIP + GAP
    return page
