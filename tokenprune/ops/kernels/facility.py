"""Greedy facility location."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, announce, ranges, stepwise, winner

# Rows that are read at once, at most, and elements that a fused program reads at once.
TILE, ELEMENTS = 512, 2**13


@triton.jit(do_not_specialize=["tiles", "blocks", "start", "stop", "k"])
def steps(
    dense,  # [G, n, rows]
    weight,  # [G, n]
    covered,  # [2, G, rows], zeros; written: a step reads one half and writes the other
    taken,  # [G, n] int8, zeros; written
    value,  # [2, G, blocks], written
    index,  # [2, G, blocks], written
    order,  # [G, k], written
    n,
    rows,
    tiles,  # per program, of CANDIDATES candidates each
    blocks,
    start,
    stop,
    k,
    FUSED: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of 2, at least blocks
    CANDIDATES: tl.constexpr,
    ROWS: tl.constexpr,  # read at once
):
    """Steps start ... stop - 1, for tiles x CANDIDATES candidates of one unit."""
    unit = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    half = tl.num_programs(0).to(tl.int64) * rows
    dense += unit * n * rows
    weight += unit * n
    covered += unit * rows
    taken += unit * n
    order += unit * k
    j = -1
    for t in range(start, stop):
        if not FUSED:
            _, j = winner(value, index, unit, blocks, t, WIDTH)
        tl.store(order + t - 1, j, mask=(t > 0) & (block == 0))
        if t < k:
            before = covered + (t % 2) * half
            after = covered + ((t + 1) % 2) * half
            found = -float("inf")
            found_at = 0
            for tile in range(tiles):
                candidates = (block * tiles + tile) * CANDIDATES + tl.arange(0, CANDIDATES)
                inside = candidates < n
                uncovered = tl.zeros([CANDIDATES, ROWS], tl.float32)
                for r in range(0, rows, ROWS):
                    here = r + tl.arange(0, ROWS)
                    real = here < rows
                    by = tl.load(before + here, mask=real, other=0.0)
                    by = tl.maximum(by, tl.load(dense + j * rows + here, mask=real & (t > 0), other=0.0))
                    if block + tile == 0:
                        tl.store(after + here, by, mask=real)
                    f = tl.load(
                        dense + candidates[:, None] * rows + here[None, :],
                        mask=inside[:, None] & real[None, :],
                        other=0.0,
                    )
                    uncovered += tl.maximum(f - by[None, :], 0.0)
                gain = tl.load(weight + candidates, mask=inside, other=0.0) * tl.sum(uncovered, axis=1)
                gone = (tl.load(taken + candidates, mask=inside, other=1) != 0) | (candidates == j)
                tl.store(taken + candidates, gone.to(tl.int8), mask=inside)
                top, at = tl.max(tl.where(gone, -float("inf"), gain), axis=0, return_indices=True)
                at += (block * tiles + tile) * CANDIDATES
                found_at = tl.where(top > found, at, found_at)
                found = tl.maximum(found, top)
            if FUSED:
                j = found_at
                tl.debug_barrier()  # what one thread has stored, another may load in the next step
            else:
                announce(value, index, unit, block, blocks, t, found, found_at)


def select(dense: Tensor, weight: Tensor, k: int) -> Tensor:
    dense, weight = dense.contiguous(), weight.float().contiguous()
    g, n, rows = dense.shape
    covered = dense.new_zeros(2, g, rows)
    taken = torch.zeros(g, n, dtype=torch.int8, device=dense.device)
    order = torch.empty(g, k, dtype=torch.long, device=dense.device)

    apart = stepwise(g, 4 * n * rows)
    shape = shapes(rows, apart)
    tiles = 1 if apart else triton.cdiv(n, shape["CANDIDATES"])
    blocks = triton.cdiv(n, tiles * shape["CANDIDATES"])
    value = dense.new_empty(2, g, blocks)
    index = torch.empty(2, g, blocks, dtype=torch.int32, device=dense.device)
    with torch.cuda.device_of(dense):
        for start, stop in ranges(k, apart):
            steps[(g, blocks)](
                dense, weight, covered, taken, value, index, order, n, rows, tiles, blocks, start, stop, k, not apart,
                triton.next_power_of_2(blocks), **shape,
            )  # fmt: skip
    return order


def shapes(rows: int, apart: bool) -> dict[str, int]:
    """Shapes of a launch: 32 elements of a thread at once (fused, with a multiprocessor to themselves) or up to 16."""
    read = min(max(triton.next_power_of_2(rows), 64), TILE)
    if apart:
        return {"CANDIDATES": 4, "ROWS": read, "num_warps": 4, **OPTIONS}
    return {"CANDIDATES": ELEMENTS // read, "ROWS": read, "num_warps": 8, **OPTIONS}
