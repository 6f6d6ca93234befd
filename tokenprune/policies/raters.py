"""What the words about the picture say of it: which words, and scores of the tokens by their attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedPolicyError
from ..layers import Attention
from ..ops import block_rank, pack, rotary_gravity, top_k, word_relevance


def text_raters(x: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """[B, L] bool, the words of more than mean relevance to the visual tokens; the last word where there is none.

    Args: as `LayerPolicy.raters`.
    """
    words, places, mask = pack(x, text)
    relevance = word_relevance(*pack(x, visual)[::2], words, mask)
    count = mask.sum(1, keepdim=True)
    raters = (relevance > relevance.sum(1, keepdim=True) / count) & mask
    last = torch.arange(places.shape[1], device=x.device) == count - 1
    raters = torch.where(raters.any(1, keepdim=True), raters, last)
    return torch.zeros_like(text).scatter(1, places, raters)


def marked_by_rank(attention: Attention, scale: float) -> Tensor:
    """[B, L], mean over rows and heads, with a minus sign, even of a zero, behind the int(scale rank(P)) best tokens.

    P [R, V] is the mean over heads. At least one visual token gets the sign.
    """
    visual = attention.visual
    means = torch.cat([block.mean(1) for _, block in attention.blocks()], 1) * visual[:, None]
    score, columns = means.sum(1) / attention.count(), visual.sum(1)
    rank = block_rank(means, attention.row_mask.sum(1), columns)
    stay = (scale * rank).long().minimum(columns - 1)
    order = top_k(score.masked_fill(~visual, -torch.inf), visual.shape[1])
    own = torch.arange(visual.shape[1], device=order.device).expand_as(order)
    return torch.where(torch.empty_like(order).scatter(1, order, own) < stay[:, None], score, -score)


def without_gravity(attention: Attention, heads: int | float, *, strict: bool) -> Tensor:
    """[B, L], mean over rows and the strongest heads of A / g, g = `rotary_gravity` of the distance in the prompt.

    Args:
        heads: how many, or which share: those that give most to visual tokens.
        strict: refuse where g <= 0 for some row and visual token; otherwise g is at least 1.

    Raises:
        UnsupportedPolicyError: g <= 0, or the layer has no rotary embedding.
    """
    if attention.frequencies is None:
        raise UnsupportedPolicyError(
            "version='plus' corrects for rotary embedding, which this decoder has none of: use version='1.5'."
        )
    place, visual = attention.place, attention.visual[:, None]
    received = 0.0
    for some, block in attention.blocks():
        here = attention.row_mask[:, some]
        rows = place.gather(1, attention.rows[:, some].masked_fill(~here, 0))
        curve = rotary_gravity(rows, place, attention.frequencies)
        if strict and bool(((curve <= 0) & visual & here[..., None]).any()):
            raise UnsupportedPolicyError(
                "version='plus' with strict_paper divides by a rotary product that is not positive at distances of "
                "this prompt: leave strict_paper out, which bounds it, or use version='1.5'."
            )
        received = received + (block / (curve if strict else curve.clamp_min(1.0))[:, None]).sum(2)
    n = max(1, round(heads * attention.heads)) if isinstance(heads, float) else min(heads, attention.heads)
    best = top_k((received * visual).sum(2), n)[..., None].expand(-1, -1, place.shape[1])
    return received.gather(1, best).mean(1) / attention.count()
