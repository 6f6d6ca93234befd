"""VisPruner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import InvalidArgumentError
from ..ops import gather_rows, thin_by_matching, top_k, unit_norm
from ..registry import register
from ..tokens import Selection, VisualTokens
from .attention import AttentionPolicy
from .base import FeaturePolicy, Source


@register("vispruner")
@dataclass(kw_only=True)
class VisPruner(AttentionPolicy, FeaturePolicy):
    """Part of the budget for the most attended tokens, the rest for those without a near twin. Looks at no text.

    Tokens are sorted by attention a [N], descending. The first I = trunc(k r) stay. The others, R, are thinned to k - I
    by rounds: R is split by parity of its current order into A (ceil(|R| / 2) tokens) and B; s = largest cosine of each
    token of A with any of B, by tower features H [N, P d_v]; A is sorted by s, descending, and its first
    q = min(step, |R| - (k - I), |A|) are dropped; R = (rest of A as sorted, B).

    Attributes:
        important_ratio: r in [0, 1]. The paper's examples use 0.5 for 128 of 576 tokens and 0.75 for 64; 1 is
            `fastervlm`.
        step: tokens dropped a round, 8 as released. The rounds are sequential, (N - k) / step of them: thousands at
            N = 16384, where a larger step saves time and compares a little less.
        attention: maps `VisualTokens` to a [G, N].
        features: the tower's features, or "projector": the projected tokens.

    Source: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
    ICCV 2025, arXiv 2412.01818.

    Differs from the released code: an odd number of tokens left is split with the larger half in A, and no round drops
    more than A holds (the code stops with an error at both). The order within a round hangs on the last digit of nearly
    equal cosines, so another precision keeps other tokens (the code in float32 and in float64 shares 66 to 89 %): here
    all is float32.
    """

    important_ratio: float = 0.5
    step: int = 8
    features: Source = "pre_merger"
    cost: ClassVar = (
        "(N - k) / step sequential rounds of M^2 D / 4 multiply-adds, M tokens left: 60 rounds at N = 576, 2000 at "
        "16384; N D floats + 1 MiB blocks"
    )
    when: ClassVar = "Attention with its duplicates removed: better than `fastervlm` at small budgets, at more time."
    limits: ClassVar = "Blind to the question; rounding changes which tokens stay; slow on long videos with step=8."

    def __post_init__(self):
        super().__post_init__()
        ratio = self.important_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0.0 <= ratio <= 1.0:
            raise InvalidArgumentError(f"important_ratio={ratio!r} is not in [0, 1]: give such a float.")
        if type(self.step) is not int or self.step < 1:
            raise InvalidArgumentError(f"step={self.step!r} is not a positive int: give how many tokens a round drops.")

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        a = self.attention(tokens).float()
        ranked = top_k(a, a.shape[1])
        important = int(k * self.important_ratio)
        rest = ranked[:, important:]
        x = unit_norm(gather_rows(self.compared(tokens), rest))
        diverse = rest.gather(1, thin_by_matching(x, k - important, step=self.step))
        return Selection.subset(torch.cat([ranked[:, :important], diverse], 1), scores=a)
