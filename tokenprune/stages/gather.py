"""Shortening everything that has a sequence dimension, by one gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError


@dataclass(frozen=True)
class Cut:
    """Which positions of a [B, L] segment stay.

    Rows are right-aligned and left-padded to the longest, so the last row stays the one that predicts the next token
    and one number (`removed`) tells how much shorter the segment became.

    Attributes:
        index: [B, L'] long, positions in the segment, ascending; 0 in padding slots.
        valid: [B, L'] bool, False in padding slots.
        length: L.
        ragged: whether any slot is padding (known on the host, so that no later step needs to ask the device).
    """

    index: Tensor
    valid: Tensor
    length: int
    ragged: bool

    @classmethod
    def from_keep(cls, keep: Tensor) -> Cut:
        """From a [B, L] bool mask of what stays. Two host synchronisations."""
        length = keep.shape[1]
        longest = int(keep.sum(1).max())
        place = torch.arange(length, device=keep.device).expand_as(keep)
        index = torch.where(keep, place, -1).sort(dim=1).values[:, length - longest :]
        valid = index >= 0
        return cls(index=index.clamp_min(0), valid=valid, length=length, ragged=not bool(valid.all()))

    @property
    def removed(self) -> int:
        return self.length - self.index.shape[1]

    def take(self, x: Tensor, dim: int) -> Tensor:
        """Gather along `dim`, which has the segment's length; the batch is the dimension before it, B or 1 wide."""
        dim %= x.ndim
        batch, width = self.index.shape
        x = x.expand(*(batch if i == dim - 1 else size for i, size in enumerate(x.shape)))
        view = [1] * x.ndim
        view[dim - 1], view[dim] = batch, width
        index = self.index.to(x.device).view(view)
        return x.gather(dim, index.expand(*(width if i == dim else size for i, size in enumerate(x.shape))))

    def shorten_mask(self, mask: Tensor, past: int) -> Tensor:
        """An attention mask whose last L columns are the segment, [B, past + L] or [B, 1, L, past + L]."""
        if mask.ndim not in (2, 4):
            raise UnsupportedModelError(f"attention_mask has {mask.ndim} dimensions: give one with 2 or 4, or None.")
        if mask.ndim == 4:
            heads = mask.shape[1]
            mask = mask.expand(self.index.shape[0], -1, -1, -1)
            rows = self.index.to(mask.device)[:, None, :, None]
            mask = mask.gather(2, rows.expand(-1, heads, -1, mask.shape[-1]))
        # The past is not cut: only the segment's own columns are gathered.
        old, new = mask[..., :past], mask[..., past:]
        valid = self.valid.to(mask.device)
        if mask.ndim == 2:
            return torch.cat([old, self.take(new, 1) * valid.to(mask.dtype)], 1)
        columns = self.index.to(mask.device)[:, None, None, :].expand(-1, *new.shape[1:3], -1)
        new = new.gather(3, columns)
        valid = valid[:, None, None, :]
        new = new & valid if new.dtype == torch.bool else new.masked_fill(~valid, torch.finfo(new.dtype).min)
        return torch.cat([old, new], 3)


def shorten_inputs(kwargs: dict[str, Any], cut: Cut, *, position_ids: Tensor, past: int) -> dict[str, Any]:
    """The decoder's keyword arguments with every sequence dimension cut.

    Args:
        kwargs: with `inputs_embeds` [B, L, D] (already holding merged rows).
        cut: what stays.
        position_ids: [B | 1, L] or [axes, B | 1, L] of the whole segment.
        past: tokens in the cache before this segment, in cache slots.

    Raises:
        UnsupportedModelError: a mask of a kind that cannot be cut (flex attention's block masks given ready-made).
    """
    batch, length = kwargs["inputs_embeds"].shape[:2]
    others = {name: value for name, value in kwargs.items() if name not in ("attention_mask", "position_ids")}
    short = {name: _shorten(value, cut, batch, length) for name, value in others.items()}
    short["position_ids"] = cut.take(position_ids, -1)
    mask = kwargs.get("attention_mask")
    if mask is None:
        # Without a cache and a mask, gaps in position_ids would be read as the borders of packed sequences, so a mask
        # of ones says that there are none.
        if cut.ragged or kwargs.get("past_key_values") is None:
            mask = torch.cat([cut.valid.new_ones(batch, past), cut.valid], 1).long()
    elif isinstance(mask, Tensor):
        mask = cut.shorten_mask(mask, past)
    else:
        raise UnsupportedModelError(
            f"attention_mask is a ready-made {type(mask).__name__}, which cannot be cut: pass a 2-D mask, or load the "
            "model with attn_implementation='sdpa'."
        )
    short["attention_mask"] = mask
    return short


def _shorten(value: Any, cut: Cut, batch: int, length: int) -> Any:
    """Any other tensor [B | 1, L, ...] is one row per position."""
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] in (1, batch) and value.shape[1] == length:
        return cut.take(value, 1)
    return value
