"""Clips of one shape that moves, comes or goes among still ones: what the clip classifier sees and names by its motion.

Labels come in pairs, and a clip of one label played backwards is as likely as any clip of the other: a set of frames
without their order tells the pair at most.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .scenes import GAP, SHAPES, SIZE, Item, background, paint_background, paint_items, stream, tint, visible
from .video_clips import NOISE

FRAMES = 16
SMALL = SIZE // 2  # px, a side of a frame: scenes are drawn at SIZE and halved
TUBELET = 2  # frames of one token
CELLS = 8  # tokens a side
MOTIONS = ("left", "right", "up", "down", "anticlockwise", "clockwise", "vanish", "appear")  # label ^ 1: backwards
COMPASS = 8  # directions in which a shape heads
DENSE = (len(MOTIONS) + 1, COMPASS + 1)  # a token tells in training: what its shape does, where it heads; 0 is none
FIRST_MOTION = 3_000_000_000  # above the numbers of all other trainings
MAX_STILL = 2
MIN_SIDE, MAX_SIDE = 20, 40  # px before halving, as are the next two
MIN_WAY, MAX_WAY = 32, 64
MIN_RADIUS, MAX_RADIUS = 12, 22
MOMENTS = (4, 13)  # a shape that appears does so in one of the frames from 4 to 12


@dataclass(frozen=True)
class MotionSample:
    """`frames` [FRAMES, SMALL, SMALL, 3] uint8; `label` indexes MOTIONS; `owner` [FRAMES, CELLS, CELLS]: is it here?

    `way` [FRAMES, 2]: right and down, centre of the moving shape, NaN where it is not seen; `side`: of its square, in
    pixels of a frame; `still`: how many shapes stand still.
    """

    frames: np.ndarray
    label: int
    owner: np.ndarray
    way: np.ndarray
    side: float
    still: int

    @property
    def pictures(self) -> list[Image.Image]:
        return [Image.fromarray(frame) for frame in self.frames]

    def reversed(self) -> "MotionSample":
        """The clip played backwards, with the label that it then has."""
        backwards = [values[::-1] for values in (self.frames, self.owner, self.way)]
        return MotionSample(backwards[0], self.label ^ 1, *backwards[1:], self.side, self.still)

    @property
    def headings(self) -> np.ndarray:
        """[FRAMES / TUBELET]: eighth of the compass in which the shape moves; 1 is right, 3 is down, 0: it does not."""
        starts = np.arange(0, FRAMES, TUBELET)
        step = self.way[np.minimum(starts + TUBELET, FRAMES - 1)] - self.way[np.maximum(starts - 1, 0)]
        moves = np.hypot(*step.T) > 1.0  # False for NaN
        angle = np.arctan2(step[:, 1], step[:, 0])
        return np.where(moves, np.nan_to_num(angle / (2 * math.pi / COMPASS)).round().astype(int) % COMPASS + 1, 0)


def draw_motion(rng: np.random.Generator, label: int) -> MotionSample:
    """A clip of a label. Clips of even labels are drawn as clips of the odd ones and played backwards."""
    kind, palette, numbers = background(rng)
    allowed = visible(palette)
    mover, still = _cast(rng, MOTIONS[label | 1], allowed)
    canvas = paint_background(kind, palette, numbers, 1)
    paint_items(canvas, still, [tint(item.color, rng) for item in still], 1)
    film, rgb = np.repeat(canvas[None], FRAMES, 0), [tint(mover[-1].color, rng)]
    owner = np.stack([paint_items(film[t], [mover[t]], rgb, 1) for t in range(FRAMES)]) == 0
    owner = owner.reshape(FRAMES, CELLS, 2, CELLS, 2).any((2, 4))
    film = (film[:, ::2, ::2] + film[:, 1::2, ::2] + film[:, ::2, 1::2] + film[:, 1::2, 1::2]) / 4
    film += rng.standard_normal(film.shape, np.float32) * NOISE
    frames = film.round().clip(0, 255).astype(np.uint8)
    way = np.array([(item.x, item.y) if item else (math.nan, math.nan) for item in mover]) / 2
    forwards = MotionSample(frames, label | 1, owner, way, mover[-1].side / 2, len(still))
    return forwards if label == forwards.label else forwards.reversed()


def _cast(rng: np.random.Generator, motion: str, allowed: list[str]) -> tuple[list[Item | None], list[Item]]:
    """The mover in every frame, None where it is not seen, and the still shapes; nothing ever touches."""
    count = int(rng.integers(MAX_STILL + 1))
    while True:
        way = _way(rng, motion)
        boxes, sides = [], rng.integers(MIN_SIDE, MAX_SIDE + 1, 1 + count)
        for extent, side in zip([np.ptp(way, 0), *np.zeros((count, 2))], sides, strict=True):
            width, height = (math.ceil(length) + side for length in extent)
            left, top = rng.integers(GAP, SIZE - GAP - width + 1), rng.integers(GAP, SIZE - GAP - height + 1)
            boxes.append((left, top, left + width, top + height))
        if not any(_touch(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
            break
    looks = [(SHAPES[rng.integers(len(SHAPES))], allowed[rng.integers(len(allowed))]) for _ in boxes]
    at = way - way.min(0) + boxes[0][:2] + sides[0] / 2
    since = int(rng.integers(*MOMENTS)) if motion == "appear" else 0
    mover = [Item(*looks[0], x, y, int(sides[0])) if t >= since else None for t, (x, y) in enumerate(at)]
    still = [
        Item(*look, box[0] + side / 2, box[1] + side / 2, int(side))
        for look, box, side in zip(looks[1:], boxes[1:], sides[1:], strict=True)
    ]
    return mover, still


def _way(rng: np.random.Generator, motion: str) -> np.ndarray:
    """Where the mover is relative to anywhere, x and y [FRAMES, 2]."""
    way = np.zeros((FRAMES, 2))
    if motion == "clockwise":  # on the screen, where y grows downwards; one turn
        angle = 2 * math.pi * (rng.random() + np.arange(FRAMES) / FRAMES)
        way = rng.uniform(MIN_RADIUS, MAX_RADIUS) * np.stack([np.cos(angle), np.sin(angle)], -1)
    elif motion != "appear":
        way[:, {"right": 0, "down": 1}[motion]] = np.linspace(0, rng.uniform(MIN_WAY, MAX_WAY), FRAMES)
    return way


def _touch(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Do two boxes (left, top, right, bottom) come closer than GAP?"""
    return all(a[i] < b[i + 2] + GAP and b[i] < a[i + 2] + GAP for i in (0, 1))


