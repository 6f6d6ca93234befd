"""Tokens least like a few pivots."""

from __future__ import annotations

import torch
from torch import Tensor

from .greedy import top_k


def least_similar_to_pivots(x: Tensor, pivots: Tensor, counts: Tensor, taken: Tensor) -> Tensor:
    """Pivot by pivot, the tokens with the smallest cosine to it that are still free: [G, N] long, when each was taken.

    Pivot t takes counts[:, t] tokens or all that are left, the least similar first, the lowest index first among
    equals; a token that was taken is no candidate of later pivots.

    Args:
        x: [G, N, c] unit vectors of the tokens.
        pivots: [G, p, c] unit vectors in the order in which they take.
        counts: [G, p] long, tokens per pivot.
        taken: [G, N] bool, tokens that are no candidates.

    Returns:
        0, 1, 2, ... for the tokens in the order in which they were taken, N for all others.

    Cost: p N c multiply-adds and p sorts of N; memory: p + a few floats per token.
    """
    n = x.shape[1]
    place, before = torch.full_like(taken, n, dtype=torch.long), torch.zeros_like(counts[:, :1])
    rank = torch.arange(n, device=x.device).expand(taken.shape)
    for similarity, count in zip((pivots @ x.mT).unbind(1), counts.split(1, 1), strict=True):
        order = top_k((-similarity).masked_fill(taken, -torch.inf), n)
        chosen = (rank < count) & ~taken.gather(1, order)
        place = place.scatter(1, order, torch.where(chosen, before + rank, place.gather(1, order)))
        taken = taken.scatter(1, order, chosen | taken.gather(1, order))
        before = before + chosen.sum(-1, keepdim=True)
    return place
