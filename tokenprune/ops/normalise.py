"""Named normalisations of vectors and scores."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_norm(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in float32; a zero vector stays zero (its cosine with anything is 0)."""
    x = x.float()
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def min_max(
    scores: Tensor, *, extremes: Tensor | None = None, numerator_eps: float = 0.0, denominator_eps: float = 0.0
) -> Tensor:
    """(s - min + numerator_eps) / (max - min + denominator_eps) in float32; where all scores are equal, all become 1.

    Args:
        scores: [G, N].
        extremes: [G, 2], min and max to use (those of all crops of an image, `image_extremes`); None takes those of
            every unit by itself.
        numerator_eps, denominator_eps: the methods differ only here.
    """
    s = scores.float()
    low, high = (s.amin(-1), s.amax(-1)) if extremes is None else extremes.float().unbind(-1)
    span = (high - low)[:, None]
    scaled = (s - low[:, None] + numerator_eps) / torch.where(span > 0, span + denominator_eps, 1.0)
    return torch.where(span > 0, scaled, 1.0)


def image_extremes(scores: list[Tensor], images: list[Tensor]) -> list[Tensor]:
    """[G, 2] each: min and max of the scores over all units of the same image, in any of several batches.

    Args:
        scores: [G, N] each.
        images: [G] long each, equal for units of one image.
    """
    image = torch.cat(images).to(scores[0].device)
    shared = image[:, None] == image[None, :]
    low = torch.cat([one.float().amin(-1) for one in scores]).where(shared, torch.inf).amin(-1)
    high = torch.cat([one.float().amax(-1) for one in scores]).where(shared, -torch.inf).amax(-1)
    return list(torch.stack([low, high], -1).split([len(one) for one in scores]))
