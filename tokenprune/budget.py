"""Budget: how many tokens of a unit survive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import InvalidArgumentError, nearest

Unit = Literal["image", "crop", "frame", "prompt"]
Rounding = Literal["half_even", "half_up", "floor", "ceil"]

_ROUND = {
    "half_even": round,
    "half_up": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}
# 0.07 * 100 is 7.000000000000001 in binary; without slack `ceil` would keep 8 and `floor` of 0.29 * 100 only 28.
_SLACK = 1e-9


@dataclass(frozen=True)
class Budget:
    """A budget counted over one unit.

    Args:
        keep: an int keeps that many tokens of every unit (or all of them, if it has fewer); a float in (0, 1] keeps
            that share of every unit, rounded as `rounding` says and never below one token.
        per: the unit: "image" (one image or one video), "crop" (one tile), "frame" (one frame) or "prompt" (all
            visual tokens of one sample).
        rounding: "half_even" (Python's `round`, as DivPrune does), "half_up" (OpenVINO), "floor" (ZOO-Prune, MMTok)
            or "ceil".

    Raises:
        InvalidArgumentError: a value outside these ranges.
    """

    keep: int | float
    per: Unit = "image"
    rounding: Rounding = "half_even"

    def __post_init__(self):
        keep = self.keep
        if isinstance(keep, bool) or not isinstance(keep, (int, float)):
            raise InvalidArgumentError(
                f"keep={keep!r} is a {type(keep).__name__}: give an int (tokens) or a float in (0, 1] (share)."
            )
        if isinstance(keep, int) and keep < 1:
            raise InvalidArgumentError(f"keep={keep} keeps no token: give an int of at least 1 or a float in (0, 1].")
        if isinstance(keep, float) and not 0.0 < keep <= 1.0:  # also catches NaN
            raise InvalidArgumentError(f"keep={keep} is not in (0, 1]: a float is a share; for tokens give an int.")
        for name, value, allowed in (("per", self.per, Unit), ("rounding", self.rounding, Rounding)):
            if value not in get_args(allowed):
                raise InvalidArgumentError(
                    f"{name}={value!r} is not one of {', '.join(get_args(allowed))}{nearest(value, get_args(allowed))}."
                )

    def count(self, n: int) -> int:
        """Tokens that survive of a unit of `n`: min(keep, n) for an int, rounded share (at least 1) for a float."""
        if isinstance(self.keep, int):
            return min(self.keep, n)
        slack = {"floor": _SLACK, "ceil": -_SLACK}.get(self.rounding, 0.0)
        return min(n, max(1, int(_ROUND[self.rounding](self.keep * n + slack))))
