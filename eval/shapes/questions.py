"""Questions with one-word answers about a scene, asked only where the answer is unique and plain to the eye."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .scenes import COLORS, SHAPES, Item

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
COLOR_NAMES = tuple(COLORS)
MARGIN = 8.0  # px by which two centres must differ before one counts as further left or higher
HARD_NEGATIVES = 0.8  # share of "no" existence questions whose shape and colour are both present, on different objects
ABSENT = 0.5  # chance that a shape count asks about an absent shape, divided by the number of other counts on offer


@dataclass(frozen=True)
class Question:
    """`text` ends with a question mark; `answer` is one word; `kind` is a key of `KINDS`."""

    text: str
    answer: str
    kind: str


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def ask(items: Sequence[Item], kind: str, rng: np.random.Generator) -> Question | None:
    """One random question of a kind about these items, or None where the scene allows none with a unique answer."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
    found = KINDS[kind](items, rng)
    return Question(*found, kind) if found else None


def _a(color: str, shape: str) -> str:
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {shape}"


def pick(values: Sequence, rng: np.random.Generator):
    return values[rng.integers(len(values))]


def unique(items: Sequence[Item], field: str) -> list[Item]:
    """The items whose shape (or colour) no other item has."""
    values = [getattr(item, field) for item in items]
    return [item for item, value in zip(items, values, strict=True) if values.count(value) == 1]


def _color(items: Sequence[Item], rng: np.random.Generator) -> tuple[str, str] | None:
    if not (found := unique(items, "shape")):
        return None
    item = pick(found, rng)
    return f"what color is the {item.shape}?", item.color


def _shape(items: Sequence[Item], rng: np.random.Generator) -> tuple[str, str] | None:
    if not (found := unique(items, "color")):
        return None
    item = pick(found, rng)
    return f"what shape is the {item.color} object?", item.shape


def _count(items: Sequence[Item], rng: np.random.Generator) -> tuple[str, str]:
    return "how many objects are there?", NUMBERS[len(items)]


def _count_shape(items: Sequence[Item], rng: np.random.Generator) -> tuple[str, str]:
    """The count is drawn first, among those the scene offers, so that large counts are not rare."""
    present = [item.shape for item in items]
    by_count: dict[int, list[str]] = {}
    for shape in SHAPES:
        by_count.setdefault(present.count(shape), []).append(shape)
    counts = [count for count in by_count if count > 0]
    count = 0 if rng.random() < ABSENT / len(counts) else pick(counts, rng)
    return f"how many {plural(pick(by_count[count], rng))} are there?", NUMBERS[count]


def _exist(items: Sequence[Item], rng: np.random.Generator) -> tuple[str, str]:
    """Yes and no equally often. Most no's name a shape and a colour that are both there, but not together."""
    pairs = {(item.color, item.shape) for item in items}
    if rng.random() < 0.5:
        color, shape = pick(sorted(pairs), rng)
        return f"is there {_a(color, shape)}?", "yes"
    colors, shapes = sorted({c for c, _ in pairs}), sorted({s for _, s in pairs})
    hard = [(c, s) for c in colors for s in shapes if (c, s) not in pairs]
    near = [(c, s) for c in COLOR_NAMES for s in SHAPES if (c, s) not in pairs and (c in colors) != (s in shapes)]
    color, shape = pick(hard if hard and rng.random() < HARD_NEGATIVES else near, rng)
    return f"is there {_a(color, shape)}?", "no"


def _before(a: Item, b: Item, axis: str) -> bool:
    """Is `a` clearly left of (axis x) or above (axis y) `b`: by its centre, and by both ends of its square."""
    pa, pb = getattr(a, axis), getattr(b, axis)
    return pb - pa >= MARGIN and pa - a.side / 2 < pb - b.side / 2 and pa + a.side / 2 < pb + b.side / 2


def _extreme(items: Sequence[Item], rng: np.random.Generator) -> tuple[str, str] | None:
    word = pick(("leftmost", "rightmost", "highest", "lowest"), rng)
    axis, first = ("x" if word.endswith("most") else "y"), word in ("leftmost", "highest")
    for item in items:
        if all((_before(item, o, axis) if first else _before(o, item, axis)) for o in items if o is not item):
            if rng.random() < 0.5:
                return f"what color is the {word} object?", item.color
            return f"what shape is the {word} object?", item.shape
    return None


def _relation(items: Sequence[Item], rng: np.random.Generator) -> tuple[str, str] | None:
    """The pair and its order are drawn at random, so yes and no are equally likely."""
    named = unique(items, "shape")
    axis, words = pick((("x", "left of"), ("y", "above")), rng)
    pairs = [(a, b) for a in named for b in named if _before(a, b, axis)]
    if not pairs:
        return None
    first, second = pick(pairs, rng)
    if rng.random() < 0.5:
        return f"is the {first.shape} {words} the {second.shape}?", "yes"
    return f"is the {second.shape} {words} the {first.shape}?", "no"


KINDS: dict[str, Callable] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "count_shape": _count_shape,
    "exist": _exist,
    "extreme": _extreme,
    "relation": _relation,
}
