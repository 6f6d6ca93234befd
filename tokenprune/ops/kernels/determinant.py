"""Greedy determinantal point process."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..plain import RESIDUAL_FLOOR
from .launch import OPTIONS, announce, ranges, stepwise, winner

# Columns that a fused program updates at once, at most, and multiply-adds between waits for memory.
TILE, PRODUCTS = 1024, 2**14


@triton.jit(do_not_specialize=["blocks", "start", "stop", "k"])
def steps(
    similarity,  # [G, n, n]
    quality,  # [G, n], or anything where QUALITY is false
    residual,  # [G, n], written
    floor,  # [G, n]
    reserve,  # [G, n], written
    factors,  # [G, k, stride], written: C, one row a pick
    value,  # [2, G, blocks], written
    index,  # [2, G, blocks], written
    order,  # [G, k], written
    rest,  # 1 - weight
    weight,
    eps,
    n,
    stride,
    blocks,
    start,
    stop,
    k,
    QUALITY: tl.constexpr,
    FUSED: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of 2, at least blocks
    TILES: tl.constexpr,  # per program, of COLUMNS columns each
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,  # of C read at once
):
    """Steps start ... stop - 1 of the incremental Cholesky, for TILES x COLUMNS columns of one unit."""
    unit = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    similarity += unit * n * n
    quality += unit * n
    residual += unit * n
    floor += unit * n
    reserve += unit * n
    factors += unit * k * stride
    order += unit * k
    best = 0.0
    j = -1
    for t in range(start, stop):
        if not FUSED:
            best, j = winner(value, index, unit, blocks, t, WIDTH)
        tl.store(order + t - 1, j, mask=(t > 0) & (block == 0))
        if t < k:
            # a residual that counts is above 0, a reserve below: then C gets a row of zeros
            pivot = tl.where(best > 0, 1.0 / tl.sqrt_rn(tl.where(best > 0, best + eps, 1.0)), 0.0)
            found = -float("inf")
            found_at = 0
            for tile in range(TILES):
                columns = (block * TILES + tile) * COLUMNS + tl.arange(0, COLUMNS)
                inside = columns < n
                row = tl.load(similarity + j * n + columns, mask=inside & (t > 0), other=0.0)
                if QUALITY:
                    own = tl.load(quality + j, mask=t > 0, other=0.0)
                    row *= rest + weight * own * tl.load(quality + columns, mask=inside, other=0.0)
                products = tl.zeros([ROWS, COLUMNS], tl.float32)
                for s in range(0, t - 1, ROWS):
                    picks = s + tl.arange(0, ROWS)
                    known = picks < t - 1
                    at_j = tl.load(factors + picks * stride + j, mask=known, other=0.0)
                    of_all = tl.load(
                        factors + picks[:, None] * stride + columns[None, :],
                        mask=known[:, None] & (columns < stride)[None, :],
                        other=0.0,
                    )
                    products += at_j[:, None] * of_all
                e = (row - tl.sum(products, axis=0)) * pivot
                tl.store(factors + (t - 1) * stride + columns, e, mask=(columns < stride) & (t > 0))
                left = tl.load(residual + columns, mask=inside, other=-float("inf")) - e * e
                left = tl.where(columns == j, -float("inf"), left)
                spare = tl.load(reserve + columns, mask=inside, other=-float("inf"))
                spare = tl.where(columns == j, -float("inf"), spare)
                tl.store(residual + columns, left, mask=inside)
                tl.store(reserve + columns, spare, mask=inside)
                score = tl.where(left > tl.load(floor + columns, mask=inside, other=0.0), left, spare)
                top, at = tl.max(score, axis=0, return_indices=True)
                at += (block * TILES + tile) * COLUMNS
                found_at = tl.where(top > found, at, found_at)
                found = tl.maximum(found, top)
            if FUSED:
                best = found
                j = found_at
                tl.debug_barrier()  # what one thread has stored, another may load in the next step
            else:
                announce(value, index, unit, block, blocks, t, found, found_at)


def select(similarity: Tensor, k: int, quality: Tensor | None, weight: float, eps: float) -> Tensor:
    similarity = similarity.contiguous()
    g, n, _ = similarity.shape
    diagonal = similarity.diagonal(dim1=1, dim2=2)
    if quality is None:
        diagonal = diagonal.clone(memory_format=torch.contiguous_format)
    else:
        quality = quality.float().contiguous()
        diagonal = diagonal * ((1 - weight) + weight * quality * quality)
    floor = RESIDUAL_FLOOR * diagonal
    reserve = diagonal - diagonal.amax(-1, keepdim=True) - 1.0
    stride = triton.cdiv(n, 16) * 16  # rows of C start where 16 bytes can be loaded at once
    factors = diagonal.new_empty(g, k, stride)
    order = torch.empty(g, k, dtype=torch.long, device=similarity.device)

    apart = stepwise(g, 2 * n * k)
    shape = shapes(n, apart)
    blocks = triton.cdiv(n, shape["TILES"] * shape["COLUMNS"])
    value = diagonal.new_empty(2, g, blocks)
    index = torch.empty(2, g, blocks, dtype=torch.int32, device=similarity.device)
    with torch.cuda.device_of(similarity):
        for start, stop in ranges(k, apart):
            steps[(g, blocks)](
                similarity, similarity if quality is None else quality, diagonal, floor, reserve, factors, value, index,
                order, 1.0 - weight, float(weight), float(eps), n, stride, blocks, start, stop, k, quality is not None,
                not apart, triton.next_power_of_2(blocks), **shape,
            )  # fmt: skip
    return order


def shapes(n: int, apart: bool) -> dict[str, int]:
    """Shapes of a launch: 64 products of a thread at once (fused, with a multiprocessor to themselves) or 32."""
    if apart:
        return {"TILES": 1, "COLUMNS": 64, "ROWS": 64, "num_warps": 4, **OPTIONS}
    columns = min(max(triton.next_power_of_2(n), 128), TILE)
    return {
        "TILES": triton.cdiv(n, columns),
        "COLUMNS": columns,
        "ROWS": PRODUCTS // columns,
        "num_warps": 8,
        **OPTIONS,
    }
