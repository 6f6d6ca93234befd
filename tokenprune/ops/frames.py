"""Frames of a video compared place by place, cuts between them, and choices of so many tokens of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .greedy import top_k
from .normalise import unit_norm
from .sent import sent

# Elements of frames compared at once (16 MiB of float32).
BLOCK_ELEMENTS = 2**22


def frame_change(x: Tensor, frames: Sequence[int], others: Sequence[int]) -> Tensor:
    """[G, F, N] float32: 1 - cosine of every token of F frames with the one at its place in another frame.

    It is half the squared distance of the unit vectors: exactly 0 for equal tokens, so those of a still picture tie. A
    zero vector has cosine 0 with anything.

    Args:
        x: [G, T, N, D].
        frames, others: F frames, and which one each of them is compared with.

    Cost: F N D multiply-adds; memory: a few blocks of at most 16 MiB (or of one frame, if that is more).
    """
    g, _, n, d = x.shape
    block = max(1, BLOCK_ELEMENTS // (g * n * d))
    found = [x.new_zeros(g, 0, n, dtype=torch.float32)]
    for start in range(0, len(frames), block):
        some = slice(start, start + block)
        here, there = (unit_norm(x[:, sent(list(one[some]), x.device)]) for one in (frames, others))
        change = (here - there).square().sum(-1) / 2
        found.append(torch.where(here.any(-1) & there.any(-1), change, 1.0))
    return torch.cat(found, 1)


def similarity_cuts(similarity: Tensor, c: int, tau: float) -> Tensor:
    """[G, T - 1] bool: whether a video is cut behind each frame but the last, into c segments at least (FastVID).

    A cut is where the next frame is least similar, the c - 1 first of all, and wherever it is less similar than tau.
    Fewer than c frames are one segment each.

    Args:
        similarity: [G, T - 1], of each frame to the next.
        c: at least 1.
    """
    fewest = top_k(-similarity, c - 1)
    return (similarity < tau).scatter(1, fewest, True)


def best_of_each(scores: Tensor, counts: Tensor) -> Tensor:
    """[G, T, N] bool: the tokens of the largest of [G, T, N] scores, so many of each frame as [G, T] counts say."""
    order = scores.float().sort(dim=-1, descending=True, stable=True).indices
    place = torch.arange(scores.shape[-1], device=scores.device)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, place < counts[..., None])


def true_places(mask: Tensor, k: int) -> Tensor:
    """[G, k] long, ascending: where [G, N] bool holds, which is k times in every row."""
    return mask.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :k]