def held_out_motions(n: int, first: int = 0) -> Iterator[MotionSample]:
    """Clips `first` to `first + n - 1` of the test split, always the same."""
    if n < 1:
        raise ValueError(f"n={n} clips cannot be drawn; use 1 or more")
    return (_motion("test", seed) for seed in range(first, first + n))


def _motion(split: str, seed: int) -> MotionSample:
    rng = stream(split, FIRST_MOTION + seed)
    return draw_motion(rng, int(rng.integers(len(MOTIONS))))


def motion_batch(first: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train clips from number `first` on, labels, and for every token what DENSE says.

    Half of the clips are the other half played backwards: nothing but the order of the frames tells them apart.
    """
    samples = [_motion("train", seed) for seed in range(first, first + size // 2)]
    samples += [sample.reversed() for sample in samples]
    labels = np.array([sample.label for sample in samples])
    owner = np.stack([sample.owner for sample in samples])
    seen = owner.reshape(len(samples), FRAMES // TUBELET, TUBELET, CELLS * CELLS).any(2).reshape(len(samples), -1, 1)
    headings = np.stack([sample.headings for sample in samples]).repeat(CELLS * CELLS, 1)
    told = np.stack([np.broadcast_to(labels[:, None] + 1, headings.shape), headings], -1)
    frames = np.stack([sample.frames for sample in samples])
    return torch.from_numpy(frames), torch.from_numpy(labels), torch.from_numpy(told * seen)
