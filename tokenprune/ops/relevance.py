"""Relevance of visual tokens to text."""

from __future__ import annotations

import torch
from torch import Tensor

from .normalise import unit_norm


def mean_cosine(visual: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
    """Mean over m of cos(visual_i, text_m): [G, N] float32.

    Args:
        visual: [G, N, c].
        text: [M, c], shared by all units, or [G, M, c].
        text_mask: [G, M] bool, False where `text` is padding. A unit without any text scores 0 everywhere.
    """
    v, t = unit_norm(visual), unit_norm(text)
    if t.ndim == 2:
        t = t.expand(v.shape[0], *t.shape)
    if text_mask is None:
        return torch.einsum("gnc,gc->gn", v, t.mean(1))
    weight = text_mask.to(t) / text_mask.sum(-1, keepdim=True).clamp_min(1)
    return torch.einsum("gnc,gc->gn", v, torch.einsum("gmc,gm->gc", t, weight))
