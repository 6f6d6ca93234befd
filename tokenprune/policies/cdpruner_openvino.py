"""CDPruner as OpenVINO GenAI ships it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..budget import Rounding
from ..errors import InvalidArgumentError
from ..ops import greedy_dpp
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import FeaturePolicy

EPS = 1e-6


def _scale(x: Tensor) -> Tensor:
    """What normalises x [..., D]: [...]"""
    return (x.float().square().sum(-1) + EPS).rsqrt()


@register("cdpruner-openvino")
@dataclass(kw_only=True)
class CDPrunerOpenVINO(FeaturePolicy):
    """Affine kernel instead of a product, one mean text vector, and by default two halves pruned on their own.

    v / sqrt(|v|^2 + 1e-6) normalises; q_i = cos(X_i, mean of the decoder's text embeddings);
    r_i = (q_i - min q) / (max q - min q + 1e-6) per unit or half; L_ij = (1 - w) S_ij + w r_i S_ij r_j; greedy MAP with
    sqrt(d2 + 1e-6). With `split`, tokens 0..N//2-1 keep k//2 and the rest keep the remainder, independently.

    Attributes:
        relevance_weight: w in [0, 1].
        split: prune the two halves of the unit as independent problems.

    Source: openvinotoolkit/openvino.genai, visual token pruning, the graph path (its CPU fallback uses another
    kernel). Differs: exactly k tokens for odd k and unequal halves, where its GPU kernel returns slightly fewer, and a
    single token comes from the whole unit.
    """

    relevance_weight: float = 0.5
    split: bool = True
    rounding: Rounding = "half_up"
    cost: ClassVar = "half of cdpruner's with split; N (k + D) floats"
    when: ClassVar = "To get what OpenVINO GenAI serves, or a milder weight of relevance than cdpruner's product."
    limits: ClassVar = "Relevance also sees the chat template's words; the halves cannot trade tokens with `split`."

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.relevance_weight, (int, float)) or not 0.0 <= self.relevance_weight <= 1.0:
            raise InvalidArgumentError(
                f"relevance_weight={self.relevance_weight!r} is not in [0, 1]: give such a float."
            )

    @property
    def needs(self) -> frozenset:
        return super().needs | {"text"}

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        x = self.compared(tokens)
        weight = tokens.text_mask[..., None].float()
        text = (tokens.text.float() * weight).sum(1) / weight.sum(1).clamp_min(1.0)
        q = torch.einsum("gnd,gd->gn", tokens.features.float(), text * _scale(text)[:, None]) * _scale(tokens.features)
        half = x.shape[1] // 2
        if not self.split or not 0 < k // 2 <= half:
            order, r = self._greedy(x, q, k)
            return Selection.subset(order, scores=r)
        first, r_first = self._greedy(x[:, :half], q[:, :half], k // 2)
        second, r_second = self._greedy(x[:, half:], q[:, half:], k - k // 2)
        return Selection.subset(torch.cat([first, second + half], 1), scores=torch.cat([r_first, r_second], 1))

    def _greedy(self, x: Tensor, q: Tensor, k: int) -> tuple[Tensor, Tensor]:
        low, high = q.amin(-1, keepdim=True), q.amax(-1, keepdim=True)
        r = (q - low) / (high - low + EPS)
        return greedy_dpp(x, k, quality=r, weight=self.relevance_weight, scale=_scale(x), eps=EPS), r
