"""Greedy max-min dispersion."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS

# Columns in which the nearest of a token is looked for at once, at most.
TILE = 1024


@triton.jit
def nearest(similarity, out, n, COLUMNS: tl.constexpr):
    """out [G, n]: largest similarity of a row i with any other; -inf where there is no other.

    A matrix product may round S_ij and S_ji apart, and two tokens that are each other's nearest have to tie, so that
    S_ij with i < j is taken for both.
    """
    i = tl.program_id(0)
    unit = tl.program_id(1).to(tl.int64)
    similarity += unit * n * n
    best = -float("inf")
    j = i
    for start in range(0, n, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        row = tl.load(similarity + i * n + columns, mask=columns < n, other=-float("inf"))
        top, at = tl.max(tl.where(columns == i, -float("inf"), row), axis=0, return_indices=True)
        j = tl.where(top > best, start + at, j)
        best = tl.maximum(best, top)
    both = tl.load(similarity + tl.minimum(i, j) * n + tl.maximum(i, j))
    tl.store(out + unit * n + i, tl.where(j == i, -float("inf"), both))


@triton.jit(do_not_specialize=["k"])
def steps(
    similarity,  # [G, n, n]
    quality,  # [G, n], or anything where QUALITY is false
    order,  # [G, k], the first pick is there, the others are written
    n,
    k,
    QUALITY: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of 2, at least n
):
    """All picks of one unit. A step reads one row of S, 16 kB for 4096 tokens, so that one program does."""
    unit = tl.program_id(0).to(tl.int64)
    similarity += unit * n * n
    order += unit * k
    columns = tl.arange(0, COLUMNS)
    inside = columns < n
    distance = tl.full([COLUMNS], float("inf"), tl.float32)
    if QUALITY:
        w = tl.load(quality + unit * n + columns, mask=inside, other=0.0)
    j = tl.load(order).to(tl.int32)
    for t in range(1, k):
        row = tl.load(similarity + j * n + columns, mask=inside, other=0.0)
        distance = tl.where(columns == j, -float("inf"), tl.minimum(distance, 1.0 - row))
        score = distance
        if QUALITY:
            # a duplicate's distance may round to less than 0, and must not fall behind quality 0 for that
            score = tl.where(w > 0, w * tl.maximum(distance, 0.0), -1.0)
            score = tl.where(distance == -float("inf"), -float("inf"), score)
        j = tl.argmax(tl.where(inside, score, -float("inf")), axis=0)
        tl.store(order + t, j)


def select(similarity: Tensor, k: int, first: Tensor | None, quality: Tensor | None) -> Tensor:
    similarity = similarity.contiguous()
    g, n, _ = similarity.shape
    if quality is not None:
        quality = quality.float().contiguous()
    with torch.cuda.device_of(similarity):
        if first is None and quality is not None:
            first = quality.argmax(-1)
        elif first is None:
            closest = similarity.new_empty(g, n)
            nearest[(n, g)](similarity, closest, n, **shapes(min(n, TILE)))
            first = closest.argmin(-1)
        order = torch.empty(g, k, dtype=torch.long, device=similarity.device)
        order[:, 0] = first
        steps[(g,)](
            similarity, similarity if quality is None else quality, order, n, k, quality is not None, **shapes(n)
        )
    return order


def shapes(n: int) -> dict[str, int]:
    """Shapes of a launch: at least 4 columns a thread, which are loaded at once."""
    columns = max(triton.next_power_of_2(n), 128)
    return {"COLUMNS": columns, "num_warps": min(columns // 128, 16), **OPTIONS}
