"""Training batches of clips, each played both ways, with packed rows of text and what every visible shape does."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from .language import EOS, VIDEO_WORDS
from .modeling import ROW
from .questions import Question, unique
from .scenes import GRID, SIZE, stream
from .video_clips import FRAMES, Actor, Clip, clip
from .video_model import CELLS
from .video_questions import KINDS, ask, in_order, movers

IDS = {word: i for i, word in enumerate(VIDEO_WORDS)}
IGNORED = -100  # target of a word that is not supervised
ROWS = (*KINDS, "caption", "order")  # kinds of rows
FACTS = 5
WAY_SCALE = 32.0  # px, unit of a way in the dense targets


@dataclass
class VideoBatch:
    """B clips forwards, then the same B backwards: S = 2 B sequences; `kind` [S, R] indexes ROWS.

    `frames` [B, T, SIZE, SIZE, 3] uint8.
    `seen` [S, T * CELLS, FACTS]: of the shape under a visual token the way so far (x, y, length), the frame in which it
    was first seen, and the frame of the token itself; NaN on background.
    `spot` [S, R, ROW, FACTS]: of the one shape that a word names its whole way (x, y, length), first frame and the
    frame after the last; else NaN.
    """

    frames: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    kind: torch.Tensor
    seen: torch.Tensor
    spot: torch.Tensor


def encode(text: str) -> list[int]:
    """Token ids of lower-case text, as the tokenizer would give them without special tokens."""
    return [IDS[word] for word in text.replace("?", " ?").split()]


def question_row(question: Question) -> tuple[list[int], list[int]]:
    """The question and its answer; only the answer and the end after it are supervised."""
    words, answer = encode(question.text), IDS[question.answer]
    return [*words, answer], [IGNORED] * (len(words) - 1) + [answer, IDS[EOS]]


def caption_row(drawn: Clip, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """All shapes in random order: colour and shape in either order, then what it does (left, appears, still, ...)."""
    words, targets = [], []
    for index in rng.permutation(len(drawn.actors)):
        actor = drawn.actors[index]
        pair = [IDS[actor.color], IDS[actor.shape]]
        if rng.random() < 0.5:
            pair.reverse()
        does = IDS[actor.direction or {"appear": "appears", "vanish": "vanishes"}.get(actor.behaviour, "still")]
        words += [*pair, does]
        targets += [pair[1], does, IGNORED]
    return words, targets


def order_row(drawn: Clip, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Everything that appears (or moves) by shape or by colour, then the end; all supervised.

    The earliest comes first; what moves goes from left to right.
    """
    event = ("appear", "move")[rng.integers(2)]
    name = ("shape", "color")[rng.integers(2)]
    if event == "move":
        found = sorted(movers(drawn.actors), key=lambda actor: actor.start[0] + actor.end[0])
    else:
        found = in_order(drawn.actors, event)
    words = [IDS[event], *(IDS[getattr(actor, name)] for actor in found)]
    return words, [*words[1:], IDS[EOS]]


def seen_by_cells(drawn: Clip) -> np.ndarray:
    """`VideoBatch.seen` of one clip [T * CELLS, FACTS]."""
    frames, half = len(drawn.frames), GRID // 2
    table = np.full((frames, len(drawn.actors) + 1, FACTS), np.nan, np.float32)  # owner -1 is the last
    for index, actor in enumerate(drawn.actors):
        for t in range(actor.first, actor.last + 1):
            table[t, index] = (*_way(actor, t / (frames - 1)), actor.first / frames, t / frames)
    owner = drawn.owner.reshape(frames, half, 2, half, 2).transpose(0, 1, 3, 2, 4).reshape(frames, half * half, 4)
    votes = (owner[..., None] == np.arange(len(drawn.actors))).sum(2)  # patches of the cell that each actor owns
    chosen = np.where(votes.max(-1) > 0, votes.argmax(-1), -1)
    return table[np.arange(frames)[:, None], chosen].reshape(frames * CELLS, FACTS)


@dataclass
class VideoBatches:
    """Training batches by number: `VideoBatches(...)[b]` is the same whenever it is asked for.

    `first`: number of the first clip, so that every stage sees clips of its own. `weights`: chance of each kind of row.
    """

    batch: int
    rows: int
    first: int
    weights: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, number: int) -> VideoBatch:
        size = self.batch * 2
        frames = np.zeros((self.batch, FRAMES, SIZE, SIZE, 3), np.uint8)
        rows = np.zeros((size, self.rows, ROW), np.int64)
        targets, kinds = np.full_like(rows, IGNORED), np.zeros(rows.shape[:2], np.int64)
        seen = np.zeros((size, FRAMES * CELLS, FACTS), np.float32)
        spots = np.full((*rows.shape, FACTS), np.nan, np.float32)
        for i in range(self.batch):
            rng = stream("train", self.first + number * self.batch + i)
            forwards = clip(rng)
            frames[i] = forwards.frames
            for at, drawn in ((i, forwards), (i + self.batch, forwards.reversed())):
                seen[at] = seen_by_cells(drawn)
                for r, (kind, words, wanted) in enumerate(self._rows(drawn, rng)):
                    rows[at, r, : len(words)], targets[at, r, : len(wanted)] = words, wanted
                    kinds[at, r] = ROWS.index(kind)
                    spots[at, r] = _spots(drawn, rows[at, r])
        return VideoBatch(*map(torch.from_numpy, (frames, rows, targets, kinds, seen, spots)))

    def _rows(self, drawn: Clip, rng: np.random.Generator) -> list[tuple[str, list[int], list[int]]]:
        names, chances = list(self.weights), np.array(list(self.weights.values()))
        found: list[tuple[str, list[int], list[int]]] = []
        while len(found) < self.rows:  # captions and counts are possible for every clip
            for kind in rng.choice(names, self.rows, p=chances / chances.sum()):
                if kind == "caption":
                    found.append((kind, *caption_row(drawn, rng)))
                elif kind == "order":
                    found.append((kind, *order_row(drawn, rng)))
                elif question := ask(drawn.actors, kind, rng):
                    found.append((kind, *question_row(question)))
        return found[: self.rows]


def _spots(drawn: Clip, row: np.ndarray) -> np.ndarray:
    """What the one shape that a word names does [ROW, FACTS], NaN for other words."""
    table = np.full((len(VIDEO_WORDS), FACTS), np.nan, np.float32)
    frames = len(drawn.frames)
    for actor in unique(drawn.actors, "shape"):
        table[IDS[actor.shape]] = (*_way(actor), actor.first / frames, (actor.last + 1) / frames)
    return table[row]


def _way(actor: Actor, share: float = 1.0) -> tuple[float, float, float]:
    """A share of its way, in units of WAY_SCALE: right, down, and the length."""
    x, y = (way * share / WAY_SCALE for way in actor.way)
    return x, y, math.hypot(x, y)
