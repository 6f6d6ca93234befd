"""Training examples of this repository, for `tokenprune train covipal --data shapes`."""

from __future__ import annotations

from functools import cache

from PIL import Image

from ...learn.data import Example
from ..shapes import easy
from ..shapes.heldout import held_out
from ..shapes.scenes import stream

FIRST = 2_000_000_000  # number of the first scene: none of those the model was trained on


def shapes(number: int) -> Example:
    """A made scene of the training split and one question, the kinds in turn."""
    found = None
    while found is None:  # about a few scenes nothing can be asked
        found = next(iter(held_out(1, first=FIRST + number, split="train")), None)
        number += 500_000_000
    return Example(found.image, found.question.text, found.question.answer)


def easy_vqa(number: int) -> Example:
    """A question of the train split of easy-VQA."""
    everything = _easy()
    path, question = everything[int(stream("learn", number).integers(len(everything)))]
    with Image.open(path) as image:
        return Example(image.convert("RGB"), question.text, question.answer)


@cache
def _easy() -> list:
    return list(easy.samples("train"))
