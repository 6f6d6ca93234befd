"""Rendered clips: one to four coloured shapes that stand still, move, appear or vanish, drawn from one integer seed.

Time has no preferred direction: a clip played backwards is as likely as the clip itself. What asks for the order of
frames (which way? before or after?) can therefore not be guessed from the set of frames.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .scenes import GAP, SHAPES, SIZE, Item, background, paint_background, paint_items, tint, visible

FRAMES = 8
MAX_FRAMES = 16
MAX_ACTORS = 4
MIN_SIDE, MAX_SIDE = 18, 34  # px, the side of a shape's square
MIN_WAY, MAX_WAY = 28, 56  # px that a moving shape covers: 3.5 to 7 patches
NOISE = 3.0  # standard deviation of the noise of every pixel of every frame, in levels of 255
BEHAVIOURS = ("still", "move", "appear", "vanish")
LEADING = 0.6  # share of a clip's shapes that do what its leading behaviour is; the rest do anything
LEADERS = {"move": 0.5, "appear": 0.25, "vanish": 0.25}
COUNTS = (0.08, 0.2, 0.32, 0.4)  # chance of one, two, three and four shapes
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Actor:
    """One shape of a clip: where its centre is in the first and last frame, and the frames that show it.

    `first`, `last`: the first and the last frame in which it is seen; only shapes that never move come or go.
    """

    shape: str
    color: str
    side: int
    start: tuple[float, float]
    end: tuple[float, float]
    first: int
    last: int
    frames: int

    @property
    def way(self) -> tuple[float, float]:
        """Pixels it moves right and down over the whole clip."""
        return self.end[0] - self.start[0], self.end[1] - self.start[1]

    @property
    def behaviour(self) -> str:
        if self.way != (0, 0):
            return "move"
        if self.first > 0:
            return "appear"
        return "vanish" if self.last < self.frames - 1 else "still"

    @property
    def direction(self) -> str | None:
        """left, right, up or down; None for a shape that does not move."""
        signs = tuple(int(np.sign(way)) for way in self.way)
        return next((name for name, sign in DIRECTIONS.items() if sign == signs), None)

    def at(self, frame: int) -> Item | None:
        """The shape as it stands in one frame, None where it is not seen."""
        if not self.first <= frame <= self.last:
            return None
        share = frame / (self.frames - 1)
        x, y = (a + (b - a) * share for a, b in zip(self.start, self.end, strict=True))
        return Item(self.shape, self.color, x, y, self.side)

    def reversed(self) -> "Actor":
        last = self.frames - 1
        return replace(self, start=self.end, end=self.start, first=last - self.last, last=last - self.first)


@dataclass(frozen=True)
class Clip:
    """`frames` [T, SIZE, SIZE, 3] uint8; `owner` [T, GRID, GRID] int64: index of the actor over a patch, -1 if none."""

    frames: np.ndarray
    actors: tuple[Actor, ...]
    owner: np.ndarray

    @property
    def pictures(self) -> list[Image.Image]:
        return [Image.fromarray(frame) for frame in self.frames]

    def reversed(self) -> "Clip":
        """The clip played backwards."""
        return Clip(self.frames[::-1], tuple(actor.reversed() for actor in self.actors), self.owner[::-1])


def clip(rng: np.random.Generator, frames: int = FRAMES) -> Clip:
    """Draw one clip: shapes that do not touch on their ways, a background that stands still, and noise everywhere."""
    if not FRAMES <= frames <= MAX_FRAMES:
        raise ValueError(f"frames={frames} is out of range; use {FRAMES} to {MAX_FRAMES}")
    kind, palette, numbers = background(rng)
    actors = _cast(rng, visible(palette), frames)
    tints = [tint(actor.color, rng) for actor in actors]
    film = np.repeat(paint_background(kind, palette, numbers, 1)[None], frames, 0)
    owner = [paint_items(film[t], [actor.at(t) for actor in actors], tints, 1) for t in range(frames)]
    film += rng.standard_normal(film.shape, np.float32) * NOISE
    return Clip(film.round().clip(0, 255).astype(np.uint8), tuple(actors), np.stack(owner))


def _cast(rng: np.random.Generator, allowed: list[str], frames: int) -> list[Actor]:
    """Shapes, no two of the same colour and shape, whose ways keep GAP pixels from each other and from the border."""
    count = 1 + int(rng.choice(MAX_ACTORS, p=COUNTS))
    leader = str(rng.choice(list(LEADERS), p=list(LEADERS.values())))
    parity = int(rng.integers(1, 3))
    moments = range(parity, frames - 1, 2)  # two frames apart, so that an order is plain; both shapes' ends are seen
    free = {name: list(rng.permutation(moments)) for name in ("appear", "vanish")}
    actors: list[Actor] = []
    boxes: list[tuple[int, int, int, int]] = []
    longest, largest = MAX_WAY, MAX_SIDE
    while len(actors) < count:
        behaviour = leader if rng.random() < LEADING else str(rng.choice(BEHAVIOURS))
        if not free.get(behaviour, True):
            behaviour = "still"
        shape, color = SHAPES[rng.integers(len(SHAPES))], allowed[rng.integers(len(allowed))]
        side, way = int(rng.integers(MIN_SIDE, largest + 1)), int(rng.integers(MIN_WAY, longest + 1))
        step = list(DIRECTIONS.values())[rng.integers(4)] if behaviour == "move" else (0, 0)
        width, height = (side + abs(s) * way for s in step)
        # the whole way is placed, not its start: where it lies tells nothing about which end comes first
        left, top = rng.integers(GAP, SIZE - GAP - width + 1), rng.integers(GAP, SIZE - GAP - height + 1)
        box = (int(left), int(top), int(left) + width, int(top) + height)
        if any(
            box[0] < b[2] + GAP and b[0] < box[2] + GAP and box[1] < b[3] + GAP and b[1] < box[3] + GAP for b in boxes
        ):
            longest, largest = max(MIN_WAY + 4, longest - 1), max(MIN_SIDE + 4, largest - 1)  # crowded: try smaller
            continue
        if any((shape, color) == (a.shape, a.color) for a in actors):
            continue
        ends = [(box[0] + side / 2, box[1] + side / 2), (box[2] - side / 2, box[3] - side / 2)]
        start, end = ends if sum(step) >= 0 else ends[::-1]
        first, last = 0, frames - 1
        if behaviour == "appear":
            first = int(free["appear"].pop())
        elif behaviour == "vanish":  # mirrors appear, so that a clip backwards is as likely
            last -= int(free["vanish"].pop())
        actors.append(Actor(shape, color, side, start, end, first, last, frames))
        boxes.append(box)
    return [actors[i] for i in rng.permutation(count)]


def _near(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Do two boxes (left, top, right, bottom) come closer than GAP?"""
    return all(a[i] < b[i + 2] + GAP and b[i] < a[i + 2] + GAP for i in (0, 1))
