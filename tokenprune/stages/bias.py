"""A number per key added to its attention scores, on any attention implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedPolicyError

CHANNELS = 8  # flash kernels take head sizes that are multiples of it


def with_bias(mask: Any, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """An attention mask with the bias in it.

    Args:
        mask: None, or [B or 1, H or 1, R or 1, K], bool (True is seen) or added to the scores.
        bias: [B or 1, 1, 1, K] float32.
        dtype: of the queries, which a mask that is added must have.

    Raises:
        UnsupportedPolicyError: a mask that is no tensor (flex attention's).
    """
    if mask is None:
        return bias.to(dtype)
    if not isinstance(mask, Tensor):
        raise UnsupportedPolicyError(
            f"attention is given a {type(mask).__name__}, which sizes of merged tokens cannot be added to: load the "
            "model with attn_implementation='sdpa', or give the policy proportional=False."
        )
    if mask.dtype == torch.bool:
        return torch.where(mask, bias.to(dtype), torch.finfo(dtype).min)
    return mask + bias.to(mask.dtype)


def in_channels(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with the bias in further channels, for kernels that take no mask; values padded alike.

    The scores scale q k^T of the wider ones are those of the narrow ones plus the bias. It is split over three
    channels, so that a half precision sum of them is exact to float32 noise. What attention answers has CHANNELS more
    channels, which are zero.

    Args:
        query: [B, H, R, d].
        key, value: [B, Hk, K, d].
        bias: [B or 1, 1, 1, K] float32.
        scale: factor on scores.
    """
    rest = (bias / scale)[:, :, 0].unsqueeze(-1).expand(*key.shape[:3], 1)
    parts = []
    for _ in range(3):
        parts.append(rest.to(key.dtype))
        rest = rest - parts[-1].float()
    extra = torch.cat([*parts, key.new_zeros(*key.shape[:3], CHANNELS - 3)], -1)
    ones = query.new_zeros(*query.shape[:3], CHANNELS)
    ones[..., :3] = 1.0
    padded = torch.cat([value, value.new_zeros(*value.shape[:3], CHANNELS)], -1)
    return torch.cat([query, ones], -1), torch.cat([key, extra], -1), padded
