"""Soft masks: what stands for dropping tokens while a module is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UnsupportedModelError

HALVINGS = 40  # of the interval in which a threshold lies
LEAST = 1e-5  # a gate that is shut


def log_retention(u: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Log gates of a relaxed top-k: [G, N], log sigmoid((u - t) / temperature), with t such that the gates sum to k.

    Differentiable in u, through t, too: raising one score lowers all other gates. As the temperature falls to 0 the
    gates go to 1 for the k largest scores and 0 for the others.

    Args:
        u: [G, N] scores.
        k: [G] tokens to stay, 0 < k < N.
    """
    with torch.no_grad():
        low = u.amin(1, keepdim=True) - 40 * temperature
        high = u.amax(1, keepdim=True) + 40 * temperature
        for _ in range(HALVINGS):
            t = (low + high) / 2
            more = torch.sigmoid((u - t) / temperature).sum(1, keepdim=True) > k[:, None]
            low, high = torch.where(more, t, low), torch.where(more, high, t)
        gates = torch.sigmoid((u - t) / temperature)
        slope = gates * (1 - gates) + 1e-12
        slope = slope / slope.sum(1, keepdim=True)  # dt / du, of the gates' sum being k
    along = (slope * u).sum(1, keepdim=True)
    return F.logsigmoid((u - (t + along - along.detach())) / temperature)


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """`hard` in the forward, the gradient of `soft` in the backward."""
    return hard + (soft - soft.detach())


def log_gate(gate: Tensor, least: float = LEAST) -> Tensor:
    """log(gate + least), of gates that are 0 or 1 in the forward.

    A shut gate has a gradient, too: what opening it would change. The slope of the log, 1 / least, meets shares of
    attention as small as `least`. Gates that are half open in the forward leak instead, and what is learnt then leans
    on tokens that will be dropped; the log of shut ones passes nothing back.
    """
    return (gate + least).log()


def retention_mask(given: Any, places: Tensor, log_gates: Tensor, x: Tensor) -> Tensor:
    """[B, 1, L, L] additive mask of a causal decoder, with log gates added to the columns of visual keys.

    Args:
        given: the decoder's `attention_mask`: [B, L], or None.
        places: [V, 2] long, (sample, position) of every visual token.
        log_gates: [V].
        x: [B, L, D], the decoder's input.

    Raises:
        UnsupportedModelError: the model makes masks of its own in front of its decoder.
    """
    if given is not None and (not isinstance(given, Tensor) or given.ndim != 2):
        raise UnsupportedModelError(
            "this model makes its attention masks in front of its decoder, where soft retention has no place: only "
            "models whose decoder gets a [batch, length] mask can be trained for."
        )
    batch, length = x.shape[:2]
    seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None]
    if given is not None:
        seen = seen & given.bool()[:, None]
    seen = seen | torch.eye(length, dtype=torch.bool, device=x.device)  # a row of padding sees itself, or it is NaN
    bias = x.new_zeros(batch, length, dtype=torch.float32).index_put((places[:, 0], places[:, 1]), log_gates.float())
    lowest = torch.finfo(x.dtype).min
    return torch.where(seen[:, None], bias[:, None, None].clamp_min(lowest / 2).to(x.dtype), lowest)
