"""Budget: how many tokens of a unit survive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import InvalidArgumentError, nearest

Unit = Literal["image", "crop", "frame", "prompt"]
Whole = Literal["image", "prompt"]
Rounding = Literal["half_even", "half_up", "floor", "ceil"]
Quota = Literal["proportional", "equal"]

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
        of: None: `keep` is of every unit by itself. "image" or "prompt": `keep` is of all units of one image (video),
            or of one sample, together, and is split over them (`split`).
        quota: how it is split: "proportional" to the units' sizes, or "equal", the same count for each, where what a
            small unit cannot take goes to the others.

    Raises:
        InvalidArgumentError: a value outside these ranges, or an `of` that is not larger than `per`.
    """

    keep: int | float
    per: Unit = "image"
    rounding: Rounding = "half_even"
    of: Whole | None = None
    quota: Quota = "proportional"

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
        words = (("per", self.per, Unit), ("rounding", self.rounding, Rounding), ("quota", self.quota, Quota))
        for name, value, allowed in words:
            if value not in get_args(allowed):
                raise InvalidArgumentError(
                    f"{name}={value!r} is not one of {', '.join(get_args(allowed))}{nearest(value, get_args(allowed))}."
                )
        if self.of is not None:
            if self.of not in get_args(Whole):
                raise InvalidArgumentError(f"of={self.of!r} is neither 'image' nor 'prompt': give one, or None.")
            if self.per in ("prompt", self.of):
                raise InvalidArgumentError(
                    f"of={self.of!r} is not larger than per={self.per!r}: split an image over per='crop' or 'frame', a "
                    "prompt also over per='image'."
                )

    def count(self, n: int) -> int:
        """Tokens that survive of a unit of `n`: min(keep, n) for an int, rounded share (at least 1) for a float."""
        if isinstance(self.keep, int):
            return min(self.keep, n)
        slack = {"floor": _SLACK, "ceil": -_SLACK}.get(self.rounding, 0.0)
        return min(n, max(1, int(_ROUND[self.rounding](self.keep * n + slack))))

    def split(self, sizes: list[int]) -> list[int]:
        """Tokens that survive of each of several units that share one budget, as `quota` says.

        In proportion: largest remainders are rounded up first, the earlier unit among equals; every unit keeps one
        token as long as there are enough for all. Equally: earlier units get one more where it does not divide. With
        fewer tokens than units, some keep none.
        """
        total, whole = self.count(sum(sizes)), sum(sizes)
        if self.quota == "equal":
            return _equal(total, sizes)
        shares = [total * size // whole for size in sizes]
        rest = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % whole), i))
        for i in rest[: total - sum(shares)]:
            shares[i] += 1
        for i, share in enumerate(shares):  # tiny units next to large ones
            if share == 0 and total >= len(sizes) and sizes[i]:
                shares[max(range(len(sizes)), key=shares.__getitem__)] -= 1
                shares[i] = 1
        return shares


def _equal(total: int, sizes: list[int]) -> list[int]:
    """`total` tokens over units that hold at most `sizes`, as equally as they can."""
    rest, level = total, 0
    for filled, size in enumerate(sorted(sizes)):  # what small units cannot take raises the level of the others
        level = rest // (len(sizes) - filled)
        if size > level:
            break
        rest -= size
    shares = [min(size, level) for size in sizes]
    open_units = [i for i, size in enumerate(sizes) if size > level]
    for i in open_units[: total - sum(shares)]:
        shares[i] += 1
    return shares
