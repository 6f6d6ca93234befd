"""Attention probabilities without attention maps: from the few rows needed, or as column sums in blocks of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .greedy import BLOCK_ELEMENTS


def attention_probabilities(
    query: Tensor,
    keys: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T + mask) of every head, in float32: [B, H, R, L]. A row that sees nothing gives nothing.

    Args:
        query: [B, H, R, d], the rows asked for.
        keys: [B, Hk, L, d], where head h reads keys h // (H / Hk). They are not repeated in memory.
        scale: of the scores.
        mask: [B or 1, H or 1, R or 1, L], bool (True is seen) or added to the scores.
        softcap: c of c tanh(scores / c), before the mask; None for none.
        sinks: [H], a further score per head that takes part in the softmax and is no key; None for none.
    """
    batch, heads, rows, width = query.shape
    grouped = query.float().reshape(batch, keys.shape[1], -1, width)
    scores = (grouped @ keys.float().mT).view(batch, heads, rows, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    if sinks is not None:
        sinks = sinks.float().view(1, -1, 1, 1).expand(batch, -1, rows, 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    return scores.softmax(-1).nan_to_num(0.0)


def attention_rows(query: Tensor, keys: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """`attention_probabilities`, mean over heads: [B, R, L]."""
    return attention_probabilities(query, keys, scale, mask).mean(1)


def received_attention(query: Tensor, keys: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Mean attention probability that each key gets from the queries that may see it, over heads: [B, L] float32.

    Args: as `attention_rows`, with one query per key. Queries that may not see themselves are padding and left out.

    Cost: H L^2 d multiply-adds, as much as the attention itself; memory: blocks of at most 64 MiB of scores, and
    a float32 copy of the keys.
    """
    batch, heads, length, _ = query.shape
    block = max(1, BLOCK_ELEMENTS // (batch * heads * length))
    total, count = keys.new_zeros(batch, length).float(), keys.new_zeros(batch, length).float()
    for start in range(0, length, block):
        rows = slice(start, start + block)
        part = mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]
        seen = _seen(part, batch, len(query[0, 0, rows]), length, query.device)
        own = seen.diagonal(offset=start, dim1=1, dim2=2)[..., None]
        total += (attention_rows(query[:, :, rows], keys, scale, part) * own).sum(1)
        count += (seen & own).sum(1)
    return total / count.clamp_min(1.0)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, L, d] -> [B, 1, L, H d]: all heads as one wide one."""
    return x.transpose(1, 2).flatten(2)[:, None]


def _seen(mask: Tensor | None, batch: int, rows: int, length: int, device: torch.device) -> Tensor:
    """[B, rows, L] bool: which keys a row may see, in any head."""
    if mask is None:
        return torch.ones((), dtype=torch.bool, device=device).expand(batch, rows, length)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen.any(1).expand(batch, rows, length)
