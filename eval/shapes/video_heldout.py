"""Held-out clips, each with one question, the kinds in turn; and the same clips with their frames out of order."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .questions import Question
from .scenes import stream
from .video_clips import FRAMES, Clip, clip
from .video_questions import KINDS, ask

TRIES = 100  # clips drawn from one seed until one allows the kind whose turn it is; one in eight allows the rarest


@dataclass(frozen=True)
class VideoSample:
    """`frames` [T, SIZE, SIZE, 3] uint8, a question about them, and the clip with what really happens in it."""

    frames: np.ndarray
    question: Question
    clip: Clip

    @property
    def pictures(self) -> list[Image.Image]:
        return [Image.fromarray(frame) for frame in self.frames]


def held_out_clips(
    n: int, first: int = 0, kinds: tuple[str, ...] = tuple(KINDS), split: str = "test", frames: int = FRAMES
) -> Iterator[VideoSample]:
    """Clips of seeds `first` to `first + n - 1` of the test split, always the same, one question each."""
    if n < 1:
        raise ValueError(f"n={n} clips cannot be drawn; use 1 or more")
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"kinds={sorted(unknown)} are unknown; use some of {', '.join(KINDS)}")
    for seed in range(first, first + n):
        rng = stream(split, seed)
        for _ in range(TRIES):
            drawn = clip(rng, frames)
            if question := ask(drawn.actors, kinds[seed % len(kinds)], rng):
                yield VideoSample(drawn.frames, question, drawn)
                break


def shuffled(sample: VideoSample, seed: int) -> VideoSample:
    """The same frames in an order drawn from `seed`; the clip's truth is kept, so it no longer fits the frames."""
    order = np.random.default_rng(seed).permutation(len(sample.frames))
    return replace(sample, frames=sample.frames[order])


def noise(sample: VideoSample, seed: int) -> VideoSample:
    """The same question about frames of noise."""
    rng = np.random.default_rng(seed)
    return replace(sample, frames=rng.integers(0, 256, sample.frames.shape, np.uint8))


def one_frame(sample: VideoSample, at: int = 0) -> VideoSample:
    """The same question about one frame that is shown all the time."""
    return replace(sample, frames=np.repeat(sample.frames[at : at + 1], len(sample.frames), 0))
