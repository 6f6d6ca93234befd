"""Greedy selectors step by step: one row of similarities, one update, one argmax. Any device, no host synchronisation.

What the faster forms have to answer like; `ops.greedy` and `ops.coverage` say what is chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A residual below this share of a token's own weight is float32 noise: the token lies in the span of those chosen.
# (After 384 steps up to 2e-5 was seen.)
RESIDUAL_FLOOR = 3e-5
# Elements of the largest block of similarities held at once (64 MiB of float32).
BLOCK_ELEMENTS = 2**24


def prepared(x: Tensor, quality: Tensor | None, weight: float, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """x [G, N, D], a [G, N, 1 or 2] and the diagonal [G, N], float32, of the kernel L_ij = (x_i . x_j)(a_i . a_j)."""
    x = x.float()
    length = x.norm(dim=-1)
    diagonal = (length > 0).float() if scale is None else (length * scale).square()
    a = (torch.where(length > 0, length.reciprocal(), 0.0) if scale is None else scale)[..., None]
    if quality is None:
        return x, a, diagonal
    factor = (1 - weight) + weight * quality * quality
    mixed = [weight**0.5 * quality, torch.full_like(quality, (1 - weight) ** 0.5)][: 1 if weight == 1 else 2]
    return x, a * torch.stack(mixed, -1), diagonal * factor


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values[g, index[g]] for [G, N, ...] values: [G, ...]"""
    return values[torch.arange(values.shape[0], device=values.device), index]


def _row(x: Tensor, j: Tensor) -> Tensor:
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


def max_min(
    x: Tensor, k: int, *, first: Tensor | None = None, quality: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """`ops.greedy.greedy_max_min`. Cost: N k D multiply-adds, N^2 D for the default start; memory: N D floats."""
    x, a, _ = prepared(x, None, 1.0, scale)
    x = a * x
    if first is None:
        first = nearest_other(x).argmin(-1) if quality is None else quality.argmax(-1)
    order, distance = [first], torch.full(x.shape[:2], torch.inf, device=x.device)
    for _ in range(k - 1):
        distance = torch.minimum(distance, 1.0 - _row(x, order[-1]))
        distance.scatter_(1, order[-1][:, None], -torch.inf)
        score = distance.clamp_min(0.0)  # a duplicate's may round to less, and must not fall behind quality 0 for that
        if quality is not None:
            score = torch.where(quality > 0, quality * score, -1.0)
        order.append(score.masked_fill(distance == -torch.inf, -torch.inf).argmax(-1))
    return torch.stack(order, 1)


def dpp(
    x: Tensor,
    k: int,
    *,
    quality: Tensor | None = None,
    weight: float = 1.0,
    scale: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """`ops.greedy.greedy_dpp`. Cost: N k (D + k / 2) multiply-adds; memory: N k floats, and N D if x is not float32."""
    x, a, diagonal = prepared(x, quality, weight, scale)
    g, n = diagonal.shape
    factors = diagonal.new_zeros(g, k, n)  # C, one row a step
    residual, floor = diagonal.clone(), RESIDUAL_FLOOR * diagonal
    reserve = diagonal - diagonal.amax(-1, keepdim=True) - 1.0  # below every live residual, ordered by the diagonal
    order = []
    for t in range(k):
        live = residual > floor
        j = torch.where(live, residual, reserve).argmax(-1)
        pivot = torch.where(_pick(live, j), (_pick(residual, j) + eps).rsqrt(), 0.0)
        row = _row(x, j) * _row(a, j)
        e = (row - torch.einsum("gtn,gt->gn", factors[:, :t], _pick(factors[:, :t].mT, j))) * pivot[:, None]
        factors[:, t] = e
        residual = (residual - e * e).scatter(1, j[:, None], -torch.inf)
        reserve = reserve.scatter(1, j[:, None], -torch.inf)
        order.append(j)
    return torch.stack(order, 1)


def coverage(columns: Callable[[Tensor], Tensor], weight: Tensor, rows: int, k: int) -> Tensor:
    """`ops.coverage.greedy_coverage`. Cost: k N R additions; memory: 2 N R floats."""
    g, n = weight.shape
    every = torch.arange(n, device=weight.device).expand(g, n)
    dense = columns(every)
    covered, order = weight.new_zeros(g, 1, rows), []
    taken = torch.zeros(g, n, dtype=torch.bool, device=weight.device)
    for _ in range(k):
        gain = weight * (dense - covered).clamp_min_(0.0).sum(-1)
        j = gain.masked_fill(taken, -torch.inf).argmax(-1, keepdim=True)
        taken = taken.scatter(1, j, True)
        covered = torch.maximum(covered, dense.gather(1, j[..., None].expand(g, 1, rows)))
        order.append(j)
    return torch.cat(order, 1)
