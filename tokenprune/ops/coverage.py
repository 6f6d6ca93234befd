"""Greedy facility location: candidates that together cover all rows best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import kernels, lazy, plain
from .plain import BLOCK_ELEMENTS

# A bound may be below the gain it bounds by float32 rounding, so that candidates this near to the best are looked at.
SLACK = 1e-6
# Elements of the columns computed at once (4 MiB of float32): much faster on a CPU than blocks beyond its cache.
CACHED_ELEMENTS = 2**20
# Candidates looked at first in a lazy step; each further round takes twice as many.
FIRST_ROUND = 64


@torch.no_grad()
def greedy_coverage(columns: Callable[[Tensor], Tensor], weight: Tensor, rows: int, k: int) -> Tensor:
    """Greedy maximum coverage of R rows by k of N candidates: [G, k] indices in the order chosen, lowest first on ties.

    With c_r the best coverage of row r by the candidates chosen (0 at first), each step takes the candidate i with the
    largest gain w_i sum_r max(0, F_ri - c_r). Where F does not fit into one block, and on the CPU, the greedy is
    lazy: a gain never grows, so an old gain is an upper bound, and only candidates whose bound reaches the best gain
    are looked at again. The answer is the same.

    Args:
        columns: maps [G, b] indices to the columns F_.i of these candidates as [G, b, R] float32, a new tensor every
            time (it is written to).
        weight: [G, N] float32, w_i >= 0; ones where the method has none.
        rows: R.
        k: 1 <= k <= N.

    Cost: k N R additions (lazy: N R and as many more as bounds are close) and as many columns; k sequential steps.
    Memory: F while that is 64 MiB (as much again on a device that is no CPU and has no kernel); else 4 MiB (or one
    column per unit, if that is more) and N floats, and the device is asked once a round whether all is known that
    matters.
    """
    g, n = weight.shape
    if not at_once(g, n, rows):
        return _streamed(columns, weight, rows, k)
    if weight.device.type == "cpu":
        return lazy.coverage(columns(torch.arange(n).expand(g, n)), weight, k)
    if kernels.available(weight.device):
        return kernels.coverage(columns(torch.arange(n, device=weight.device).expand(g, n)), weight, k)
    return plain.coverage(columns, weight, rows, k)


def at_once(g: int, n: int, rows: int) -> bool:
    """Whether `greedy_coverage` asks for all columns of its units first, and for none again."""
    return g * rows * n <= BLOCK_ELEMENTS


def _streamed(columns: Callable[[Tensor], Tensor], weight: Tensor, rows: int, k: int) -> Tensor:
    """The lazy greedy where columns are made when they are looked at."""
    g, n = weight.shape
    block = max(1, CACHED_ELEMENTS // (g * rows))
    covered, order = weight.new_zeros(g, 1, rows), []
    taken = torch.zeros(g, n, dtype=torch.bool, device=weight.device)
    parts = torch.arange(n, device=weight.device).expand(g, n).split(block, 1)
    bound = weight * torch.cat([_uncovered(columns(part), covered) for part in parts], 1)
    for step in range(k):
        if step:
            bound = _lazy_gains(columns, weight, covered, bound, taken, block)
        j = bound.masked_fill(taken, -torch.inf).argmax(-1, keepdim=True)
        taken = taken.scatter(1, j, True)
        covered = torch.maximum(covered, columns(j))
        order.append(j)
    return torch.cat(order, 1)


def _uncovered(columns: Tensor, covered: Tensor) -> Tensor:
    """[G, b] sum of what the columns [G, b, R], which are used up, add to the coverage [G, 1, R]."""
    return columns.sub_(covered).clamp_min_(0.0).sum(-1)


def _lazy_gains(
    columns: Callable[[Tensor], Tensor], weight: Tensor, covered: Tensor, bound: Tensor, taken: Tensor, block: int
) -> Tensor:
    """[G, N] bounds, with those renewed that could be the largest gain."""
    bound = bound.masked_fill(taken, -torch.inf)
    fresh = taken | (bound <= 0)  # nothing left to gain is exact
    size = min(FIRST_ROUND, block, bound.shape[1])
    while True:
        best = bound.masked_fill(~fresh, -torch.inf).amax(-1)
        stale = bound.masked_fill(fresh, -torch.inf)
        if not bool((stale.amax(-1) >= torch.where(best > 0, best * (1 - SLACK), 0.0)).any()):
            return bound
        some = stale.topk(size, -1).indices
        bound = bound.scatter(1, some, weight.gather(1, some) * _uncovered(columns(some), covered))
        bound = bound.masked_fill(taken, -torch.inf)
        fresh = fresh.scatter(1, some, True)
        size = min(2 * size, block, bound.shape[1])
