"""Sharing a budget out over the parts of a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from .sent import sent

# A share this little below a whole number is that number.
SLACK = 1e-6


def quotas(k: int, sizes: Tensor, weights: Tensor) -> Tensor:
    """k tokens shared out over C parts in proportion to their weights, no part above its size: [G, C] long, sum k.

    What a part cannot take goes to the others in proportion to their weights, and so on until it fits: the fixed point
    min(size_c, level * weight_c) with the one level whose sum is k, found by sorting. Then everything is rounded down
    and the rest goes one each to the open parts of the largest weight, the earlier among equals.

    Args:
        k: 0 <= k <= the sum of the sizes.
        sizes: [C] long, the parts' capacities.
        weights: [G, C], not negative: ones for equal quotas, the sizes for proportional ones. A unit whose weights are
            all zero is shared out by size.

    Cost: a sort of C; memory: C floats.
    """
    size = sent(sizes, weights.device).float()
    w = weights.float().clamp_min(0.0)
    size, w = torch.broadcast_tensors(size, torch.where(w.sum(-1, keepdim=True) > 0, w, size))
    w = w / w.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    fills_at = torch.where(w > 0, size / w, torch.inf)  # level at which a part is full
    by_level = fills_at.sort(dim=-1, stable=True)
    size_in, w_in = size.gather(-1, by_level.indices), w.gather(-1, by_level.indices)
    # Were the parts before this one full, and none after: the level the others stand at
    behind = w_in.flip(-1).cumsum(-1).flip(-1)
    level = torch.where(behind > 0, (k - size_in.cumsum(-1) + size_in) / behind, torch.inf)
    full = (level >= by_level.values).long().cumprod(-1).sum(-1, keepdim=True)
    c = size.shape[-1]
    level = torch.where(full == c, torch.inf, level.gather(-1, full.clamp_max(c - 1)))
    open_share = torch.minimum(size, (level * w * (1 + SLACK)).floor())
    share = torch.where(w > 0, torch.where(fills_at <= level, size, open_share), 0.0).long()
    order = w.sort(dim=-1, descending=True, stable=True).indices
    room, share = (size.long() - share).gather(-1, order), share.gather(-1, order)
    share = _up_to(share, k)  # float32 may have rounded the sum above k
    rest = k - share.sum(-1, keepdim=True)
    share = share + _up_to((room > 0).long(), rest)
    share = share + _up_to(size.long().gather(-1, order) - share, k - share.sum(-1, keepdim=True))
    return torch.zeros_like(share).scatter(-1, order, share)


def _up_to(counts: Tensor, total: int | Tensor) -> Tensor:
    """The counts, cut off where their running sum passes the total."""
    running = counts.cumsum(-1).clamp(max=total)
    return running.diff(dim=-1, prepend=torch.zeros_like(running[..., :1]))
