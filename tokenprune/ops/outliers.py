"""How many scores stand out."""

from __future__ import annotations

from torch import Tensor


def count_outliers(scores: Tensor) -> Tensor:
    """[G] long: how many of [G, N] scores exceed Q3 + 1.5 (Q3 - Q1), the quartiles linearly interpolated."""
    ordered, n = scores.float().sort(dim=-1).values, scores.shape[-1]

    def quartile(share: float) -> Tensor:
        place = share * (n - 1)
        low = int(place)
        return ordered[:, low].lerp(ordered[:, min(low + 1, n - 1)], place - low)

    q1, q3 = quartile(0.25), quartile(0.75)
    return (scores.float() > (q3 + 1.5 * (q3 - q1))[:, None]).sum(-1)
