"""Rendered scenes: two to six coloured shapes on a background that repeats, every pixel drawn from one integer seed.

The backgrounds (flat, gradient, stripes, checks, dots, soft blobs) are redundant on purpose: real images hold large
regions whose patches look alike, and per-pixel noise would make every background patch a token of its own kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

PATCH = 8  # px
GRID = 16  # patches a side
SIZE = PATCH * GRID  # px
MIN_OBJECTS, MAX_OBJECTS = 2, 6
MIN_SIDE, MAX_SIDE = 16, 48  # px, the side of an object's square: 2 to 6 patches
GAP = 3  # px between two squares, and between a square and the border
CONTRAST = 100.0  # least RGB distance between an object and any colour of its background
COVERED = 0.25  # share of a patch that an object must cover to own it
REPEAT_SHAPE = 0.3  # chance that an object copies the shape of an earlier one, so that counts above one occur
SUPERSAMPLING = 4  # sub-pixels a side when an object's edge is drawn
TINT = 10  # RGB levels by which an object's colour may differ from its name's

COLORS = {
    "red": (215, 35, 35),
    "green": (35, 160, 60),
    "blue": (40, 70, 215),
    "yellow": (235, 215, 40),
    "purple": (145, 50, 185),
    "orange": (240, 135, 25),
    "white": (245, 245, 245),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "bar")
BACKGROUNDS = ("flat", "gradient", "stripes", "checks", "dots", "blobs")
SPLITS = {"train": 1, "test": 2}  # first word of every seed: the two streams cannot meet


@dataclass(frozen=True)
class Item:
    """One object. `x`, `y`: its centre in pixels from the top left; `side`: the side of its square in pixels."""

    shape: str
    color: str
    x: float
    y: float
    side: int


@dataclass(frozen=True)
class Scene:
    """`image` [SIZE, SIZE, 3] uint8; `owner` [GRID, GRID] int64: index of the item that covers a patch, -1 if none."""

    image: np.ndarray
    items: tuple[Item, ...]
    owner: np.ndarray

    @property
    def picture(self) -> Image.Image:
        return Image.fromarray(self.image)


def stream(split: str, seed: int) -> np.random.Generator:
    """The random numbers of one scene. Splits differ in the first word of the seed, so no two splits share a scene."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; use 0 or above")
    return np.random.default_rng([SPLITS[split], seed])


def scene(rng: np.random.Generator, scale: int = 1) -> Scene:
    """Draw one scene. `scale` > 1 renders the same scene with that many times as many pixels (pictures for a demo)."""
    kind, palette, numbers = background(rng)
    allowed = visible(palette)
    items, tints = _place(rng, allowed)
    canvas = paint_background(kind, palette, numbers, scale)
    owner = paint_items(canvas, items, tints, scale)
    return Scene(canvas.round().astype(np.uint8), tuple(items), owner)


def visible(palette: np.ndarray) -> list[str]:
    """The object colours that stand out from a background of two colours."""
    return [name for name, rgb in COLORS.items() if _contrast(rgb, palette) >= CONTRAST]


def _contrast(rgb: tuple[int, int, int], palette: np.ndarray) -> float:
    """Distance from a colour to the nearest point of the segment between the two background colours."""
    start, way = palette[0], palette[1] - palette[0]
    along = np.clip(((rgb - start) @ way) / max(way @ way, 1e-6), 0, 1)
    return float(np.linalg.norm(rgb - (start + along * way)))


def background(rng: np.random.Generator) -> tuple[str, np.ndarray, np.ndarray]:
    """Kind, two colours that leave at least five object colours usable, and random numbers to draw the pattern from."""
    while True:
        kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        grey, tint = rng.uniform(45, 235), rng.normal(0, 22, 3)
        first = np.clip(grey + tint, 10, 250)
        second = np.clip(first + rng.choice([-1, 1]) * rng.uniform(18, 55) + rng.normal(0, 10, 3), 10, 250)
        palette = np.stack([first, second]).astype(np.float32)
        if len(visible(palette)) >= 5:
            return kind, palette, rng.uniform(0, 1, 32).astype(np.float32)


def paint_background(kind: str, palette: np.ndarray, u: np.ndarray, scale: int) -> np.ndarray:
    """[SIZE * scale, SIZE * scale, 3] float32: a mix of two colours along a smooth or regular pattern in [0, 1]."""
    axis = ((np.arange(SIZE * scale, dtype=np.float32) + 0.5) / scale)[None]
    x, y = axis, axis.T
    angle, period = u[0] * math.pi, 8 + 16 * u[1]
    wave = 2 * math.pi / period
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == "flat":
        mix = np.zeros((SIZE * scale, SIZE * scale), np.float32)
    elif kind == "gradient":
        mix = (along - along.min()) / (along.max() - along.min())
    elif kind == "stripes":
        mix = _edge(np.sin(along * wave + u[2] * 6))
    elif kind == "checks":
        mix = _edge(np.sin(x * wave / 2 + u[2] * 6) * np.sin(y * wave / 2 + u[3] * 6) * 2)
    elif kind == "dots":
        mix = _edge(np.cos(x * wave + u[2] * 6) + np.cos(y * wave + u[3] * 6) - 0.8)
    else:  # blobs: a few wide bumps, like an out-of-focus photograph
        mix = np.zeros((SIZE * scale, SIZE * scale), np.float32)
        for cx, cy, width in u[2:20].reshape(6, 3):
            spread = -0.5 / (14 + 22 * width) ** 2
            mix += np.exp((x - cx * SIZE) ** 2 * spread) * np.exp((y - cy * SIZE) ** 2 * spread)
        mix = np.clip(mix * 0.6, 0, 1)
    return palette[0] + mix[..., None] * (palette[1] - palette[0])


