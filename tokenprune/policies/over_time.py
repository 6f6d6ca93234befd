"""What policies share that average what stays the same in a video over its frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, nearest
from ..ops import At, sizes_by_source, sum_by_source
from ..tokens import Selection, VisualTokens
from .video import VideoPolicy

Noise = Callable[[int], Tensor | None]  # [1, n] in [0, 1) for the density of the next n tokens


@dataclass(kw_only=True)
class TemporalMerging(VideoPolicy):
    """Positions that stay similar over a segment of frames become one token each.

    Attributes:
        tau: similarity above which a position is static.
        neighbours: of a token, that its density is taken from.
        at: the frame of its segment that a static token stands in.
    """

    positions: ClassVar[str] = "compact"

    tau: float = 0.8
    neighbours: int = 7
    at: At = "first"

    def __post_init__(self):
        super().__post_init__()
        share_of("tau", self.tau, least=-1.0)
        count_of("neighbours", self.neighbours)
        if self.at not in get_args(At):
            raise InvalidArgumentError(
                f"at={self.at!r} is not one of {', '.join(get_args(At))}{nearest(self.at, get_args(At))}."
            )


def share_of(name: str, value: float, *, least: float = 0.0) -> None:
    """Refuse a field that is no number from `least` to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 1.0:
        raise InvalidArgumentError(f"{name}={value!r} is not in [{least}, 1]: give such a number.")


def count_of(name: str, value: int) -> None:
    """Refuse a field that counts nothing."""
    if type(value) is not int or value < 1:
        raise InvalidArgumentError(f"{name}={value!r} is not an int of at least 1: give one.")


def silent(n: int) -> None:
    """No noise for the density of n tokens."""


def carried(groups: list[tuple[Tensor, Tensor, Tensor]], home: Tensor, weights: Tensor | None = None) -> Selection:
    """One unit, without merged features yet.

    Args:
        groups: in the order of the paper, [n] long places of tokens; [c] long, which of these survive; [n] long, which
            survivor carries each, or -1.
        home: [V] long, the place of the token that each original token is part of; what is in no group is lost.
        weights: [V], of the token at a place in the mean of its survivor.
    """
    carrier, done = torch.full_like(home, -1), 0
    for places, kept, cluster in groups:
        carrier[places] = torch.where(cluster >= 0, cluster + done, -1)
        done += len(kept)
    order = torch.cat([places[kept] for places, kept, _ in groups])
    indices, rank = order.sort()
    place = torch.empty_like(rank).scatter_(0, rank, torch.arange(done, device=rank.device))
    number = carrier[home]
    source = torch.where(number >= 0, place[number], -1)[None]
    shares = None if weights is None else weights[home][None]
    return Selection(indices=indices[None], order=order[None], source=source, weights=shares)


def merged(tokens: VisualTokens, units: list[Selection]) -> Selection:
    """The answers about single units as one, with the means of what each survivor carries."""
    parts = {name: [getattr(unit, name) for unit in units] for name in ("indices", "order", "source", "weights")}
    answer = Selection(**{name: torch.cat(part) for name, part in parts.items() if part[0] is not None})
    n, k = tokens.shape[1], answer.indices.shape[1]
    means = sum_by_source(tokens.features, answer.source, k, answer.merge_weights(n))
    return replace(answer, features=means.to(tokens.features.dtype), sizes=sizes_by_source(answer.source, k))
