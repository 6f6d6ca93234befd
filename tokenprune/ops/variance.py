"""How differently a token is related to the tokens around it."""

from __future__ import annotations

import torch
from torch import Tensor

from .greedy import BLOCK_ELEMENTS


def runs(n: int, c: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """A sequence of n tokens cut into c consecutive runs: ([c, m] long places, [c, m] bool which of them are real).

    The first n mod c runs are one token longer; shorter ones are padded.
    """
    short, longer = divmod(n, c)
    sizes = torch.full((c, 1), short, device=device) + (torch.arange(c, device=device) < longer)[:, None]
    at = torch.arange(short + (longer > 0), device=device).expand(c, -1)
    return (sizes.cumsum(0) - sizes + at).clamp_max(n - 1), at < sizes


def similarity_variance(x: Tensor, real: Tensor) -> Tensor:
    """Variance of the cosines of a token with the others of its run: [G, c, m] float32, 0 for padding.

    mu_i = sum_j S_ij / (M - 1); v_i = sum over all M entries (S_ij - mu_i)^2 / (M - 1), with S_ii = 0 counted in, M the
    length of the run; 0 in a run of one token.

    Args:
        x: [G, c, m, d] unit vectors.
        real: [c, m] bool, False for padding.

    Cost: N m d multiply-adds; memory: two blocks of at most 32 MiB (or one row per run, if that is more).
    """
    g, c, m, _ = x.shape
    others = (real.sum(-1, keepdim=True) - 1).clamp_min(1)[..., None]  # [c, 1, 1]
    x = x * real[..., None]
    parts = []
    for start in range(0, m, block := max(1, BLOCK_ELEMENTS // (2 * g * c * m))):
        similarity = x[:, :, start : start + block] @ x.mT
        similarity.diagonal(offset=start, dim1=2, dim2=3).zero_()
        similarity.sub_(similarity.sum(-1, keepdim=True) / others).mul_(real[:, None])
        parts.append(similarity.square_().sum(-1) / others[..., 0])
        del similarity  # before the next block is made
    return torch.cat(parts, -1) * real
