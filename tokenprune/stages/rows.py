"""Exact attention of a few rows of a decoder layer, from the queries and keys its attention is handed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedPolicyError
from ..layers import Attention
from ..ops import attention_probabilities
from .tap import scale_of

BLOCK_ELEMENTS = 1 << 22  # probabilities held at a time: 16 MiB


def rows_of(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """[B, R] long and bool: where a [B, L] bool mask holds, ascending, and which of these are any. R is at least 1.

    Args:
        most: rows of any sample at most; where asking costs nothing, R is as many as there are.
    """
    length = mask.shape[1]
    most = max(1, int(mask.sum(1).max())) if mask.device.type == "cpu" else most
    place = torch.where(mask, torch.arange(length, device=mask.device), length)
    rows = place.sort(dim=1).values[:, :most]
    return rows.clamp_max(length - 1), rows < length


@dataclass(kw_only=True)
class LayerAttention(Attention):
    """Rows of a layer's attention, worked out some at a time.

    Attributes:
        query: [B, H, L, d] of this call, as the attention implementation gets them.
        keys: [B, Hk, K, d], those of earlier calls first.
        mask: what the implementation gets: None (causal), [B, K] (keys that are no padding), or 4-D.
        options: its other arguments.
        first: place in `keys` of this call's first.
    """

    query: Tensor
    keys: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    first: int

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        batch, heads, length, _ = self.query.shape
        step = max(1, BLOCK_ELEMENTS // (batch * heads * self.keys.shape[2]))
        for start in range(0, self.rows.shape[1], step):
            some = slice(start, start + step)
            rows = self.rows[:, some]
            query = self.query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, self.query.shape[-1]))
            found = attention_probabilities(
                query,
                self.keys,
                scale_of(self.query, self.options),
                self._added(rows),
                softcap=self.options.get("softcap"),
                sinks=self.options.get("s_aux"),
            )
            own = found[..., self.first : self.first + length]
            yield some, own * self.row_mask[:, None, some, None]

    def _added(self, rows: Tensor) -> Tensor:
        """[B, 1 or H, r, K], bool or added: which keys the rows see, and any bias on them."""
        seen, bias = self._seen(rows), self.options.get("position_bias")
        if bias is None:
            return seen
        bias = self._at(rows, bias.float())
        return bias.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else bias + seen.float()

    def _at(self, rows: Tensor, values: Tensor) -> Tensor:
        """[B, 1 or H, r, K] of [B or 1, 1 or H, L, K or more]."""
        batch, keys = self.keys.shape[0], self.keys.shape[2]
        values = values[..., :keys].expand(batch, -1, -1, -1)
        return values.gather(2, rows[:, None, :, None].expand(-1, values.shape[1], -1, keys))

    def _seen(self, rows: Tensor) -> Tensor:
        """[B, 1 or H, r, K], bool or added: which keys the rows see."""
        keys = self.keys.shape[2]
        if self.mask is not None and not isinstance(self.mask, Tensor):
            raise UnsupportedPolicyError(
                f"policy reads attention rows, and attention_mask is a {type(self.mask).__name__}, whose rows cannot "
                "be read: load the model with attn_implementation='sdpa'."
            )
        if self.mask is not None and self.mask.ndim == 4:
            return self._at(rows, self.mask)
        behind = rows[:, None, :, None] + self.first - torch.arange(keys, device=rows.device)
        seen = behind >= 0
        if (window := self.options.get("sliding_window")) is not None:
            seen = seen & (behind < window)
        return seen if self.mask is None else seen & self.mask[:, None, None, :keys].bool()
