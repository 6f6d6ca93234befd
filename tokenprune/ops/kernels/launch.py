"""How the greedy kernels are launched, and how the blocks of a step agree on a winner.

A greedy kernel goes through steps t = start ... stop - 1. Step t applies the pick of step t - 1 to the columns of its
program and finds the best of them. It is launched in one of two ways:

- fused: one program per unit owns all columns and goes through all steps in one launch. Nothing but the data is waited
  for, but a unit gets no more than the bandwidth of one multiprocessor.
- stepwise: one launch a step, (G, blocks) programs. Each begins with the winners of all blocks in the step before, so
  that no program ever waits for another one and no launch is needed in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Estimates for one of today's GPUs, not measured: bytes that one multiprocessor reads from L2 in a microsecond (64 a
# clock at 1.7 GHz), bytes that all read together (an H100 reads 3 TB/s from memory), and the microseconds of the host
# that a launch from Python takes (binding its arguments alone takes 10 on one slow core).
ONE_READS, ALL_READ, LAUNCH = 1.1e5, 3e6, 10.0
# Multiply-adds rounded once. Said at every launch because versions of Triton differ in what they do unasked.
OPTIONS = {"enable_fp_fusion": True}


def stepwise(units: int, step_bytes: float) -> bool:
    """Whether one launch a step is faster than one launch in all, with so many bytes read per unit and step.

    DPP 576 -> 64 reads 74 kB in the average step, 0.7 us fused; 2928 -> 320 reads 1.9 MB, 17 us fused and 10.6 us
    stepwise. From 28 units on, one multiprocessor each is as good as all of them together.
    """
    return step_bytes / ONE_READS > LAUNCH + units * step_bytes / ALL_READ


def ranges(k: int, apart: bool) -> list[tuple[int, int]]:
    """(start, stop) of every launch, one or all steps in each. Step k only writes down the pick of step k - 1."""
    return [(t, t + 1) for t in range(k + 1)] if apart else [(0, k + 1)]


@triton.jit
def winner(value, index, unit, blocks, t, WIDTH: tl.constexpr):
    """Value and index of the best of all blocks in step t - 1, the lowest index among equals; (0, -1) in step 0.

    value, index: [2, G, blocks], a step writes to one half and reads the other.
    """
    block = tl.arange(0, WIDTH)
    start = (((t + 1) % 2) * tl.num_programs(0) + unit) * blocks
    real = (block < blocks) & (t > 0)
    values = tl.load(value + start + block, mask=real, other=-float("inf"))
    indices = tl.load(index + start + block, mask=real, other=0)
    best, at = tl.max(values, axis=0, return_indices=True)
    j = tl.sum(tl.where(block == at, indices, 0), axis=0)
    return tl.where(t > 0, best, 0.0), tl.where(t > 0, j, -1)


@triton.jit
def announce(value, index, unit, block, blocks, t, best, j):
    """Write down what `winner` reads in the next step."""
    place = ((t % 2) * tl.num_programs(0) + unit) * blocks + block
    tl.store(value + place, best)
    tl.store(index + place, j)


@triton.jit
def _probe(out):
    tl.store(out, 1)


def probe(device: torch.device) -> None:
    """Build a kernel and queue it, raising whatever Triton raises."""
    with torch.cuda.device(device):
        _probe[(1,)](torch.empty(1, dtype=torch.int32, device=device))
