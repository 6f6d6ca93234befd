"""Questions with one-word answers about a clip, asked only where the answer is unique and plain to the eye."""

from collections.abc import Callable, Sequence

import numpy as np

from .questions import NUMBERS, Question, pick, unique
from .video_clips import Actor

EVENTS = {"appear": "first", "vanish": "last"}  # what a shape does, and the field that tells when


def ask(actors: Sequence[Actor], kind: str, rng: np.random.Generator) -> Question | None:
    """One random question of a kind about these actors, or None where the clip allows none with a unique answer."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
    found = KINDS[kind](actors, rng)
    return Question(*found, kind) if found else None


def movers(actors: Sequence[Actor]) -> list[Actor]:
    return [actor for actor in actors if actor.behaviour == "move"]


def in_order(actors: Sequence[Actor], event: str) -> list[Actor]:
    """The actors that appear (or vanish) during the clip, earliest first."""
    return sorted((a for a in actors if a.behaviour == event), key=lambda a: getattr(a, EVENTS[event]))


def _direction(actors: Sequence[Actor], rng: np.random.Generator) -> tuple[str, str] | None:
    if not (found := movers(actors)):
        return None
    actor = pick(found, rng)
    return f"which way does the {actor.color} {actor.shape} move?", actor.direction


def _count_moving(actors: Sequence[Actor], rng: np.random.Generator) -> tuple[str, str]:
    return "how many objects move?", NUMBERS[len(movers(actors))]


def _mover(actors: Sequence[Actor], rng: np.random.Generator) -> tuple[str, str] | None:
    found = movers(actors)
    if len(found) != 1:
        return None
    if rng.random() < 0.5:
        return "what color is the object that moves?", found[0].color
    return "which shape moves?", found[0].shape


def _shapes_in_order(actors: Sequence[Actor], event: str) -> list[Actor]:
    """The actors of an event in their order, if there are two or more and the shape of each occurs once; else none."""
    single, found = unique(actors, "shape"), in_order(actors, event)
    return found if len(found) > 1 and all(actor in single for actor in found) else []


def _first(actors: Sequence[Actor], rng: np.random.Generator) -> tuple[str, str] | None:
    """Only of shapes that appear: no word names what vanished, and no token is left of it at the end."""
    if not (order := _shapes_in_order(actors, "appear")):
        return None
    end, actor = ("first", order[0]) if rng.random() < 0.5 else ("last", order[-1])
    return f"which shape appears {end}?", actor.shape


def _before(actors: Sequence[Actor], rng: np.random.Generator) -> tuple[str, str] | None:
    events = [(event, order) for event in EVENTS if (order := _shapes_in_order(actors, event))]
    if not events:
        return None
    event, order = pick(events, rng)
    early, late = (order[i] for i in sorted(rng.choice(len(order), 2, replace=False)))
    if rng.random() < 0.5:
        return f"does the {early.shape} {event} before the {late.shape}?", "yes"
    return f"does the {late.shape} {event} before the {early.shape}?", "no"


KINDS: dict[str, Callable] = {
    "direction": _direction,
    "count_moving": _count_moving,
    "mover": _mover,
    "first": _first,
    "before": _before,
}
