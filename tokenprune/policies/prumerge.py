"""PruMerge and PruMerge+."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, PolicyError
from ..ops import add_weighted, count_outliers, even_points, nearest_neighbours, remaining, sent, top_k, unit_norm
from ..registry import register
from ..tokens import Selection, Tap, VisualTokens
from .merging import SummaryPolicy

ATTENTION = Tap("attention", heads="joined", layer=-1)
KEYS = Tap("keys", heads="joined", layer=-1)


@register("prumerge")
@dataclass(kw_only=True)
class PruMerge(SummaryPolicy):
    """The most attended tokens, each with its neighbours added, and one sum of all others. Looks at no text.

    a [N]: attention probability of a token for the class token in the tower's last layer, the heads joined to one (sum
    over the patches that a merger makes one token of; the attention received, where there is no class token). The k - 1
    tokens with the largest a are centres. A centre becomes F_c + sum of a_i F_i over the tokens whose keys are nearest
    to its own by cosine, other centres included; the summary is the sum of a_i F_i over all tokens that are no centre.
    F [N, P, d_v] are tower features, merged patch by patch and then projected. The summary stands at the last place
    that is no centre. With k = 1 it is all there is: a sum of everything.

    Attributes:
        neighbours: tokens added to each centre.
        strict_paper: the paper's adaptive count of tokens, see `adaptive_count`, whatever number the budget names (one
            that keeps every token still does).

    Source: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
    arXiv 2403.15388. As in the released code, weights are attention probabilities as they are, about 1 / N, where the
    paper describes a weighted mean: the merge is a small correction.

    Differs from the released code: a budget of exactly k unless `strict_paper`, every image counted for itself, and
    raster order (the code puts centres by descending attention and the summary last). Its weights were tuned with LoRA.
    """

    neighbours: int = 32
    cost: ClassVar = "k N d key products, k sorts of N, k neighbours d_v additions; N (d_v + d) floats"
    when: ClassVar = "Towers with a class token and uneven attention; `adaptive_count` suggests a budget per image."
    limits: ClassVar = "Blind to the question; published figures of untuned models are below `visionzip`'s."

    def __post_init__(self):
        super().__post_init__()
        if type(self.neighbours) is not int or self.neighbours < 0:
            raise InvalidArgumentError(f"neighbours={self.neighbours!r} is not a count: give an int, 0 for none.")

    @property
    def needs(self) -> frozenset:
        return super().needs | {ATTENTION, KEYS}

    def adaptive_count(self, tokens: VisualTokens) -> Tensor:
        """[G] long: tokens whose attention exceeds Q3 + 1.5 (Q3 - Q1), the centres that the paper would take."""
        return count_outliers(self._attention(tokens))

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        a, n = self._attention(tokens), tokens.shape[1]
        centres = self._released(a) if self.strict_paper else self._centres(a, k - 1)
        keys = unit_norm(tokens.tower[KEYS].float().mean(2))
        others = nearest_neighbours(keys, centres, min(self.neighbours, n - 1))
        merged = add_weighted(tokens.encoder.flatten(2), a, centres, others)
        return self.summarised(tokens, centres, a, a, merged)

    def _attention(self, tokens: VisualTokens) -> Tensor:
        return tokens.tower[ATTENTION].float().sum((2, 3))

    def _centres(self, a: Tensor, count: int) -> Tensor:
        """[G, count], in the order they were chosen."""
        return top_k(a, count)

    def _released(self, a: Tensor) -> Tensor:
        n, outliers = a.shape[1], int(count_outliers(a))
        return top_k(a, int(n * (outliers / n)))


@register("prumerge_plus")
@dataclass(kw_only=True)
class PruMergePlus(PruMerge):
    """`prumerge` with three evenly spread tokens added to every centre chosen by attention.

    Of the k - 1 centres round((k - 1) / 4), at least one, are those with the largest attention; the others are spread
    evenly, in raster order, over the tokens that are left. All of them get their neighbours added.

    Attributes: as in `prumerge`. With `strict_paper`, for a share rho of outliers, every position 0, t, 2t, ... below
    N - 1 joins them, t = trunc(trunc(1 / rho) / 3).

    Source and differences: as in `prumerge`; the proportion 1 : 3 is that of the released rule.
    """

    when: ClassVar = "As `prumerge`, with the whole picture covered."

    def _centres(self, a: Tensor, count: int) -> Tensor:
        attended = top_k(a, min(count, max(1, round(count / 4))))
        rest = remaining(attended, a.shape[1])
        spread = torch.tensor(even_points(rest.shape[1], count - attended.shape[1]), dtype=torch.long)
        return torch.cat([attended, rest[:, sent(spread, a.device)]], 1)

    def _released(self, a: Tensor) -> Tensor:
        attended, n = super()._released(a), a.shape[1]
        if attended.shape[1] == 0:
            raise PolicyError(
                f"strict_paper=True found no token among N={n} that stands out, and the released grid rule divides by "
                "their share: set strict_paper=False and give keep a count."
            )
        # fewer than a quarter can lie above the fence, so the stride is at least 1
        stride = int(1 / (attended.shape[1] / n)) // 3
        grid = torch.arange(0, n - 1, stride, device=a.device)
        both = torch.cat([attended, grid[torch.isin(grid, attended[0], invert=True)][None]], 1)
        return both[:, : n - 1]  # a stride of 1 may reach them all, and the summary is of at least one
