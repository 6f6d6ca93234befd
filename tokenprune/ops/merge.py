"""Merging tokens by a source map, and the maps of the merging methods."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sizes_by_source(source: Tensor, k: int) -> Tensor:
    """[G, k] float32: how many of the tokens of [G, N] `source` each survivor carries; -1 carries none."""
    slot = torch.where(source >= 0, source, k)  # left-out tokens land in one extra slot
    ones = torch.ones_like(slot, dtype=torch.float32)
    return ones.new_zeros(source.shape[0], k + 1).scatter_add_(1, slot, ones)[:, :k]


def sum_by_source(features: Tensor, source: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """[G, k, D] float32 sums of the tokens that share a survivor, each times its weight.

    Args:
        features: [G, N, D].
        source: [G, N] long in [0, k), or -1 for tokens that are left out.
        k: number of survivors.
        weights: [G, N]; None is 1.
    """
    x = features.float()
    if weights is not None:
        x = x * weights[..., None]
    slot = torch.where(source >= 0, source, k)[..., None].expand_as(x)
    return x.new_zeros(x.shape[0], k + 1, x.shape[2]).scatter_add_(1, slot, x)[:, :k]


def average_by_source(features: Tensor, source: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that share a survivor: ([G, k, D] in the dtype of `features`, [G, k] float32 sizes).

    Arguments as in `sum_by_source`.
    """
    sizes = sizes_by_source(source, k)
    sums = sum_by_source(features, source, k)
    return (sums / sizes.clamp_min(1.0)[..., None]).to(features.dtype), sizes


def add_weighted(features: Tensor, weights: Tensor, places: Tensor, others: Tensor) -> Tensor:
    """[G, C, D] float32: features[c] + sum over i in others[c] of weights[i] features[i].

    Args:
        features: [G, N, D].
        weights: [G, N].
        places: [G, C] long, the tokens that are added to.
        others: [G, C, m] long, what is added to each; a token may be added to several.

    Cost: C m D multiply-adds; memory: N D + C D + C m floats.
    """
    (g, n, d), m = features.shape, others.shape[2]
    if places.shape[1] == 0:
        return features.new_zeros(g, 0, d, dtype=torch.float32)
    flat = features.float().reshape(g * n, d)
    offset = torch.arange(0, g * n, n, device=features.device)
    result = flat[(places + offset[:, None]).flatten()]
    if m > 0:
        bags = (others + offset[:, None, None]).view(-1, m)
        shares = weights.float().flatten()[bags]
        result = result + F.embedding_bag(bags, flat, mode="sum", per_sample_weights=shares)
    return result.view(g, -1, d)


def remaining(chosen: Tensor, n: int) -> Tensor:
    """[G, n - C] long, ascending: the places among n that are not in `chosen` [G, C] (distinct)."""
    taken = torch.zeros(chosen.shape[0], n, dtype=torch.uint8, device=chosen.device).scatter_(1, chosen, 1)
    return taken.sort(dim=1, stable=True).indices[:, : n - chosen.shape[1]]


def summary_map(kept: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The map of C kept tokens and one that stands for all others, at the last place that is not kept.

    Args:
        kept: [G, C] long, distinct, C < n.

    Returns:
        [G, C + 1] long, the kept tokens and the place of the summary, ascending; [G, 1] long, where the summary is
        among them; [G, n] long, the source map: every token that is not kept goes to the summary.
    """
    last = remaining(kept, n)[:, -1:]
    indices = torch.cat([kept, last], 1).sort(-1).values
    summary = (kept < last).sum(-1, keepdim=True)
    own = torch.arange(indices.shape[1], device=kept.device).expand_as(indices)
    return indices, summary, summary.expand(-1, n).scatter(1, indices, own)
