"""What the events of one call did, and what it took: nothing that would keep a cache or hidden states alive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from ..layers import Event
from ..report import EventReport

Clock = Callable[[Tensor], float | None]


@dataclass
class Happened:
    """One event.

    Attributes:
        policy: by name.
        score: layer whose attention was read, None where none was.
        kept: tokens of every unit behind it.
        lengths: [B], tokens of every prompt behind it, padding left out.
        spent: milliseconds, None where not timed.
        scored: those of them that fell inside a layer in front of it.
    """

    policy: str
    event: Event
    score: int | None
    kept: list[int] = field(default_factory=list)
    lengths: Tensor | None = None
    spent: float | None = None
    scored: float = 0.0


@dataclass
class History:
    """All events of one call, in order.

    Attributes:
        start: tokens of every unit in front of the first layer.
        marks: seconds where the first layer is entered, before and after every event, and at the end; empty where
            nothing is timed.
    """

    events: list[Happened] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    marks: list[float] = field(default_factory=list)

    def entered(self, unit: int, layer: int) -> tuple[int, ...]:
        """Tokens of a unit that each layer in front of `layer` was given."""
        left, result = self.start[unit], []
        behind = {one.event.drop: one.kept[unit] for one in self.events}
        for i in range(layer):
            result.append(left := behind.get(i, left))
        return tuple(result)

    def mark(self, now: float | None) -> None:
        if now is not None:
            self.marks.append(now)

    def reports(self, depth: int) -> list[EventReport]:
        """Of a decoder of `depth` layers; each is taken to cost what those that read as much do on average."""
        layer = self._layer_times(depth) or [None] * (len(self.events) + 1)
        return [
            EventReport(
                policy=one.policy,
                layer=one.event.drop,
                scored=one.score,
                kept=sum(one.kept),
                lengths=one.lengths.tolist(),
                event_ms=one.spent,
                forgotten=one.event.forget,
                saved_ms=None if None in (before, after) else (depth - one.event.drop) * (before - after),
            )
            for one, (before, after) in zip(self.events, pairwise(layer), strict=True)
        ]

    def _layer_times(self, depth: int) -> list[float | None]:
        """Milliseconds of a layer in every stretch between events, None where it has none; empty if not timed."""
        at = [0, *(one.event.drop for one in self.events), depth]
        stretches = zip(self.marks[::2], self.marks[1::2], strict=True)
        inside = [*(one.scored for one in self.events), 0.0]
        return [
            (1e3 * (end - start) - inside[i]) / (at[i + 1] - at[i]) if at[i + 1] > at[i] else None
            for i, (start, end) in enumerate(stretches)
        ]
