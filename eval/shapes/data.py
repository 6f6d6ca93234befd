"""Training batches: scenes with patch labels and packed rows of text, and the easy-VQA train split."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from . import easy
from .language import EOS, WORDS
from .modeling import ROW, VISUAL
from .questions import COLOR_NAMES, KINDS, MARGIN, Question, ask, unique
from .scenes import SHAPES, SIZE, Item, Scene, scene, stream

IDS = {word: i for i, word in enumerate(WORDS)}
IGNORED = -100  # target of a word that is not supervised
KIND_NAMES = (*KINDS, easy.KIND, "caption", "tour", "half")
DIRECTIONS = {"leftmost": ("x", 1), "rightmost": ("x", -1), "highest": ("y", 1), "lowest": ("y", -1)}


@dataclass
class Batch:
    """B images with R rows of text each; `kind` [B, R] indexes KIND_NAMES.

    `shape`, `color` [B, VISUAL]: name of the object under a patch, from 1, 0 on background, IGNORED if unlabelled.
    `place` [B, VISUAL, 3]: centre x, y in [-1, 1] and side (as a share of the image) of that object.
    `spot` [B, R, ROW, 3]: the same for a word that names the shape of exactly one object, NaN at all other words.
    """

    image: torch.Tensor
    shape: torch.Tensor
    color: torch.Tensor
    place: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    kind: torch.Tensor
    spot: torch.Tensor


def encode(text: str) -> list[int]:
    """Token ids of lower-case text, as the tokenizer would give them without special tokens."""
    return [IDS[word] for word in text.replace("?", " ?").split()]


def _place(item: Item) -> tuple[float, float, float]:
    return item.x * 2 / SIZE - 1, item.y * 2 / SIZE - 1, item.side / SIZE


def patch_labels(drawn: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape, colour and place of the object under every patch of a scene, as `Batch` describes them."""
    owner = drawn.owner.reshape(-1)
    names = [(SHAPES.index(o.shape) + 1, COLOR_NAMES.index(o.color) + 1) for o in drawn.items]
    places = [_place(o) for o in drawn.items]
    names, places = np.array([*names, (0, 0)]), np.array([*places, (0, 0, 0)], np.float32)  # owner -1 is the last
    return names[owner, 0], names[owner, 1], places[owner]


def question_row(question: Question) -> tuple[list[int], list[int]]:
    """The question and its answer; only the answer and the end after it are supervised."""
    words, answer = encode(question.text), IDS[question.answer]
    return [*words, answer], [IGNORED] * (len(words) - 1) + [answer, IDS[EOS]]


