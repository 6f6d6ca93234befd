"""The greedy selectors as Triton kernels for CUDA, on ready float32 matrices; same answers as `ops.plain`.

Nothing here waits for the device: k and all sizes are known on the host, so the launches queue up behind the vision
tower. Triton is imported at the first call of `available`, never with the package.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

# The first of NVIDIA's generations that Triton promises to support.
CAPABILITY = (8, 0)


@functools.cache
def available(device: torch.device) -> bool:
    """Whether the kernels run on a device: NVIDIA, compute capability 8.0 or more, PyTorch 2.8 or later and Triton.

    Once per CUDA device a kernel of one instruction is built and queued: Triton needs a C compiler and a driver that
    fits, which no version number tells. A CUDA device where something is missing gets one warning that says what.
    """
    if device.type != "cuda":
        return False
    if obstacle := _obstacle(device):
        warnings.warn(
            f"Greedy selection runs step by step in PyTorch on {device}, correct but slower, because {obstacle}",
            stacklevel=2,
        )
    return obstacle is None


def _obstacle(device: torch.device) -> str | None:
    if torch.version.hip:
        return "its kernels were written for NVIDIA GPUs."
    if (capability := torch.cuda.get_device_capability(device)) < CAPABILITY:
        return f"its kernels need compute capability 8.0 and this GPU has {'.'.join(map(str, capability))}."
    if "dtype" not in torch.ops.aten.bmm.overloads():
        return f"its kernels need PyTorch 2.8 or later, and this is {torch.__version__}."
    try:
        from .launch import probe

        probe(device)
    except Exception as error:  # whatever keeps Triton from working here: no package, no compiler, an old driver
        reason = " ".join(str(error).split())
        return f"Triton does not work here ({type(error).__name__}: {reason}): install what it asks for."
    return None


def _product(x: Tensor, y: Tensor) -> Tensor:
    """[G, N, N] x_i . y_j of half-precision [G, N, D], products exact, sums and answer float32. CUDA only."""
    return torch.bmm(x, y.mT, out_dtype=torch.float32)


def similarity(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """[G, N, N] float32 S_ij = (x_i . x_j) scale_i scale_j of x [G, N, D] on a CUDA device.

    Without a scale [G, N] it is 1 / |x_i|, 0 for a zero vector, with |x_i|^2 taken from the matrix product itself, so
    that whatever tensor cores lose in their sums is lost on both sides, and duplicates are at 1 as they should; the
    diagonal is then exactly 1, or 0.

    float16 and bfloat16 are multiplied as they are. PyTorch lets a matrix product of float32 round to TF32 by settings
    of the whole process only, so float32 is split into three bfloat16 parts (8 of 24 bits each) and the six products
    that matter in float32 are summed, the small ones first.

    Cost: N^2 D multiply-adds per unit on tensor cores, six times as many for float32. Memory: the answer; for float32
    as much again and 6 N D bytes.
    """
    half = x.dtype in (torch.float16, torch.bfloat16)
    product = _product(x, x) if half else _split_product(x.float())
    if scale is not None:
        return product.mul_(scale[:, :, None]).mul_(scale[:, None])
    squares = product.diagonal(dim1=1, dim2=2).clone()
    inverse = torch.where(squares > 0, squares.rsqrt(), 0.0)
    product.mul_(inverse[:, :, None]).mul_(inverse[:, None])
    product.diagonal(dim1=1, dim2=2).copy_(squares > 0)
    return product


def _split_product(x: Tensor) -> Tensor:
    high = x.bfloat16()
    rest = x - high
    middle = rest.bfloat16()
    low = (rest - middle).bfloat16()
    product = _product(middle, middle)
    for one, other in ((high, low), (low, high), (high, middle), (middle, high), (high, high)):
        product += _product(one, other)
    return product


def dpp(similarity: Tensor, k: int, *, quality: Tensor | None = None, weight: float = 1.0, eps: float = 0.0) -> Tensor:
    """`ops.greedy.greedy_dpp` on S [G, N, N]: [G, k] long indices in the order chosen.

    Cost: N k^2 / 2 multiply-adds per unit; memory: N k floats per unit. One launch, or k + 1 (`launch.stepwise`).
    """
    from .determinant import select

    return select(similarity, k, quality, weight, eps)


def max_min(similarity: Tensor, k: int, *, first: Tensor | None = None, quality: Tensor | None = None) -> Tensor:
    """`ops.greedy.greedy_max_min` on S [G, N, N]: [G, k] long indices in the order chosen.

    Cost: N k operations per unit (N^2 more for the default start without quality), one or two launches.
    """
    from .dispersion import select

    return select(similarity, k, first, quality)


def coverage(dense: Tensor, weight: Tensor, k: int) -> Tensor:
    """`ops.coverage.greedy_coverage` on the columns F_.i [G, N, R]: [G, k] long indices in the order chosen.

    Cost: k N R additions per unit; memory: 2 R floats per unit. One launch, or k + 1 (`launch.stepwise`).
    """
    from .facility import select

    return select(dense, weight, k)
