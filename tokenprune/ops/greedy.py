"""Greedy subset selection: top-k, max-min dispersion, determinantal point process.

All break ties by the lowest index and return exactly k distinct indices for every k <= N, duplicates included.
Similarity rows are made when they are needed, so nothing of size N x N is ever held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels, lazy, plain
from .plain import BLOCK_ELEMENTS as BLOCK_ELEMENTS


def top_k(scores: Tensor, k: int) -> Tensor:
    """[G, k] indices of the k largest of [G, N] scores, best first, lowest index first among equals."""
    return scores.float().sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _by(name: str, x: Tensor, k: int, scale: Tensor | None, **given: Tensor | float | None) -> Tensor:
    """The selector of that name, in its form for the device of x: lazy on a CPU, a kernel on a GPU, else plain."""
    if x.device.type == "cpu":
        return getattr(lazy, name)(x, k, scale=scale, **given)
    g, n, _ = x.shape
    if n * n > BLOCK_ELEMENTS or not kernels.available(x.device):
        return getattr(plain, name)(x, k, scale=scale, **given)
    orders, together = [], BLOCK_ELEMENTS // (n * n)
    for start in range(0, g, together):
        some = slice(start, start + together)
        own = {what: value[some] if isinstance(value, Tensor) else value for what, value in given.items()}
        similarity = kernels.similarity(x[some], None if scale is None else scale[some])
        orders.append(getattr(kernels, name)(similarity, k, **own))
    return torch.cat(orders)


@torch.no_grad()
def greedy_max_min(
    x: Tensor, k: int, *, first: Tensor | None = None, quality: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Farthest-point greedy under d(i, j) = 1 - S_ij: [G, k] indices in the order chosen.

    S_ij = (x_i . x_j) scale_i scale_j in float32. Each step takes argmax_i w_i min_{j chosen} max(0, d(i, j)), w = 1
    without `quality`. Once only duplicates of chosen tokens are left, the lowest remaining index follows.

    Args:
        x: [G, N, D], any float dtype.
        k: 1 <= k <= N.
        first: [G] first picks; None takes the token of the highest quality, or without `quality` the token farthest
            from its nearest neighbour.
        quality: w, [G, N], not negative. Tokens of quality 0 come after all others, the lowest index first.
        scale: [G, N] float32; None takes 1/|x_i|, 0 for a zero vector: S is the cosine.

    Cost: N k D multiply-adds (and N^2 D for the default start without quality) in k sequential steps, on the CPU often
    a fraction of both. With kernels N^2 D at once, up to 4,096 tokens, and k N. Memory: k D floats, N D where x is no
    float32 or not on the CPU, and blocks of at most 128 MiB.
    """
    return _by("max_min", x, k, scale, first=first, quality=quality)


@torch.no_grad()
def greedy_dpp(
    x: Tensor,
    k: int,
    *,
    quality: Tensor | None = None,
    weight: float = 1.0,
    scale: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Greedy MAP of det(L_Y), |Y| = k, by incremental Cholesky (Chen et al. 2018): [G, k] indices in the order chosen.

    L_ij = S_ij ((1 - weight) + weight r_i r_j), S as in `greedy_max_min`, r = quality, or 1.
    d2_i = L_ii; each step takes j = argmax d2 and sets e = (L_j - sum_t C_t[j] C_t) / sqrt(d2_j + eps), C_new = e,
    d2 -= e * e. When every remaining residual has fallen below `plain.RESIDUAL_FLOOR` of its diagonal (rank exhausted),
    the highest remaining diagonal entry follows, so k distinct indices come back for any rank.

    Args:
        x: [G, N, D], any float dtype.
        k: 1 <= k <= N.
        quality: r, [G, N] float32, not negative.
        weight: of the quality, in [0, 1].
        scale: [G, N] float32; None takes 1/|x_i|, and L_ii exactly 1 (0 for a zero vector) times what quality makes.
        eps: added under the square root (OpenVINO uses 1e-6).

    Cost: N k (D + k / 2) multiply-adds, k sequential steps, on the CPU often a fraction. With kernels N^2 D at once, up
    to 4,096 tokens, and N k^2 / 2. Memory: k (N + D) floats, N D where x is no float32, with kernels blocks of at most
    128 MiB.
    """
    return _by("dpp", x, k, scale, quality=quality, weight=weight, eps=eps)