def caption_row(drawn: Scene, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """All objects in random order, colour and shape in either order; the second word of each pair is supervised.

    Given one word of a pair the other can only come from the same object: this is what teaches binding.
    """
    words, targets = [], []
    for index in rng.permutation(len(drawn.items)):
        pair = [IDS[drawn.items[index].color], IDS[drawn.items[index].shape]]
        if rng.random() < 0.5:
            pair.reverse()
        words += pair
        targets += [pair[1], IGNORED]
    return words, targets


def tour_row(drawn: Scene, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """All objects by shape or by colour, from one edge of the picture to the other, then the end; all supervised.

    Which object comes next is a comparison of places: far more to learn from than the yes or no of a relation.
    """
    edge = list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
    (axis, sign), name = DIRECTIONS[edge], ("shape", "color")[rng.integers(2)]
    items = sorted(drawn.items, key=lambda item: sign * getattr(item, axis))
    words = [IDS[edge], *(IDS[getattr(item, name)] for item in items)]
    return words, [*words[1:], IDS[EOS]]


def half_row(drawn: Scene, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Is an object in the left (upper) half of the image? A relation with the image in the place of one object."""
    axis, words = (("x", "left of"), ("y", "above"))[rng.integers(2)]
    far = [o for o in unique(drawn.items, "shape") if abs(getattr(o, axis) - SIZE / 2) >= MARGIN]
    if not far:
        return caption_row(drawn, rng)
    item = far[rng.integers(len(far))]
    names, before = (item.shape, "image"), getattr(item, axis) < SIZE / 2
    if rng.random() < 0.5:
        names, before = names[::-1], not before
    return question_row(Question(f"is the {names[0]} {words} the {names[1]}?", "yes" if before else "no", "half"))


@dataclass
class Batches:
    """Training batches by number: `Batches(...)[b]` is the same whenever it is asked for.

    `first`: number of the first scene, so that every stage of the training sees scenes of its own.
    `weights`: chance of each question kind (empty: captions). `tours`, `halves`: number of rows of a
    scene that are such rows instead.
    `easy_share`: share of easy-VQA images.
    """

    batch: int
    rows: int
    first: int
    weights: dict[str, float] = field(default_factory=dict)
    easy_share: float = 0.0
    tours: int = 0
    halves: int = 0

    @cached_property
    def third_party(self) -> list[tuple[np.ndarray, list[Question]]]:
        return easy.grouped("train")

    def __getitem__(self, number: int) -> Batch:
        shapes = np.zeros((self.batch, VISUAL), np.int64)
        colors, places = shapes.copy(), np.zeros((self.batch, VISUAL, 3), np.float32)
        images = np.zeros((self.batch, SIZE, SIZE, 3), np.uint8)
        rows = np.zeros((self.batch, self.rows, ROW), np.int64)
        targets, kinds = np.full_like(rows, IGNORED), np.zeros(rows.shape[:2], np.int64)
        spots = np.full((*rows.shape, 3), np.nan, np.float32)
        taken = round(self.batch * self.easy_share)
        for i in range(self.batch):
            rng = stream("train", self.first + number * self.batch + i)
            drawn = None
            if i < taken:
                images[i], asked = self.third_party[rng.integers(len(self.third_party))]
                asked = [asked[j] for j in _at_least(rng, len(asked), self.rows)]
                shapes[i] = colors[i] = IGNORED
            else:
                drawn = scene(rng)
                images[i], (shapes[i], colors[i], places[i]) = drawn.image, patch_labels(drawn)
                asked = self._questions(drawn, rng) if self.weights else [None] * self.rows
            for r, question in enumerate(asked):
                if drawn and r < self.tours:
                    kind, (words, wanted) = "tour", tour_row(drawn, rng)
                elif drawn and r < self.tours + self.halves:
                    kind, (words, wanted) = "half", half_row(drawn, rng)
                elif question:
                    kind, (words, wanted) = question.kind, question_row(question)
                else:
                    kind, (words, wanted) = "caption", caption_row(drawn, rng)
                rows[i, r, : len(words)], targets[i, r, : len(wanted)] = words, wanted
                kinds[i, r] = KIND_NAMES.index(kind)
                spots[i, r] = _spots(drawn, rows[i, r]) if drawn else np.nan
        return Batch(*map(torch.from_numpy, (images, shapes, colors, places, rows, targets, kinds, spots)))

    def _questions(self, drawn: Scene, rng: np.random.Generator) -> list[Question]:
        kinds, chances = list(self.weights), np.array(list(self.weights.values()))
        asked: list[Question] = []
        for _ in range(200):
            for kind in rng.choice(kinds, self.rows, p=chances / chances.sum()):
                if question := ask(drawn.items, kind, rng):
                    asked.append(question)
            if len(asked) >= self.rows:
                return asked[: self.rows]
        raise ValueError(f"weights={self.weights} name only kinds that a scene of {len(drawn.items)} cannot answer.")


def _spots(drawn: Scene, row: np.ndarray) -> np.ndarray:
    """Place of the one object whose shape a word names [ROW, 3], NaN for other words."""
    table = np.full((len(WORDS), 3), np.nan, np.float32)
    for item in unique(drawn.items, "shape"):
        table[IDS[item.shape]] = _place(item)
    return table[row]


def _at_least(rng: np.random.Generator, available: int, wanted: int) -> np.ndarray:
    """`wanted` indices below `available`, each used once before any is repeated."""
    return np.concatenate([rng.permutation(available) for _ in range(-(-wanted // available))])[:wanted]
