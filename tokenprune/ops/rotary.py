"""What rotary embedding does to attention by distance alone."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_gravity(queries: Tensor, keys: Tensor, frequencies: Tensor) -> Tensor:
    """[B, R, L] float32: what rotation leaves of the product of two vectors of ones, (2 / sqrt(d)) sum cos(D theta_u).

    Args:
        queries: [B, R] long, positions.
        keys: [B, L] long, positions; D is the difference.
        frequencies: [d / 2], theta_u.

    Cost: R L d multiply-adds; memory: (R + L) d doubles and the answer.
    """
    ones, theta = [], frequencies.double()
    for place in (queries, keys):  # cos(a - b) = cos a cos b + sin a sin b; angles of far positions need the doubles
        angle = place.double()[..., None] * theta
        ones.append(torch.cat([angle.cos(), angle.sin()], -1).float())
    return (ones[0] @ ones[1].mT) * (2.0 / (2 * len(frequencies)) ** 0.5)
