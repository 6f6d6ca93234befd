"""Masks and positions that other parts of transformers would misread after a cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..ops import sent
from .cache import CacheState
from .gather import Cut

NO_COMPACT = (
    "positions='compact' has no meaning for the time, row and column positions of {family!r}: use positions='original'."
)


def two_dimensional(mask: Any, state: CacheState | None, batch: int, new: int, past: int) -> Tensor | None:
    """[batch, past + new] over cache slots for the 4-D mask that `generate` made for a static cache.

    It was made over logical tokens. From a 2-D mask the model makes the right one itself.

    Args:
        mask: 4-D, or a dict of them by layer type.
        state: of the cache, None before its first cut.
        past, new: cache slots filled, and tokens of this call.

    Raises:
        UnsupportedModelError: a later turn of several tokens in a batch, whose padding the 4-D mask no longer shows.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if state is not None:
        if new > 1 and batch > 1:
            raise UnsupportedModelError(
                "past_key_values is a pruned static cache in its second turn with batch > 1, where padding cannot be "
                "told from text: use the default cache, or batch 1."
            )
        return state.physical_mask(None, past, new)
    if mask is None:
        return None
    row = mask[:, 0, -1, past : past + new].expand(batch, -1)  # the last row sees every valid token
    row = row if row.dtype == torch.bool else row == 0
    return torch.cat([row.new_ones(batch, past), row], 1).long()


def compact(positions: Tensor, cut: Cut, real: Tensor) -> tuple[Tensor, Tensor]:
    """Positions without gaps for the kept tokens [B, L'], and how far behind the given ones they end [B].

    Args:
        positions: [B, L] of the whole segment, compact already as far as earlier segments go.
        real: [B, L] bool, False at padding.
    """
    first = torch.where(real, positions, positions.amax() + 1).amin(1, keepdim=True)
    short = first + (cut.valid.long().cumsum(1) - 1).clamp_min(0)
    return short, positions[:, -1] - short[:, -1]


def one_sequence(x: Tensor, past: int) -> dict[str, Any]:
    """Explicit borders for flash attention, which would read gaps in position_ids as packed sequences."""
    new = x.shape[1]
    return {
        "cu_seq_lens_q": sent(torch.tensor([0, new], dtype=torch.int32), x.device),
        "cu_seq_lens_k": sent(torch.tensor([0, past + new], dtype=torch.int32), x.device),
        "max_length_q": new,
        "max_length_k": past + new,
    }