def _edge(wave: np.ndarray) -> np.ndarray:
    """A wave around zero as soft-edged bands in [0, 1]."""
    return np.clip(wave * 1.8 + 0.5, 0, 1)


def _place(rng: np.random.Generator, allowed: list[str]) -> tuple[list[Item], list[np.ndarray]]:
    """Non-overlapping items on whole pixels and the RGB of each. Many items are smaller, else they would not fit."""
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    largest = min(MAX_SIDE, 68 - 5 * count)
    items: list[Item] = []
    while len(items) < count:
        side = int(rng.integers(MIN_SIDE, largest + 1))
        left, top = rng.integers(GAP, SIZE - GAP - side + 1, 2)
        x, y = left + side / 2, top + side / 2
        if any(max(abs(x - o.x), abs(y - o.y)) < (side + o.side) / 2 + GAP for o in items):
            largest = max(MIN_SIDE + 4, largest - 1)  # crowded: try something smaller
            continue
        repeat = items and rng.random() < REPEAT_SHAPE
        shape = items[rng.integers(len(items))].shape if repeat else SHAPES[rng.integers(len(SHAPES))]
        items.append(Item(shape, allowed[rng.integers(len(allowed))], x, y, side))
    order = rng.permutation(count)  # the first placed are the largest; the list must not tell
    items = [items[i] for i in order]
    return items, [tint(o.color, rng) for o in items]


def tint(color: str, rng: np.random.Generator) -> np.ndarray:
    """RGB near a colour's name."""
    return np.clip(np.add(COLORS[color], rng.integers(-TINT, TINT + 1, 3)), 0, 255)


def paint_items(canvas: np.ndarray, items: Sequence[Item | None], tints: list[np.ndarray], scale: int) -> np.ndarray:
    """Blend items into the canvas, leaving out None; returns which of them owns every patch, as `Scene.owner`."""
    owner, covered = np.full((GRID, GRID), -1), np.full((GRID, GRID), COVERED, np.float32)
    for index, (item, rgb) in enumerate(zip(items, tints, strict=True)):
        if item is None:
            continue
        cover = _paint_item(canvas, item, rgb, scale)
        if cover.max() < COVERED:  # a small thin object across a patch border still owns its best patch
            covered[np.unravel_index(cover.argmax(), cover.shape)] = 0
        owner[cover > covered] = index
        covered = np.maximum(covered, cover)
    return owner


def _paint_item(canvas: np.ndarray, item: Item, rgb: np.ndarray, scale: int) -> np.ndarray:
    """Blend one item into the canvas; returns the share of every patch that it covers [GRID, GRID]."""
    side = item.side * scale
    alpha = _mask(item.shape, side * SUPERSAMPLING).reduce(SUPERSAMPLING)
    alpha = np.asarray(alpha, np.float32)[..., None] / 255
    top, left = round((item.y - item.side / 2) * scale), round((item.x - item.side / 2) * scale)
    window = canvas[top : top + side, left : left + side]
    window += alpha * (rgb - window)
    cover = np.zeros(canvas.shape[:2], np.float32)
    cover[top : top + side, left : left + side] = alpha[..., 0]
    step = PATCH * scale
    return cover.reshape(GRID, step, GRID, step).mean((1, 3))


def _mask(shape: str, side: int) -> Image.Image:
    """The shape in white on black, filling a square of `side` pixels."""
    mask = Image.new("L", (side, side))
    draw, end, middle = ImageDraw.Draw(mask), side - 1, side / 2
    if shape == "circle":
        draw.ellipse([0, 0, end, end], fill=255)
    elif shape == "square":
        draw.rectangle([side * 0.06, side * 0.06, side * 0.94, side * 0.94], fill=255)
    elif shape == "triangle":
        draw.polygon([(middle, side * 0.04), (end, side * 0.96), (0, side * 0.96)], fill=255)
    elif shape == "star":
        turns = [(i * math.pi / 5 - math.pi / 2, (0.42 if i % 2 else 1.05) * middle) for i in range(10)]
        draw.polygon([(middle + r * math.cos(a), middle * 1.06 + r * math.sin(a)) for a, r in turns], fill=255)
    elif shape == "cross":
        draw.rectangle([side * 0.33, 0, side * 0.67, end], fill=255)
        draw.rectangle([0, side * 0.33, end, side * 0.67], fill=255)
    elif shape == "ring":
        draw.ellipse([0, 0, end, end], outline=255, width=round(side * 0.2))
    elif shape == "diamond":
        draw.polygon([(middle, 0), (end, middle), (middle, end), (0, middle)], fill=255)
    else:  # bar
        draw.rectangle([0, side * 0.3, end, side * 0.7], fill=255)
    return mask
