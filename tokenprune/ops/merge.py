"""Averaging tokens by a source map."""

from __future__ import annotations

import torch
from torch import Tensor


def average_by_source(features: Tensor, source: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that share a survivor: ([G, k, D] in the dtype of `features`, [G, k] float32 sizes).

    Args:
        features: [G, N, D].
        source: [G, N] long in [0, k), or -1 for tokens that are left out.
        k: number of survivors.
    """
    x = features.float()
    kept = source >= 0
    slot = torch.where(kept, source, k)  # left-out tokens land in one extra slot
    sizes = x.new_zeros(x.shape[0], k + 1).scatter_add_(1, slot, torch.ones_like(slot, dtype=x.dtype))
    sums = x.new_zeros(x.shape[0], k + 1, x.shape[2]).scatter_add_(1, slot[..., None].expand_as(x), x)
    sizes, sums = sizes[:, :k], sums[:, :k]
    return (sums / sizes.clamp_min(1.0)[..., None]).to(features.dtype), sizes
