"""Runs greedy kernels in Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.interpreted CALLS ANSWERS`.

A process of its own, because Triton decides when it is imported whether it compiles or interprets. CALLS holds, as
torch.save wrote them, (selector, whether one launch is made a step, arguments, keyword arguments); ANSWERS gets their
results. Memory that torch hands out is filled with NaN and the largest integers, so that nothing unwritten can be read
unnoticed.
"""

import sys

import torch

from tokenprune.ops import kernels
from tokenprune.ops.kernels import determinant, dispersion, facility

# so small that small problems have several tiles
determinant.TILE, dispersion.TILE = 64, 128
facility.TILE, facility.ELEMENTS = 16, 128


def answer(selector, apart, args, kwargs):
    determinant.stepwise = facility.stepwise = lambda units, step_bytes: apart
    return getattr(kernels, selector)(*args, **kwargs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    calls = torch.load(sys.argv[1], weights_only=True)
    torch.save([answer(*call) for call in calls], sys.argv[2])
