"""Named normalisations of vectors and scores."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_norm(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in float32; a zero vector stays zero (its cosine with anything is 0)."""
    x = x.float()
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def min_max(
    scores: Tensor, *, image: Tensor | None = None, numerator_eps: float = 0.0, denominator_eps: float = 0.0
) -> Tensor:
    """(s - min + numerator_eps) / (max - min + denominator_eps) in float32; where all scores are equal, all become 1.

    Args:
        scores: [G, N].
        image: [G] long; units with the same number share one minimum and maximum (the crops of one image). None
            takes every unit on its own.
        numerator_eps, denominator_eps: the methods differ only here.
    """
    s = scores.float()
    low, high = s.amin(-1), s.amax(-1)
    if image is not None:
        shared = (image[:, None] == image[None, :]).to(s.device)
        low = torch.where(shared, low, torch.inf).amin(-1)
        high = torch.where(shared, high, -torch.inf).amax(-1)
    span = (high - low)[:, None]
    scaled = (s - low[:, None] + numerator_eps) / torch.where(span > 0, span + denominator_eps, 1.0)
    return torch.where(span > 0, scaled, 1.0)
