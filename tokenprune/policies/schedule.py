"""Policies inside the language model that drop at several layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..budget import Budget
from ..errors import InvalidArgumentError
from ..layers import Event, Rows
from .layer import LayerPolicy


@dataclass(kw_only=True)
class ScheduledPolicy(LayerPolicy):
    """A layer policy that drops at several layers.

    Attributes:
        layers: which, in the numbering of the paper: ints, or floats in (0, 1), that share of the decoder's depth,
            rounded down. Shares that fall on one layer, or on none that can drop, move to the nearest that are free.
        keeps: what each of them leaves of a unit as the language model got it: ints (tokens; 0 drops all) or floats in
            (0, 1]. None: `keep` is what the last one leaves, and the others follow the published schedule in
            proportion of logarithms (halves stay equal steps); without `keep`, the published schedule.
    """

    budgeted: ClassVar[bool] = True
    published: ClassVar[tuple[float, ...]] = ()  # shares left after each of the default layers
    offset: ClassVar[int] = 0  # tokens leave the input of layer + offset,
    lag: ClassVar[int] = 1  # scored in the layer that many before, or in that very one
    earliest: ClassVar[int] = 1  # layer that they can leave
    rows: ClassVar[Rows] = "last"

    layers: tuple[int | float, ...] = ()
    keeps: tuple[int | float, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("layers", "keeps"):
            if not isinstance(value := getattr(self, name), (tuple, list, type(None))):
                raise InvalidArgumentError(
                    f"{name}={value!r} is no tuple: give one entry for each layer, ({value!r},)."
                )
        self.layers = tuple(self.layers or ())
        if not self.layers:
            raise InvalidArgumentError("layers=() prunes nowhere: give at least one layer.")
        for layer in self.layers:
            if not (layer >= 0 if type(layer) is int else type(layer) is float and 0 < layer < 1):
                raise InvalidArgumentError(
                    f"layers={self.layers!r} has {layer!r}: give ints from 0, or floats in (0, 1) for shares of depth."
                )
        if self.keeps is None:
            if len(self.layers) != len(self.published):
                raise InvalidArgumentError(
                    f"layers={self.layers!r} are {len(self.layers)}, where the published schedule has "
                    f"{len(self.published)}: give keeps=, one entry for each layer."
                )
            return
        self.keeps = tuple(self.keeps)
        if self.keep is not None:
            raise InvalidArgumentError(
                f"keep={self.keep!r} and keeps={self.keeps!r} are both given: drop one of them (keep is what the last "
                "layer leaves)."
            )
        if len(self.keeps) != len(self.layers):
            raise InvalidArgumentError(
                f"keeps={self.keeps!r} has {len(self.keeps)} entries for layers={self.layers!r}: give one for each."
            )
        for keep in self.keeps:
            if not (type(keep) is int and keep == 0):
                Budget(keep, self.per, self.rounding)

    def events(self, depth: int) -> tuple[Event, ...]:
        least = self.earliest
        drops = self._apart([layer_at(layer, depth) + self.offset for layer in self.layers], least, depth)
        for layer, drop in zip(self.layers, drops, strict=True):
            if not least <= drop < depth:
                raise InvalidArgumentError(
                    f"layers={self.layers!r} has {layer}, where tokens would leave layer {drop} of a decoder with "
                    f"{depth} layers: give ints from {least - self.offset} to {depth - 1 - self.offset}, or shares."
                )
        if sorted(set(drops)) != drops:
            raise InvalidArgumentError(
                f"layers={self.layers!r} do not rise in a decoder with {depth} layers: give rising ones."
            )
        return tuple(Event(drop=drop, score=drop - self.lag, rows=self.rows, number=i) for i, drop in enumerate(drops))

    def count(self, event: Event, total: int) -> int:
        i = event.number
        if self.keeps is not None:
            return self._budget(self.keeps[i]).count(total) if self.keeps[i] else 0
        if self.keep is None:
            return self._budget(self.published[i]).count(total)
        last = self.budget.count(total) / total
        share = last ** (math.log(self.published[i]) / math.log(self.published[-1]))
        return self._budget(min(1.0, share)).count(total)

    def _apart(self, drops: list[int], least: int, depth: int) -> list[int]:
        """Those given as shares moved up, and where there is no room any longer down, until none meet."""
        movable = [i for i, layer in enumerate(self.layers) if isinstance(layer, float)]
        for i in movable:
            drops[i] = max(drops[i], drops[i - 1] + 1 if i else least)
        for i in reversed(movable):
            drops[i] = min(drops[i], drops[i + 1] - 1 if i + 1 < len(drops) else depth - 1)
        return drops

    def _budget(self, keep: int | float) -> Budget:
        return Budget(keep, self.per, self.rounding)


def layer_at(layer: int | float, depth: int) -> int:
    """The number of a layer given as a number or as a share of the depth."""
    return int(layer * depth + 1e-9) if isinstance(layer, float) else layer  # 0.29 * 100 is 28.999999999999996
