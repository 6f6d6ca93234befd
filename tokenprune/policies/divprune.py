"""DivPrune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ops import greedy_max_min
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import FeaturePolicy


@register("divprune")
@dataclass(kw_only=True)
class DivPrune(FeaturePolicy):
    """Max-min diversity over projected tokens Z [N, D]. Looks at no text.

    D_ij = 1 - cos(Z_i, Z_j). The first pick is the token farthest from its nearest neighbour; every further pick is
    argmax_i min_{j chosen} D_ij. The paper's ratio is 0.098 (56 of 576), counted by round-half-even.

    Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
    arXiv 2503.02175.

    Differs from the released code: float32 throughout (the code runs in the model's dtype, where fp16 changes about
    one pick in five), and chosen tokens are masked (the code may answer the same index several times when duplicates
    exhaust the diversity; here the lowest remaining index follows).
    """

    cost: ClassVar = "N^2 D + N k D multiply-adds, k sequential steps; 64 MiB blocks + N D floats"
    when: ClassVar = (
        "Small budgets and scenes of many different things; one selection serves all questions about a picture."
    )
    limits: ClassVar = "Blind to the question: odd-looking background is kept as readily as the thing asked for."

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        return Selection.subset(greedy_max_min(self.compared(tokens), k))
