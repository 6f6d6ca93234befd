"""Tokens that go, folded one after the other into those that stay."""

from __future__ import annotations

import torch
from torch import Tensor

from .matching import gather_rows, nearest_target
from .merge import remaining, sizes_by_source
from .normalise import unit_norm


def fold_into_nearest(x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Average every token that goes, in ascending order, with the survivor h it is most similar to: h <- (h + x) / 2.

    In closed form: of m tokens that h takes the last has a share of 1/2, the one before 1/4, the first 2^-m, and the
    survivor itself 2^-m. Similarities are cosines, taken before any folding; ties go to the lowest survivor.

    Args:
        x: [G, N, D].
        kept: [G, k] long, ascending.

    Returns:
        [G, N] long, the source map; [G, N] float32, these shares.

    Cost: (N - k) k D multiply-adds, a sort of N; memory: 2 N D floats and one block of similarities.
    """
    (g, n), k = x.shape[:2], kept.shape[1]
    u, others = unit_norm(x), remaining(kept, x.shape[1])
    own = torch.arange(k, device=x.device).expand(g, k)
    source = torch.empty(g, n, dtype=torch.long, device=x.device).scatter(1, kept, own)
    source = source.scatter(1, others, nearest_target(gather_rows(u, others), gather_rows(u, kept))[1])
    folded = torch.ones_like(source).scatter(1, kept, 0)
    order = (2 * source + folded).sort(dim=1, stable=True).indices  # every survivor, then what it takes
    end = sizes_by_source(source, k).cumsum(1).gather(1, source.gather(1, order))
    halvings = end - torch.arange(1, n + 1, device=x.device) + folded.gather(1, order)
    return source, torch.empty_like(end).scatter(1, order, torch.exp2(-halvings))
