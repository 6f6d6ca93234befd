"""FasterVLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ops import top_k
from ..registry import register
from ..tokens import Selection, VisualTokens
from .attention import AttentionPolicy


@register("fastervlm")
@dataclass(kw_only=True)
class FasterVLM(AttentionPolicy):
    """The k tokens that the vision tower's class token attends to most. Looks at no text.

    a_i = mean over heads of the attention probability of patch i for the class token, in the layer whose output the
    projector reads; the k largest a stay, in raster order. Where the tower has no class token: the attention that a
    patch receives, mean over all queries, and the mean over the patches that a merger makes one token of.

    Attributes:
        attention: maps `VisualTokens` to a [G, N].

    Source: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference
    Faster", arXiv 2412.01818, first version.

    Differs from the released code: no newline tokens are added on top of the budget for tiled images.
    """

    cost: ClassVar = "one row of attention in the tower and a sort of N; 3 N floats"
    when: ClassVar = "The simplest strong baseline where the tower has a class token, and the cheapest."
    limits: ClassVar = (
        "Keeps many similar tokens of one salient region and is blind to the question; attention sinks of the tower "
        "take part of the budget."
    )

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        a = self.attention(tokens).float()
        return Selection.subset(top_k(a, k), scores=a)
