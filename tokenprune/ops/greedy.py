"""Greedy subset selection: top-k, max-min dispersion, determinantal point process.

All break ties by the lowest index and return exactly k distinct indices for every k <= N, duplicates included.
Similarity rows are made when they are needed, so nothing of size N x N is ever held.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A residual below this share of a token's own weight is float32 noise: the token lies in the span of those chosen.
RESIDUAL_FLOOR = 1e-6
# Elements of the largest block of similarities held at once (64 MiB of float32).
BLOCK_ELEMENTS = 2**24


def top_k(scores: Tensor, k: int) -> Tensor:
    """[G, k] indices of the k largest of [G, N] scores, best first, lowest index first among equals."""
    return scores.float().sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values[g, index[g]] for [G, N, ...] values: [G, ...]"""
    return values[torch.arange(values.shape[0], device=values.device), index]


def similarity_row(x: Tensor, j: Tensor) -> Tensor:
    """[G, N] x_i . x_j of every token with the one at index j [G] of its unit; x: [G, N, D]."""
    return torch.einsum("gnd,gd->gn", x, _pick(x, j))


def nearest_other(x: Tensor) -> Tensor:
    """[G, N] largest cosine of every token with any other token of its unit; x: [G, N, D] unit vectors.

    Cost: N^2 D multiply-adds per unit; memory: 2 N D floats and one block of at most 64 MiB (or one row per unit, if
    that is more).
    """
    g, n, _ = x.shape
    if n == 1:
        return x.new_full((g, 1), -torch.inf)
    block = max(1, BLOCK_ELEMENTS // (g * n))
    nearest = []
    for start in range(0, n, block):
        similarity = x[:, start : start + block] @ x.mT
        similarity.diagonal(offset=start, dim1=1, dim2=2).fill_(-torch.inf)
        nearest.append(similarity.argmax(-1))
        del similarity  # before the next block is made
    # matrix products round x_i . x_j and x_j . x_i apart; two tokens that are each other's nearest have to tie
    return (x * x.gather(1, torch.cat(nearest, 1)[..., None].expand_as(x))).sum(-1)


def greedy_max_min(x: Tensor, k: int, *, first: Tensor | None = None, quality: Tensor | None = None) -> Tensor:
    """Farthest-point greedy under d(i, j) = 1 - x_i . x_j: [G, k] indices in the order chosen.

    Each step takes argmax_i w_i min_{j chosen} d(i, j), w = 1 without `quality`. Once only duplicates of chosen tokens
    are left, the lowest remaining index follows.

    Args:
        x: [G, N, D] unit vectors, float32.
        k: 1 <= k <= N.
        first: [G] first picks; None takes the token of the highest quality, or without `quality` the token farthest
            from its nearest neighbour.
        quality: w, [G, N], not negative. Tokens of quality 0 come after all others, the lowest index first.

    Cost: N k D multiply-adds (and N^2 D for the default start without quality) in k sequential steps; memory: N floats
    per unit.
    """
    if first is None:
        first = nearest_other(x).argmin(-1) if quality is None else quality.argmax(-1)
    order, distance = [first], torch.full(x.shape[:2], torch.inf, device=x.device)
    for _ in range(k - 1):
        distance = torch.minimum(distance, 1.0 - similarity_row(x, order[-1]))
        distance.scatter_(1, order[-1][:, None], -torch.inf)
        order.append(_weighted(distance, quality).argmax(-1))
    return torch.stack(order, 1)


def _weighted(distance: Tensor, quality: Tensor | None) -> Tensor:
    """quality * distance, with -1 for tokens of quality 0 and -inf for those chosen, which have distance -inf."""
    if quality is None:
        return distance
    # a duplicate's distance may round to less than 0, and must not fall behind quality 0 for that
    score = torch.where(quality > 0, quality * distance.clamp_min(0.0), -1.0)
    return score.masked_fill(distance == -torch.inf, -torch.inf)


def greedy_dpp(row: Callable[[Tensor], Tensor], diagonal: Tensor, k: int, *, eps: float = 0.0) -> Tensor:
    """Greedy MAP of det(L_Y), |Y| = k, by incremental Cholesky (Chen et al. 2018): [G, k] indices in the order chosen.

    d2_i = L_ii; each step takes j = argmax d2 and sets e = (L_j - sum_t C_t[j] C_t) / sqrt(d2_j + eps), C_new = e,
    d2 -= e * e. When every remaining residual has fallen below `RESIDUAL_FLOOR` of its diagonal (rank exhausted), the
    highest remaining diagonal entry follows, so k distinct indices come back for any rank.

    Args:
        row: maps [G] indices j to the kernel rows L_j, [G, N] float32.
        diagonal: [G, N] float32, L_ii.
        k: 1 <= k <= N.
        eps: added under the square root (OpenVINO uses 1e-6).

    Cost: N k^2 / 2 multiply-adds plus k calls of `row` per unit, k sequential steps; memory: N k floats per unit.
    """
    g, n = diagonal.shape
    chosen = diagonal.new_zeros(g, k, n)  # C, one row a step
    residual, floor = diagonal.clone(), RESIDUAL_FLOOR * diagonal
    reserve = diagonal - diagonal.amax(-1, keepdim=True) - 1.0  # below every live residual, ordered by the diagonal
    order = []
    for t in range(k):
        live = residual > floor
        j = torch.where(live, residual, reserve).argmax(-1)
        scale = torch.where(_pick(live, j), (_pick(residual, j) + eps).rsqrt(), 0.0)
        e = (row(j) - torch.einsum("gtn,gt->gn", chosen[:, :t], _pick(chosen[:, :t].mT, j))) * scale[:, None]
        chosen[:, t] = e
        residual = (residual - e * e).scatter(1, j[:, None], -torch.inf)
        reserve = reserve.scatter(1, j[:, None], -torch.inf)
        order.append(j)
    return torch.stack(order, 1)
