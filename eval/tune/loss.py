"""What pruning loses: the allowed loss, and bounds of a loss measured document by document."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ...errors import InvalidArgumentError

STEPS = 60  # of bisection: to the last bits of a float


@dataclass(frozen=True)
class MaxDrop:
    """An allowed loss: `amount` of the dense score if `relative`, else in the metric's own units."""

    amount: float
    relative: bool

    @classmethod
    def read(cls, text: str) -> MaxDrop:
        """`"1%"` is a hundredth of the dense score, `"0.01"` that much of the metric itself.

        Raises:
            InvalidArgumentError: no number of at least 0.
        """
        relative = text.strip().endswith("%")
        try:
            amount = float(text.strip().removesuffix("%")) / (100 if relative else 1)
        except ValueError:
            amount = math.nan
        if not 0 <= amount < math.inf:
            raise InvalidArgumentError(
                f"max-drop={text!r} is no allowed loss: give 1% (of the dense score) or 0.01 (of the metric itself), "
                "at least 0."
            )
        return cls(amount, relative)

    def of(self, dense: float) -> float:
        """In the metric's units, where the dense model scores `dense`."""
        return self.amount * abs(dense) if self.relative else self.amount

    def __str__(self) -> str:
        return f"{100 * self.amount:g} % of the dense score" if self.relative else f"{self.amount:g}"


def scale(*values: np.ndarray) -> float:
    """The most that a document can lose: 1 where all values are in [0, 1], else the range of those seen."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    return 1.0 if low >= 0 and high <= 1 else high - low


def bounds(losses: np.ndarray, most: float, confidence: float) -> tuple[float, float]:
    """(low, high) of the mean loss, each with this confidence on its own side.

    Score bounds of a difference of paired proportions (Tango, Statistics in Medicine 17, 1998): with n documents, of
    which the shares b are lost and c are won, those d where n (b - c - d)^2 = z^2 (2 q + d (1 - d)), q being the
    likeliest share won if the loss were d. Where no document differs, the bounds are apart from 0 nevertheless. A
    document that is lost in part counts in part, which makes the bounds wider than they need be. Documents are taken
    to be independent.

    Args:
        losses: [n], dense less pruned, within [-most, most].
        most: see `scale`.
        confidence: in (0.5, 1).
    """
    shares = np.clip(losses / (most or 1.0), -1, 1)
    lost, won = float(np.maximum(shares, 0).mean()), float(np.maximum(-shares, 0).mean())
    squared = NormalDist().inv_cdf(confidence) ** 2 / losses.size
    high = _edge(lambda d: (lost - won - d) ** 2 <= squared * _variance(lost, won, d), lost - won)
    low = -_edge(lambda d: (won - lost - d) ** 2 <= squared * _variance(won, lost, d), won - lost)
    return low * most, high * most


def _variance(lost: float, won: float, d: float) -> float:
    """Of a document's loss, at the likeliest shares whose difference is d."""
    b, c = (2 - lost + won) * d - lost - won, -won * d * (1 - d)
    likeliest = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4
    return max(2 * likeliest + d * (1 - d), 0.0)


def _edge(inside: Callable[[float], bool], start: float) -> float:
    """The largest value up to 1 that is inside, as `start` is."""
    low, high = start, 1.0
    if inside(high):
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return (low + high) / 2
