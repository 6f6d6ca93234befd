"""Losses."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def standardised_log(y: Tensor) -> Tensor:
    """[G, N] of mean 0 and deviation 1 per unit: the log of positive numbers whose scale means nothing (attention)."""
    return standardised(y.float().clamp_min(1e-8).log(), least=1e-4)


def standardised(y: Tensor, *, least: float = 1e-30) -> Tensor:
    """[G, N] of mean 0 and deviation 1 per unit, or less where y deviates by less than `least`."""
    y = y.float()
    return (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True).clamp_min(least)


def regression(u: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of scores [G, N]."""
    return F.mse_loss(u.float(), y.float())


def ranking(u: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of softmax(u) against the shares of y >= 0, [G, N]: what is large in y has to be large in u."""
    shares = y.float() / y.float().sum(1, keepdim=True).clamp_min(1e-8)
    return -(shares * u.float().log_softmax(1)).sum(1).mean()


def keep_rate(gates: Tensor, share: float | Tensor) -> Tensor:
    """(mean gate of a unit - share)^2, mean over units; gates [G, N]."""
    return (gates.float().mean(1) - share).square().mean()


def words(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of [n, V] logits and [n] ids."""
    return F.cross_entropy(logits.float(), targets)


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of [n, V] logits, mean over n."""
    student, taught = logits.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return F.kl_div(student, taught, log_target=True, reduction="batchmean")
