"""Estimated FLOPs of a vision transformer under a policy before it runs, and settings that take as many as asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from .. import ToMe, VisionPolicy, wrap
from ..report import TowerReport


@torch.inference_mode()
def probed(model: nn.Module, pixels: Tensor) -> TowerReport:
    """What a report says of the first picture or clip, whose shapes hold for all."""
    with wrap(model, ToMe(r=1)) as handle:
        model(pixels[:1])
        return handle.report().towers[0]


def share(policy: VisionPolicy, tower: TowerReport) -> float:
    """FLOPs of the blocks as a share of the dense ones, as `Report.cost` estimates them."""
    counts = policy.counts(len(tower.blocks), tower.total, tower.grid)
    prefix, read = tower.tokens - tower.total, [tower.total, *counts[:-1]]
    blocks = [
        (prefix + before, prefix + (before if policy.behind else after))
        for before, after in zip(read, counts, strict=True)
    ]
    dense, pruned = replace(tower, blocks=blocks).flops()
    return pruned / dense


def mildest(
    make: Callable[[int], VisionPolicy], strengths: int, most: float, tower: TowerReport
) -> VisionPolicy | None:
    """Of make(1), make(2) ... make(strengths), whose costs fall, the first that takes no more than that share.

    None where even the last takes more.
    """
    low, high = 0, strengths + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share(make(middle), tower) <= most else (middle, high)
    return None if high > strengths else make(high)


def spread(weights: list[float], total: int) -> list[int]:
    """`total` merges over the blocks in the proportion of the weights, rounded so that they add up to it."""
    whole, before, found = sum(weights), 0.0, []
    for weight in weights:
        found.append(round(total * (before + weight) / whole) - round(total * before / whole))
        before += weight
    return found


def falling(depth: int) -> list[float]:
    """Weights of a schedule that merges twice the mean in the first block and nothing in the last, in a line."""
    return [2 * (depth - 1 - block) / max(1, depth - 1) for block in range(depth)]
