"""Attention probabilities without attention maps: from the few rows needed, or as column sums in blocks of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .greedy import BLOCK_ELEMENTS

# Scores held at once on a CPU (4 MiB of float32): three times as fast as blocks beyond its cache.
CACHED_ELEMENTS = 2**20


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
    scores = (grouped @ keys.float().mT).view(batch, heads, rows, -1).mul_(scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    if sinks is not None:
        sinks = sinks.float().view(1, -1, 1, 1).expand(batch, -1, rows, 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    return scores.softmax(-1) if mask is None else scores.softmax(-1).nan_to_num(0.0)


def attention_rows(query: Tensor, keys: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """`attention_probabilities`, mean over heads: [B, R, L]."""
    return attention_probabilities(query, keys, scale, mask).mean(1)


def received_attention(query: Tensor, keys: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Mean attention probability that each key gets from the queries that may see it, over heads: [B, L] float32.

    Args: as `attention_rows`, with one query per key. Queries that may not see themselves are padding and left out.

    Cost: H L^2 d multiply-adds, as much as the attention itself; memory: blocks of at most 64 MiB of scores (4 MiB
    on a CPU), and a float32 copy of the keys.
    """
    batch, heads, length, _ = query.shape
    together = CACHED_ELEMENTS if query.device.type == "cpu" else BLOCK_ELEMENTS
    block = max(1, together // max(1, batch * heads * length))
    keys, total = keys.float(), query.new_zeros(batch, 1, length, dtype=torch.float32)
    share, count = query.new_full((batch, 1, 1, 1), 1 / heads, dtype=torch.float32), torch.zeros_like(total)
    for start in range(0, length, block):
        rows = slice(start, start + block)
        part = mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]
        weights = share.expand(-1, heads, -1, len(query[0, 0, rows]))
        if mask is not None:
            seen = _seen(part, batch, weights.shape[-1], length)
            own = seen.diagonal(offset=start, dim1=1, dim2=2)[:, None]
            weights, count = weights * own[:, None], count + (seen & own.mT).sum(1, keepdim=True)
        total += (weights @ attention_probabilities(query[:, :, rows], keys, scale, part)).sum(1)
    return (total / (length if mask is None else count.clamp_min(1.0))).squeeze(1)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, L, d] -> [B, 1, L, H d]: all heads as one wide one."""
    return x.transpose(1, 2).flatten(2)[:, None]


def _seen(mask: Tensor, batch: int, rows: int, length: int) -> Tensor:
    """[B, rows, L] bool: which keys a row may see, in any head."""
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen.any(1).expand(batch, rows, length)
