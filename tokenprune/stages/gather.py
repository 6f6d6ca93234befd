"""Shortening everything that has a sequence dimension, by one gather."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..ops import gather_rows

RECURRENT = ("linear_attention", "conv")  # layer types whose mask is [B, L]


@dataclass(frozen=True)
class Cut:
    """Which positions of a [B, L] segment stay.

    Rows are right-aligned and left-padded to the longest, so the last row stays the one that predicts the next token
    and one number (`removed`) tells how much shorter the segment became.

    Attributes:
        index: [B, L'] long, positions in the segment, ascending; 0 in padding slots.
        valid: [B, L'] bool, False in padding slots.
        keep: [B, L] bool, what stays.
        lengths: [B] long on the CPU, how much that is, so that no later step needs to ask the device.
    """

    index: Tensor
    valid: Tensor
    keep: Tensor
    lengths: Tensor

    @classmethod
    def from_keep(cls, keep: Tensor, lengths: Tensor) -> Cut:
        """From a [B, L] bool mask of what stays, and how much that is, [B] long on the CPU."""
        length = keep.shape[1]
        longest = int(lengths.max())
        place = torch.arange(length, device=keep.device).expand_as(keep)
        index = torch.where(keep, place, -1).sort(dim=1).values[:, length - longest :]
        return cls(index=index.clamp_min(0), valid=index >= 0, keep=keep, lengths=lengths)

    @classmethod
    def whole(cls, keep: Tensor) -> Cut:
        """Nothing leaves a segment of the shape of `keep` [B, L]."""
        index = torch.arange(keep.shape[1], device=keep.device).expand(keep.shape)
        lengths = torch.full((len(keep),), keep.shape[1])
        return cls(index=index, valid=torch.ones_like(keep), keep=torch.ones_like(keep), lengths=lengths)

    def then(self, other: Cut) -> Cut:
        """This cut, and another of what it left."""
        index = self.index.gather(1, other.index)
        keep = torch.zeros_like(self.keep, dtype=torch.long).scatter_add(1, index, other.valid.long()) > 0
        return Cut(index=index, valid=other.valid, keep=keep, lengths=other.lengths)

    @cached_property
    def ragged(self) -> bool:
        """Whether any slot is padding."""
        return bool((self.lengths < self.index.shape[1]).any())

    @property
    def length(self) -> int:
        return self.keep.shape[1]

    @property
    def moved(self) -> Tensor:
        """[B, L] long, where each position that stays is afterwards; anything for the others."""
        return self.keep.long().cumsum(1) - 1 + (self.index.shape[1] - self.keep.sum(1, keepdim=True))

    @property
    def removed(self) -> int:
        return self.length - self.index.shape[1]

    def take(self, x: Tensor, dim: int) -> Tensor:
        """Gather along `dim`, which has the segment's length; the batch is the dimension before it, B or 1 wide."""
        dim %= x.ndim
        batch, width = self.index.shape
        if dim == 1:
            return gather_rows(x.expand(batch, *x.shape[1:]), self.index.to(x.device))
        x = x.expand(*(batch if i == dim - 1 else size for i, size in enumerate(x.shape)))
        view = [1] * x.ndim
        view[dim - 1], view[dim] = batch, width
        index = self.index.to(x.device).view(view)
        return x.gather(dim, index.expand(*(width if i == dim else size for i, size in enumerate(x.shape))))

    def shorten_mask(self, mask: Tensor) -> Tensor:
        """An attention mask whose last L columns are the segment, [B, past + L] or [B | 1, 1, L, past + L].

        One with fewer rows is about the last ones only, which are text and stay.
        """
        if mask.ndim not in (2, 4):
            raise UnsupportedModelError(f"attention_mask has {mask.ndim} dimensions: give one with 2 or 4, or None.")
        # The past is not cut: only the segment's own columns are gathered.
        past = mask.shape[-1] - self.length
        valid = self.valid.to(mask.device)
        if mask.ndim == 2:
            return torch.cat([mask[:, :past], self.take(mask[:, past:], 1) * valid.to(mask.dtype)], 1)
        mask = mask.expand(len(self.index), -1, -1, -1)
        index = self.index.to(mask.device)
        if mask.shape[2] == self.length:
            mask = mask.gather(2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        old, new = mask[..., :past], mask[..., past:]
        new = new.gather(3, index[:, None, None, :].expand(-1, *mask.shape[1:3], -1))
        valid = valid[:, None, None, :]
        new = new & valid if new.dtype == torch.bool else new.masked_fill(~valid, torch.finfo(new.dtype).min)
        return torch.cat([old, new], 3)

    def causal(self, past: int, *, flash: bool) -> Tensor | None:
        """What stands for a mask that was None, which says that plain causal attention does: None while it still does.

        With padding it is [B, past + L'] for flash attention and [B, 1, L', past + L'] bool otherwise.
        """
        if not self.ragged:
            return None
        batch, width = self.index.shape
        valid = torch.cat([self.valid.new_ones(batch, past), self.valid], 1)
        if flash:
            return valid.long()
        return torch.ones_like(valid[0]).expand(width, -1).tril(past) & valid[:, None, None, :]

    def restore(self, x: Tensor) -> Tensor:
        """[B, L, ...] from [B, L', ...]: where a position left, the row of the last kept one before it."""
        last = self.moved.clamp_min(0).to(x.device)
        return x.gather(1, last.view(*last.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))


def is_prepared(mask: Any) -> bool:
    """Whether an attention mask was made ready for attention: 4-D, or one by layer type."""
    return isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim == 4)


def shorten_inputs(
    kwargs: dict[str, Any], cut: Cut, *, position_ids: Tensor, past: int, attention: str, plain: bool = False
) -> dict[str, Any]:
    """The decoder's keyword arguments with every sequence dimension cut.

    Args:
        kwargs: with `inputs_embeds` [B, L, D] (already holding merged rows).
        cut: what stays.
        position_ids: [B | 1, L] or [axes, B | 1, L] of the whole segment.
        past: tokens in the cache before this segment, in cache slots.
        attention: name of the attention implementation.
        plain: a 2-D mask says nothing: all its tokens are valid.

    Raises:
        UnsupportedModelError: a mask of a kind that cannot be cut (flex attention's block masks given ready-made), or
            one made for a static cache, whose columns are not those of the segment.
    """
    batch, length = kwargs["inputs_embeds"].shape[:2]
    others = {name: value for name, value in kwargs.items() if name not in ("attention_mask", "position_ids")}
    short = {name: _shorten(value, cut, batch, length) for name, value in others.items()}
    short["position_ids"] = cut.take(position_ids, -1)
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if is_prepared(mask) and getattr(cache, "is_compileable", False):
        raise UnsupportedModelError(
            "past_key_values is a static cache, whose masks this model makes before its decoder, where they cannot be "
            "cut: use the default cache."
        )
    flash = "flash" in attention
    if isinstance(mask, dict):
        mask = {
            kind: _stand_in(kind, cut, past, flash=flash) if one is None else _shorten_mask(one, cut)
            for kind, one in mask.items()
        }
    elif plain and not cut.ragged and cache is not None and isinstance(mask, Tensor) and mask.ndim == 2:
        mask = None  # which the model would find out by asking the device
    elif mask is not None:
        mask = _shorten_mask(mask, cut)
    elif cut.ragged or cache is None:
        # Without a cache and a mask, gaps in position_ids would be read as the borders of packed sequences, so a mask
        # of ones says that there are none.
        mask = torch.cat([cut.valid.new_ones(batch, past), cut.valid], 1).long()
    short["attention_mask"] = mask
    return short


def shorten_layer_mask(mask: Any, kind: str, cut: Cut, *, flash: bool) -> Tensor | None:
    """The mask of a layer of a certain type, in a call that continues no cache."""
    return _stand_in(kind, cut, 0, flash=flash) if mask is None else _shorten_mask(mask, cut)


def _stand_in(kind: str, cut: Cut, past: int, *, flash: bool) -> Tensor | None:
    """For a mask that was None: recurrent layers and convolutions only need to know the segment's padding."""
    if kind in RECURRENT:
        return cut.valid.long() if cut.ragged else None
    return cut.causal(past, flash=flash)


def _shorten_mask(mask: Any, cut: Cut) -> Tensor:
    if not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"attention_mask is a ready-made {type(mask).__name__}, which cannot be cut: pass a 2-D mask, or load the "
            "model with attn_implementation='sdpa'."
        )
    return cut.shorten_mask(mask)


def _shorten(value: Any, cut: Cut, batch: int, length: int) -> Any:
    """Any other tensor [B | 1, L, ...] is one row per position; flags are off at padding."""
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] in (1, batch) and value.shape[1] == length:
        value = cut.take(value, 1)
        if value.dtype == torch.bool:
            value = value & cut.valid.to(value.device).view(*cut.valid.shape, *[1] * (value.ndim - 2))
    return value
