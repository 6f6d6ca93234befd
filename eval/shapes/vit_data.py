"""One coloured shape on a background of the scenes: what the image classifier sees and names by shape and colour."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .scenes import (
    COLORS,
    GAP,
    GRID,
    MAX_SIDE,
    MIN_SIDE,
    SHAPES,
    SIZE,
    Item,
    background,
    paint_background,
    paint_items,
    stream,
    tint,
    visible,
)

LABELS = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
DENSE = (len(SHAPES) + 1, len(COLORS) + 1)  # what a patch tells in training: its shape, its colour, 0 is background
FIRST_OBJECT = 2_000_000_000  # above the numbers of all other trainings' scenes and clips


@dataclass(frozen=True)
class ObjectSample:
    """`image` [SIZE, SIZE, 3] uint8; `label` indexes LABELS; `owner` [GRID, GRID]: 0 on the item, -1 elsewhere."""

    image: np.ndarray
    label: int
    item: Item
    owner: np.ndarray

    @property
    def picture(self) -> Image.Image:
        return Image.fromarray(self.image)

    @property
    def side(self) -> int:
        """Pixels of a side of the shape's square."""
        return self.item.side


def draw_object(rng: np.random.Generator, label: int) -> ObjectSample:
    """A shape of any size anywhere, on a background from which its colour stands out."""
    color, shape = LABELS[label].split()
    while True:
        kind, palette, numbers = background(rng)
        if color in visible(palette):
            break
    side = int(rng.integers(MIN_SIDE, MAX_SIDE + 1))
    left, top = rng.integers(GAP, SIZE - GAP - side + 1, 2)
    item = Item(shape, color, left + side / 2, top + side / 2, side)
    canvas = paint_background(kind, palette, numbers, 1)
    owner = paint_items(canvas, [item], [tint(color, rng)], 1)
    return ObjectSample(canvas.round().astype(np.uint8), label, item, owner)


def held_out_objects(n: int, first: int = 0) -> Iterator[ObjectSample]:
    """Samples `first` to `first + n - 1` of the test split, always the same."""
    if n < 1:
        raise ValueError(f"n={n} pictures cannot be drawn; use 1 or more")
    return (_object("test", seed) for seed in range(first, first + n))


def _object(split: str, seed: int) -> ObjectSample:
    rng = stream(split, FIRST_OBJECT + seed)
    return draw_object(rng, int(rng.integers(len(LABELS))))


def object_batch(first: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train samples `first` to `first + size - 1`: images, labels, and for every patch what DENSE says."""
    samples = [_object("train", seed) for seed in range(first, first + size)]
    labels = np.array([sample.label for sample in samples])
    names = np.stack([labels // len(COLORS), labels % len(COLORS)], -1) + 1  # [B, 2]
    covered = np.stack([sample.owner for sample in samples]).reshape(size, GRID * GRID, 1) >= 0
    images = np.stack([sample.image for sample in samples])
    return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(names[:, None] * covered)
