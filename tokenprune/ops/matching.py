"""Nearest tokens by cosine, and thinning by bipartite matching. Similarities are made in blocks, never N x N."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .greedy import top_k
from .plain import BLOCK_ELEMENTS

# Similarities held at once on a CPU (1 MiB of float32): much faster than blocks beyond its cache.
CACHED_ELEMENTS = 2**18


def gather_rows(x: Tensor, places: Tensor) -> Tensor:
    """x[g, places[g, c]] for x [G, N, ...] and places [G, C]: [G, C, ...]"""
    g, n = x.shape[:2]
    if g == 1:
        return x[0].index_select(0, places[0])[None]
    # rows of one long list: twice as fast on a CPU as an index for every dimension
    flat = places + n * torch.arange(g, device=places.device)[:, None]
    return x.flatten(0, 1).index_select(0, flat.flatten()).view(*places.shape, *x.shape[2:])


def _rows_of(similarities: int, x: Tensor) -> int:
    """Rows of one block, of so many similarities a row. On accelerators large ones: every block is a few launches."""
    return max(1, (CACHED_ELEMENTS if x.device.type == "cpu" else BLOCK_ELEMENTS) // max(1, similarities))


def _similarities(x: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """[G, rows, T] cosines of [G, M, D] tokens with [G, T, D] targets, block by block."""
    block = _rows_of(x.shape[0] * targets.shape[1], x)
    for start in range(0, max(x.shape[1], 1), block):
        yield x[:, start : start + block] @ targets.mT


def nearest_target(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine of every token with any target, and that target: two [G, M], the lowest target among equals.

    Args:
        x: [G, M, D] unit vectors, float32.
        targets: [G, T, D] unit vectors, float32, T >= 1.

    Cost: M T D multiply-adds per unit; memory: one block of similarities.
    """
    best = [similarity.max(-1) for similarity in _similarities(x, targets)]
    if len(best) == 1:
        return best[0].values, best[0].indices
    return torch.cat([b.values for b in best], 1), torch.cat([b.indices for b in best], 1)


def nearest_neighbours(x: Tensor, places: Tensor, m: int) -> Tensor:
    """[G, C, m] the m other tokens nearest to those at `places` [G, C], nearest first, the lowest among equals.

    Args:
        x: [G, N, D] unit vectors, float32.
        m: 0 <= m < N.

    Cost: C N D multiply-adds and C sorts of N per unit; memory: one block of similarities and its order, C m integers.
    """
    g, n, _ = x.shape
    block = _rows_of(g * n, x)
    found = [places.new_zeros(g, 0, m)]
    for start in range(0, places.shape[1], block):
        part = places[:, start : start + block]
        similarity = (gather_rows(x, part) @ x.mT).scatter_(2, part[..., None], -torch.inf)
        found.append(top_k(similarity.flatten(0, 1), m).view(g, part.shape[1], m).clone())
    return torch.cat(found, 1)


def thin_by_matching(x: Tensor, k: int, *, step: int) -> Tensor:
    """Drop tokens that have a near twin until k are left: [G, k] places in the order the last round left them in.

    A round splits the current order by parity into a (even places) and b (odd), takes for every a its largest cosine
    with any b, sorts a by it, descending, drops the first q = min(step, tokens left - k, |a|) and goes on with
    (the rest of a as sorted, b).

    Args:
        x: [G, N, D] unit vectors, float32, in the order of the first split.
        k: 0 <= k <= N.

    Cost: about (N - k) / step sequential rounds of M^2 D / 4 multiply-adds, M tokens left: N^3 D / (12 step) if few
    stay; memory: N D floats and one block of similarities.
    """
    left = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    if k == 0:
        return left[:, :0]
    while left.shape[1] > k:
        a, b = left[:, 0::2], left[:, 1::2]
        rows = _similarities(gather_rows(x, a), gather_rows(x, b))
        similarity = torch.cat([row.amax(-1) for row in rows], 1)
        q = min(step, left.shape[1] - k, a.shape[1])
        left = torch.cat([a.gather(1, top_k(similarity, a.shape[1])[:, q:]), b], 1)
    return left
