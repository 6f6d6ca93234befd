"""Which tokens of a padded batch of texts stay: the first, the last, and those of the highest scores."""

from __future__ import annotations

import torch
from torch import Tensor

FUZZ = 1e-6  # so that 0.35 of 20 is 7, whatever a float makes of it


def tokens_left(shares: Tensor, lengths: Tensor) -> Tensor:
    """[B] long, ceil(rho n): how many tokens stay, at least the first and the last one.

    Args:
        shares: [B] rho in (0, 1]; lengths: [B] n.
    """
    count = (shares.double() * lengths - FUZZ).ceil().long()
    return count.clamp_min(2).minimum(lengths)


def inner_tokens(real: Tensor) -> Tensor:
    """[B, L] bool, the tokens of each text but its first and its last; real: [B, L] bool, False at padding."""
    place = real.long().cumsum(1) - 1
    return real & (place > 0) & (place < real.sum(1, keepdim=True) - 1)


def keep_best(scores: Tensor, real: Tensor, count: Tensor) -> Tensor:
    """[B, L] bool: the first and the last token, and those of the highest scores, the lowest index among equals.

    Args:
        scores: [B, L], anything at padding; real: [B, L] bool; count: [B] long, of `tokens_left`.
    """
    ranked = scores.float().masked_fill(~inner_tokens(real), torch.inf).masked_fill(~real, -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(order.shape[1], device=order.device) < count[:, None]
    return torch.zeros_like(real).scatter(1, order, first)
