"""Tokens of one position in one frame after the other, as chains whose links are cut or joined."""

from __future__ import annotations

import torch
from torch import Tensor

from .normalise import unit_norm


def chain_similarity(x: Tensor, place: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """How similar each token is to the one of its position that is there before it, some frames earlier perhaps.

    Args:
        x: [G, n, D].
        place: [G, n] long, ascending places in videos of `positions` tokens a frame, frame by frame.
        positions: N.

    Returns:
        [G, n] long, the tokens by position and then by time; [G, n] float32 in this order, the cosine of each with the
        one before. The first of a position is compared with the last of the position before and 3 is taken off, so it
        comes behind all others; the very first of all has -inf.

    Cost: n D multiply-adds; memory: n D floats.
    """
    frames = place.amax() // positions + 1
    order = (place % positions * frames + place // positions).sort(dim=1).indices
    position = (place % positions).gather(1, order)
    x = unit_norm(x).gather(1, order[..., None].expand_as(x))
    similarity = (x[:, 1:] * x[:, :-1]).sum(-1) - 3.0 * (position[:, 1:] != position[:, :-1])
    return order, torch.cat([similarity.new_full((len(x), 1), -torch.inf), similarity], 1)


def chain_map(order: Tensor, joins: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The map of tokens that join the one before them, which may have joined another.

    Args:
        order: [G, n] long, the tokens along the chains.
        joins: [G, n] bool in this order, n - k in each row, never the first.

    Returns:
        [G, k] long, those that join none, ascending; [G, n] long, the source map.
    """
    head = torch.where(joins, -1, torch.arange(joins.shape[1], device=joins.device)).cummax(1).values
    carrier = torch.empty_like(order).scatter_(1, order, order.gather(1, head))
    alone = carrier == torch.arange(joins.shape[1], device=joins.device)
    place = alone.cumsum(1) - 1
    return alone.long().sort(dim=1, descending=True, stable=True).indices[:, :k], place.gather(1, carrier)
