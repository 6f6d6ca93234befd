"""95 % intervals: of a share of right answers, and of a difference on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054  # 97.5 % of a standard normal lie below


def wilson(correct: float, asked: float) -> tuple[float, float]:
    """Wilson's score interval for `correct` of `asked` independent questions."""
    share = correct / asked
    middle = share + Z * Z / (2 * asked)
    half = Z * math.sqrt(share * (1 - share) / asked + Z * Z / (4 * asked * asked))
    low, high = ((middle + side * half) / (1 + Z * Z / asked) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def standard_error(values: np.ndarray, cluster: np.ndarray) -> float:
    """Of the mean of values [n] that are independent between clusters [n] (pictures) only."""
    sums = np.bincount(cluster, weights=values - values.mean())
    count = np.count_nonzero(np.bincount(cluster))
    if count < 2:
        return math.inf
    return math.sqrt(count / (count - 1) * float(np.square(sums).sum())) / len(values)


def seed_error(shares: Sequence[float]) -> float:
    """Standard error that the choice of seeds gives the mean over them; 0 for a single one, where it is unknown."""
    return float(np.std(shares, ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0


def share(right: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """Interval for the mean of right [seeds, n] bool: Wilson's for as many independent answers as these are worth.

    Questions about one picture tend to be right or wrong together, and the seeds are a sample as the questions are:
    p (1 - p) over the squared standard error is the number of independent answers with that error.
    """
    mean, most = float(right.mean()), right.size
    error = math.hypot(standard_error(right.mean(0), cluster), seed_error(right.mean(1)))
    worth = float(len(np.unique(cluster)))
    if 0 < mean < 1:
        worth = mean * (1 - mean) / error**2 if error > 0 else most
    n = min(max(worth, 1.0), most)
    return wilson(mean * n, n)


def difference(right: np.ndarray, other: np.ndarray, cluster: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of right - other, [seeds, n] each, paired question by question."""
    paired = right.mean(0) - other.mean(0)
    error = math.hypot(standard_error(paired, cluster), seed_error(right.mean(1)), seed_error(other.mean(1)))
    return float(paired.mean()), float(paired.mean()) - Z * error, float(paired.mean()) + Z * error
