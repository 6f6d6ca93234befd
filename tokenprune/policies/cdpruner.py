"""CDPruner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..ops import greedy_dpp, image_extremes, min_max
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import FeaturePolicy
from .relevance import TextRelevance


@register("cdpruner")
@dataclass(kw_only=True)
class CDPruner(FeaturePolicy):
    """Conditional diversity: greedy MAP of a determinantal point process conditioned on the instruction.

    S_ij = cos(X_i, X_j) of projected tokens X [N, D]; q_i = relevance of token i to the instruction;
    r_i = (q_i - min q + 1e-6) / (max q - min q), extremes over all crops of an image; L_ij = r_i S_ij r_j; the k tokens
    kept maximise det(L_Y) greedily. The first pick is the most relevant token.

    Attributes:
        relevance: maps `VisualTokens` to q [G, N]. `ClipRelevance` for a CLIP tower, as published; the default
            `TextRelevance` reads the decoder's embeddings of the instruction and needs no further model.
        theta: None, as released: r as above. In (0, 1): r becomes exp(alpha r), alpha = theta / (2 (1 - theta)), which
            weighs relevance against diversity; towards 0 it is pure diversity.

    Source: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    NeurIPS 2025, arXiv 2506.10967. The minus sign of CLIP relevance is in the released code, not in the paper:
    see `ClipRelevance.sign`.

    Differs from the released code: exactly k distinct tokens when k exceeds the rank of L (the code may answer fewer),
    equal relevance everywhere means r = 1 (the code divides by zero), images of a batch do not share extremes.
    """

    parts: ClassVar = ("relevance",)
    relevance: Callable[[VisualTokens], Tensor] = field(default_factory=TextRelevance)
    theta: float | None = None
    cost: ClassVar = "N k D + N k^2 / 2 multiply-adds, k sequential steps; N (k + D) floats"
    when: ClassVar = "The question is known and points at something: weighs relevance and diversity in one."
    limits: ClassVar = "Another selection for every question, and only as good as the relevance it is given."

    def __post_init__(self):
        super().__post_init__()
        if self.theta is not None and not (isinstance(self.theta, float) and 0.0 < self.theta < 1.0):
            raise InvalidArgumentError(f"theta={self.theta!r} is not in (0, 1): give such a float, or None for off.")

    def rate(self, tokens: VisualTokens) -> Tensor:
        return self.relevance(tokens)

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        q, extremes = tokens.rating, tokens.extremes
        if q is None:  # asked directly
            q = self.rate(tokens)
            extremes = None if tokens.image is None else image_extremes([q], [tokens.image])[0]
        r = min_max(q, extremes=extremes, numerator_eps=1e-6)
        if self.theta is not None:
            r = torch.exp(r * (self.theta / (2 * (1 - self.theta))))
        return Selection.subset(greedy_dpp(self.compared(tokens), k, quality=r), scores=r)
