"""Choosing anew, step by step, which cached tokens a decode step reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .greedy import top_k


def reselected(attention: Tensor, previous: Tensor | None, share: float, threshold: float = 0.9) -> Tensor:
    """The visual tokens that a decode step reads in DyCoke (arXiv 2411.15024), as its released code has it.

    With c = cos(attention, previous), 0 at the first step: where c < threshold the int(share V) tokens with the largest
    attention, everywhere else all. No wrapped model does this: keys never leave the cache, so it saves no memory.

    Args:
        attention: [G, V], attention of the step's token to the visual ones in the layer before, mean over heads.
        previous: [G, V], of the step before; None at the first.
        share: 1 - P of the paper.

    Returns:
        [G, V] bool.
    """
    attention = attention.float()
    best = top_k(attention, int(attention.shape[1] * share))
    chosen = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, best, True)
    if previous is None:
        return chosen
    return chosen | (F.cosine_similarity(attention, previous.float(), dim=1) >= threshold)[:, None]
