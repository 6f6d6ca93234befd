"""Held-out samples: test scenes, each with one question, the kinds in turn."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from . import easy
from .questions import KINDS, Question, ask
from .scenes import Scene, scene, stream

TURNS = (*KINDS, "relation")  # relations twice, because four scenes in ten lack two shapes that occur once
TRIES = 6  # attempts to ask the kind whose turn it is before another kind takes its place


@dataclass(frozen=True)
class Sample:
    """A picture and a question about it; `scene` is where the picture came from, None for third-party images."""

    image: Image.Image
    question: Question
    scene: Scene | None = None


def held_out(n: int, first: int = 0, kinds: tuple[str, ...] = TURNS, split: str = "test") -> Iterator[Sample]:
    """Scenes `first` to `first + n - 1` of the test split, always the same, one question each."""
    if n < 1:
        raise ValueError(f"n={n} scenes cannot be drawn; use 1 or more")
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"kinds={sorted(unknown)} are unknown; use some of {', '.join(KINDS)}")
    for seed in range(first, first + n):
        rng = stream(split, seed)
        drawn = scene(rng)
        turn = [kinds[seed % len(kinds)]] * TRIES + [kinds[i] for i in rng.permutation(len(kinds))] * TRIES
        asked = (ask(drawn.items, kind, rng) for kind in turn)
        question = next((question for question in asked if question), None)
        if question is not None:  # nothing of `kinds` can be asked about a few scenes
            yield Sample(drawn.picture, question, drawn)


def easy_vqa() -> Iterator[Sample]:
    """The 9,673 questions of the easy-VQA test split."""
    for path, question in easy.samples("test"):
        with Image.open(path) as image:
            yield Sample(image.convert("RGB"), question)
