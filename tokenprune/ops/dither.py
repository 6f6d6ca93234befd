"""An order of places in which every beginning is spread evenly."""

from __future__ import annotations

from functools import lru_cache
from math import log2

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def ordered_dither(grid: tuple[int, int, int], flips: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """[N] numbers in (0, 1) on the CPU, one for each of (frames, rows, columns), each once: (rank + 1/2) / N.

    Those above any threshold are spread evenly: the threshold matrix of ordered dithering (Bayer 1973), whose ranks are
    the interleaved bits of row XOR column and row in reverse; the reversed bits of the frame come last. Sides that are
    no powers of 2 take part of the next larger matrix.

    Args:
        flips: XORed to the coordinates: another matrix, as even as this one.
    """
    bits = max(1, *(int(log2(max(1, size - 1))) + 1 for size in grid))
    centre = sum(2**bit for bit in range(bits - 2, -1, -2))  # the first places lie inside, not along an edge
    frame, row, column = (
        axis.flatten() ^ ((flip ^ centre) % 2**bits)
        for axis, flip in zip(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), flips, strict=True)
    )
    rank = torch.zeros_like(row)
    # The lowest bit of a coordinate is the first to tell two thresholds apart; frames share all alike
    spatial = [(axis, bit) for bit in range(bits) for axis in (row ^ column, row)]
    for axis, bit in spatial + [(frame, bit) for bit in range(bits)]:
        rank = 2 * rank + (axis >> bit & 1)
    order = rank.argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return 1 - (place + 0.5) / len(order)
