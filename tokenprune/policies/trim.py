"""TRIM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..ops import count_outliers, top_k
from ..registry import register
from ..tokens import Selection, VisualTokens
from .merging import SummaryPolicy
from .relevance import TextRelevance


@register("trim")
@dataclass(kw_only=True)
class TRIM(SummaryPolicy):
    """The tokens most relevant to the instruction, and the mean of all others as one more token.

    q [N] = relevance of a token to the instruction, s = softmax of q over the tokens. The k - 1 tokens with the largest
    s stay as they are, in raster order. One token is the mean of the tower features F [N, P, d_v] of all others, patch
    by patch, then projected; it stands at the last place that is not kept.

    Attributes:
        relevance: maps `VisualTokens` to q [G, N]. As published `ClipRelevance(similarity="dot")`, whose sign is minus:
            the dot product in CLIP's joint space, for a CLIP tower. The default reads the decoder's embeddings of the
            instruction and needs no further model.
        strict_paper: the paper's adaptive count of tokens, `adaptive_count` and the mean, whatever number the budget
            names (one that keeps every token still does).

    Source: Song et al., "Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs",
    COLING 2025, arXiv 2409.10994.

    Differs from the released code: a budget of exactly k unless `strict_paper`; every image has its own count; the code
    puts the mean after the last kept token, here it takes a place in raster order.
    """

    parts: ClassVar = ("relevance",)
    relevance: Callable[[VisualTokens], Tensor] = field(default_factory=TextRelevance)
    cost: ClassVar = "the relevance, a sort of N and one sum of N d_v; N d_v floats"
    when: ClassVar = "The question names what to look at, and the tower is a CLIP; one token keeps the background."
    limits: ClassVar = "No diversity: near twins of the relevant patch stay; as good as its relevance, no better."

    def adaptive_count(self, tokens: VisualTokens) -> Tensor:
        """[G] long: tokens whose s exceeds Q3 + 1.5 (Q3 - Q1), what the paper would keep besides the mean."""
        return count_outliers(self.relevance(tokens).float().softmax(-1))

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        q, n = self.relevance(tokens).float(), tokens.shape[1]
        s = q.softmax(-1)
        if self.strict_paper:
            k = 1 + int(n * (int(count_outliers(s)) / n))
        kept = top_k(q, k - 1)  # the order of s, without what softmax rounds to the same number
        return self.summarised(tokens, kept, torch.full_like(q, 1.0 / (n - k + 1)), s)
