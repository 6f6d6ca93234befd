"""Integrated gradients: how much of a number that a model answers is due to each token at its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidArgumentError


def integrated_gradients(f: Callable[[Tensor], Tensor], x: Tensor, steps: int = 1) -> Tensor:
    """[B, L, D], x times the mean over k = 1 ... m of dF((k / m) x) / dx: from a baseline of zeros.

    Their sum over L and D goes to F(x) - F(0) as m grows, and is that for every m where F is linear. With m = 1 this is
    gradient times input.

    Args:
        f: F, [B, L, D] -> [B], each number of its own row alone.
        x: [B, L, D].
        steps: m, so many forwards and backwards.
    """
    if steps < 1:
        raise InvalidArgumentError(f"steps={steps} is below 1: give at least 1.")
    total = torch.zeros_like(x)
    with torch.enable_grad():
        for k in range(1, steps + 1):
            point = (x.detach() * (k / steps)).requires_grad_()
            total += torch.autograd.grad(f(point).sum(), point)[0]
    return x.detach() * total / steps


def token_shares(attributions: Tensor, among: Tensor) -> Tensor:
    """[B, L] float32, the L2 norm over features of each token's attribution, normalised to a sum of 1 per text.

    Args:
        attributions: [B, L, D]; among: [B, L] bool, tokens that count; others get 0.
    """
    norms = attributions.float().norm(dim=-1) * among
    return norms / norms.sum(1, keepdim=True).clamp_min(1e-12)
