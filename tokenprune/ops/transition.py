"""How a quantity moves from the tokens of one frame to those of the next."""

from __future__ import annotations

from torch import Tensor

from . import matching


def carried_on(x: Tensor, before: Tensor, weights: Tensor) -> Tensor:
    """[G, N]: sum over j of weights_j softmax over i of (x_i . before_j), so that the sum of the weights is kept.

    Args:
        x: [G, N, d] float32.
        before: [G, M, d] float32.
        weights: [G, M] float32, of the tokens before.

    Cost: N M d multiply-adds; memory: N floats and one block of similarities.
    """
    (g, n, _), m = x.shape, before.shape[1]
    block, result = max(1, matching.CACHED_ELEMENTS // (g * n)), x.new_zeros(g, n, 1)
    for start in range(0, m, block):
        part = slice(start, start + block)
        result = result + (x @ before[:, part].mT).softmax(1) @ weights[:, part, None]
    return result[..., 0]
