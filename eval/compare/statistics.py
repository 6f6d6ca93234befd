"""Paired tests: the exact one of McNemar, the bootstrap, and Holm's correction for several of them.

All take documents as independent. Questions about one picture tend to be right or wrong together; where many share
one, intervals are too narrow and p-values too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES, SEED = 10_000, 0
FEW = 64  # different differences, up to which their counts are drawn instead of the documents
DRAWN = 4_000_000  # documents drawn at a time


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of `gained` against `lost` discordant pairs: 2 P(X <= min), X ~ B(gained + lost, 1/2).

    Summed in logarithms, so that 100,000 pairs neither overflow nor take long.
    """
    n = gained + lost
    whole = math.lgamma(n + 1) - n * math.log(2)
    terms = (math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1)) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * math.fsum(terms))


def bootstrap(differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, float, float]:
    """(low, high, p): 95 % percentile interval of the mean of paired differences [n], and the two-sided p-value.

    p is twice the smaller share of resampled means on either side of zero, the observed one counted among them; and no
    smaller than the signs of as many differences could give, since few documents that agree resample to themselves. The
    order of the documents does not matter.
    """
    means = _resampled(np.sort(np.asarray(differences, dtype=np.float64)), resamples, np.random.default_rng(seed))
    low, high = (float(one) for one in np.quantile(means, (0.025, 0.975)))
    side = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    least = 2.0 ** (1 - np.count_nonzero(differences))
    return low, high, float(min(1.0, max(2 * (side + 1) / (resamples + 1), least)))


def _resampled(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """[resamples] means of n values drawn with replacement."""
    n, (distinct, counts) = len(values), np.unique(values, return_counts=True)
    if len(distinct) <= FEW:
        return rng.multinomial(n, counts / n, size=resamples) @ distinct / n
    lines = max(1, DRAWN // n)
    drawn = [
        values[rng.integers(n, size=(min(lines, resamples - done), n))].mean(1) for done in range(0, resamples, lines)
    ]
    return np.concatenate(drawn)


def holm(values: Sequence[float]) -> list[float]:
    """p-values that hold for all of them together, in the order given."""
    found, least = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        least = max(least, min(1.0, (len(values) - rank) * values[i]))
        found[i] = least
    return found
