"""Cutting the frames of a video into segments, and sharing tokens out along them. Lists of ints, one unit at a time."""

from __future__ import annotations

from itertools import groupby, pairwise

import torch
from torch import Tensor


def refine_labels(labels: list[int]) -> list[tuple[int, int]]:
    """Segments of cluster labels, one label per frame, as (label, length): runs, without those that are too short.

    Of each label only its longest runs stay, and none of a single frame. From left to right every gap takes the label
    of the longer run beside it, the left one among equals; label 0 where there is none at all.
    """
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(n for other, n in runs if other == label) for label, _ in runs}
    kept = [label if n == longest[label] > 1 else None for label, n in runs for _ in range(n)]
    gapped = [(label, len(list(run))) for label, run in groupby(kept)]
    segments: list[tuple[int, int]] = []
    for (label, n), (after, m) in pairwise([*gapped, (None, 0)]):
        before, done = segments[-1] if segments else (0, 0)
        if label is None:
            label = before if after is None or done >= m else after
        if segments and label == before:
            segments[-1] = label, done + n
        else:
            segments.append((label, n))
    return segments


def best_windows(static: Tensor, longest: int) -> tuple[list[int], int]:
    """The cut of T frames into windows that saves most where what stays the same in a window is kept once.

    A window of W frames saves W - 1 tokens at each of the positions that are static in all its steps. Among equals the
    last window is the shortest.

    Args:
        static: [T - 1, N] bool, whether a position stays the same from one frame to the next.
        longest: largest number of frames in a window.

    Returns:
        frames of every window; tokens saved by all.

    Cost: T N operations and T^2 steps on the CPU; memory: T N + T^2 integers.
    """
    steps = len(static)
    if steps == 0:
        return [1], 0
    number = torch.arange(1, steps + 1, device=static.device)
    lasting = number[:, None] - torch.where(static, 0, number[:, None]).cummax(0).values  # static steps up to this one
    ending = torch.zeros(steps, steps + 1, dtype=torch.long, device=static.device)
    ending.scatter_add_(1, lasting, torch.ones_like(lasting))
    positions = ending.flip(1).cumsum(1).flip(1)[:, 1:]  # that were static for so many steps up to this one, at least
    saved = (positions * number).tolist()
    best, lengths = [0], [1]
    for i in range(1, steps + 1):
        choices = [(best[i - 1], 1)]
        for w in range(2, min(i + 1, longest) + 1):
            choices.append(((best[i - w] if w <= i else 0) + saved[i - 1][w - 2], w))
        most = max(choices, key=lambda choice: choice[0])  # the first of the largest
        best.append(most[0])
        lengths.append(most[1])
    windows, i = [], steps
    while i >= 0:
        windows.append(lengths[i])
        i -= lengths[i]
    return windows[::-1], best[-1]


def join_segments(lengths: list[int], k: int) -> list[int]:
    """k segments, of about equally many neighbouring ones each; 1 <= k <= number of segments."""
    edges = [i * len(lengths) // k for i in range(k + 1)]
    return [sum(lengths[a:b]) for a, b in pairwise(edges)]


def even_shares(k: int, sizes: list[int]) -> list[int]:
    """k shared out in proportion to sizes, 0 <= k <= their sum: rounded so that every running sum is right.

    No share is above its size, and what rounding gives or takes is spread evenly along the sequence.
    """
    total, running, edges = max(1, sum(sizes)), 0, [0]
    for size in sizes:
        running += size
        edges.append((2 * k * running + total) // (2 * total))
    return [b - a for a, b in pairwise(edges)]


def best_share(scores: Tensor, group: Tensor, share: float) -> Tensor:
    """Places, ascending, of the int(n share) best of the n tokens of every group, by [N] scores; group: [N] long."""
    order = scores.float().sort(descending=True, stable=True).indices
    order = order[group[order].sort(stable=True).indices]  # group by group, the best first
    counts = torch.bincount(group)
    most = torch.tensor([int(n * share) for n in counts.tolist()], device=scores.device)
    rank = torch.arange(len(group), device=scores.device) - (counts.cumsum(0) - counts)[group[order]]
    return order[rank < most[group[order]]].sort().values
