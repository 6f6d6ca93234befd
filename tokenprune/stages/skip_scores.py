"""The attention that tokens get from the last ones a block computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rows import LayerAttention, rows_of


@torch.no_grad()
def received(query: Tensor, key: Tensor, mask: Any, options: dict[str, Any], active: Tensor, rows: int) -> Tensor:
    """[B, L] float32: probability that each key gets, mean over heads and the last `rows` active tokens of its prompt.

    Args:
        query: [B, H, L, d], key: [B, Hk, L, d], mask, options: as an attention implementation gets them.
        active: [B, L] bool, tokens that count.
    """
    last = active & (active.long().flip(1).cumsum(1).flip(1) <= rows)
    places, there = rows_of(last, min(rows, active.shape[1]))
    attention = LayerAttention(
        rows=places,
        row_mask=there,
        visual=active,
        text=active,
        place=places,
        heads=query.shape[1],
        query=query,
        keys=key,
        mask=mask,
        options=options,
        first=0,
    )
    with torch.autocast(query.device.type, enabled=False):
        return attention.total() / (attention.heads * attention.count())
