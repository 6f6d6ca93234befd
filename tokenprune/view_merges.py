"""Pictures of what became of patches inside a vision transformer: each survivor's region in the mean of its pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .view import DROPPED, GAP, PALETTE, STRIP, Fate, faded, headed, label, layout, spread

if TYPE_CHECKING:
    from PIL.Image import Image

    from .blocks import BlockTokens, Reduction
    from .policies.vision import VisionPolicy
    from .report import TowerReport

BETWEEN = 3  # pictures of what was left on the way, at most
REGION = (
    "a coloured border: patches merged into one token, filled with their mean",
    tuple(map(tuple, PALETTE[:3].tolist())),
)


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


def mosaic(picture: Image, fate: Fate, step: int = 0) -> Image:
    """One step: the region of each survivor in the mean colour of its pixels, dropped patches dark.

    Lines are drawn between regions; those of one that lies in several pieces have a colour of the palette.
    """
    from PIL import Image

    width, height = picture.size
    source = spread(fate.source[step], height, width)
    pixels, kept = np.asarray(picture.convert("RGB")) / 255, source >= 0
    shown = faded(pixels, kept)
    sums = np.stack([np.bincount(source[kept], channel) for channel in pixels[kept].T], -1)
    shown[kept] = (sums / np.bincount(source[kept]).clip(1)[:, None])[source[kept]]
    color = np.where(kept, fate.color[source], -1)
    rows, columns = fate.source.shape[1:]
    line = max(1, round(min(height / rows, width / columns) / 12))
    edge = np.zeros(source.shape, bool)
    for axis in (0, 1):
        one, at = np.moveaxis(source, axis, 0), np.moveaxis(edge, axis, 0)
        for far in range(1, line + 1):
            apart = one[far:] != one[:-far]
            at[far:] |= apart
            at[:-far] |= apart
    merged = edge & (color >= 0)
    shown[merged] = PALETTE[color[merged]] / 255
    return Image.fromarray((255 * shown).round().astype(np.uint8))


def merges(picture: np.ndarray, panels: Sequence[tuple[str, TowerReport]], *, title: str) -> Image:
    """The picture, and beside it what was left of it in the tower at several depths, the last at its end.

    Args:
        picture: uint8 [height, width, 3], the part of it that the model sees.
        panels: what to say under it, and what became of every patch.
    """
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    wide, columns = layout(1 + len(panels), width / height)
    high, tower = round(wide * height / width), panels[-1][1]
    below = -(-(1 + len(panels)) // columns) * (high + STRIP + GAP)
    line = f"{tower.kept} of {tower.total} patches left ({tower.kept / tower.total:.1%})"
    fates = [Fate.of([one]) for _, one in panels]
    entries = ([REGION] if fates[-1].merged else []) + ([DROPPED] if (tower.source < 0).any() else [])
    page, top = headed(columns * (wide + GAP) + GAP, below, title, line, entries)
    draw, shown = ImageDraw.Draw(page), Image.fromarray(picture).resize((wide, high), Image.Resampling.LANCZOS)
    cells = [(shown, "the picture", f"{tower.total} patches")]
    cells += [(mosaic(shown, fate), at, f"{one.kept} left") for fate, (at, one) in zip(fates, panels, strict=True)]
    for number, (cell, left, right) in enumerate(cells):
        x, y = GAP + number % columns * (wide + GAP), top + number // columns * (high + STRIP + GAP)
        page.paste(cell, (x, y))
        label(draw, (x, y + high, wide), left, right)
    return page
