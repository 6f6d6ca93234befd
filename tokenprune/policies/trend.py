"""How a method's score grows with the place of a token."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from ..errors import InvalidArgumentError, nearest
from .published_trends import published

Kind = Literal["exponential", "cubic"]
_SIZES = {"exponential": 1, "cubic": 3}


@dataclass(frozen=True, kw_only=True)
class Trend:
    """f(x) / f(0) of the mean score of a unit's tokens, x = place / (tokens of the unit - 1) in [0, 1].

    Over x, not places, so that a trend holds for units of other sizes.

    Attributes:
        kind: "exponential", exp(b x), or "cubic", 1 + c1 x + c2 x^2 + c3 x^3.
        coefficients: (b,) or (c1, c2, c3).
        facts: what it was fitted to, for the reader.
    """

    kind: Kind = "exponential"
    coefficients: tuple[float, ...]
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise InvalidArgumentError(
                f"kind={self.kind!r} is not one of {', '.join(get_args(Kind))}{nearest(self.kind, get_args(Kind))}."
            )
        given, size = self.coefficients, _SIZES[self.kind]
        numbers = isinstance(given, (tuple, list)) and all(type(c) in (int, float) and math.isfinite(c) for c in given)
        if not numbers or len(given) != size:
            raise InvalidArgumentError(
                f"coefficients={given!r} of a trend of kind={self.kind!r} are not {size} number(s)."
            )
        object.__setattr__(self, "coefficients", tuple(map(float, given)))
        if self.kind == "cubic" and (low := self._lowest()) <= 0:
            raise InvalidArgumentError(
                f"coefficients={given!r} make a trend that falls to {low:.3g}: a score's trend stays above 0."
            )

    def _lowest(self) -> float:
        c1, c2, c3 = self.coefficients
        inside = c2 * c2 - 3 * c3 * c1  # the derivative is c1 + 2 c2 x + 3 c3 x^2
        turns = [-c1 / (2 * c2)] if c3 == 0 and c2 else []
        if c3 and inside >= 0:
            turns = [(-c2 + sign * math.sqrt(inside)) / (3 * c3) for sign in (1, -1)]
        return min(1 + x * (c1 + x * (c2 + x * c3)) for x in (0.0, 1.0, *(x for x in turns if 0 < x < 1)))

    def weights(self, place: Tensor, total: int) -> Tensor:
        """[G, N] float32, f(0) / f(x) of tokens at these places, long, of units that had `total` tokens."""
        x = place.float() / max(total - 1, 1)
        if self.kind == "exponential":
            return (-self.coefficients[0] * x).exp()
        c1, c2, c3 = self.coefficients
        return 1 / (1 + x * (c1 + x * (c2 + x * c3)))

    @classmethod
    def published(cls, method: str, benchmark: str | None = None) -> Trend:
        """What the authors of Attention Debiasing published for a method on LLaVA-1.5-7B.

        Args:
            method: a policy's name.
            benchmark: whose curve; None is the mean rate over all ten. FastV has one curve for all.

        Raises:
            InvalidArgumentError: they published none.
        """
        kind, coefficients = published(method, benchmark)
        facts = {"published": method, "benchmark": benchmark or "mean", "model": "LLaVA-1.5-7B"}
        return cls(kind=kind, coefficients=coefficients, facts=facts)

    @classmethod
    def of(cls, trend: Trend | str | Path | None, method: str) -> Trend | None:
        """What the user gave for a trend of a method: "published", the path of a file, a trend or None.

        Raises:
            InvalidArgumentError: it is none of these, or there is no such trend.
        """
        if trend == "published":
            return cls.published(method)
        if isinstance(trend, (str, Path)):
            return cls.load(trend)
        if not (trend is None or isinstance(trend, Trend)):
            raise InvalidArgumentError(f"trend={trend!r} is neither 'published', a path, a Trend nor None.")
        return trend

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps({**asdict(self), "facts": dict(self.facts)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Trend:
        """Read what `save` wrote.

        Raises:
            InvalidArgumentError: no such file, or no trend in it.
        """
        try:
            found = json.loads(Path(path).read_text())
            return cls(**{**found, "facts": dict(found.get("facts", {}))})
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"trend={str(path)!r} holds no trend ({str(error).rstrip('.')}).") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(
                f"trend={str(path)!r} is no file that holds a trend ({error}): give the path of one that "
                "`tokenprune train debias` or Trend.save wrote."
            ) from None
