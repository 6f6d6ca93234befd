"""Merging tokens by a source map, and the maps of the merging methods."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _slots(source: Tensor, k: int, whole: bool) -> tuple[Tensor, int]:
    """[G, N] places among so many; left-out tokens land in one extra place behind the k, where there may be any."""
    return (source, k) if whole else (torch.where(source >= 0, source, k), k + 1)


def sizes_by_source(source: Tensor, k: int, sizes: Tensor | None = None, *, whole: bool = False) -> Tensor:
    """[G, k] float32: how many of the tokens of [G, N] `source` each survivor carries; below 0 is carried by none.

    Args:
        sizes: [G, N], what each token counts for; None is 1.
        whole: no source is negative, which saves three operations.
    """
    slot, slots = _slots(source, k, whole)
    each = torch.ones_like(slot, dtype=torch.float32) if sizes is None else sizes.float()
    return each.new_zeros(source.shape[0], slots).scatter_add_(1, slot, each)[:, :k]


def sum_by_source(
    features: Tensor, source: Tensor, k: int, weights: Tensor | None = None, *, whole: bool = False
) -> Tensor:
    """[G, k, D] float32 sums of the tokens that share a survivor, each times its weight.

    Args:
        features: [G, N, D].
        source: [G, N] long in [0, k), or negative for tokens that are left out.
        k: number of survivors.
        weights: [G, N]; None is 1.
        whole: no source is negative, which saves three operations.
    """
    g, n, d = features.shape
    # a product of two dtypes has the wider one: no float32 copy of the features by itself
    x = (features if weights is None else features * weights.float()[..., None]).float()
    slot, slots = _slots(source, k, whole)
    if g > 1:  # rows of one long list: several times as fast on a CPU as along a middle dimension
        slot = slot + torch.arange(0, g * slots, slots, device=slot.device)[:, None]
    sums = x.new_zeros(g * slots, d).scatter_add_(0, slot.reshape(-1, 1).expand(-1, d), x.reshape(g * n, d))
    return sums.view(g, slots, d)[:, :k]


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
    result = flat.index_select(0, (places + offset[:, None]).flatten())
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
