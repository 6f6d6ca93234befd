"""Positions of the grid that stay the same from frame to frame: finding them, and merging them over time.

All of one video x [T, N, D], whose frames are cut into S segments; `lengths` are their frames. A loop over segments.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .normalise import unit_norm
from .sent import sent

At = Literal["first", "middle", "last"]


def mean_similarity(x: Tensor, lengths: list[int]) -> Tensor:
    """[S, N] float32: mean cosine of any two frames of a segment at each position; -inf for a single frame.

    From sum_{w, w'} |u_w - u_w'|^2 / 2 = W sum_w |d_w|^2 - |sum_w d_w|^2 of the W unit vectors, d_w = u_w - u_0: it is
    exactly 1 where nothing changes. A zero vector has cosine 0 with anything.

    Cost: T N D; memory: three times the unit vectors of the longest segment.
    """
    found = []
    for part in x.split(lengths):
        w, u = len(part), unit_norm(part)
        real, change = u.any(-1).sum(0), u - u[0]
        apart = w * change.square().sum((0, 2)) - change.sum(0).square().sum(-1)
        mean = ((w - 1) * real - apart) / max(1, w * (w - 1))
        found.append(mean if w > 1 else torch.full_like(mean, -torch.inf))
    return torch.stack(found)


def weakest_step(steps: Tensor, lengths: list[int]) -> Tensor:
    """[S, N]: the smallest of [T - 1, N] similarities to the next frame inside of each segment; -inf for one frame."""
    alone, result, start = steps.new_full(steps.shape[1:], -torch.inf), [], 0
    for length in lengths:
        part = steps[start : start + length - 1]
        result.append(part.amin(0) if len(part) else alone)
        start += length
    return torch.stack(result)


def loosen(static: Tensor, similarity: Tensor, lengths: list[int], k: int) -> Tensor:
    """[S, N] bool: `static` without its least similar positions, as few of them as leave k tokens or more.

    A static position is one token in a segment of W frames, any other is W.

    Args:
        static: [S, N] bool.
        similarity: [S, N].
        lengths: W of each segment.
        k: at most T N.
    """
    frames = sent(lengths, static.device)[:, None].expand_as(static)
    left = torch.where(static, 1, frames).sum()
    order = torch.where(static, similarity, torch.inf).flatten().sort(stable=True).indices
    more = ((frames - 1) * static).flatten()[order]
    needed = left + more.cumsum(0) - more < k
    return static & ~torch.zeros_like(needed).scatter_(0, order, needed).view_as(static)


def merge_static(x: Tensor, static: Tensor, lengths: list[int], at: At) -> tuple[Tensor, Tensor]:
    """Average the static positions of each segment over its frames.

    Args:
        x: [T, N, D].
        static: [S, N] bool.
        at: which frame of its segment the mean stands in.

    Returns:
        [T N, D] float32, the tokens, means in their places; [T N] long, the place of what each token has become.
    """
    (t, n), device = x.shape[:2], x.device
    y, home = x.to(torch.float32, copy=True), torch.arange(t * n, device=device).view(t, n)
    for start, frame, length, still in _segments(lengths, at, static):
        part = slice(start, start + length)
        y[frame] = torch.where(still[:, None], x[part].mean(0, dtype=torch.float32), y[frame])
        home[part] = torch.where(still, home[frame], home[part])
    return y.flatten(0, 1), home.flatten()


def tokens_by_segment(
    static: Tensor, lengths: list[int], at: At, *, by_frame: bool = True
) -> list[tuple[Tensor, bool]]:
    """Where tokens are after `merge_static`, in groups: of each segment the static ones, then the others by frame.

    Args:
        by_frame: False for one group of all the others of a segment.

    Returns:
        [n] long, ascending places, n > 0, and whether these are static ones, of every group.
    """
    n, device, groups = static.shape[1], static.device, []
    for start, frame, length, still in _segments(lengths, at, static.cpu()):
        groups.append((still.nonzero()[:, 0] + frame * n, True))
        moving = torch.arange(start, start + length)[:, None] * n + (~still).nonzero()[:, 0]
        groups.extend((part, False) for part in (moving if by_frame else [moving.flatten()]))
    return [(sent(part, device), kind) for part, kind in groups if len(part)]


def _segments(lengths: list[int], at: At, static: Tensor) -> list[tuple[int, int, int, Tensor]]:
    """First frame, frame of the means, frames and row of `static` of each segment."""
    result, start = [], 0
    for length, still in zip(lengths, static, strict=True):
        frame = start + {"first": 0, "middle": (length - 1) // 2, "last": length - 1}[at]
        result.append((start, frame, length, still))
        start += length
    return result
